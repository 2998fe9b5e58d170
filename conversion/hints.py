"""What a caller says of a source that says by itself what it is: accepted where it agrees, else refused."""

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hf_clip.model.configuration_hf_clip import HFCLIPConfig

from .errors import ConversionError
from .infer_config import has_two_meanings

# What no weights bear witness to: how they were drawn, what training drops.
_OF_TRAINING = {"initializer_range", "initializer_factor", "attention_dropout", "patch_dropout"}
# Of the image towers that are no vision transformer, all that tells one from another.
_OF_OTHER_TOWERS = {
    "tower", "hidden_size", "image_size", "stem_width", "stage_depths", "stage_widths", "norm_group_size", "pool_grid",
    "projection_type", "projection_bias", "backbone", "backbone_kwargs",
}  # fmt: skip
FORMATS = ("hf_clip", "transformers", "open_clip", "openai", "long_clip")


def refuse_contradictions(
    path: Path,
    format_name: str,
    found: HFCLIPConfig,
    *,
    architecture: str | None,
    hidden_act: str | None,
    config: HFCLIPConfig | None,
    source_format: str | None,
) -> None:
    """Nothing, where all that is given agrees with the source.

    Args:
        path: of the source.
        format_name, found: its format and config.
        architecture, hidden_act, config, source_format: arguments of `load`.

    Raises:
        ConversionError: with both values.
    """
    if source_format is not None and source_format != format_name:
        raise _contradiction(path, f"`source_format={source_format}`", f"is of the format {format_name}")
    if hidden_act is not None and (others := _activations(found) - {hidden_act}):
        raise _contradiction(path, f"`hidden_act={hidden_act}`", f"has {' and '.join(sorted(others))}")
    for name, value, fix in _differences(config, found):
        raise _contradiction(path, f"`config` ({name}={value!r:.60})", f"has {attrgetter(name)(found)!r:.60}", fix)
    if architecture is None:
        return
    meanings = [architecture, f"open_clip/{architecture}"] if has_two_meanings(architecture) else [architecture]
    problems = [next(_differences(HFCLIPConfig.from_architecture(one), found), None) for one in meanings]
    if all(problems):
        assert problems[0] is not None
        name, value, _ = problems[0]
        theirs = f"has {attrgetter(name)(found)!r:.60}"
        raise _contradiction(path, f"`architecture={architecture}` ({name}={value!r:.60})", theirs)


def _contradiction(path: Path, said: str, there: str, fix: str = "drop it") -> ConversionError:
    return ConversionError(f"{said} contradicts {path}, which says by itself what model it is and {there}: {fix}.")


def _activations(config: HFCLIPConfig) -> set[str]:
    """Those of the towers that have one of the config's: a ResNet has ReLU, others' models their own."""
    towers = [config.vision_config] if config.vision_config.tower in ("vit", "naflex") else []
    towers += [config.text_config] if config.text_config.tower in ("clip", "class_token") else []
    return {tower.hidden_act for tower in towers}


def _differences(said: HFCLIPConfig | None, found: HFCLIPConfig) -> Iterator[tuple[str, Any, str]]:
    """Dotted name, the value that was said, and a fix, of each field in which two shapes differ."""
    if said is None:
        return
    for tower in ("vision_config", "text_config"):
        one, other = getattr(said, tower), getattr(found, tower)
        for name in sorted(_fields(one) | _fields(other)):
            if (value := getattr(one, name)) != getattr(other, name):
                is_size = name == "image_size"
                yield f"{tower}.{name}", value, f"pass `image_size={value}` instead" if is_size else "drop it"
    if said.projection_dim != found.projection_dim:
        yield "projection_dim", said.projection_dim, "drop it"
    if (said.logit_bias_init_value is None) != (found.logit_bias_init_value is None):
        yield "logit_bias_init_value", said.logit_bias_init_value, "drop it"


def _fields(tower: Any) -> set[str]:
    """The fields of a tower's config that make its shape."""
    if tower.base_config_key == "vision_config" and tower.tower != "vit":
        return _OF_OTHER_TOWERS
    inherited = set(PreTrainedConfig.__dataclass_fields__)
    own = {name for name in type(tower).__dataclass_fields__ if name not in inherited and name[0] != "_"}
    # Where a text is pooled goes by its ids, which tokenizers have a say in; models of transformers have their own.
    return {n for n in own - _OF_TRAINING if not n.endswith("_token_id")} - {"pooling", "tower_config"}
