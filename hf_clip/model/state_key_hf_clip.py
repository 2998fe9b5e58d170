"""What a tower's embeddings depend on, as a key: embeddings that are kept belong to one state of model and processor.

    key = state_key(model, processor, "text")                   # reads every weight: for files
    probe = probe_embeds(model, processor, "text")              # kept beside the key
    check_probe(probe, model, processor, "text", "labels.st")   # when the file is read again

`LiveState` is the same question between two calls of one program, answered without reading a weight.

The tower is found as a module, through PEFT, DistributedDataParallel, torch.compile and any wrapper that passes
`encode_text` and `encode_image` on, and never by the names of weights. What is not known to belong to the other tower
counts: a key may change for no reason, but not stay for none.
"""

# Shapes: P probes, D width of the shared space.

import hashlib
import json
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from transformers import PreTrainedModel

from .embedding_hf_clip import dual_encoder, encode_texts, evaluation_mode, image_inputs, unit_image_embeds
from .tokenization_hf_clip import TEXT_OPTIONS, guard_of
from .typing_hf_clip import DualEncoder, Processor

Tower = Literal["text", "image"]

# Children of a dual encoder that its other tower's embeddings do not depend on.
_OTHERS: dict[str, tuple[str, ...]] = {
    "text": ("vision_model", "visual_projection", "logit_scale", "logit_bias"),
    "image": ("text_model", "text_projection", "logit_scale", "logit_bias"),
}
# Between the names of a module and of what is within, with no meaning of their own.
_WRAPPINGS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Fields of configs, processors and tokenizers that embeddings do not depend on, and of modules.
_IGNORED_FIELDS = {
    "architectures", "attention_dropout", "auto_map", "backend", "chat_control_tokens", "chat_template",
    "clean_up_tokenization_spaces", "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
    "custom_pipelines", "deprecation_warnings", "dropout", "dtype", "files_loaded", "id2label", "image_processor_type",
    "init_inputs", "init_kwargs", "initializer_factor", "initializer_range", "label2id", "logit_bias_init_value",
    "logit_scale_init_value", "model_input_names", "name_or_path", "output_attentions", "output_hidden_states",
    "patch_dropout", "problem_type", "processor_class", "response_template", "return_dict", "tokenizer_class",
    "torch_dtype", "transformers_version", "verbose", "zero_shot_templates",
}  # fmt: skip
_IGNORED_ATTRIBUTES = {
    *vars(torch.nn.Module()),
    "_gradient_checkpointing_func",
    "_is_hf_initialized",
    "gradient_checkpointing",
    "is_recomputing",
}

_SCALARS = {bool, float, int, str, torch.dtype, type(None)}
_CONTAINERS = {dict, list, set, tuple}

# In them: case, doubled spaces, an entity, accents, punctuation, a number; and more than any context holds.
PROBE_TEXTS = ("Two  Cats &amp; 3 naïve dogs, on “grass”!", "a photo of a cat and a dog " * 40)
# By how much embeddings of one state may differ: other kernels, devices, numbers of threads.
_TOLERANCE = {torch.float64: 4e-3, torch.float32: 4e-3}
_TOLERANCE_OF_OTHERS = 4e-2


def state_key(model: DualEncoder, processor: Processor | None, *towers: Tower) -> str:
    """A hash of all that embeddings depend on: one key for one state.

    It reads every weight once (a quarter of a second for ViT-B/32's text tower): it is for files, not for calls.

    Args:
        model: a dual encoder, wrapped or not.
        processor: its processor; None where embeddings belong to inputs that are made elsewhere.
        towers: "text", "image" or both.

    Raises:
        ValueError: if no weight is found, or weights are not in memory (offloaded, on the meta device).
    """
    parts = {tower: state_parts(model, processor, tower) for tower in towers}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def state_parts(model: DualEncoder, processor: Processor | None, tower: Tower) -> dict[str, str]:
    """The hashes that `state_key` is made of, by what they are of: so that an error can say what differs."""
    encoder = _encoder(model, tower)
    layers = [(name, type(module).__qualname__, _attributes(module)) for name, module in _modules(encoder, tower)]
    return {
        "weights": _hash_of_weights(encoder, tower),
        "layers or adapters": _hash(layers),
        "configuration": _hash(_config_fields(encoder, tower)),
        "processor": _hash(None if processor is None else _processor_fields(processor, tower)),
    }


def probe_embeds(model: DualEncoder, processor: Processor, tower: Tower) -> torch.Tensor:
    """(P, D) float32 unit embeddings on the CPU of fixed texts, or of a fixed image."""
    model = dual_encoder(model)
    with evaluation_mode(model):
        if tower == "text":
            embeddings_PD = encode_texts(model, processor, PROBE_TEXTS)
        else:
            embeddings_PD = unit_image_embeds(model, image_inputs(processor, [_probe_image()]))
    return embeddings_PD.cpu().clone()


def check_probe(kept: torch.Tensor, model: DualEncoder, processor: Processor, tower: Tower, file: Any) -> None:
    """Raises ValueError if the probe's embeddings are not those that were kept in a file: no key sees everything."""
    found_PD = probe_embeds(model, processor, tower)
    distance = float("inf")
    if found_PD.shape == kept.shape:
        distance = (found_PD - kept.to(found_PD)).norm(dim=-1).max().item()
    # Not `>`: NaN is no agreement.
    if not distance <= _TOLERANCE.get(dual_encoder(model).dtype, _TOLERANCE_OF_OTHERS):
        raise ValueError(
            f"{file} belongs to another state of the model: its embedding of a probe {tower} is {distance:.2g} away "
            "from the one that was kept, though weights and settings look the same (a hook, or other code). "
            "Make the file again."
        )


class LiveState:
    """A state of a tower within one program: told apart by identity, position and version of every tensor.

    Two that are equal give the same embeddings. Made in about two milliseconds for ViT-B/32. A write that torch does
    not count (`parameter.data.add_(...)`) goes unnoticed.
    """

    def __init__(self, model: DualEncoder, processor: Processor | None, tower: Tower):
        encoder = _encoder(model, tower)
        parts = [processor, *_parts_of_processor(processor)]
        tensors: list[torch.Tensor] = []
        kept: list[Any] = [encoder, *parts]
        values: list[Any] = [torch.is_autocast_enabled(dual_encoder(model).device.type)]
        left = [encoder]
        while left:
            module = left.pop()
            held = vars(module)
            skipped = _OTHERS[tower] if module is encoder else ()
            left += [child for name, child in held["_modules"].items() if child is not None and name not in skipped]
            for name, tensor in (*held["_parameters"].items(), *held["_buffers"].items()):
                if tensor is not None and name not in skipped:
                    tensors.append(tensor)
            kept += (type(module), *held["_forward_hooks"].values(), *held["_forward_pre_hooks"].values())
            # A method that somebody put over the class's, such as `forward`.
            kept += [value for value in held.values() if isinstance(value, FunctionType | MethodType | partial)]
            if _has_settings(module):
                values.append(_live_attributes(held))
                kept += [value for value in held.values() if isinstance(value, torch.ScriptObject)]
        parts.append(_config_of(encoder, tower))
        values += [_live_attributes(part.__dict__) for part in parts if hasattr(part, "__dict__")]
        values.append(_text_options(processor))
        values.append(_backend_of(processor))
        kept += [*_global_forward_hooks.values(), *_global_forward_pre_hooks.values()]
        values += map(_version, tensors)
        self._values, self._kept = values, kept
        # Not kept alive, and never mistaken for another tensor that took the id of one that is gone.
        self._tensors = [weakref.ref(tensor) for tensor in tensors]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LiveState) or len(self._tensors) != len(other._tensors):
            return False
        if len(self._kept) != len(other._kept) or self._values != other._values:
            return False
        kept = zip(self._kept, other._kept, strict=True)
        tensors = zip(self._tensors, other._tensors, strict=True)
        return all(one is two for one, two in kept) and all(one() is two() is not None for one, two in tensors)

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def _backend_of(processor: Processor | None) -> list[str]:
    """What can be changed behind a tokenizer, and is no attribute of it: added tokens, and how texts are prepared."""
    tokenizer = getattr(processor, "tokenizer", None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    names = ("normalizer", "pre_tokenizer", "post_processor")
    return [
        repr(getattr(tokenizer, "added_tokens_decoder", None)),
        *(repr(getattr(backend, name, None)) for name in names),
    ]


def _live_attributes(held: Mapping[str, Any]) -> list:
    """What `_attributes` sees, told apart in a fraction of the time."""
    return [
        value if type(value) in _SCALARS else repr(value)
        for name, value in held.items()
        if name not in _IGNORED_ATTRIBUTES
        and (type(value) in _SCALARS or type(value) in _CONTAINERS and _is_plain(value))
    ]


def _encoder(model: DualEncoder, tower: Tower) -> torch.nn.Module:
    """The module that really encodes: the one whose method is called, behind whatever passes it on."""
    method = getattr(dual_encoder(model), f"encode_{tower}")
    owner = getattr(method, "__self__", None)
    if isinstance(owner, torch.nn.Module):
        return owner
    # A method that was put in its place: everything counts.
    return model  # pyright: ignore[reportReturnType]


def _modules(encoder: torch.nn.Module, tower: Tower, name: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """The encoder without its other tower, by names that wrappers leave as they were."""
    if type(encoder).__name__ != "OptimizedModule":
        yield name, encoder
    for child, module in vars(encoder)["_modules"].items():
        if module is not None and (name or child not in _OTHERS[tower]):
            inner = name if child in _WRAPPINGS else f"{name}.{child}"
            yield from _modules(module, tower, inner)


# Evaluations run in inference mode, where tensors that hold others, such as torchao's, cannot be detached.
@torch.inference_mode(False)
def _hash_of_weights(encoder: torch.nn.Module, tower: Tower) -> str:
    digest, found = hashlib.sha256(), 0
    for name, module in _modules(encoder, tower):
        # A layer's own state, without its children's: packed weights and scales of quantized layers are no parameters.
        state: dict[str, Any] = {}
        module._save_to_state_dict(state, "", False)
        for key, value in sorted({**vars(module)["_buffers"], **state}.items()):
            if value is not None and (name or key not in _OTHERS[tower]):
                digest.update(f"{name}.{key}=".encode())
                found += _update(digest, value, f"{name}.{key}".strip("."))
    if not found:
        raise ValueError(f"{type(encoder).__name__} has no weights that its embeddings of {tower}s could depend on.")
    return digest.hexdigest()


def _update(digest, value: Any, name: str) -> int:
    """Adds a value of a state dict to the hash; returns how many tensors it held."""
    if not isinstance(value, torch.Tensor):
        if isinstance(value, list | tuple):
            return sum(_update(digest, item, name) for item in value)
        if isinstance(value, Mapping):
            return sum(_update(digest, item, f"{name}.{key}") for key, item in sorted(value.items()))
        digest.update(f"{value!r};".encode())
        return 0
    digest.update(f"{value.dtype} {tuple(value.shape)};".encode())
    if value.is_meta:
        raise ValueError(
            f"the weight {name} is not in memory (device 'meta', as offloading leaves it): load the model on one "
            "device."
        )
    value = value.detach()
    if value.is_quantized:
        scales = (
            (value.q_scale(), value.q_zero_point())
            if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric)
            else (value.q_per_channel_scales().tolist(), value.q_per_channel_zero_points().tolist())
        )
        digest.update(f"{scales};".encode())
        value = value.int_repr()
    elif hasattr(value, "__tensor_flatten__"):
        # Subclasses that hold other tensors, such as torchao's.
        inner, context = value.__tensor_flatten__()
        digest.update(f"{type(value).__name__} {context};".encode())
        return sum(_update(digest, getattr(value, key), f"{name}.{key}") for key in inner)
    elif value.layout != torch.strided:
        value = value.to_dense()
    digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return 1


def _attributes(module: torch.nn.Module) -> tuple:
    """Numbers and words that a module holds: an adapter's scale, whether it is on, a norm's epsilon."""
    if not _has_settings(module):
        return ()
    found = ((name, value) for name, value in vars(module).items() if name not in _IGNORED_ATTRIBUTES)
    return tuple((name, _plain(value)) for name, value in found if _is_plain(value))


def _has_settings(module: torch.nn.Module) -> bool:
    """Whether its attributes count: those of whole models are counters, names of folders, and the config's."""
    return not (isinstance(module, PreTrainedModel) or hasattr(type(module), "encode_text"))


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, str | int | float | torch.dtype)


def _plain(value: Any) -> Any:
    """The value as one that can be compared and written down, whatever its order."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), _plain(item)) for key, item in value.items()))
    if isinstance(value, set | frozenset):
        return tuple(sorted(map(str, value)))
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if value is None or isinstance(value, str | bool):
        return repr(value)
    # 1 and 1.0 are one setting, and a file gives back either.
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _config_of(encoder: torch.nn.Module, tower: Tower) -> Any:
    """The tower's config; the encoder's where it has none for each tower, None where it has none at all."""
    config = getattr(encoder, "config", None)
    part = getattr(config, "text_config" if tower == "text" else "vision_config", None)
    return config if part is None else part


def _config_fields(encoder: torch.nn.Module, tower: Tower) -> dict[str, Any]:
    config = _config_of(encoder, tower)
    if not hasattr(config, "to_dict"):
        return {}
    fields = _without_ignored(config.to_dict())
    own = {
        name
        for kind in type(config).__mro__
        if kind.__module__.endswith("_hf_clip")
        for name in vars(kind).get("__annotations__", ())
    }
    # What transformers adds to every config differs from version to version.
    return {name: fields[name] for name in fields if name in own} if own else fields


def _without_ignored(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_ignored(value) if isinstance(value, Mapping) else value
        for name, value in fields.items()
        if name not in _IGNORED_FIELDS and not str(name).startswith("_")
    }


def _processor_fields(processor: Processor, tower: Tower) -> dict[str, Any]:
    if tower == "image":
        image_processor: Any = getattr(processor, "image_processor", processor)
        fields = image_processor.to_dict() if hasattr(image_processor, "to_dict") else _own_fields(image_processor)
        return {"class": type(image_processor).__name__, **_without_ignored(fields)}
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    fields: dict[str, Any] = {"classes": [type(processor).__name__, type(tokenizer).__name__]}
    fields |= {"processor": _own_fields(processor), "tokenizer": _own_fields(tokenizer)}
    fields["options"] = _text_options(processor)
    fields["ids"] = [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        fields["backend"] = _hash_of_backend(tokenizer, backend)
    elif hasattr(tokenizer, "get_vocab"):
        fields["vocabulary"] = tokenizer.get_vocab()
    return fields


def _hash_of_backend(tokenizer: Any, backend: Any) -> str:
    """Of a whole tokenizer as it is written: a vocabulary that is taken apart takes seconds."""
    with guard_of(tokenizer):
        padding, truncation = backend.padding, backend.truncation
        try:
            # Of the last call, which each call sets as it needs it.
            backend.no_padding()
            backend.no_truncation()
            return hashlib.sha256(backend.to_str().encode("utf-8", "surrogatepass")).hexdigest()
        finally:
            if padding is not None:
                backend.enable_padding(**padding)
            if truncation is not None:
                backend.enable_truncation(**truncation)


def _text_options(processor: Processor | None) -> list[Any]:
    """How texts are padded and cleaned: kept by the tokenizer, among what it was made with."""
    made_with = getattr(getattr(processor, "tokenizer", processor), "init_kwargs", {})
    return [made_with.get(name, getattr(processor, name, default)) for name, default in TEXT_OPTIONS.items()]


def _own_fields(part: Any) -> dict[str, Any]:
    """What a processor, image processor or tokenizer was told, from its attributes."""
    fields = _without_ignored(getattr(part, "__dict__", {}))
    return {name: value for name, value in fields.items() if _is_plain(value)}


def _parts_of_processor(processor: Processor | None) -> list[Any]:
    parts = (getattr(processor, name, None) for name in ("tokenizer", "image_processor"))
    return [part for part in parts if part is not None]


def _hash(content: Any) -> str:
    return hashlib.sha256(repr(_plain(content)).encode("utf-8", "surrogatepass")).hexdigest()


def _version(tensor: torch.Tensor) -> tuple:
    """What changes when a tensor is written or moved."""
    try:
        pointer = tensor.data_ptr()
    except RuntimeError:
        # A subclass without storage of its own, whose inner tensors are written with it.
        pointer = 0
    # Tensors of inference mode have no version, and can't be written outside it.
    return 0 if tensor.is_inference() else tensor._version, pointer, tensor.device, tensor.dtype


def _probe_image() -> np.ndarray:
    """An image (61, 83, 3) of gradients and edges, so that size, crop, resampling and colors all show."""
    rows, columns = np.mgrid[0:61, 0:83]
    red, green = rows * 4 % 256, columns * 3 % 256
    blue = np.where((rows // 8 + columns // 8) % 2, 255, 20)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)
