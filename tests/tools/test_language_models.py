"""Models of transformers that hold some image encoder hold ours: built, trained a step, saved, loaded, asked."""

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    GitProcessor,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    VisionTextDualEncoderModel,
    pipeline,
)

from hf_clip import HFCLIPImageProcessor, HFCLIPVisionConfig, HFCLIPVisionModel
from hf_clip.model.modeling_convnet_hf_clip import HFCLIPConvNetModel

WORDS = ["<pad>", "<s>", "</s>", "<image>", "USER", "what", "is", "it", "red", "blue", "a", "square", "?", ":"]
SIDE, PATCH = 32, 8
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": SIDE, "patch_size": PATCH}
CONVNET = {
    "tower": "convnet", "stem_width": 16, "stage_widths": [16, 32], "stage_depths": [1, 1], "hidden_size": 32,
    "image_size": SIDE, "pooling": "class",
}  # fmt: skip


def word_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="a",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip


def image_processor() -> HFCLIPImageProcessor:
    return HFCLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def train_a_step(model, **inputs) -> None:
    """Every weight of the image tower is seen by the loss; a step changes it."""
    model.train()
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**inputs).loss.backward()
    optimizer.step()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert any("encoder.layers.0.self_attn.q_proj" in name for name in changed)
    model.eval()


def test_automodel_makes_the_tower_that_a_config_names(tmp_path):
    assert type(AutoModel.from_config(HFCLIPVisionConfig(**VISION))) is HFCLIPVisionModel
    convnet = AutoModel.from_config(HFCLIPVisionConfig(**CONVNET))
    assert type(convnet) is HFCLIPConvNetModel
    convnet.save_pretrained(tmp_path)
    read = AutoModel.from_pretrained(tmp_path)
    pixels = torch.rand(1, 3, SIDE, SIDE)
    assert type(read) is HFCLIPConvNetModel
    torch.testing.assert_close(read(pixels).pooler_output, convnet.eval()(pixels).pooler_output)


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    torch.manual_seed(0)
    text = LlamaConfig(
        **TOWER, vocab_size=len(WORDS), max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    config = LlavaConfig(
        vision_config=HFCLIPVisionConfig(**VISION), text_config=text, image_token_index=3, vision_feature_layer=-2
    )
    model = LlavaForConditionalGeneration(config)
    processor = LlavaProcessor(
        image_processor(), word_tokenizer(), patch_size=PATCH, vision_feature_select_strategy="default",
        image_token="<image>", num_additional_image_tokens=1,
        chat_template="{% for m in messages %}USER : {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
        "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}",
    )  # fmt: skip
    inputs = processor(
        images=Image.new("RGB", (40, 32), "red"), text="USER : <image> what is it ?", return_tensors="pt"
    )
    assert inputs["input_ids"].eq(3).sum() == (SIDE // PATCH) ** 2
    train_a_step(model, **inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == 3, -100))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model


def test_llava_holds_the_tower_and_answers_through_the_stock_pipeline(llava_folder):
    folder, model = llava_folder
    ask = pipeline("image-text-to-text", model=str(folder))
    assert type(ask.model.model.vision_tower) is HFCLIPVisionModel
    torch.testing.assert_close(ask.model.state_dict(), model.state_dict())
    content = [{"type": "image", "image": Image.new("RGB", (40, 32))}, {"type": "text", "text": "what is it ?"}]
    messages = [{"role": "user", "content": content}]
    answer = ask(text=messages, max_new_tokens=4, do_sample=False, return_full_text=False)
    assert isinstance(answer[0]["generated_text"], str)
    # Another image, another prediction: the tower is seen.
    inputs = ask.processor(
        images=[Image.new("RGB", (32, 32), color) for color in ("red", "blue")],
        text=["<image> what", "<image> what"],
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = ask.model(**inputs).logits
    assert not torch.allclose(logits[0, -1], logits[1, -1])


def test_vision_encoder_decoder_holds_the_tower_and_answers_through_the_stock_pipeline(tmp_path):
    torch.manual_seed(0)
    decoder = GPT2Config(
        vocab_size=len(WORDS), n_embd=32, n_layer=1, n_head=2, n_positions=64, add_cross_attention=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(HFCLIPVisionConfig(**VISION), decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    model = VisionEncoderDecoderModel(config=config)
    assert type(model.encoder) is HFCLIPVisionModel and type(model.decoder) is GPT2LMHeadModel
    pixels = image_processor()(Image.new("RGB", (40, 32), "red"), return_tensors="pt")["pixel_values"]
    train_a_step(model, pixel_values=pixels, labels=torch.tensor([[10, 8, 11, 2]]))
    model.generation_config.update(decoder_start_token_id=1, pad_token_id=0, max_new_tokens=4)
    model.save_pretrained(tmp_path)
    read = VisionEncoderDecoderModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(read.state_dict(), model.state_dict())
    with torch.no_grad():
        expected = model.generate(pixels, do_sample=False)
        assert torch.equal(read.generate(pixels, do_sample=False), expected)
    # transformers has no processor for models of two parts; GIT's is an image processor and a tokenizer.
    GitProcessor(image_processor(), word_tokenizer()).save_pretrained(tmp_path)
    answer = pipeline("image-text-to-text", model=str(tmp_path))
    assert type(answer.model.encoder) is HFCLIPVisionModel
    begun = answer.tokenizer("it is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ids = model.eval().generate(pixels, decoder_input_ids=begun, do_sample=False)
    [found] = answer(images=Image.new("RGB", (40, 32), "red"), text="it is", generate_kwargs={"do_sample": False})
    assert found["generated_text"] == answer.tokenizer.decode(ids[0], skip_special_tokens=True)


def test_vision_text_dual_encoder_holds_the_tower(tmp_path):
    torch.manual_seed(0)
    HFCLIPVisionModel(HFCLIPVisionConfig(**VISION)).save_pretrained(tmp_path / "image")
    BertModel(BertConfig(**TOWER, vocab_size=len(WORDS))).save_pretrained(tmp_path / "text")
    model = VisionTextDualEncoderModel.from_vision_text_pretrained(
        str(tmp_path / "image"), str(tmp_path / "text"), projection_dim=16
    )
    assert type(model.vision_model) is HFCLIPVisionModel
    inputs = {"input_ids": torch.tensor([[1, 5, 2], [1, 6, 2]]), "pixel_values": torch.rand(2, 3, SIDE, SIDE)}
    train_a_step(model, **inputs, return_loss=True)
    model.save_pretrained(tmp_path / "both")
    read = VisionTextDualEncoderModel.from_pretrained(tmp_path / "both").eval()
    with torch.no_grad():
        torch.testing.assert_close(read(**inputs).logits_per_image, model(**inputs).logits_per_image)
