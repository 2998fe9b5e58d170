"""NaFlex against transformers' Siglip2Model and its image processor, with small random weights."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import Siglip2ForImageClassification, pipeline

from hf_clip import (
    HFCLIPForImageClassification,
    HFCLIPImageProcessor,
    HFCLIPModel,
    HFCLIPProcessor,
    HFCLIPVisionConfig,
    HFCLIPVisionModelWithProjection,
    ZeroShotClassifier,
    embed_images,
    embed_texts,
    evaluate_linear_probe,
    evaluate_zero_shot,
    join_towers,
    open_source,
)
from hf_clip.evaluation import encode_images
from hf_clip.evaluation.corruptions import Corruption
from hf_clip.evaluation.features import Encoding
from hf_clip.model.image_patches_hf_clip import shape_in_patches
from hf_clip.search.models import LazyModel
from tests.helpers.counts import soak_count
from tests.helpers.naflex import (
    CONTEXT,
    MAX_NUM_PATCHES,
    PATCH_SIZE,
    SHAPES,
    images_of,
    siglip2_config,
    siglip2_images,
    siglip2_tokenizer,
    tiny_naflex,
    write_naflex_folder,
)
from tests.helpers.squares import encode, write_parquet
from tests.helpers.toys import scatter_weights

LABELS = ["a red square", "something blue", "a dog"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_naflex(tmp_path_factory.mktemp("naflex"))


@pytest.fixture(scope="module")
def processor():
    return HFCLIPProcessor(our_images(), siglip2_tokenizer(), text_padding="max_length", text_cleaning="lower")


def our_images(**settings) -> HFCLIPImageProcessor:
    half = [0.5, 0.5, 0.5]
    options = {"patch_size": PATCH_SIZE, "max_num_patches": MAX_NUM_PATCHES, "resample": "bilinear"}
    return HFCLIPImageProcessor(image_mean=half, image_std=half, **options | settings)


def theirs_of(peer, images) -> torch.Tensor:
    """Unit embeddings by transformers, of images padded to the most patches there are."""
    with torch.no_grad():
        features = peer.get_image_features(**siglip2_images()(images, return_tensors="pt"))
    return F.normalize(features.pooler_output, dim=-1)


def near(one: torch.Tensor, other: torch.Tensor, limit: float = 1e-5) -> bool:
    return (one - other).abs().max().item() <= limit


def test_twenty_shapes_in_one_batch_give_siglip2s_embeddings(models):
    peer, model = models
    images = images_of(SHAPES)
    expected = theirs_of(peer, images)
    with torch.no_grad():
        for inputs in (
            our_images()(images, return_tensors="pt"),
            our_images()(images, return_tensors="pt", do_pad=True),
            siglip2_images()(images, return_tensors="pt"),
        ):
            assert near(model.encode_image(**inputs), expected)
            assert near(F.normalize(model.get_image_features(**inputs).pooler_output, dim=-1), expected)
            # What is known from the shapes need not be told.
            inputs.pop("pixel_attention_mask")
            assert near(model.encode_image(**inputs), expected)
    assert (expected[0] - expected[1:]).norm(dim=-1).min() > 1e-3, "the images should not be alike"


def test_an_image_in_a_batch_is_what_it_is_alone(models):
    model = models[1].double()
    images, image_processor = images_of(SHAPES), our_images()
    with torch.no_grad():
        together = model.encode_image(**image_processor(images, return_tensors="pt"))
        alone = [model.encode_image(**image_processor([image], return_tensors="pt")) for image in images]
    models[1].float()
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-10, atol=1e-10)


ODD_SHAPES = [(1, 1), (3, 300), (4000, 9), (16, 16), (17, 16), (80, 64)]


@pytest.mark.parametrize("settings", [{}, {"patch_size": 16, "max_num_patches": 256}, {"max_num_patches": 1}])
def test_pixels_are_siglip2s_bit_for_bit(settings):
    images = images_of([*SHAPES[:6], *SHAPES[-3:], *ODD_SHAPES])
    theirs = siglip2_images(**settings)(images, return_tensors="pt")
    ours = our_images(**settings)(images, return_tensors="pt")
    longest = int(theirs["spatial_shapes"].prod(dim=1).max())
    assert ours["pixel_values"].shape[1] == longest
    for name in theirs:
        expected = theirs[name] if name == "spatial_shapes" else theirs[name][:, :longest]
        assert ours[name].dtype == expected.dtype and torch.equal(ours[name], expected)
    padded = our_images(**settings)(images, return_tensors="pt", do_pad=True)
    assert all(torch.equal(padded[name], theirs[name]) for name in theirs)


def test_shapes_in_patches_are_siglip2s():
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    generator = torch.Generator().manual_seed(0)
    for _ in range(soak_count(200, 20_000)):
        width, height = (10 ** (5 * torch.rand(2, generator=generator))).int().clamp(min=1).tolist()
        patch_size, most = torch.randint(1, 33, (1,), generator=generator).item(), int(2 ** (10 * torch.rand(1)))
        rows, columns = shape_in_patches(width, height, patch_size, most)
        size = get_image_size_for_max_num_patches(height, width, patch_size, most)
        assert (rows * patch_size, columns * patch_size) == size, (width, height, patch_size, most)


def test_nothing_is_computed_of_what_is_padding_in_every_image(models):
    """Not even where the processor padded to the most patches; without padding there is no mask either."""
    model, seen = models[1], []
    hook = model.vision_model.encoder.layers[0].register_forward_pre_hook(
        lambda _, given: seen.append((given[0].shape[1], given[1] is None))
    )
    images = images_of([(40, 20), (20, 40), (33, 80)])
    inputs = siglip2_images()(images, return_tensors="pt")
    counts = inputs["spatial_shapes"].prod(dim=1).tolist()
    assert counts[0] == counts[1] and max(counts) < MAX_NUM_PATCHES
    with torch.no_grad():
        model.get_image_features(**inputs)
        model.get_image_features(**{name: value[:2] for name, value in inputs.items()})
    hook.remove()
    assert seen == [(max(counts), counts[0] == counts[2]), (counts[0], True)]


def test_attention_written_out_knows_the_padding(models):
    peer, model = models
    images = images_of(SHAPES[:5])
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            assert near(model.encode_image(**our_images()(images, return_tensors="pt")), theirs_of(peer, images))
    finally:
        model.set_attn_implementation("sdpa")


def test_in_half_precision_and_with_gradients(models):
    model = HFCLIPModel.from_pretrained(None, config=models[1].config, state_dict=models[1].state_dict())
    model.train().gradient_checkpointing_enable()
    inputs = our_images()(images_of(SHAPES[:4]), return_tensors="pt")
    single = model.encode_image(**inputs)
    single[:, 0].sum().backward()
    without = [name for name, each in model.vision_model.named_parameters() if not each.grad.abs().max() > 0]
    # A softmax does not see what is added to all keys alike.
    assert all(name.endswith("k_proj.bias") for name in without)
    with torch.no_grad():
        half = model.to(torch.bfloat16).eval().encode_image(**inputs)
    assert half.dtype == torch.bfloat16 and near(half.float(), single, 0.05)


def test_towers_and_classifiers_know_the_padding(tmp_path):
    """Classes are found from the mean over an image's own patches, as there."""
    theirs = scatter_weights(Siglip2ForImageClassification(siglip2_config()))
    theirs.save_pretrained(tmp_path)
    images = images_of(SHAPES)
    inputs, padded = our_images()(images, return_tensors="pt"), siglip2_images()(images, return_tensors="pt")
    ours = HFCLIPForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert near(ours(**inputs).logits, theirs(**padded).logits)
    alone = HFCLIPVisionModelWithProjection.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = theirs.vision_model(**padded).last_hidden_state
        found = alone(**inputs)
    assert found.image_embeds.shape == (len(images), 32)
    for row, (rows, columns) in enumerate(inputs["spatial_shapes"].tolist()):
        assert near(found.last_hidden_state[row, : rows * columns], expected[row, : rows * columns])


def test_logits_and_loss_of_what_the_processor_gives(models, processor):
    peer, model = models
    images = images_of(SHAPES[:3])
    inputs = processor(images=images, text=LABELS, return_tensors="pt")
    assert inputs["input_ids"].shape == (3, CONTEXT)
    with torch.no_grad():
        ours, theirs = model(**inputs, return_loss=True), peer(**inputs, return_loss=True)
    torch.testing.assert_close(ours.logits_per_image, theirs.logits_per_image, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_images_of_all_shapes_go_through_embedding_classifier_and_pipelines(models, processor, tmp_path):
    peer, model = models
    images = images_of(SHAPES)
    expected = theirs_of(peer, images)
    assert near(embed_images(model, processor, images, batch_size=7), expected)
    assert near(encode_images(model, processor, images, batch_size=6).embeddings, expected)
    with torch.no_grad():
        padded = peer.vision_model(**siglip2_images()(images, return_tensors="pt"))
    pooled = encode_images(model, processor, images, encoding=Encoding(6, before_projection=True)).embeddings
    assert near(pooled, padded.pooler_output)
    classifier = ZeroShotClassifier(model, processor, LABELS, templates=["This is a photo of {}."])
    scores = [{row["label"]: row["score"] for row in rows} for rows in classifier.predict(images)]
    texts = processor(text=[f"This is a photo of {label}." for label in LABELS], return_tensors="pt")
    with torch.no_grad():
        logits = model(**texts, **processor(images=images, return_tensors="pt")).logits_per_image
    for row, of_labels in zip(scores, logits.sigmoid().tolist(), strict=True):
        assert row == pytest.approx(dict(zip(LABELS, of_labels, strict=True)), abs=1e-5)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    # The stock pipeline makes batches of images of one shape alone, unless they are padded to the most patches.
    for task, options in (("zero-shot-image-classification", {}), ("hf-clip-zero-shot", {"batch_size": 8})):
        classify = pipeline(task, model=str(tmp_path))
        found = classify(images, candidate_labels=LABELS, **options)
        for row, of_image in zip(scores, found, strict=True):
            assert {one["label"]: one["score"] for one in of_image} == pytest.approx(row, abs=1e-5)
    stock = pipeline("zero-shot-image-classification", model=str(tmp_path))
    stock.image_processor.do_pad = True
    again = stock(images, candidate_labels=LABELS, batch_size=8)
    for row, of_image in zip(scores, again, strict=True):
        assert {one["label"]: one["score"] for one in of_image} == pytest.approx(row, abs=1e-5)


def test_a_processor_is_saved_with_its_patches(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = HFCLIPProcessor.from_pretrained(tmp_path)
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()
    assert again.model_input_names == processor.model_input_names
    assert {"pixel_values", "pixel_attention_mask", "spatial_shapes"} <= set(again.model_input_names)
    images = images_of(SHAPES[:3])
    fewer = again(images=images, max_num_patches=6, return_tensors="pt")
    assert int(fewer["spatial_shapes"].prod(dim=1).max()) <= 6
    assert again.image_processor.resize_and_crop(images[0]).shape == (10 * PATCH_SIZE, 2 * PATCH_SIZE, 3)


WRONG_INPUTS = [
    ({"pixel_values": torch.zeros(2, 3, 16, 16)}, r"takes images in patches: pass \(images, patches, 48\)"),
    ({"pixel_values": torch.zeros(2, 20, 48), "spatial_shapes": None}, "`spatial_shapes` is missing"),
    ({"spatial_shapes": torch.ones(3, 2, dtype=torch.int64)}, r"`spatial_shapes` has shape \(3, 2\): pass \(2, 2\)"),
    ({"spatial_shapes": torch.tensor([[3, 7], [1, 1]])}, "3 x 7 patches where `pixel_values` has 20"),
    ({"spatial_shapes": torch.tensor([[3, 5], [0, 1]])}, "0 x 1 patches"),
    ({"spatial_shapes": [(4, 5), (2, 3, 1)]}, "two whole numbers"),
    ({"pixel_attention_mask": [[1] * 20] * 2}, r"`pixel_attention_mask` has shape \(\)"),
    ({"pixel_attention_mask": torch.arange(40).reshape(2, 20) < 20}, "leaves an image no patch"),
    ({"pixel_attention_mask": torch.ones(2, 20)}, "or has patches behind the rows and columns"),
    ({"pixel_attention_mask": torch.ones(2, 19)}, r"`pixel_attention_mask` has shape \(2, 19\): pass \(2, 20\)"),
    ({"pixel_values": torch.zeros(2, 20, 48, dtype=torch.uint8)}, "raw pixels"),
]


@pytest.mark.parametrize("changed, problem", WRONG_INPUTS)
def test_inputs_that_do_not_fit_are_named(changed, problem, models):
    inputs = {"pixel_values": torch.zeros(2, 20, 48), "spatial_shapes": torch.tensor([[4, 5], [2, 3]])}
    with pytest.raises(ValueError, match=problem) as caught:
        models[1].encode_image(**inputs | changed)
    assert "\n" not in str(caught.value)


def test_settings_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="`num_patches=250` are the positions of a NaFlex tower"):
        HFCLIPVisionConfig(tower="naflex", num_patches=250)
    with pytest.raises(ValueError, match="`patch_dropout=0.5`: a NaFlex tower drops no patches"):
        HFCLIPVisionConfig(tower="naflex", num_patches=256, patch_dropout=0.5)
    with pytest.raises(ValueError, match="`max_num_patches=256` with `patch_size=None`"):
        HFCLIPImageProcessor(max_num_patches=256)
    with pytest.raises(ValueError, match="`max_num_patches=0` with `patch_size=4`"):
        our_images()(images_of([(9, 9)]), max_num_patches=0)
    with pytest.raises(ValueError, match="10 x 8 pixels cannot be divided into patches of 4 x 4"):
        our_images()(images_of([(8, 10)]), do_resize=False)


def test_another_tower_takes_no_patches(models):
    config = HFCLIPVisionConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)
    model = HFCLIPVisionModelWithProjection(config)
    with pytest.raises(TypeError, match="spatial_shapes"):
        model(torch.zeros(1, 3, 224, 224), spatial_shapes=torch.ones(1, 2))


def test_towers_can_be_joined_with_another_text_tower(models, processor, tmp_path):
    model = models[1]
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    linear = {"projection_type": "linear"}
    joined, processor = join_towers(
        tmp_path / "ours", tmp_path / "ours", projection_dim=16, vision_config=linear, text_config=linear
    )
    with torch.no_grad():
        ours, theirs = (
            each.vision_model(**our_images()(images_of(SHAPES[:3]), return_tensors="pt")).pooler_output
            for each in (joined, model)
        )
    torch.testing.assert_close(ours, theirs)
    assert embed_images(joined, processor, images_of(SHAPES[:3])).shape == (3, 16)
    write_naflex_folder(tmp_path / "theirs")
    with pytest.raises(ValueError, match="is a NaFlex model in transformers' files: write it with hf_clip.convert"):
        join_towers(tmp_path / "theirs", tmp_path / "ours")


def test_evaluations_take_images_of_all_shapes(models, processor, tmp_path):
    """Tall images and wide ones: what a zero-shot evaluation and a probe see is what `embed_images` gives."""
    images = images_of(SHAPES * 2)
    labels = ["wide" if image.width > image.height else "tall" for image in images]
    content = [
        {"image": {"bytes": encode(np.asarray(image)), "path": None}, "label": label}
        for image, label in zip(images, labels, strict=True)
    ]
    source = open_source(str(write_parquet(tmp_path / "images.parquet", content)))
    found = evaluate_zero_shot(models[1], processor, source, templates=["{}"], labels=["tall", "wide"], batch_size=7)
    scores = embed_images(models[1], processor, images) @ embed_texts(models[1], processor, ["tall", "wide"]).T
    expected = [label == ("tall", "wide")[index] for label, index in zip(labels, scores.argmax(1), strict=True)]
    assert found.top_1 == pytest.approx(sum(expected) / len(images))
    probe = evaluate_linear_probe(models[1], processor, source, source, validation=source)
    assert probe.top_1 == 1, "rows and columns are in the embedding"


def test_images_that_an_index_prepares_one_by_one_are_of_one_batch(models, processor):
    model = LazyModel(models[1], processor)
    images = images_of(SHAPES[:6])
    found = torch.from_numpy(model.embed_pixels([model.prepare(image) for image in images]))
    assert near(found, embed_images(models[1], processor, images), 1e-6)


def test_corruptions_are_of_the_image_as_the_model_sees_it(processor):
    for image in images_of(SHAPES[:12:3]):
        seen = processor.image_processor.resize_and_crop(image)
        corrupted = Corruption("brightness", 2)(image, processor)
        assert corrupted.size == seen.shape[1::-1]
        inputs = processor(images=[corrupted], return_tensors="pt")
        assert inputs["spatial_shapes"].tolist() == [[side // PATCH_SIZE for side in seen.shape[:2]]]
