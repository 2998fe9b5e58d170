"""The processor: both halves in one call, defaults that travel, and no input that the model cannot use."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, pipeline

import hf_clip  # noqa: F401  registers the processor with AutoProcessor
from hf_clip.model.configuration_hf_clip import HFCLIPConfig
from hf_clip.model.image_decoding_hf_clip import ImageDecodeError
from hf_clip.model.image_processing_hf_clip import HFCLIPImageProcessor
from hf_clip.model.processing_hf_clip import HFCLIPProcessor
from hf_clip.model.tokenization_hf_clip import HFCLIPTokenizer, build_vocabulary

TEXTS = ["A red cat", "", "Caf&eacute; “X” <|endoftext|>", "word " * 99]


def make_image(width: int = 41, height: int = 30) -> bytes:
    data = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(data).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def processor() -> HFCLIPProcessor:
    tokenizer = HFCLIPTokenizer.train(["a red cat", "a blue dog"] * 3, 530, model_max_length=20)
    edge = 16
    image_processor = HFCLIPImageProcessor(
        size={"shortest_edge": edge}, crop_size=edge, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]
    )
    return HFCLIPProcessor(image_processor, tokenizer)


def test_one_call_gives_what_the_halves_give(processor):
    both = processor(text=TEXTS[:2], images=[make_image(), make_image(20, 50)], return_tensors="pt")
    assert set(both) == {"input_ids", "pixel_values"}
    text = processor.tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    images = processor.image_processor([make_image(), make_image(20, 50)], return_tensors="pt")
    assert torch.equal(both["input_ids"], text["input_ids"])
    assert torch.equal(both["pixel_values"], images["pixel_values"])
    assert set(processor(text="a", return_tensors="pt")) == {"input_ids"}
    assert set(processor(images=make_image(), return_tensors="pt")) == {"pixel_values"}


def test_text_is_padded_to_the_longest_and_cut_to_the_context(processor):
    end = processor.tokenizer.eos_token_id
    short = processor(text=TEXTS[:2], return_tensors="pt")["input_ids"]
    lengths = [len(row) for row in processor.tokenizer(TEXTS[:2])["input_ids"]]
    assert short.shape == (2, max(lengths)) and lengths[1] == 2
    assert short[1].tolist() == [processor.tokenizer.bos_token_id] + [end] * (max(lengths) - 1)
    long = processor(text=TEXTS, return_tensors="pt")["input_ids"]
    assert long.shape == (4, 20) and long[3, -1] == end


def test_the_mask_and_other_lengths_on_request(processor):
    mask = processor(text=TEXTS[:2], return_attention_mask=True, return_tensors="pt")["attention_mask"]
    assert mask[1].sum() == 2
    assert "attention_mask" in processor(text="a", text_kwargs={"return_attention_mask": True})
    assert processor(text="a", padding="max_length", return_tensors="pt")["input_ids"].shape == (1, 20)
    assert processor(text=TEXTS[3], max_length=6, return_tensors="pt")["input_ids"].shape == (1, 6)
    assert processor(images=make_image(), do_normalize=False, return_tensors="pt")["pixel_values"].min() >= 0


def test_the_stock_pipeline_takes_labels_of_any_length(processor):
    """It calls the two halves alone, asks for no truncation, and passes the attention mask on."""
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = tower | {
        "vocab_size": len(processor.tokenizer),
        "max_position_embeddings": 20,
        "eos_token_id": processor.tokenizer.eos_token_id,
    }
    vision = tower | {"image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    classify = pipeline(
        "zero-shot-image-classification",
        model=model,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
    )
    image = Image.open(io.BytesIO(make_image())).convert("RGB")
    results = classify(image, candidate_labels=TEXTS, hypothesis_template="{}")
    inputs = processor(text=TEXTS, images=image, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.softmax(-1)[0]
    scores = {result["label"]: result["score"] for result in results}
    assert [scores[label] for label in TEXTS] == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_text_without_an_end_token_is_an_error(processor):
    for options in ({"add_special_tokens": False}, {"text_kwargs": {"add_special_tokens": False}}):
        with pytest.raises(ValueError, match="add_special_tokens"):
            processor(text=["a", "a red cat"], padding="max_length", **options)
    merges = []
    foreign = CLIPTokenizer(build_vocabulary(merges), merges, model_max_length=20)
    foreign.backend_tokenizer.post_processor = None
    foreign = HFCLIPProcessor(processor.image_processor, foreign)
    for text in ("abc", ["abc"]):
        with pytest.raises(ValueError, match="text 0 has no end token"):
            foreign(text=text)


def test_what_the_model_cannot_use_is_refused(processor):
    with pytest.raises(ValueError, match="padding_side=left`: this model's texts are padded on the right"):
        processor(text=["a", "a red cat"], padding_side="left")
    with pytest.raises(ValueError, match=r"text\[1\] is None"):
        processor(text=["a", None])
    for text in ([], 3):
        with pytest.raises(ValueError, match="pass a string, or a list"):
            processor(text=text)
    with pytest.raises(ValueError, match="at least one input"):
        processor()
    with pytest.raises(ImageDecodeError, match=r"images\[1\]"):
        processor(text="a", images=[make_image(), b"no image"])


def test_saved_and_loaded_it_gives_equal_outputs(processor, tmp_path: Path):
    processor(text=TEXTS, padding="max_length")
    processor.save_pretrained(tmp_path)
    HFCLIPConfig().save_pretrained(tmp_path)
    expected = processor(text=TEXTS, images=make_image(), return_tensors="pt")
    for loaded in (HFCLIPProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is HFCLIPProcessor
        assert type(loaded.image_processor) is HFCLIPImageProcessor
        assert type(loaded.tokenizer) is HFCLIPTokenizer
        outputs = loaded(text=TEXTS, images=make_image(), return_tensors="pt")
        assert set(outputs) == set(expected)
        assert all(torch.equal(outputs[key], expected[key]) for key in expected)


def test_a_folder_of_transformers_clip_is_read(tmp_path: Path):
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(tmp_path)
    merges = [("a", "b</w>")]
    CLIPTokenizer(build_vocabulary(merges), merges, model_max_length=9).save_pretrained(tmp_path)
    processor = HFCLIPProcessor(
        HFCLIPImageProcessor.from_pretrained(tmp_path), HFCLIPTokenizer.from_pretrained(tmp_path)
    )
    outputs = processor(text=["AB", "x " * 99], images=make_image(), return_tensors="pt")
    assert outputs["input_ids"].shape == (2, 9) and outputs["input_ids"][0, :3].tolist() == [513, 512, 514]
    assert outputs["pixel_values"].shape == (1, 3, 16, 16)
