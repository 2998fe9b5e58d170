"""What the models' methods take: keyword arguments, types and shapes are checked before anything is computed.

Shape suffixes: B images or texts, T tokens.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.generic import TransformersKwargs

from .arguments_hf_clip import refuse_unknown_arguments

# What transformers passes to the forward method of any model, or takes on its way there. `num_items_in_batch` is
# Trainer's.
FROM_TRANSFORMERS = frozenset(TransformersKwargs.__annotations__) | {
    "return_dict",
    "use_cache",
    "debug_io",
    "debug_io_dir",
    "prune_layers",
}
# Arguments of other models, which wrappers for models of any kind (PEFT's) pass as None.
ABSENT_AS_NONE = frozenset({"inputs_embeds", "labels", "token_type_ids", "head_mask", "past_key_values", "task_ids"})
# The words that a text decoder on an image tower begins with: `generate` passes them to the tower as well.
OF_THE_DECODER = frozenset({"input_ids", "attention_mask"})
ADVICE = {
    "labels": "HFCLIPForImageClassification takes them. The loss of a dual encoder is that of pairs: pass "
    "`return_loss=True`.",
    "inputs_embeds": "texts are embedded from `input_ids`.",
    "normalize": "`encode_image` and `encode_text` have it.",
}


def require_on_device(condition: torch.Tensor, message: str) -> None:
    """Raises ValueError unless `condition` (a boolean scalar) holds.

    Reading the value of a tensor would break a traced graph and stall an accelerator, so there it is asserted on
    the device instead.
    """
    if condition.device.type == "meta":
        return
    if condition.device.type != "cpu" or torch.compiler.is_compiling():
        torch.ops.aten._assert_async.msg(condition, message)
    elif not condition:
        raise ValueError(message)


def backbone_arguments(tower: torch.nn.Module) -> frozenset[str]:
    """Arguments that a tower hands to the model of transformers within it; none for the other towers."""
    return getattr(tower, "backbone_arguments", frozenset())


def taken_by(tower: torch.nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments of a dual encoder's method that go to one of its towers."""
    own = backbone_arguments(tower)
    return {name: value for name, value in arguments.items() if name in FROM_TRANSFORMERS or name in own}


def known_arguments(
    model: PreTrainedModel, arguments: dict[str, Any], method: str = "forward", also: Iterable[str] = ()
) -> dict[str, Any]:
    """The keyword arguments that a method did not name, without those of other models that are None.

    The forward method of an image tower drops a text decoder's.

    Args:
        also: arguments that the method takes beside those that it names.

    Raises:
        TypeError: for arguments that neither the method has nor transformers passes to models. The error names the
            nearest.
    """
    also = frozenset(also)
    if method == "forward" and model.main_input_name == "pixel_values":
        arguments = {name: value for name, value in arguments.items() if name not in OF_THE_DECODER}
    known = {name: value for name, value in arguments.items() if name in FROM_TRANSFORMERS or name in also}
    unknown = [
        name
        for name, value in arguments.items()
        if name not in known and not (value is None and name in ABSENT_AS_NONE)
    ]
    if unknown:
        named = set(inspect.signature(getattr(type(model), method)).parameters) - {"self", "kwargs"}
        refuse_unknown_arguments(f"{type(model).__name__}.{method}", unknown, named | also, ADVICE)
    return known


# What makes each input, by the processor's argument, and the method of the model that takes it.
_MADE_OF = {"input_ids": ("text", "encode_text"), "pixel_values": ("images", "encode_image")}


def no_tensor(name: str, value: Any) -> TypeError:
    """For something else in the place of `input_ids` or `pixel_values`; the right call is in it."""
    argument, method = _MADE_OF[name]
    kind = f"`{name}` is of type {type(value).__name__}"
    if isinstance(value, Mapping):
        more = ", ".join(
            f"{key}=inputs[{key!r}]" for key in value if key in ("spatial_shapes", "pixel_attention_mask")
        )
        taken = f"inputs[{name!r}]{', ' if more else ''}{more}"
        return TypeError(f"{kind}, as a processor returns it: call model.{method}({taken}).")
    shown = f"[{value!r:.60}]" if isinstance(value, str) else argument
    return TypeError(
        f"{kind}, and models take tensors: call model.{method}(**processor({argument}={shown}, return_tensors='pt'))."
    )


def check_pixels(pixel_values: torch.Tensor, channels: int | None, dtype: torch.dtype) -> torch.Tensor:
    """The pixels in the type of the weights.

    Args:
        channels: channels of an image; None where the tower does not say.

    Raises:
        TypeError: for what is no tensor.
        ValueError: for another shape than (B, channels, rows, columns), for no image, and for whole numbers: models
            take normalized pixels.
    """
    if not isinstance(pixel_values, torch.Tensor):
        raise no_tensor("pixel_values", pixel_values)
    shape = tuple(pixel_values.shape)
    if pixel_values.ndim != 4 or 0 in shape or channels is not None and shape[1] != channels:
        raise ValueError(
            f"`pixel_values` has shape {shape}: pass (images, {channels or 'channels'}, rows, columns), with one "
            "image or more, as the processor makes it with return_tensors='pt'."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"`pixel_values` of {pixel_values.dtype} are raw pixels: pass what the processor makes of images, "
            "rescaled and normalized."
        )
    return pixel_values.to(dtype)


def shapes_of(spatial_shapes: torch.Tensor | Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Rows and columns of patches as numbers. A tensor on an accelerator is waited for; numbers are not.

    Raises ValueError for what is no list of pairs.
    """
    listed = spatial_shapes.tolist() if isinstance(spatial_shapes, torch.Tensor) else spatial_shapes
    try:
        return [(int(rows), int(columns)) for rows, columns in listed]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`spatial_shapes` is {listed!r:.60}: pass rows and columns of each image's patches, two whole numbers."
        ) from error


def check_patches(
    pixel_values: torch.Tensor,
    pixel_attention_mask: torch.Tensor | None,
    spatial_shapes: torch.Tensor | Sequence[tuple[int, int]] | None,
    width: int,
) -> list[tuple[int, int]]:
    """Rows and columns of patches of each image, if the three fit together.

    Args:
        width: numbers of a patch.

    Raises:
        TypeError: for pixels that are no tensor.
        ValueError: for pixels of another shape than (B, N, `width`), for no image, and for whole numbers; for shapes
            that are missing, of another shape than (B, 2), or of no patch or more than N; for a mask of another shape
            than (B, N), that leaves an image no patch, or that has any behind an image's own.
    """
    by_processor = "as the model's processor makes it with return_tensors='pt'"
    if not isinstance(pixel_values, torch.Tensor):
        raise no_tensor("pixel_values", pixel_values)
    shape = tuple(pixel_values.shape)
    if pixel_values.ndim != 3 or 0 in shape or shape[2] != width:
        raise ValueError(
            f"`pixel_values` has shape {shape}, and this model takes images in patches: pass (images, patches, "
            f"{width}), {by_processor}."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"`pixel_values` of {pixel_values.dtype} are raw pixels: pass what the processor makes of images, "
            "rescaled and normalized."
        )
    if spatial_shapes is None:
        raise ValueError(
            f"`spatial_shapes` is missing: pass rows and columns of each image's patches, {by_processor}."
        )
    if isinstance(spatial_shapes, torch.Tensor) and spatial_shapes.shape != (shape[0], 2):
        raise ValueError(
            f"`spatial_shapes` has shape {tuple(spatial_shapes.shape)}: pass ({shape[0]}, 2), rows and columns of "
            "each image's patches."
        )
    shapes = shapes_of(spatial_shapes)
    if len(shapes) != shape[0]:
        raise ValueError(
            f"`spatial_shapes` has {len(shapes)} shapes, and `pixel_values` {shape[0]} images: pass as many of both."
        )
    for rows, columns in shapes:
        if min(rows, columns) < 1 or rows * columns > shape[1]:
            raise ValueError(
                f"`spatial_shapes` has {rows} x {columns} patches where `pixel_values` has {shape[1]}: pass both "
                f"{by_processor}."
            )
    if pixel_attention_mask is not None:
        _check_patch_mask(pixel_attention_mask, shapes, shape[1])
    return shapes


def _check_patch_mask(pixel_attention_mask: torch.Tensor, shapes: list[tuple[int, int]], length: int) -> None:
    """Raises ValueError unless the mask (B, `length`) has patches of each image's rows and columns alone."""
    shape = tuple(getattr(pixel_attention_mask, "shape", ()))
    if shape != (len(shapes), length):
        raise ValueError(
            f"`pixel_attention_mask` has shape {shape}: pass {(len(shapes), length)}, a tensor of 1 for a patch and 0 "
            "for padding."
        )
    mask_BN = pixel_attention_mask.bool()
    counts_B1 = torch.tensor([[rows * columns] for rows, columns in shapes], device=mask_BN.device)
    is_behind_BN = torch.arange(length, device=mask_BN.device) >= counts_B1
    require_on_device(
        (mask_BN.any(dim=1) & ~(mask_BN & is_behind_BN).any(dim=1)).all(),
        "`pixel_attention_mask` leaves an image no patch, or has patches behind the rows and columns of an image's "
        "`spatial_shapes`: pass both as the model's processor makes them with return_tensors='pt'.",
    )


def check_texts(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
) -> None:
    """Nothing, if the three fit together.

    Raises:
        TypeError: for ids that are no tensor.
        ValueError: for ids of another shape than (B, T), for no text or no token, and for ids that are not int64 or
            int32; for a mask of another shape than (B, T) or (B, heads, T, T), and positions of another than (B, T)
            or (1, T).
    """
    if not isinstance(input_ids, torch.Tensor):
        raise no_tensor("input_ids", input_ids)
    shape = tuple(input_ids.shape)
    if input_ids.ndim != 2 or 0 in shape:
        raise ValueError(
            f"`input_ids` has shape {shape}: pass (texts, tokens), with one text and one token or more, as the "
            "processor makes it with return_tensors='pt'."
        )
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"`input_ids` are of {input_ids.dtype}: token ids are int64 or int32.")
    if isinstance(attention_mask, torch.Tensor):
        fits = attention_mask.shape == input_ids.shape
        if attention_mask.ndim == 4:
            fits = attention_mask.shape[0] in (1, shape[0]) and tuple(attention_mask.shape[2:]) == (shape[1],) * 2
        if not fits:
            raise ValueError(
                f"`attention_mask` has shape {tuple(attention_mask.shape)}: pass that of `input_ids`, {shape}."
            )
    if position_ids is not None and tuple(position_ids.shape) not in (shape, (1, shape[1]), (shape[1],)):
        raise ValueError(
            f"`position_ids` has shape {tuple(position_ids.shape)}: pass that of `input_ids`, {shape}, or one row for "
            f"all texts, {(1, shape[1])}."
        )


def embedded(embedding: torch.nn.Module, ids: torch.Tensor, name: str) -> torch.Tensor:
    """The embeddings of ids. Raises ValueError, on a CPU, for ids that the embedding does not have."""
    try:
        return embedding(ids)
    except IndexError as error:
        assert isinstance(embedding.weight, torch.Tensor)
        raise out_of_range(name, ids, len(embedding.weight)) from error


def out_of_range(name: str, ids: torch.Tensor, size: int) -> ValueError:
    return ValueError(
        f"`{name}` has values from {int(ids.min())} to {int(ids.max())}, and the model those from 0 to {size - 1}: "
        "use the model's own tokenizer, or resize its token embeddings."
    )
