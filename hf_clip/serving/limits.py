"""What one request may cost: its bytes, its pixels, its time, and how many are answered at once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        body_bytes: of a request.
        waiting_bytes: of all requests that are held at once.
        body_seconds: in which a request's body must have come.
        head_seconds: in which a request's head must have come.
        answer_seconds: in which a request is answered.
        active: requests at once; others are told to try again.
        connections: open ones at once.
        pixels: of an image that is sent.
        texts, images: in one request.
        characters: of a text.
        condition: characters of `where`.
        label_texts: labels times templates.
        decoders: images decoded at once.
        thumbnail_bytes: that are kept in memory.
        hits: in one answer; depth: how far an answer may begin behind the best.
    """

    body_bytes: int = 32 * 2**20
    waiting_bytes: int = 256 * 2**20
    body_seconds: float = 30.0
    head_seconds: float = 10.0
    answer_seconds: float = 60.0
    active: int = 128
    connections: int = 512
    pixels: int = 64_000_000
    texts: int = 2048
    images: int = 64
    characters: int = 10_000
    condition: int = 2000
    label_texts: int = 20_000
    decoders: int = 4
    thumbnail_bytes: int = 64 * 2**20
    hits: int = 1000
    depth: int = 10_000
