"""The zero-shot classifier: its embeddings by hand, its scores against the model's own logits."""

import sys
import warnings

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import hf_clip.model.zero_shot_hf_clip as zero_shot
from hf_clip import HFCLIPConfig
from hf_clip.model.embedding_hf_clip import evaluation_mode
from hf_clip.model.image_decoding_hf_clip import ImageDecodeError
from hf_clip.model.zero_shot_hf_clip import ZeroShotClassifier, templates_of
from hf_clip.prompts import load_prompts
from tests.helpers.squares import encode
from tests.helpers.toys import LookupEncoder, gray, tiny_clip

TEXTS = {
    "a cat": [3.0, 0.0],
    "my cat": [0.0, 1.0],
    "a dog": [-2.0, 0.0],
    "my dog": [0.0, -5.0],
}
TEMPLATES = ("a {}", "my {}")
# Each label is its own text.
PLAIN = ("{}",)


def lookup(scale=10.0):
    return LookupEncoder([[1.0, 1.0], [-1.0, 0.5], [0.0, 7.0]], TEXTS, scale)


def test_class_embeddings_are_normalized_means_of_normalized_embeddings():
    # The lengths differ: a mean of the raw embeddings would lean to [3, 1] and [-2, -5].
    model = lookup()
    classifier = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES)
    half = 2**-0.5
    np.testing.assert_allclose(classifier.class_embeddings, [[half, half], [-half, -half]], atol=1e-6)


def test_scores_by_hand():
    model = lookup()
    [first, second] = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES).predict([gray(0), gray(1)])
    # Cosines of (1, 1) are 1 and -1; of (-1, 0.5) they are -/+ 0.5 / sqrt(1.25 * 2).
    assert [row["label"] for row in first] == ["cat", "dog"]
    assert first[0]["score"] == pytest.approx(1 / (1 + np.exp(-20)), abs=1e-6)
    assert [row["label"] for row in second] == ["dog", "cat"]
    assert second[0]["score"] == pytest.approx(1 / (1 + np.exp(-20 * 0.5 / 2.5**0.5)), abs=1e-6)


def test_texts_are_encoded_once_and_everything_in_bounded_batches():
    model = lookup()
    whole = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES)
    model.calls.clear()
    split = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES, batch_size=3)
    assert [call[:2] for call in model.calls] == [("text", 3), ("text", 1)]
    torch.testing.assert_close(split.class_embeddings, whole.class_embeddings)
    model.calls.clear()
    images = (gray(value) for value in (0, 1, 2, 0, 1))
    assert len(split.predict(images, batch_size=2)) == 5
    split.predict([gray(0)])
    assert [call[:2] for call in model.calls] == [("image", 2), ("image", 2), ("image", 1), ("image", 1)]


def test_scores_equal_the_models_own_logits():
    labels = ["a red square", "something blue", "green"]
    model, processor = tiny_clip(labels)
    images = [Image.new("RGB", (40, 32), color) for color in ("red", "blue", "lime", "white")]
    with torch.no_grad():
        output = model(**processor(text=labels, images=images, return_tensors="pt"))
    expected = output.logits_per_image.softmax(-1)
    for row, scores in zip(ZeroShotClassifier(model, processor, labels, PLAIN).predict(images), expected, strict=True):
        assert {entry["label"]: entry["score"] for entry in row} == pytest.approx(
            dict(zip(labels, scores.tolist(), strict=True)), abs=1e-6
        )


def test_a_temperature_that_is_set_later_is_checked_too():
    model = lookup(scale=100.0)
    classifier = ZeroShotClassifier(
        model, model.processor, ["cat", "dog"], TEMPLATES, temperature=zero_shot.MIN_TEMPERATURE
    )
    assert [row["score"] for row in classifier.predict([gray(0)])[0]] == [1.0, 0.0]
    for temperature in (0, float("nan")):
        with pytest.raises(ValueError, match="`temperature="):
            classifier.temperature = temperature
    assert classifier.temperature == zero_shot.MIN_TEMPERATURE


def test_a_single_label_is_said_to_be_always_right():
    model = lookup()
    with pytest.warns(UserWarning, match="a single label, whose score will be 1"):
        classifier = ZeroShotClassifier(model, model.processor, ["cat"], TEMPLATES)
    assert classifier.predict([gray(1)]) == [[{"label": "cat", "score": 1.0}]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ZeroShotClassifier(model, model.processor, ["cat"], TEMPLATES, rejection="dog")
        # The scores of a sigmoid say something of one label alone.
        ZeroShotClassifier(*tiny_siglip(["cat"]), ["cat"])


def test_the_name_of_a_data_set_stands_for_its_labels_and_templates(tmp_path):
    model, processor = tiny_clip(["a satellite photo of a forest."])
    prompts = load_prompts("EuroSAT")
    named = ZeroShotClassifier(model, processor, "EuroSAT", "eurosat")
    assert (named.classes, named.templates) == (prompts.classes, prompts.templates)
    expected = ZeroShotClassifier(model, processor, prompts.classes, prompts.templates)
    assert torch.equal(named.class_embeddings, expected.class_embeddings)
    file = tmp_path / "own.yaml"
    file.write_text("templates: ['the {} here']", "utf-8")
    assert ZeroShotClassifier(model, processor, ["a", "b"], str(file)).templates == ("the {} here",)
    with pytest.raises(ValueError, match="own has templates and no classes"):
        ZeroShotClassifier(model, processor, str(file))


@pytest.mark.slow
@pytest.mark.parametrize("is_installed", [True, False])
def test_a_classifier_of_a_checkpoint_is_that_of_its_model(tmp_path, monkeypatch, is_installed):
    model, processor = tiny_clip(["red", "blue"])
    model.config.zero_shot_templates = ["the {}"]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    expected = ZeroShotClassifier(model, processor, ["red", "blue"], rejection="green", temperature=2.0)
    images = [Image.new("RGB", (40, 32), "red")]
    scores = expected.predict(images)
    halved = ZeroShotClassifier(model.to(torch.bfloat16), processor, ["red", "blue"])
    if not is_installed:
        # Where the code came with a model, `import hf_clip` raises ImportError, and the Auto classes read the folder.
        monkeypatch.setitem(sys.modules, "hf_clip", None)
    found = ZeroShotClassifier.from_pretrained(tmp_path, ["red", "blue"], rejection="green", temperature=2.0)
    assert not found.model.training and found.templates == ("the {}",)
    for one, row in zip(found.predict(images)[0], scores[0], strict=True):
        assert one["label"] == row["label"] and one["score"] == pytest.approx(row["score"], abs=1e-6)
    torch.testing.assert_close(found.class_embeddings, expected.class_embeddings)
    assert (found.rejection, found.temperature) == (("green",), 2.0)
    found = ZeroShotClassifier.from_pretrained(
        str(tmp_path), labels=["red", "blue"], device="cpu", dtype=torch.bfloat16, local_files_only=True
    )
    assert found.model.dtype == torch.bfloat16
    torch.testing.assert_close(found.class_embeddings, halved.class_embeddings)


def test_what_cannot_be_a_classifier_is_said_before_a_checkpoint_is_fetched():
    with pytest.raises(TypeError, match="`labels` holds 3"):
        ZeroShotClassifier.from_pretrained("nobody/nothing", labels=[3])
    with pytest.raises(ValueError, match="nobody/nothing"):
        ZeroShotClassifier.from_pretrained("nobody/nothing", labels=["a", "b"])


def test_embeddings_of_another_shape_are_refused():
    model = lookup()
    classifier = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES)
    for embeddings in (torch.ones(2), torch.ones(1, 2, 2), torch.ones(4, 3)):
        for method in (classifier.logits, classifier.rank):
            with pytest.raises(ValueError, match=r"`image_embeds` has shape .*: pass \(N, 2\)"):
                method(embeddings)


def test_top_k_gives_the_best_labels_without_rescaling_their_scores():
    model = lookup(scale=1.0)
    classifier = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES)
    [whole], [short] = classifier.predict([gray(2)]), classifier.predict([gray(2)], top_k=1)
    assert sum(row["score"] for row in whole) == pytest.approx(1)
    assert short == whole[:1]
    assert classifier.predict([gray(2)], top_k=99) == [whole]
    assert classifier.predict([]) == []


def test_templates_are_by_default_those_saved_with_the_model(tmp_path):
    model, processor = tiny_clip(["a red square", "a photo of a red square."])
    published = ZeroShotClassifier(model, processor, ["red", "blue"])
    assert published.templates == templates_of(model) == ("a photo of a {}.",)
    expected = ZeroShotClassifier(model, processor, ["red", "blue"], ["a photo of a {}."])
    assert torch.equal(published.class_embeddings, expected.class_embeddings)
    model.config.zero_shot_templates = ["a {} square", "the {} one"]
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path)
    own = ZeroShotClassifier(model, processor, ["red", "blue"])
    assert own.templates == ("a {} square", "the {} one")
    expected = ZeroShotClassifier(model, processor, ["red", "blue"], ["a {} square", "the {} one"])
    assert torch.equal(own.class_embeddings, expected.class_embeddings)
    assert ZeroShotClassifier(model, processor, ["red"], PLAIN).templates == ("{}",)


@pytest.mark.parametrize(
    ("templates", "said"),
    [(["a photo"], "'a photo', which has no '{}'"), ([], "is empty"), ("a {}", "list"), ([3], "str")],
)
def test_a_config_refuses_templates_that_a_classifier_would(templates, said):
    with pytest.raises(Exception, match=said) as caught:
        HFCLIPConfig(zero_shot_templates=templates)
    assert "zero_shot_templates" in str(caught.value)


def test_braces_of_labels_and_templates_stay():
    texts = {"{x} is {0}": [1.0, 0.0]}
    model = LookupEncoder([[1.0, 0.0]], texts)
    assert ZeroShotClassifier(model, model.processor, ["{0}"], ["{x} is {}"]).predict([gray(0)]) == [
        [{"label": "{0}", "score": 1.0}]
    ]


def test_every_module_is_left_in_the_mode_it_was_in():
    model = lookup()
    model.train()
    model.frozen.eval()
    classifier = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES)
    classifier.predict([gray(0)])
    assert not any(is_training for *_, is_training in model.calls)
    assert model.training and not model.frozen.training
    with pytest.raises(RuntimeError), evaluation_mode(model):
        raise RuntimeError
    assert model.training and not model.frozen.training and torch.is_grad_enabled()


def test_half_precision_keeps_unit_embeddings_in_single_precision():
    labels = ["a red square", "something blue"]
    model, processor = tiny_clip(labels)
    classifier = ZeroShotClassifier(model.to(torch.bfloat16), processor, labels, ["{}", "a {}"])
    assert classifier.class_embeddings.dtype == torch.float32
    torch.testing.assert_close(classifier.class_embeddings.norm(dim=-1), torch.ones(2), atol=1e-6, rtol=0)
    [scores] = classifier.predict([Image.new("RGB", (32, 32), "red")])
    assert sum(row["score"] for row in scores) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "arguments, error, said",
    [
        ({"labels": "cat, dog"}, TypeError, "one string"),
        ({"labels": []}, ValueError, "`labels` is empty"),
        ({"labels": ["cat", None]}, TypeError, "None"),
        ({"labels": ["cat"], "templates": "a {}"}, TypeError, "one string"),
        ({"labels": ["cat"], "templates": ["a photo"]}, ValueError, "'a photo', which has no '{}'"),
        ({"labels": ["cat"], "templates": TEMPLATES, "batch_size": 0}, ValueError, "batch_size=0"),
        ({"labels": ["cat", []]}, ValueError, "`labels` is empty"),
        ({"labels": ["a cat"], "temperature": 0.0}, ValueError, "temperature=0.0"),
        ({"labels": ["a cat"], "temperature": -1}, ValueError, "temperature=-1.0"),
        ({"labels": ["a cat"], "temperature": 1e-40}, ValueError, "set it to 1e-06 or more"),
        ({"labels": ["a cat"], "temperature": float("nan")}, ValueError, "temperature=nan"),
        ({"labels": ["a cat"], "temperature": float("inf")}, ValueError, "temperature=inf"),
        ({"labels": ["a cat"], "temperature": "1"}, TypeError, "'1'"),
        ({"labels": ["a cat"], "templates": "EuroSAD"}, TypeError, "one string: .* Nearest: EuroSAT"),
        ({"labels": ["a cat", True]}, TypeError, "True, which is bool"),
        ({"labels": ["a cat"], "rejection": [3]}, TypeError, "`rejection` holds 3"),
    ],
)
def test_what_cannot_be_a_classifier(arguments, error, said):
    model = lookup()
    with pytest.raises(error, match=said):
        ZeroShotClassifier(model, model.processor, **arguments)


@pytest.mark.parametrize(
    "arguments, error, said",
    [
        ({"images": "cat.png"}, TypeError, "pass a list"),
        ({"images": Image.new("RGB", (8, 8))}, TypeError, "pass a list"),
        ({"images": [gray(0)], "top_k": 0}, ValueError, "top_k=0"),
        ({"images": [gray(0)], "batch_size": 0}, ValueError, "batch_size=0"),
        # An array of three axes would be taken for its rows, or a tensor for its channels.
        ({"images": gray(0)}, TypeError, "one ndarray"),
        ({"images": torch.zeros(3, 16, 16)}, TypeError, "one Tensor"),
        ({"images": np.zeros((8, 8))}, TypeError, "one ndarray"),
        ({"images": [gray(0)], "multi_label": True}, ValueError, "rejection='something else'"),
        ({"images": [gray(0), b"no image"]}, ImageDecodeError, r"images\[1\]: "),
    ],
)
def test_what_cannot_be_predicted(arguments, error, said):
    model = lookup()
    classifier = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES)
    with pytest.raises(error, match=said):
        classifier.predict(**arguments)
    of_ranks = {name: value for name, value in arguments.items() if name in ("top_k", "multi_label")}
    if of_ranks:
        with pytest.raises(error, match=said):
            classifier.rank(classifier.embed([gray(0)]), **of_ranks)


def test_a_class_of_several_names_is_the_mean_over_all_of_them():
    model = LookupEncoder([[1.0, 0.0]], {"cat": [2.0, 0.0], "kitten": [0.0, 9.0], "dog": [-1.0, 0.0]})
    classifier = ZeroShotClassifier(model, model.processor, [("cat", "kitten"), "dog"], PLAIN)
    half = 2**-0.5
    np.testing.assert_allclose(classifier.class_embeddings, [[half, half], [-1, 0]], atol=1e-6)
    assert classifier.labels == ["cat", "dog"]
    assert [row["label"] for row in classifier.predict([gray(0)])[0]] == ["cat", "dog"]


def test_a_class_for_what_is_none_of_them():
    texts = {"cat": [1.0, 0.0], "dog": [-1.0, 0.0], "none": [0.0, 1.0], "nothing": [0.0, 1.0]}
    model = LookupEncoder([[1.0, 1.0], [0.0, 1.0]], texts, scale=2.0)
    classifier = ZeroShotClassifier(model, model.processor, ["cat", "dog"], PLAIN, rejection=["none", "nothing"])
    [first, second] = classifier.predict([gray(0), gray(1)])
    assert [row["label"] for row in second] == ["none", "cat", "dog"]
    assert second[0]["score"] == pytest.approx(np.exp(2) / (np.exp(2) + 2), abs=1e-6)
    assert sum(row["score"] for row in first) == pytest.approx(1)
    assert classifier.predict([gray(1)], top_k=1) == [second[:1]]
    # Each label against the rejection class, which is no label itself.
    [alone] = classifier.predict([gray(1)], multi_label=True)
    assert alone == [
        {"label": label, "score": pytest.approx(1 / (1 + np.exp(2)), abs=1e-6)} for label in ("cat", "dog")
    ]


def test_the_scores_of_a_sigmoid_model_are_its_own():
    labels = ["a red square", "something blue"]
    model, processor = tiny_siglip(labels)
    images = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    with torch.no_grad():
        expected = model(**processor(text=labels, images=images, return_tensors="pt")).logits_per_image.sigmoid()
    assert (expected.sum(-1) - 1).abs().min() > 0.01
    classifier = ZeroShotClassifier(model, processor, labels, PLAIN)
    for options in ({}, {"multi_label": True}):
        for row, scores in zip(classifier.predict(images, **options), expected, strict=True):
            found = {entry["label"]: entry["score"] for entry in row}
            assert found == pytest.approx(dict(zip(labels, scores.tolist(), strict=True)), abs=1e-6)


def tiny_siglip(labels):
    from hf_clip import HFCLIPSiglipConfig, HFCLIPSiglipModel

    model, processor = tiny_clip(labels)
    shape = {"text_config": model.config.text_config.to_dict(), "vision_config": model.config.vision_config.to_dict()}
    torch.manual_seed(0)
    model = HFCLIPSiglipModel(HFCLIPSiglipConfig(**shape, projection_dim=16)).eval()
    with torch.no_grad():
        model.logit_scale.fill_(0.7)
        model.logit_bias.fill_(-0.4)
    return model, processor


def test_thresholds_leave_labels_out_and_temperature_makes_scores_less_sure():
    model = lookup(scale=2.0)
    classifier = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES)
    [[best, other]] = classifier.predict([gray(0)])
    assert classifier.predict([gray(0), gray(2)], threshold=best["score"]) == [[best], []]
    classifier.temperature = 4.0
    [[warm, _]] = classifier.predict([gray(0)])
    # Logits 2 and -2 (cosines 1 and -1) over four.
    assert warm["score"] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6) and warm["label"] == best["label"]


def test_classes_in_tiles_score_as_all_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(50, 6, generator=generator).round()
    texts = {f"class {number}": embedding.tolist() for number, embedding in enumerate(embeddings)}
    model = LookupEncoder(torch.randn(5, 6, generator=generator), texts, scale=3.0)
    labels, images = [text for text in texts if text != "class 7"], [gray(value) for value in range(5)]
    classifier = ZeroShotClassifier(model, model.processor, labels, PLAIN, rejection="class 7")
    whole = classifier.predict(images)
    monkeypatch.setattr(zero_shot, "TILE", 8)
    widths, logits = [], ZeroShotClassifier._logits
    monkeypatch.setattr(
        ZeroShotClassifier, "_logits", lambda self, *given: widths.append(len(given[1])) or logits(self, *given)
    )
    assert [row[:6] for row in whole] == [
        [{"label": one["label"], "score": pytest.approx(one["score"], abs=1e-6)} for one in row]
        for row in classifier.predict(images, top_k=6)
    ]
    # Never all classes at once: memory does not grow with them.
    assert widths == [8] * 6 + [1, 1]
    assert all(len(row) == 50 for row in whole)


def test_equal_scores_keep_the_order_of_the_labels(monkeypatch):
    monkeypatch.setattr(zero_shot, "TILE", 4)
    names = [f"class {number}" for number in range(10)]
    model = LookupEncoder([[1.0, 0.0]], dict.fromkeys(names, [0.6, 0.8]))
    classifier = ZeroShotClassifier(model, model.processor, names, PLAIN)
    for top_k in (None, 3):
        assert [row["label"] for row in classifier.predict([gray(0)], top_k=top_k)[0]] == names[:top_k]


def test_a_saved_classifier_is_the_same_and_knows_its_weights(tmp_path):
    labels, templates = [("a red square", "{red}"), "ein grünes"], ["{}", "see {}"]
    model, processor = tiny_clip([name for names in labels for name in names])
    classifier = ZeroShotClassifier(model, processor, labels, templates, rejection="neither", temperature=1.5)
    file = classifier.save(tmp_path / "labels.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["labels.safetensors"]
    encoded = []
    model.text_model.register_forward_pre_hook(lambda module, args: encoded.append(len(args[0])))
    loaded = ZeroShotClassifier.load(file, model, processor)
    # The probe alone, and none of the labels.
    assert encoded == [2]
    image = [Image.new("RGB", (32, 32), "red")]
    assert loaded.predict(image) == classifier.predict(image)
    for name in ("classes", "labels", "templates", "rejection", "temperature"):
        assert getattr(loaded, name) == getattr(classifier, name)
    with torch.no_grad():
        model.vision_model.post_layernorm.bias.add_(1)
        ZeroShotClassifier.load(file, model, processor)
        model.text_projection.weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match="another state of the text tower: other weights"):
        ZeroShotClassifier.load(file, model, processor)
    with pytest.raises(ValueError, match="another state of the text tower: other weights"):
        ZeroShotClassifier.load(file, model.to(torch.bfloat16), processor)


def test_a_classifier_of_a_compiled_model_knows_its_weights_too(tmp_path):
    model, processor = tiny_clip(["red", "blue"])
    compiled = torch.compile(model, backend="eager")
    file = ZeroShotClassifier(compiled, processor, ["red", "blue"]).save(tmp_path / "labels.safetensors")
    assert ZeroShotClassifier.load(file, model, processor).labels == ["red", "blue"]
    with torch.no_grad():
        model.text_projection.weight.mul_(2)
    with pytest.raises(ValueError, match="other weights"):
        ZeroShotClassifier.load(file, compiled, processor)


def test_files_that_hold_no_classifier(tmp_path):
    model, processor = tiny_clip(["a"])
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no zero-shot classifier"):
        ZeroShotClassifier.load(tmp_path / "model.safetensors", model, processor)
    (tmp_path / "cut").write_bytes((tmp_path / "model.safetensors").read_bytes()[:100])
    with pytest.raises(ValueError, match="cut cannot be read"):
        ZeroShotClassifier.load(tmp_path / "cut", model, processor)


def test_a_model_that_gives_nan_is_no_classifier():
    model = LookupEncoder([[1.0, 0.0], [float("nan"), 0.0]], {"cat": [1.0, 0.0], "dog": [float("inf"), 0.0]})
    with pytest.raises(ValueError, match="embeddings of labels hold NaN or infinity"):
        ZeroShotClassifier(model, model.processor, ["cat", "dog"], PLAIN)
    classifier = ZeroShotClassifier(model, model.processor, ["cat"], PLAIN)
    assert classifier.predict([gray(0)]) == [[{"label": "cat", "score": 1.0}]]
    with pytest.raises(ValueError, match="embeddings of images hold NaN or infinity"):
        classifier.predict([gray(0), gray(1)])


def test_labels_that_the_model_cannot_tell_apart_are_warned_of():
    long = "a very long story " * 40
    model, processor = tiny_clip([long])
    with pytest.warns(UserWarning, match="'a very long .* and 1 more become the same tokens"):
        ZeroShotClassifier(model, processor, ["short", long + "of a cat", long + "of a dog", "SHORT"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Equal names mean equal scores: published lists have such pairs.
        ZeroShotClassifier(model, processor, ["crane", "crane", "a crane"], ["{}", "a {}"], batch_size=2)


def test_folders_streams_and_data_sets_of_images(tmp_path):
    model = lookup()
    classifier = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES)
    expected = classifier.predict([gray(0), gray(1)])
    (tmp_path / "more").mkdir()
    (tmp_path / "a.png").write_bytes(encode(gray(0)))
    (tmp_path / "more/b.PNG").write_bytes(encode(gray(1)))
    (tmp_path / "notes.txt").write_text("no image")
    assert classifier.predict(tmp_path) == classifier.predict(str(tmp_path)) == expected
    assert classifier.predict(np.stack([gray(0), gray(1)])) == expected
    contents = [{"bytes": encode(gray(value)), "path": None} for value in (0, 1)]
    assert classifier.predict(contents) == expected
    rows = datasets.Dataset.from_dict({"photo": contents, "label": [0, 1]}).cast_column("photo", datasets.Image())
    for data in (rows, rows.to_iterable_dataset()):
        assert classifier.predict(data, batch_size=1) == expected
    assert classifier.predict(({"photo": one} for one in contents), image_column="photo") == expected
    with pytest.raises(ValueError, match="no column 'image': set `image_column` to one of photo, label"):
        classifier.predict([{"photo": contents[0], "label": 0}])
    with pytest.raises(ValueError, match="holds no images"):
        (tmp_path / "empty").mkdir()
        classifier.predict(tmp_path / "empty")


def test_broken_images_of_a_stream_stand_in_their_places():
    model = lookup()
    classifier = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES)
    images = [b"x", gray(0), None, None, gray(1), b""]
    found = list(classifier.stream(images, batch_size=2, return_errors=True))
    reasons = [one.reason if isinstance(one, ImageDecodeError) else one for one in found]
    assert reasons == ["unknown_format", *classifier.predict([gray(0)]), "missing", "missing",
                       *classifier.predict([gray(1)]), "empty"]  # fmt: skip


def test_a_stream_is_read_no_faster_than_its_answers_and_leaves_the_caller_alone():
    model = lookup()
    model.train()
    classifier = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES)
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield gray(0)

    answers = classifier.stream(endless(), batch_size=3)
    next(answers)
    assert len(taken) == 3
    assert model.training and not torch.is_inference_mode_enabled()


def test_a_bar_shows_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)
    model = lookup()
    classifier = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES)
    classifier.predict([gray(0)])
    assert not capsys.readouterr().err
    classifier.predict([gray(0)], show_progress=True)
    assert "/1 [" in capsys.readouterr().err
