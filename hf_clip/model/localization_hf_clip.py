"""Where in an image a classifier's labels are: heat maps, segments and boxes, of a model trained on whole images.

An image is looked at through square windows of several sizes. Each gives embeddings of its positions, or, of a tower
that has none, one embedding of its own; their cosines with the labels are laid over one another.

Shape suffixes: B windows of a batch, L labels, H and V rows and columns of pixels, R and K of a window's positions, D
dimensions of the shared space.
"""

import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from PIL import Image

from .device_hf_clip import computing_in
from .embedding_hf_clip import (
    batched,
    check_batch_size,
    check_finite,
    evaluation_mode,
    image_inputs,
    open_images,
    progress_bar,
    unit_image_embeds,
)
from .image_decoding_hf_clip import ImageDecodeError, decode_image

if TYPE_CHECKING:
    from .zero_shot_hf_clip import ZeroShotClassifier

Box = tuple[int, int, int, int]

# Sides of windows in parts of the image's shorter edge, and by how much of a side neighbors are apart. What embeds
# positions sees detail in a large window; what embeds windows needs them as small as what is to be found.
DENSE_SCALES, DENSE_STEP = (1.0, 0.5), 0.5
WINDOW_SCALES, WINDOW_STEP = (0.375, 0.25, 0.1875), 0.25
# Maps are laid over one another at this size of the longer edge, and enlarged at the end.
LONGEST_EDGE = 256
# Of one image. A square has 600 at most, and one that is 10 times as long as high 7,500; a strip would take hours.
MOST_WINDOWS = 20_000
# A window counts most at its middle. At its edge it counts this much, so that the image's edge has something too.
LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class Looks:
    """How images are looked at; see `ZeroShotClassifier.heat_maps`."""

    attention: str = "query"
    scales: Sequence[float] | None = None
    resolution: int | None = None
    batch_size: int = 32

    def __post_init__(self):
        check_batch_size(self.batch_size)
        if self.scales is not None and (not self.scales or not all(0 < scale <= 1 for scale in self.scales)):
            raise ValueError(
                f"`scales={self.scales}`: give sides of windows as parts of the image's shorter edge, in 0 < s <= 1."
            )


def windows_of(width: int, height: int, scales: Iterable[float], step: float) -> list[Box]:
    """Squares (left, top, right, bottom) that cover an image, evenly spaced, `step` of a side apart at most."""
    boxes = []
    for scale in scales:
        side = max(round(min(width, height) * scale), 1)
        places = []
        for length in (width, height):
            count = math.ceil((length - side) / (side * step)) + 1
            places.append([round(at * (length - side) / max(count - 1, 1)) for at in range(count)])
        boxes += [(left, top, left + side, top + side) for top in places[1] for left in places[0]]
    return list(dict.fromkeys(boxes))


def cosine_maps(classifier: "ZeroShotClassifier", image: Image.Image, looks: Looks) -> torch.Tensor:
    """(L, H, V) cosines of an image's places with each label, the rejection class last, on the CPU.

    The longer of H and V is LONGEST_EDGE, or the image's where that is shorter.
    """
    has_positions = getattr(classifier.model, "has_dense_features", False)
    boxes = _windows(classifier, image, looks)
    shrink = min(LONGEST_EDGE / max(image.width, image.height), 1.0)
    height, width = (max(round(length * shrink), 1) for length in (image.height, image.width))
    classes_LD = classifier.class_embeddings
    if classifier.rejection_embedding is not None:
        classes_LD = torch.cat([classes_LD, classifier.rejection_embedding])
    total_LHV, weight_HV = torch.zeros(len(classes_LD), height, width), torch.zeros(height, width)
    for part in batched(boxes, looks.batch_size):
        crops = [image.crop(box) for box in part]
        features_BRKD = _features(classifier, crops, looks, has_positions)
        maps_BLRK = (features_BRKD @ classes_LD.to(features_BRKD).T).permute(0, 3, 1, 2).cpu()
        for (left, top, right, bottom), map_LRK in zip(part, maps_BLRK, strict=True):
            rows = _within(top * height / image.height, bottom * height / image.height, height)
            columns = _within(left * width / image.width, right * width / image.width, width)
            sides = rows.stop - rows.start, columns.stop - columns.start
            bump_HV = torch.outer(_bump(sides[0]), _bump(sides[1]))
            spread_LHV = F.interpolate(map_LRK[None], size=sides, mode="bilinear", align_corners=False)[0]
            total_LHV[:, rows, columns] += spread_LHV * bump_HV
            weight_HV[rows, columns] += bump_HV
    return total_LHV / weight_HV


def _windows(classifier: "ZeroShotClassifier", image: Image.Image, looks: Looks) -> list[Box]:
    has_positions = getattr(classifier.model, "has_dense_features", False)
    scales, step = (DENSE_SCALES, DENSE_STEP) if has_positions else (WINDOW_SCALES, WINDOW_STEP)
    return windows_of(image.width, image.height, looks.scales or scales, step)


def _check_windows(classifier: "ZeroShotClassifier", image: Image.Image, looks: Looks) -> None:
    """Raises ImageDecodeError for an image that is so long that it takes hours."""
    count = len(_windows(classifier, image, looks))
    if count > MOST_WINDOWS:
        raise ImageDecodeError(
            f"{image.width} x {image.height} pixels are {count} windows, and {MOST_WINDOWS} are the most: cut it into "
            "pieces, or give larger `scales`.",
            "too_long",
        )


def _features(classifier: "ZeroShotClassifier", crops: list, looks: Looks, has_positions: bool) -> torch.Tensor:
    """(B, R, K, D) float32 unit embeddings on the model's device."""
    model: Any = classifier.model
    with evaluation_mode(model), computing_in(model, classifier.dtype):
        inputs = image_inputs(classifier.processor, crops, **_sizes(classifier, looks))
        if not has_positions:
            return check_finite(unit_image_embeds(model, inputs), "images")[:, None, None]
        placed = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        features_BRKD = model.dense_image_features(
            placed.pop("pixel_values"), attention=looks.attention, normalize=False, **placed
        )
        return check_finite(F.normalize(features_BRKD.float(), dim=-1), "images")


def _sizes(classifier: "ZeroShotClassifier", looks: Looks) -> dict[str, Any]:
    """What the processor is told where windows shall have another size than the model's."""
    if looks.resolution is None:
        return {}
    image_processor: Any = getattr(classifier.processor, "image_processor", None)
    if not getattr(classifier.model, "has_dense_features", False):
        raise ValueError(
            f"`resolution={looks.resolution}`: the image tower takes images of its own size alone. Drop it."
        )
    if getattr(image_processor, "max_num_patches", None) is not None:
        return {"max_num_patches": max(looks.resolution // image_processor.patch_size, 1) ** 2}
    size = {"height": looks.resolution, "width": looks.resolution}
    return {"size": size, "crop_size": size}


def _within(start: float, stop: float, length: int) -> slice:
    """At least one whole place of `length`."""
    first = min(max(round(start), 0), length - 1)
    return slice(first, min(max(round(stop), first + 1), length))


def _bump(length: int) -> torch.Tensor:
    """1 in the middle, LEAST_WEIGHT at both ends."""
    places = (torch.arange(length) + 0.5) / length
    return torch.sin(places * math.pi) ** 4 + LEAST_WEIGHT


def scores_of(classifier: "ZeroShotClassifier", cosines: torch.Tensor) -> torch.Tensor:
    """(L, H, V) scores of (L, H, V) cosines, as the classifier gives them for whole images."""
    model: Any = classifier.model
    logits_LHV = cosines * model.logit_scale.detach().float().exp().reshape(()).cpu()
    if classifier.has_sigmoid:
        logits_LHV = logits_LHV + model.logit_bias.detach().float().reshape(()).cpu()
    logits_LHV = logits_LHV / classifier.temperature
    return logits_LHV.sigmoid() if classifier.has_sigmoid else logits_LHV.softmax(dim=0)


def score_maps(
    classifier: "ZeroShotClassifier",
    images: Any,
    looks: Looks,
    *,
    image_column: str | None = None,
    return_errors: bool = False,
    show_progress: bool | None = None,
) -> Iterator[tuple[Image.Image, torch.Tensor] | ImageDecodeError]:
    """Each image with the (L, H, V) scores of its places, the rejection class last; sizes as in `cosine_maps`.

    Images and errors are those of `ZeroShotClassifier.stream`.
    """
    opened = open_images(images, image_column)
    total = len(opened) if isinstance(opened, Sized) else None
    # Said before the first image is looked at.
    _sizes(classifier, looks)

    def maps() -> Iterator[tuple[Image.Image, torch.Tensor] | ImageDecodeError]:
        for position, image in enumerate(progress_bar(opened, total, "image", show_progress)):
            try:
                decoded = decode_image(image)
                _check_windows(classifier, decoded, looks)
            except ImageDecodeError as error:
                if not return_errors:
                    raise error.at(position, image) from error
                yield error
                continue
            yield decoded, scores_of(classifier, cosine_maps(classifier, decoded, looks))

    return maps()


def enlarged(maps: torch.Tensor, image: Image.Image) -> torch.Tensor:
    """(L, H, V) maps at the image's size."""
    size = image.height, image.width
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def segments_of(image: Image.Image, scores: torch.Tensor, labels: int, background: float | None) -> torch.Tensor:
    """(image's rows, columns) of the index of the best label; -1 where it is the rejection class, or too low."""
    best_HV = torch.full((image.height, image.width), -math.inf)
    index_HV = torch.zeros(best_HV.shape, dtype=torch.long)
    # Label by label: all of them at an image's size are many.
    for index, map_HV in enumerate(scores):
        map_HV = enlarged(map_HV[None], image)[0]
        is_better_HV = map_HV > best_HV
        best_HV = torch.where(is_better_HV, map_HV, best_HV)
        index_HV[is_better_HV] = index if index < labels else -1
    if background is not None:
        index_HV[best_HV < background] = -1
    return index_HV


def boxes_of(
    image: Image.Image, scores: torch.Tensor, labels: Sequence[str], threshold: float
) -> list[dict[str, Any]]:
    """Boxes of the connected places of each label that score `threshold` or more, best first.

    Raises:
        ImportError: without scipy.
    """
    ndimage = _ndimage()
    rows_in_map, columns_in_map = scores.shape[1:]
    found = []
    # The rejection class, which may come last, has no boxes.
    for label, map_HV in zip(labels, scores[: len(labels)].numpy(), strict=True):
        parts_HV, count = ndimage.label(map_HV >= threshold)
        for index, (rows, columns) in enumerate(ndimage.find_objects(parts_HV), start=1):
            score = float(map_HV[rows, columns][parts_HV[rows, columns] == index].max())
            box = {
                # In whole numbers: a fraction that rounds up would lie beyond the image's edge.
                "xmin": columns.start * image.width // columns_in_map,
                "ymin": rows.start * image.height // rows_in_map,
                "xmax": -(-columns.stop * image.width // columns_in_map),
                "ymax": -(-rows.stop * image.height // rows_in_map),
            }
            found.append({"label": label, "score": score, "box": box})
    return sorted(found, key=lambda one: -one["score"])


def _check_score(name: str, value: float) -> None:
    # Not `<`: NaN is no score either.
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}={value}` is no score, which are from 0 to 1.")


def _ndimage() -> Any:
    try:
        from scipy import ndimage
    except ImportError as error:
        raise ImportError(f"boxes are connected places, which scipy finds ({error}): pip install scipy.") from error
    return ndimage


class Locating:
    """What `ZeroShotClassifier` has for places in images."""

    labels: list[str]

    def heat_maps(
        self,
        images,
        batch_size: int = 32,
        *,
        attention: str = "query",
        scales: Sequence[float] | None = None,
        resolution: int | None = None,
        image_column: str | None = None,
        show_progress: bool | None = None,
    ) -> torch.Tensor:
        """Where in images each label is: (B, labels, H, W) scores at the images' size, on the CPU.

        A place's scores are what `predict` gives for images: a softmax over the labels and the rejection class, which
        is no map of its own, or each label's sigmoid. An image is looked at through square windows of several sizes,
        whose embeddings of positions (`HFCLIPModel.dense_image_features`), or of the whole window where the image
        tower has no positions, are laid over one another. The model learned nothing of places: a detector is better
        where it knows the things that are looked for.

        Args:
            images: of one size; of any kind that `predict` takes.
            batch_size: windows encoded at once.
            attention: of a vision transformer's last layer.
            scales: sides of windows as parts of an image's shorter edge. By default 1 and a half where the image tower
                embeds positions, else 0.375, 0.25 and 0.1875: set them to the sizes of what is looked for.
            resolution: pixels that a window's side has for the model, whose positions are interpolated then; by
                default the model's own.
            image_column, show_progress: as in `predict`.

        Raises:
            ValueError: for images of several sizes, for `scales` and a `resolution` that cannot be; what `predict`
                raises.
        """
        looks = Looks(attention, scales, resolution, batch_size)
        found: Any = score_maps(cast(Any, self), images, looks, image_column=image_column, show_progress=show_progress)
        maps, size = [], None
        for image, scores_LHV in found:
            if size not in (None, image.size):
                raise ValueError(
                    f"`images` are of {size[0]} x {size[1]} and {image.width} x {image.height} pixels, and heat maps "
                    "are one tensor: pass images of one size at a time."
                )
            size = image.size
            maps.append(enlarged(scores_LHV[: len(self.labels)], image))
        if not maps:
            raise ValueError("`images` is empty: pass at least one.")
        return torch.stack(maps)

    def segment(
        self, images, batch_size: int = 32, *, background: float | None = None, **options
    ) -> list[torch.Tensor]:
        """For each image the index of the best label at each pixel, (H, W); -1 is the background.

        Args:
            background: pixels whose best score is lower are background. Where the rejection class is best they are so
                too.
            options: others of `heat_maps`, whose errors are raised; images may be of several sizes.
        """
        if background is not None:
            _check_score("background", background)
        return [
            segments_of(image, scores_LHV, len(self.labels), background)
            for image, scores_LHV in self._score_maps(images, batch_size, options)
        ]

    def boxes(self, images, batch_size: int = 32, *, threshold: float = 0.5, **options) -> list[list[dict]]:
        """For each image where labels are, best first, as transformers' zero-shot object detection has it.

        Args:
            threshold: a box is put around connected places where a label scores so high.
            options: others of `heat_maps`, whose errors are raised; images may be of several sizes.

        Returns:
            One list per image of dicts with `label`, `score` (the highest within) and `box`: `xmin`, `ymin`, `xmax`
            and `ymax` in pixels.

        Raises:
            ImportError: without scipy.
        """
        _check_score("threshold", threshold)
        return [
            boxes_of(image, scores_LHV, self.labels, threshold)
            for image, scores_LHV in self._score_maps(images, batch_size, options)
        ]

    def _score_maps(self, images, batch_size: int, options: dict[str, Any]) -> Iterator[tuple[Any, torch.Tensor]]:
        looks = {name: options.pop(name) for name in ("attention", "scales", "resolution") if name in options}
        # Without `return_errors` there are none among them.
        return cast(Any, score_maps(cast(Any, self), images, Looks(**looks, batch_size=batch_size), **options))
