"""Servers of toys: an index of gray images, in this process, behind a real socket."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from hf_clip.search import Index
from hf_clip.search.models import LazyModel
from hf_clip.serving import Service, create_app
from hf_clip.serving.batching import BatchedModel
from hf_clip.serving.limits import Limits
from hf_clip.serving.running import announced, listen, make_server
from tests.helpers.search_toys import GrayEncoder, write_gray

TOKEN = "a token that nobody guesses"


def gray_index(folder: Path, values: range, encoder: GrayEncoder | None = None) -> Index:
    """An index of a gray image for each value, named by it."""
    encoder = encoder or GrayEncoder()
    for value in values:
        write_gray(folder / f"{value}.png", value)
    index = Index.open(folder, model=encoder, processor=encoder.processor)
    index.update(show_progress=False)
    return index


def service_of(index: Index, limits: Limits | None = None) -> Service:
    model = BatchedModel(index.warm())
    index.warm(lambda _: model)
    return Service(model, index, limits)


def model_service(model: Any, processor: Any) -> Service:
    """Of a model alone."""
    return Service(BatchedModel(LazyModel(model, processor)))


def data_url(image: Image.Image | bytes, style: str = "PNG") -> str:
    content = image
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.save(file, style)
        content = file.getvalue()
    return f"data:image/{style.lower()};base64," + base64.b64encode(content).decode()


@contextmanager
def running(service: Service, token: str | None = None) -> Iterator[str]:
    """A server of the service within the block; its address."""
    socket = listen("127.0.0.1", 0)
    port = socket.getsockname()[1]
    server = make_server(create_app(service, token=token, run="of this test"), service.limits)
    thread = threading.Thread(target=server.run, args=([socket],))
    with announced(service, "127.0.0.1", port, token, "of this test"):
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()
