"""The server's API in process: OpenAI's form, the same numbers as Python's, and what it refuses."""

import base64
import dataclasses
import io
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from hf_clip import ZeroShotClassifier, caption_images, embed_images, embed_texts
from hf_clip.serving import create_app
from hf_clip.serving.batching import Asked
from hf_clip.serving.limits import Limits
from tests.helpers.coca import small_coca
from tests.helpers.counts import soak_count
from tests.helpers.search_toys import GrayEncoder
from tests.helpers.served import TOKEN, data_url, gray_index, model_service, service_of

VALUES = range(0, 200, 4)


@pytest.fixture(scope="module")
def encoder():
    return GrayEncoder()


@pytest.fixture(scope="module")
def service(tmp_path_factory, encoder):
    return service_of(gray_index(tmp_path_factory.mktemp("place") / "photos", VALUES, encoder))


@pytest.fixture(scope="module")
def client(service):
    with TestClient(create_app(service), base_url="http://localhost:7860") as client:
        yield client


def square(value: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (value,) * 3)


def post(client, path: str, **content) -> dict:
    answer = client.post(path, json=content)
    assert answer.status_code == 200, answer.text
    return answer.json()


def error_of(answer, status: int) -> dict:
    """The error of an answer in OpenAI's form: one line."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
    return error


def test_embeddings_are_those_of_python_in_openais_form(client, encoder):
    inputs = ["gray 8", data_url(square(8)), "gray 12", {"image": data_url(square(12))}]
    inputs.append({"type": "image_url", "image_url": {"url": data_url(square(16))}})
    answer = post(client, "/v1/embeddings", input=inputs, user="anybody", dimensions=64)
    assert answer["object"] == "list" and [one["index"] for one in answer["data"]] == list(range(5))
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    found = np.array([one["embedding"] for one in answer["data"]], np.float32)
    texts = embed_texts(encoder, encoder.processor, ["gray 8", "gray 12"]).numpy()
    images = embed_images(encoder, encoder.processor, [square(8), square(12), square(16)]).numpy()
    np.testing.assert_allclose(found, np.stack([texts[0], images[0], texts[1], images[1], images[2]]), atol=1e-6)
    packed = post(client, "/v1/embeddings", input=inputs, encoding_format="base64", model=answer["model"])
    unpacked = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in packed["data"]]
    np.testing.assert_array_equal(np.stack(unpacked), found)
    alone = post(client, "/v1/embeddings", input="gray 8")["data"][0]["embedding"]
    np.testing.assert_allclose(alone, texts[0], atol=1e-6)


def test_classification_is_the_classifiers(client, encoder):
    labels, templates = ["gray 8", ["gray 12", "gray 13"], "gray 100"], ["{}", "a {}"]
    answer = post(client, "/v1/classify", images=[data_url(square(8)), data_url(square(12))], labels=labels,
                  templates=templates, reject="nothing", top_k=2)  # fmt: skip
    classifier = ZeroShotClassifier(
        encoder, encoder.processor, labels, templates, rejection="nothing", dtype=None, cache=False
    )
    wanted = classifier.predict([square(8), square(12)], top_k=2)
    assert answer["templates"] == templates
    for found, row in zip(answer["data"], wanted, strict=True):
        assert [one["label"] for one in found["labels"]] == [one["label"] for one in row]
        np.testing.assert_allclose([one["score"] for one in found["labels"]], [one["score"] for one in row], atol=1e-6)


def test_captions_are_those_of_python(client):
    error = error_of(client.post("/v1/caption", json={"images": data_url(square(8))}), 404)
    assert "writes no captions: start the server with a CoCa" in error["message"]
    model, processor = small_coca()
    service, images = model_service(model, processor), [square(8), square(90), square(200)]
    with TestClient(create_app(service), base_url="http://localhost:7860") as own:
        assert own.get("/v1/status").json()["captions"] is True
        with ThreadPoolExecutor(3) as threads:
            answers = list(threads.map(lambda image: post(own, "/v1/caption", images=data_url(image)), images))
        together = post(own, "/v1/caption", images=[data_url(image) for image in images])["data"]
        assert error_of(own.post("/v1/caption", json={"images": []}), 400)["param"] == "images"
    wanted = caption_images(model, processor, images)
    assert [answer["data"][0]["caption"] for answer in answers] == wanted
    assert [one["caption"] for one in together] == wanted and all(wanted)


def test_a_search_is_the_indexs(client, service):
    for asked in (
        {"query": "gray 40"},
        {"query": ["gray 40"], "where": "path <> '40.png'", "top_k": 5},
        {"query": "gray 40", "minus": ["gray 80"], "near": "60.png", "weights": [1, 0.5, 2]},
        {"images": data_url(square(40)), "top_k": 3},
        {"near": ["40.png"]},
    ):
        answer = post(client, "/v1/search", **asked)
        query = asked.pop("query", ())
        if "images" in asked:
            asked["images"] = [square(40)]
        hits = service.index.search(query, **asked)
        assert [hit["path"] for hit in answer["data"]] == [hit.path for hit in hits]
        np.testing.assert_allclose([hit["score"] for hit in answer["data"]], [hit.score for hit in hits], atol=1e-6)
        assert answer["match_probability"] == pytest.approx(hits.match_probability, abs=1e-6)
        assert answer["has_match"] == hits.has_match
    liked = post(client, "/v1/search", liked=["40.png", "44.png"], disliked=["80.png"], top_k=5)
    hits = service.index.recommend(["40.png", "44.png"], ["80.png"], top_k=5)
    assert [hit["path"] for hit in liked["data"]] == [hit.path for hit in hits]


def test_pages_of_hits_join_without_a_gap(client):
    whole = post(client, "/v1/search", query="gray 40", top_k=50)
    assert len(whole["data"]) == len(VALUES) and not whole["has_more"]
    pages = [post(client, "/v1/search", query="gray 40", top_k=20, offset=first) for first in (0, 20, 40)]
    assert [page["has_more"] for page in pages] == [True, True, False]
    assert [hit["path"] for page in pages for hit in page["data"]] == [hit["path"] for hit in whole["data"]]


def test_pages_by_date_and_of_recommendations_are_parts_of_one_order(client, monkeypatch):
    monkeypatch.setattr("hf_clip.serving.service.DATED", 30)
    monkeypatch.setattr("hf_clip.serving.service.RECOMMENDED", 30)
    for asked in ({"query": "gray 40", "order": "oldest"}, {"liked": ["40.png"], "disliked": ["80.png"]}):
        pages = [post(client, "/v1/search", **asked, top_k=8, offset=first) for first in (0, 8, 16, 24, 32)]
        assert [page["has_more"] for page in pages] == [True, True, True, False, False]
        paths = [hit["path"] for page in pages for hit in page["data"]]
        assert len(paths) == len(set(paths)) == 30
        whole = post(client, "/v1/search", **asked, top_k=30)
        assert paths == [hit["path"] for hit in whole["data"]]


def test_labels_that_take_long_keep_nobody_waiting_who_has_his(client, service, monkeypatch):
    import threading

    known = {"images": data_url(square(40)), "labels": ["gray 40", "gray 80"]}
    before = post(client, "/v1/classify", **known)
    may_end, begun, make = threading.Event(), threading.Event(), service._make_classifier

    def slow(labels, *others):
        begun.set()
        assert may_end.wait(20)
        return make(labels, *others)

    monkeypatch.setattr(service, "_make_classifier", slow)
    with ThreadPoolExecutor(3) as threads:
        new = {**known, "labels": ["gray 1", "gray 2"]}
        late = [threads.submit(post, client, "/v1/classify", **new) for _ in range(2)]
        assert begun.wait(20)
        answered = threads.submit(post, client, "/v1/classify", **known)
        try:
            assert answered.result(10) == before
        finally:
            may_end.set()
        assert late[0].result(20) == late[1].result(20)
    # What failed is tried again.
    wrong = {**known, "labels": ["gray 5", "gray 6"], "templates": ["x"]}
    for _ in range(2):
        error_of(client.post("/v1/classify", json=wrong), 400)


def test_errors_name_the_index_and_spare_the_words_around_it(service, monkeypatch):
    monkeypatch.setattr(service.index, "root", ".")
    monkeypatch.setattr(service.index, "place", ".hf-clip.lance")
    here = os.getcwd()
    said = service._without_places(f"'a.b.png' is none. {here}/.hf-clip.lance/images_1.lance and .hf-clip.lance: 0.5")
    assert said == "'a.b.png' is none. the index/images_1.lance and the index: 0.5"
    assert service._without_places(f"relative to {here}.") == "relative to the images' folder."


def test_a_thumbnail_is_small_and_has_no_metadata(client, tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    exif.get_ifd(0x8825)[1] = "N"
    draw = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(draw).save(tmp_path / "photos/0.jpg", exif=exif, comment=b"secret")
    service = service_of(gray_index(tmp_path / "photos", range(1, 4)))
    with TestClient(create_app(service), base_url="http://localhost") as other:
        rows = {hit["path"]: hit["row"] for hit in post(other, "/v1/search", query="gray 40")["data"]}
        for size in (256, 1024):
            answer = other.get(f"/thumb/{rows['0.jpg']}?size={size}")
            with Image.open(io.BytesIO(answer.content)) as image:
                assert image.size == (size, size * 3 // 4) and image.format == "JPEG"
                assert not image.getexif() and not {"exif", "comment", "icc_profile"} & set(image.info)
            assert b"secret" not in answer.content and b"a maker" not in answer.content
        # Of a row whose file went, and of one that never was.
        (tmp_path / "photos/2.png").unlink()
        error_of(other.get(f"/thumb/{rows['2.png']}"), 404)
        error_of(other.get("/thumb/999"), 404)
        error_of(other.get(f"/thumb/{2**64 - 1}"), 404)


def test_thumbnails_are_kept_within_their_bound(tmp_path):
    service = service_of(gray_index(tmp_path, range(20)), Limits(thumbnail_bytes=2000))
    rows = [hit.row for hit in service.search(query=["gray 4"])[0]]
    first = service.thumbnails.get(rows[0], 256)
    for row in rows:
        service.thumbnails.get(row, 256)
    kept = service.thumbnails._kept
    assert 1 <= len(kept) < len(rows) and sum(map(len, kept.values())) <= 2000
    assert service.thumbnails.get(rows[0], 256) == first
    service.close()


@pytest.mark.parametrize(
    ("path", "content", "status", "message"),
    [
        ("/v1/embeddings", {}, 400, "`input`: field required"),
        ("/v1/embeddings", {"input": []}, 400, "`input` is empty"),
        ("/v1/embeddings", {"input": ""}, 400, "empty text at position 0"),
        ("/v1/embeddings", {"input": [[1, 2]]}, 400, "token ids"),
        ("/v1/embeddings", {"input": [None]}, 400, "no text and no image at position 0"),
        ("/v1/embeddings", {"input": "a", "dimensions": 32}, 400, "`dimensions=32`: this model's embeddings have 64"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, 400, "`encoding_format`: input should be"),
        ("/v1/embeddings", {"input": "a", "model": "gpt"}, 404, "`model=gpt` is not here"),
        ("/v1/embeddings", {"input": "a", "nope": 1}, 400, "`nope`: extra inputs are not permitted"),
        ("/v1/embeddings", {"input": ["a"] * 3000}, 400, "3000 texts: 2048 are the most"),
        ("/v1/embeddings", {"input": "a" * 20000}, 400, "a text of 20000 characters"),
        ("/v1/embeddings", {"input": "data:image/png;base64,AAAA"}, 400, "a damaged header"),
        ("/v1/embeddings", {"input": "data:image/png;base64,!"}, 400, "the data URL is damaged"),
        ("/v1/embeddings", {"input": {"image": "https://example.org/a.png"}}, 400, "nothing is fetched"),
        ("/v1/embeddings", {"input": {"image": "/etc/passwd"}}, 400, "is no data URL"),
        ("/v1/classify", {"images": [], "labels": ["a", "b"]}, 400, "`images` is empty"),
        ("/v1/classify", {"images": "SQUARE", "labels": ["a"]}, 400, "`labels` holds one label"),
        ("/v1/classify", {"images": "SQUARE", "labels": []}, 400, "`labels` is empty"),
        ("/v1/classify", {"images": "SQUARE", "labels": "/etc/passwd.yaml"}, 400, "no data set with known prompts"),
        ("/v1/classify", {"images": "SQUARE", "labels": ["a", "b"], "templates": "x.yaml"}, 400, "no data set with"),
        ("/v1/classify", {"images": "SQUARE", "labels": ["a", "b"], "templates": ["x"]}, 400, "{}"),
        ("/v1/classify", {"images": "SQUARE", "labels": ["a", "b"], "multi_label": True}, 400, "`reject`"),
        ("/v1/search", {}, 400, "nothing is asked for"),
        ("/v1/search", {"query": "a", "top_k": 0}, 400, "`top_k`: input should be greater than or equal to 1"),
        ("/v1/search", {"query": "a", "top_k": 5000}, 400, "1000 are the most"),
        ("/v1/search", {"query": "a", "where": "nope = 1"}, 400, "`where=nope = 1` cannot be understood"),
        ("/v1/search", {"query": "a", "where": "1 = 1) OR (1 = 1; DROP"}, 400, "cannot be understood"),
        ("/v1/search", {"near": "/etc/passwd"}, 400, "'/etc/passwd' is no image of the index"),
        ("/v1/search", {"query": "a", "liked": ["40.png"]}, 400, "go with each other alone"),
        ("/v1/search", {"query": "a", "weights": [1, 2]}, 400, "`weights` has 2 numbers"),
        ("/v1/search", {"images": ["data:image/png;base64," + "A" * 40]}, 400, "a damaged header"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line_in_openais_form(client, service, path, content, status, message):
    if content.get("images") == "SQUARE":
        content = {**content, "images": data_url(square(8))}
    error = error_of(client.post(path, json=content), status)
    assert message in error["message"] and error["type"] == "invalid_request_error"
    assert str(service.index.root) not in error["message"]


def test_what_is_no_json_and_no_page_is_one_line(client):
    error_of(client.post("/v1/search", content=b"{", headers={"content-type": "application/json"}), 400)
    error_of(client.post("/v1/search", content=b"[" * 100_000, headers={"content-type": "application/json"}), 400)
    error_of(client.get("/v1/search"), 405)
    error_of(client.get("/docs"), 404)


def bomb(edge: int) -> bytes:
    """A PNG of some bytes that says it has so many pixels on each side."""
    file = io.BytesIO()
    Image.new("1", (8, 8)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = 2 * edge.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def test_decompression_bombs_are_refused_before_they_are_decoded(client):
    for content in (bomb(60_000), bomb(9_000)):
        error = error_of(client.post("/v1/embeddings", json={"input": data_url(content)}), 400)
        assert error["code"] == "image_too_large" and "64 million pixels" in error["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "192.168.0.9:7860"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost:8000"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://localhost:7860", "sec-fetch-site": "same-origin"}, 200),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}, 200),
        ({"host": "[::1]:7860"}, 200),
    ],
)
def test_other_sites_and_other_names_are_refused(client, headers, status):
    answer = client.get("/v1/status", headers=headers)
    assert answer.status_code == status
    if status != 200:
        error_of(answer, 403)


def test_a_link_from_another_site_opens_the_page_alone(client):
    from_there = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=from_there).status_code == 200
    image = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert client.get("/thumb/0", headers=image).status_code == 403


def test_every_answer_forbids_what_is_not_of_this_server(client):
    for answer in (client.get("/"), client.get("/health"), client.get("/gone"), client.get("/v1/status")):
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_with_a_token_nothing_is_shown_without_it(service):
    app = create_app(service, token=TOKEN)
    with_it = {"authorization": f"Bearer {TOKEN}"}
    # No context: that of the other client ends the service.
    other = TestClient(app, base_url="http://localhost", follow_redirects=False)
    assert other.get("/health").json() == {"status": "ok"}
    for path in ("/v1/status", "/thumb/0", "/v1/models", "/page.js", "/openapi.json"):
        assert error_of(other.get(path), 401)["type"] == "authentication_error"
    for wrong in ("", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer \xe9"):
        headers = [(b"authorization", wrong.encode("latin-1"))]
        error_of(other.post("/v1/search", json={"query": "gray 4"}, headers=headers), 401)
    assert other.post("/v1/search", json={"query": "gray 4"}, headers=with_it).status_code == 200
    found = other.get("/")
    assert (found.status_code, found.headers["location"]) == (303, "/login")
    error_of(other.post("/login", json={"token": "no"}), 401)
    error_of(other.post("/login", content=b"\xff"), 401)
    assert "set-cookie" not in other.get("/login").headers
    entered = other.post("/login", json={"token": TOKEN})
    assert "HttpOnly" in entered.headers["set-cookie"] and "SameSite=Strict" in entered.headers["set-cookie"]
    assert TOKEN not in entered.headers["set-cookie"]
    assert other.get("/v1/status").status_code == 200 and other.get("/").status_code == 200


def test_requests_at_once_are_encoded_together_with_the_answers_of_single_ones(service, encoder):
    texts = [f"gray {value}" for value in range(200)]
    alone = embed_texts(encoder, encoder.processor, texts).numpy()
    service.model.batcher.sizes.clear()
    app = create_app(service)

    def ask(at: int) -> np.ndarray:
        client = TestClient(app, base_url="http://localhost")
        inputs = [texts[at], data_url(square(at))] if at % 3 == 0 else texts[at]
        answer = client.post("/v1/embeddings", json={"input": inputs})
        return np.array(answer.json()["data"][0]["embedding"], np.float32)

    count = soak_count(48, 200)
    with ThreadPoolExecutor(16) as threads:
        found = np.stack(list(threads.map(ask, range(count))))
    np.testing.assert_allclose(found, alone[:count], atol=1e-6)
    assert max(service.model.batcher.sizes) > 1


def test_one_bad_request_in_a_batch_is_no_others(service):
    batcher = service.model.batcher
    good, bad = Asked("texts", ["gray 4"]), Asked("texts", [4])
    batcher._answer([good, bad])
    assert good.answer.result().shape == (1, 64)
    with pytest.raises(TypeError, match="pass strings"):
        bad.answer.result()


def test_a_body_that_is_too_large_or_too_slow_is_refused(service):
    small = dataclasses.replace(service.limits, body_bytes=2**20, body_seconds=0.05)
    service.limits, before = small, service.limits
    try:
        client = TestClient(create_app(service), base_url="http://localhost")
        assert error_of(client.post("/v1/search", content=b" " * 2**21), 413)["code"] == "too_large"
        chunks = (b" " * 2**18 for _ in range(8))
        assert error_of(client.post("/v1/search", content=chunks), 413)["code"] == "too_large"
    finally:
        service.limits = before


def test_status_says_what_there_is(client, service):
    about = client.get("/v1/status").json()
    assert about["index"] == {"name": "photos", "rows": len(VALUES)} and about["width"] == 64
    assert json.loads(client.get("/health").content) == {"status": "ok"}
    assert client.get("/v1/models").json()["data"][0]["id"] == service.name
