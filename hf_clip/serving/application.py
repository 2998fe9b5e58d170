"""The application: the API in OpenAI's form, thumbnails, and the page. It knows HTTP, and the service the rest."""

import asyncio
import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from .errors import RequestError
from .guard import LOOPBACK, Guard
from .requests import (
    CaptionRequest,
    ClassifyRequest,
    EmbeddingsRequest,
    SearchRequest,
    check_images,
    check_texts,
    image_bytes,
    inputs_of,
    listed,
)
from .service import Service
from .thumbnails import SIZES

Result = TypeVar("Result")

THREADS = 32
_PAGE = Path(__file__).with_name("page")
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/login": ("login.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/login.js": ("login.js", "text/javascript; charset=utf-8"),
}


def create_app(service: Service, **guarding: Any) -> Guard:
    """The application of a service, behind its guard.

    Args:
        guarding: arguments of `Guard`: `hosts`, `token`, `run`, `any_number`.
    """
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="hf-clip-request")

    @asynccontextmanager
    async def lifespan(_: FastAPI):
        yield
        threads.shutdown(wait=True, cancel_futures=True)
        service.close()

    # The pages of the API's documentation would be fetched from elsewhere.
    app = FastAPI(title="hf_clip", docs_url=None, redoc_url=None, lifespan=lifespan)

    async def in_thread(work: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(threads, partial(work, *arguments, **options))

    _add_errors(app)
    _add_embeddings(app, service, in_thread)
    _add_classification(app, service, in_thread)
    _add_captions(app, service, in_thread)
    _add_search(app, service, in_thread)
    _add_page(app, service, in_thread)
    return Guard(app, limits=service.limits, **{"hosts": LOOPBACK, **guarding})


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error.content(), error.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part != "body"]
        name = place[0] if place and not first["type"].startswith("json") else None
        said = first["msg"].removeprefix("Value error, ")
        if name is None and "json" not in request.headers.get("content-type", ""):
            # What curl sends with --data alone is a form.
            said = "name its type, Content-Type: application/json"
        message = f"`{name}`: {said[0].lower()}{said[1:]}." if name else f"the request is no JSON object: {said}."
        return JSONResponse(RequestError(400, message, name, first["type"]).content(), 400)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.scope['path'][:80]}: {error.detail}."
        return JSONResponse(RequestError(error.status_code, message).content(), error.status_code)


def _check_model(service: Service, name: str | None) -> None:
    """Embeddings of one model mean nothing among another's: a wrong name is no detail."""
    if name is not None and name not in (service.name, service.model.source):
        message = f"`model={name[:80]}` is not here: it is {service.name}, or drop the field."
        raise RequestError(404, message, "model", "model_not_found")


def _add_embeddings(app: FastAPI, service: Service, in_thread: Callable[..., Any]) -> None:
    @app.post("/v1/embeddings")
    async def embeddings(request: EmbeddingsRequest) -> JSONResponse:
        _check_model(service, request.model)
        if request.dimensions not in (None, service.width):
            message = (
                f"`dimensions={request.dimensions}`: this model's embeddings have {service.width} numbers, and a part "
                "of them is no embedding: drop it."
            )
            raise RequestError(400, message, "dimensions", "unsupported")
        return JSONResponse(await in_thread(answer, request))

    def answer(request: EmbeddingsRequest) -> dict[str, Any]:
        given = inputs_of(request, service.limits)
        inputs = [one if isinstance(one, str) else service.read_image(one, "input") for one in given]
        embeddings_ND, tokens = service.embed(inputs)
        is_packed = request.encoding_format == "base64"
        rows = [
            # As OpenAI's clients unpack it.
            base64.b64encode(row.astype("<f4").tobytes()).decode() if is_packed else row.tolist()
            for row in embeddings_ND
        ]
        data = [{"object": "embedding", "index": at, "embedding": row} for at, row in enumerate(rows)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": service.name, "usage": usage}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"id": service.name, "object": "model", "created": 0, "owned_by": "hf_clip"}],
        }


def _add_classification(app: FastAPI, service: Service, in_thread: Callable[..., Any]) -> None:
    @app.post("/v1/classify")
    async def classify(request: ClassifyRequest) -> JSONResponse:
        _check_model(service, request.model)
        return JSONResponse(await in_thread(answer, request))

    def answer(request: ClassifyRequest) -> dict[str, Any]:
        urls = _image_urls(request.images, service)
        _check_words(request, service)
        images = [service.read_image(image_bytes(url, "images"), "images") for url in urls]
        found, templates = service.classify(
            images,
            request.labels,
            request.templates if isinstance(request.templates, str | None) else list(request.templates),
            reject=request.reject,
            multi_label=request.multi_label,
            top_k=request.top_k,
        )
        data = [{"object": "classification", "index": at, "labels": labels} for at, labels in enumerate(found)]
        return {"object": "list", "data": data, "model": service.name, "templates": templates}


def _image_urls(images: str | list[str], service: Service) -> list[str]:
    urls = listed(images)
    if not urls:
        raise RequestError(400, "`images` is empty: send data URLs.", "images")
    check_images(len(urls), "images", service.limits)
    return urls


def _add_captions(app: FastAPI, service: Service, in_thread: Callable[..., Any]) -> None:
    @app.post("/v1/caption")
    async def caption(request: CaptionRequest) -> JSONResponse:
        _check_model(service, request.model)
        return JSONResponse(await in_thread(answer, request))

    def answer(request: CaptionRequest) -> dict[str, Any]:
        urls = _image_urls(request.images, service)
        images = [service.read_image(image_bytes(url, "images"), "images") for url in urls]
        data = [{"object": "caption", "index": at, "caption": text} for at, text in enumerate(service.caption(images))]
        return {"object": "list", "data": data, "model": service.name}


def _check_words(request: ClassifyRequest, service: Service) -> None:
    for name in ("labels", "templates"):
        value = getattr(request, name)
        if isinstance(value, list):
            flat = [text for item in value for text in listed(item)]
            if not flat or not all(flat):
                raise RequestError(400, f"`{name}` is empty, or holds an empty text: send some.", name)
            limit = service.limits.label_texts
            if len(flat) > limit:
                raise RequestError(400, f"`{name}` has {len(flat)} texts: {limit} are the most.", name)
            for at in range(0, len(flat), service.limits.texts):
                check_texts(flat[at : at + service.limits.texts], name, service.limits)


def _add_search(app: FastAPI, service: Service, in_thread: Callable[..., Any]) -> None:
    @app.post("/v1/search")
    async def search(request: SearchRequest) -> JSONResponse:
        _check_model(service, request.model)
        return JSONResponse(await in_thread(answer, request))

    def answer(request: SearchRequest) -> dict[str, Any]:
        limits = service.limits
        if request.top_k > limits.hits:
            raise RequestError(
                400, f"`top_k={request.top_k}`: {limits.hits} are the most; `offset` gives more.", "top_k"
            )
        if request.offset > limits.depth:
            raise RequestError(400, f"`offset={request.offset}`: {limits.depth} is the most.", "offset")
        if request.liked and (request.query or request.images or request.near or request.minus):
            raise RequestError(400, "`liked` and `disliked` go with each other alone: drop the other parts.", "liked")
        question: dict[str, Any] = {}
        for name in ("query", "near", "minus", "liked", "disliked"):
            if texts := check_texts(listed(getattr(request, name)), name, limits):
                question[name] = texts
        urls = listed(request.images)
        check_images(len(urls), "images", limits)
        if urls:
            question["images"] = [service.read_image(image_bytes(url, "images"), "images") for url in urls]
        hits, has_more = service.search(
            order=request.order,
            offset=request.offset,
            top_k=request.top_k,
            where=request.where,
            **question,
            **({"weights": request.weights} if request.weights is not None else {}),
        )
        # Of 64 bits, which is more than numbers of JavaScript hold.
        data = [{**asdict(hit), "row": str(hit.row)} for hit in hits]
        about = {"match_probability": hits.match_probability, "has_match": hits.has_match, "is_exact": hits.is_exact}
        return {"object": "list", "data": data, "model": service.name, "has_more": has_more, **about}


def _add_page(app: FastAPI, service: Service, in_thread: Callable[..., Any]) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/status")
    async def status() -> JSONResponse:
        return JSONResponse(await in_thread(service.describe))

    @app.get("/thumb/{row}")
    async def thumb(row: str, size: int = SIZES[0]) -> Response:
        if not row.isascii() or not row.isdecimal() or len(row) > 20 or int(row) >= 2**64 or size not in SIZES:
            sizes = " or ".join(map(str, SIZES))
            raise RequestError(404, f"there is no such row or size: rows are those of an answer, sizes {sizes}.")
        content = await in_thread(service.thumbnails.get, int(row), size)
        # A row that is written again has another number.
        return Response(content, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

    @app.get("/favicon.ico")
    async def icon() -> Response:
        return Response(status_code=204)

    for path in _FILES:
        _add_file(app, path)


def _add_file(app: FastAPI, path: str) -> None:
    name, kind = _FILES[path]
    content = (_PAGE / name).read_bytes()

    @app.get(path, include_in_schema=False)
    async def file() -> Response:
        return Response(content, media_type=kind)
