"""Embeddings of images and texts: equal to the model's own, in the caller's order, as tensors like any other."""

import threading
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_clip import ImageDecodeError, embed_images, embed_texts
from hf_clip.model.embedding_hf_clip import evaluation_mode, one_ahead, open_images
from hf_clip.sources import find_images
from tests.helpers.squares import encode
from tests.helpers.toys import LookupEncoder, gray, tiny_clip

TEXTS = ["a red square", "blue", "something quite green and long", "a"]


def lookup(texts=("a", "bb", "ccc")):
    return LookupEncoder([[3.0, 4.0], [-1.0, 0.0], [0.0, 7.0]], {text: [1.0, at] for at, text in enumerate(texts)})


def test_the_product_of_both_is_the_models_own_cosine_similarity():
    model, processor = tiny_clip(TEXTS)
    images = [Image.new("RGB", (40, 32), color) for color in ("red", "blue", "lime")]
    with torch.no_grad():
        own = model(**processor(text=TEXTS, images=images, return_tensors="pt"))
    image_embeds = embed_images(model, processor, images, batch_size=2)
    text_embeds = embed_texts(model, processor, TEXTS, batch_size=3)
    assert image_embeds.shape == (3, 16) and text_embeds.shape == (4, 16)
    expected = own.logits_per_image / model.logit_scale.exp()
    np.testing.assert_allclose((image_embeds @ text_embeds.T).numpy(), expected.detach().numpy(), atol=1e-6)


def test_embeddings_are_unit_float32_tensors_that_a_probe_can_be_trained_on():
    model, processor = tiny_clip(TEXTS)
    for found in (
        embed_images(model.to(torch.bfloat16), processor, [gray(0, 32), gray(9, 32)]),
        embed_texts(model, processor, TEXTS),
    ):
        assert found.dtype == torch.float32 and found.device.type == "cpu" and not found.requires_grad
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(found)), atol=1e-6, rtol=0)
        probe = torch.nn.Linear(16, 2)
        probe(found).sum().backward()
        assert torch.equal(probe.weight.grad, found.sum(0).expand(2, -1))


def test_texts_keep_their_order_whatever_shares_a_batch():
    model = lookup()
    found = embed_texts(model, model.processor, (text for text in ("ccc", "a", "bb", "a")), batch_size=2)
    np.testing.assert_allclose(found, torch.nn.functional.normalize(model.text_embeds.detach()[[2, 0, 1, 0]], dim=-1))
    assert [call[:2] for call in model.calls] == [("text", 2), ("text", 2)]


def test_images_of_every_kind(tmp_path):
    model = lookup()
    expected = torch.tensor([[0.6, 0.8], [-1.0, 0.0]])
    contents = [encode(gray(value)) for value in (0, 1)]
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    rows = datasets.Dataset.from_dict({"photo": [{"bytes": one, "path": None} for one in contents], "label": [0, 1]})
    typed = rows.cast_column("photo", datasets.Image())
    kinds = [tmp_path, str(tmp_path), files, [gray(0), gray(1)], np.stack([gray(0), gray(1)]), contents,
             [Image.fromarray(gray(0)), Image.fromarray(gray(1))], typed, typed.to_iterable_dataset()]  # fmt: skip
    for images in kinds:
        torch.testing.assert_close(embed_images(model, model.processor, images, batch_size=1), expected)
    torch.testing.assert_close(embed_images(model, model.processor, rows, image_column="photo"), expected)
    torch.testing.assert_close(embed_images(model, model.processor, typed["photo"]), expected)


def test_the_images_of_a_folder_are_those_that_the_command_finds(tmp_path):
    """In natural order, hidden ones skipped, links followed, each once, whatever folder it is reached by."""
    for value, name in enumerate(("data/10.png", "data/9.png", "store/c", "data/.hidden.png", "data/.git/x.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encode(gray(value)))
    (tmp_path / "data/linked").symlink_to(tmp_path / "store")
    (tmp_path / "store/loop").symlink_to(tmp_path / "data")
    assert open_images(tmp_path / "data") == find_images(tmp_path / "data")
    assert [Path(path).name for path in open_images(tmp_path / "data")] == ["9.png", "10.png", "c"]
    model = lookup()
    expected = embed_images(model, model.processor, [gray(1), gray(0), gray(2)])
    assert torch.equal(embed_images(model, model.processor, tmp_path / "data"), expected)


def test_a_column_with_a_broken_image_says_which():
    model = lookup()
    contents = [encode(gray(0)), b"no image", encode(gray(1))]
    rows = datasets.Dataset.from_dict({"photo": [{"bytes": one, "path": None} for one in contents]})
    column = rows.cast_column("photo", datasets.Image())["photo"]
    with pytest.raises(ImageDecodeError, match=r"images\[1\]: "):
        embed_images(model, model.processor, column)
    found, errors = embed_images(model, model.processor, column, return_errors=True)
    assert len(found) == 2 and errors.keys() == {1}


def test_unreadable_images_are_reported_by_their_positions():
    model = lookup()
    images = [b"x", gray(0), None, gray(1), b""]
    with pytest.raises(ImageDecodeError, match=r"images\[0\]: "):
        embed_images(model, model.processor, images)
    with pytest.raises(ImageDecodeError, match=r"images\[1\] \(.*test_embedding.py\): a damaged header"):
        embed_images(model, model.processor, [gray(0), __file__])
    found, errors = embed_images(model, model.processor, images, batch_size=2, return_errors=True)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [-1.0, 0.0]]))
    assert {position: error.reason for position, error in errors.items()} == {
        0: "unknown_format",
        2: "missing",
        4: "empty",
    }
    with pytest.raises(ValueError, match="no image that can be encoded.*The first of 2 errors"):
        embed_images(model, model.processor, [None, b""], return_errors=True)


@pytest.mark.parametrize(
    ("embed", "given", "options", "error", "said"),
    [
        (embed_images, gray(0), {}, TypeError, "`images` is one ndarray"),
        (embed_images, "cat.png", {}, TypeError, "`images` is one str"),
        (embed_images, [], {}, ValueError, "`images` holds no image"),
        (embed_images, [gray(0)], {"batch_size": 0}, ValueError, "`batch_size=0`"),
        (embed_texts, "a", {}, TypeError, "`texts` is one string"),
        (embed_texts, [], {}, ValueError, "`texts` is empty"),
        (embed_texts, ["a", None], {}, TypeError, "None at position 1"),
        (embed_texts, ["a", 3], {}, TypeError, "3 at position 1, which is int"),
        (embed_texts, ["a"], {"batch_size": 0}, ValueError, "`batch_size=0`"),
    ],
)
def test_what_cannot_be_embedded(embed, given, options, error, said):
    model = lookup()
    with pytest.raises(error, match=said):
        embed(model, model.processor, given, **options)


def test_embeddings_that_are_not_finite_are_refused():
    model = LookupEncoder([[float("nan"), 1.0]], {"a": [float("inf"), 0.0]})
    with pytest.raises(ValueError, match="embeddings of images hold NaN or infinity"):
        embed_images(model, model.processor, [gray(0)])
    with pytest.raises(ValueError, match="embeddings of texts hold NaN or infinity"):
        embed_texts(model, model.processor, ["a"])


def test_a_model_stays_in_evaluation_mode_until_the_last_thread_has_left():
    model = lookup()
    model.train()
    model.frozen.eval()
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with evaluation_mode(model):
            inside.set()
            leave.wait(10)

    other = threading.Thread(target=stay)
    with evaluation_mode(model):
        other.start()
        assert inside.wait(10)
    # This thread found the model in training mode and has left; the other one still encodes.
    assert not model.training and not model.frozen.training
    with evaluation_mode(model):
        assert not model.training
    assert not model.training
    leave.set()
    other.join()
    assert model.training and not model.frozen.training


def test_eight_threads_embed_as_one_does():
    model = lookup()
    model.train()
    expected = embed_images(model, model.processor, [gray(0), gray(1)])
    model.calls.clear()
    found, start = {}, threading.Barrier(8)

    def work(name):
        start.wait(10)
        found[name] = [embed_images(model, model.processor, [gray(0), gray(1)], batch_size=1) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, expected) for several in found.values() for one in several) and len(found) == 8
    assert len(model.calls) == 320 and not any(is_training for *_, is_training in model.calls)
    assert model.training


def test_the_model_goes_where_it_is_asked_to():
    model = lookup()
    asked = []
    model.to = lambda device: asked.append(device)
    embed_texts(model, model.processor, ["a"], device="cpu")
    embed_images(model, model.processor, [gray(0)], device="cpu")
    assert asked == ["cpu", "cpu"]


def test_on_an_accelerator_the_next_batch_is_made_while_one_is_encoded():
    made = []

    def batches():
        for index in range(4):
            made.append((index, threading.get_ident()))
            yield index

    ahead = one_ahead(batches())
    assert next(ahead) == 0
    # The thread that makes them is not this one, and has one ready by the time that the second is asked for.
    assert next(ahead) == 1 and list(ahead) == [2, 3]
    assert [index for index, _ in made] == [0, 1, 2, 3] and threading.get_ident() not in dict(made).values()

    def broken():
        yield 0
        raise ValueError("no more")

    ahead = one_ahead(broken())
    assert next(ahead) == 0
    with pytest.raises(ValueError, match="no more"):
        next(ahead)


def test_large_jpegs_are_decoded_at_a_fraction_where_that_is_asked_for(tmp_path):
    model, processor = tiny_clip(TEXTS)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (400, 640, 3), dtype=np.uint8)).save(tmp_path / "large.jpg")
    Image.fromarray(rng.integers(0, 256, (400, 640, 3), dtype=np.uint8)).save(tmp_path / "large.png")
    exact, reduced = (embed_images(model, processor, tmp_path, may_reduce_jpeg=may) for may in (False, True))
    assert torch.equal(exact[1], reduced[1]) and not torch.equal(exact[0], reduced[0])
    assert exact[0] @ reduced[0] > 0.98
    with pytest.raises(TypeError, match="`may_reduce_jpeg=True`: .* does not say how large"):
        embed_images(lookup(), lookup().processor, [gray(0)], may_reduce_jpeg=True)


def test_pixels_of_one_image_are_those_of_a_call_and_so_are_its_errors():
    """What `embed_images` prepares image by image."""
    model, processor = tiny_clip(["a", "b"])
    images, own = [Image.effect_noise((w, 30), 90).convert("RGB") for w in (40, 25)], processor.image_processor
    for changes in ({}, {"do_normalize": False}, {"do_resize": False}, {"do_rescale": False, "do_normalize": False}):
        vars(own).update({"do_resize": True, "do_rescale": True, "do_normalize": True} | changes)
        for image in images:
            expected = own(image, return_tensors="np")["pixel_values"][0]
            assert np.array_equal(own.pixels_of(image), expected) and own.pixels_of(image).dtype == expected.dtype
    vars(own).update({"do_rescale": True, "do_normalize": True, "image_std": [0, 0, 0]})
    with pytest.raises(ValueError, match="image_std=.* normalized pixels would not be finite"):
        embed_images(model, processor, images)
    own.do_pad = True
    assert own.pixels_of(images[0]) is None
