"""`from_pretrained` at another resolution than the weights': positions are resampled, and never drawn at random."""

import copy
from typing import Any

from transformers import PreTrainedConfig

# Arguments by which a config is found where the weights are.
_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# Towers with a learned position for each patch.
_WITH_POSITIONS = ("vit", "resnet")


def where(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments of `from_pretrained` that say where files are."""
    return {name: arguments[name] for name in _WHERE if arguments.get(name) is not None}


def vision_config(config: Any) -> Any:
    """The config of the image tower, in that of a dual encoder or by itself; None for a text tower's."""
    if getattr(config, "base_config_key", "") == "text_config":
        return None
    return getattr(config, "vision_config", config)


def check_image_size(vision: Any, image_size: int) -> None:
    """Raises ValueError for a size that the image tower of this config cannot take. A trunk of timm says so itself."""
    if vision.tower in ("convnet", "transformers"):
        raise ValueError(f"`image_size={image_size}`: a tower of {vision.tower} keeps its {vision.image_size}.")
    if vision.tower == "timm":
        return
    if image_size < vision.stride:
        raise ValueError(f"`image_size={image_size}` is below {vision.stride}, the least that this tower takes.")
    if image_size % vision.stride and vision.tower != "naflex" and not vision.crops_remainder:
        raise ValueError(
            f"`image_size={image_size}` is not a multiple of {vision.stride}, which this tower takes: set "
            f"`image_size={image_size // vision.stride * vision.stride}`."
        )


def resolution_of_weights(
    kind: type[PreTrainedConfig], source: Any, config: Any, arguments: dict[str, Any]
) -> tuple[Any, int] | None:
    """The config by which weights of another resolution are read, and the resolution that is wanted.

    Args:
        kind: of the model's config.
        source, config, arguments: of `from_pretrained`.

    Returns:
        None where the weights have the wanted resolution, or the tower has no positions.

    Raises:
        ValueError: for a resolution that the tower cannot take, and unless `ignore_mismatched_sizes` is among the
            arguments.
    """
    changes = {name: arguments[name] for name in ("image_size", "vision_config") if name in arguments}
    # Without either, the config is that of the weights.
    if source is None or (config is None and not changes):
        return None
    own = vision_config(kind.from_pretrained(source, **where(arguments)))
    if config is None:
        config = kind.from_pretrained(source, **where(arguments), **changes)
    elif not isinstance(config, PreTrainedConfig):
        config = kind.from_pretrained(config, **where(arguments))
    wanted = vision_config(config)
    is_asked = bool(arguments.get("ignore_mismatched_sizes"))
    if wanted is None or wanted.tower != own.tower or wanted.tower not in (*_WITH_POSITIONS, *["timm"] * is_asked):
        return None
    size, patches = wanted.image_size, wanted.image_size // wanted.stride
    if size == own.image_size or wanted.stride != own.stride:
        return None
    check_image_size(wanted, size)
    if patches != own.image_size // own.stride and not is_asked:
        raise ValueError(
            f"{source} takes images of {own.image_size} x {own.image_size} pixels, and `config` those of {size} x "
            f"{size}: pass `ignore_mismatched_sizes=True`, which resamples its positions."
        )
    config = copy.deepcopy(config)
    vision_config(config).image_size = own.image_size
    return config, size


def set_image_size(model: Any, image_size: int) -> None:
    """Resamples the positions of a model with an image tower, or of the tower itself, and notes it in its config."""
    getattr(model, "vision_model", model).set_image_size(image_size)
    # Those of models with one tower are copies of the tower's.
    vision_config(model.config).image_size = image_size
