"""What requests may hold, and images as they are sent: in data URLs, never as addresses that would be fetched."""

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

from .errors import RequestError
from .limits import Limits

# Numbers of a mixture's parts.
Weight = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Count = Annotated[StrictInt, Field(ge=1)]
Texts = StrictStr | list[StrictStr]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: StrictStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _are_texts_whole(cls, content: Any) -> Any:
        """Raises RequestError for half of a character, which JSON can hold and no encoding of text."""
        waiting = [content]
        while waiting:
            one = waiting.pop()
            if isinstance(one, dict):
                waiting += [*one.keys(), *one.values()]
            elif isinstance(one, list):
                waiting += one
            elif isinstance(one, str) and not one.isascii():
                try:
                    one.encode()
                except UnicodeEncodeError as error:
                    raise RequestError(400, "a text holds half of a character (a lone surrogate): drop it.") from error
        return content


class EmbeddingsRequest(_Request):
    """OpenAI's; `input` holds images too: as data URLs, or as {"image": URL}, {"text": ...}, and as chat has them."""

    input: Any
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Count | None = None
    user: StrictStr | None = None


class ClassifyRequest(_Request):
    images: Texts
    labels: StrictStr | list[StrictStr | list[StrictStr]]
    templates: Texts | None = None
    reject: StrictStr | None = None
    multi_label: StrictBool = False
    top_k: Count | None = None


class CaptionRequest(_Request):
    images: Texts


class SearchRequest(_Request):
    query: Texts = []
    images: Texts = []
    near: Texts = []
    minus: Texts = []
    liked: list[StrictStr] = []
    disliked: list[StrictStr] = []
    weights: list[Weight] | None = None
    where: StrictStr | None = None
    order: Literal["best", "newest", "oldest"] = "best"
    top_k: Count = 20
    offset: Annotated[StrictInt, Field(ge=0)] = 0


def listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def check_texts(texts: list[str], param: str, limits: Limits) -> list[str]:
    """The texts. Raises RequestError for too many, and for one that is too long."""
    if len(texts) > limits.texts:
        raise RequestError(
            400, f"`{param}` has {len(texts)} texts: {limits.texts} are the most in one request.", param
        )
    longest = max(map(len, texts), default=0)
    if longest > limits.characters:
        raise RequestError(
            400, f"`{param}` has a text of {longest} characters: {limits.characters} are the most.", param
        )
    return texts


def image_bytes(url: str, param: str) -> bytes:
    """The file in a data URL. Raises RequestError."""
    if not url.startswith("data:"):
        found = f"{url[:40]!r} is no data URL"
        raise RequestError(400, f"`{param}`: {found}: send data:image/png;base64,... (nothing is fetched).", param)
    head, comma, content = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise RequestError(400, f"`{param}`: the data URL is not in base64: send data:image/png;base64,...", param)
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            400, f"`{param}`: the data URL is damaged ({error}): encode the file again.", param
        ) from error


def inputs_of(request: EmbeddingsRequest, limits: Limits) -> list[str | bytes]:
    """Texts and files of images, in the order of `input`. Raises RequestError."""
    given = request.input if isinstance(request.input, list) else [request.input]
    if not given:
        raise RequestError(400, "`input` is empty: send a text, an image's data URL, or a list of them.", "input")
    found = [_input(one, at) for at, one in enumerate(given)]
    texts = check_texts([one for one in found if isinstance(one, str)], "input", limits)
    check_images(len(found) - len(texts), "input", limits)
    return found


def check_images(count: int, param: str, limits: Limits) -> None:
    if count > limits.images:
        raise RequestError(400, f"`{param}` has {count} images: {limits.images} are the most in one request.", param)


def _input(item: Any, at: int) -> str | bytes:
    if isinstance(item, int | list) and not isinstance(item, bool):
        message = "`input` holds token ids, which belong to another tokenizer: send texts."
        raise RequestError(400, message, "input", "token_ids")
    if isinstance(item, dict):
        image = item.get("image_url", item.get("image"))
        image = image.get("url") if isinstance(image, dict) else image
        if isinstance(image, str):
            return image_bytes(image, "input")
        item = item.get("text")
    if not isinstance(item, str):
        raise RequestError(400, f"`input` holds no text and no image at position {at}: send strings.", "input")
    if not item:
        raise RequestError(400, f"`input` holds an empty text at position {at}: drop it.", "input")
    return image_bytes(item, "input") if item.startswith("data:image/") else item
