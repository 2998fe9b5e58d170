"""sentence-transformers, LangChain, LlamaIndex and torchmetrics give the embeddings and scores of this package."""

import asyncio
import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from torchmetrics.functional.multimodal import clip_score as their_clip_score
from torchmetrics.multimodal.clip_score import CLIPScore

from hf_clip import clip_score, convert, embed_images, embed_texts, langchain_embeddings, llama_index_embedding
from tests.helpers.toys import tiny_clip

TEXTS = ["a red square", "a blue square", "x " * 90]
IMAGES = [Image.new("RGB", (40, 32), color) for color in ("red", "blue", "green")]


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(TEXTS)


@pytest.fixture(scope="module")
def expected(clip):
    return embed_images(*clip, IMAGES).numpy(), embed_texts(*clip, TEXTS).numpy()


@pytest.mark.parametrize("has_modules", [True, False])
def test_sentence_transformers_reads_the_folder(clip, expected, has_modules, tmp_path):
    model, processor = clip
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if has_modules:
        convert(folder, to="hf_clip", output_dir=(folder := tmp_path / "converted"))
    read = SentenceTransformer(str(folder), device="cpu")
    # Without the files that are written with a converted or pushed model, embeddings have lengths.
    options = {} if has_modules else {"normalize_embeddings": True}
    np.testing.assert_allclose(read.encode(IMAGES, **options), expected[0], atol=1e-6)
    np.testing.assert_allclose(read.encode(TEXTS, **options), expected[1], atol=1e-6)


def test_langchain_stores_texts_and_images(clip, expected):
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import InMemoryVectorStore

    embeddings = langchain_embeddings(*clip)
    assert isinstance(embeddings, Embeddings)
    np.testing.assert_allclose(embeddings.embed_image(IMAGES), expected[0], atol=1e-6)
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), expected[1], atol=1e-6)
    np.testing.assert_allclose(asyncio.run(embeddings.aembed_query(TEXTS[1])), expected[1][1], atol=1e-6)
    assert embeddings.embed_documents([]) == [] == embeddings.embed_image([])
    store = InMemoryVectorStore(embeddings)
    store.add_texts(TEXTS)
    assert store.similarity_search(TEXTS[1], k=1)[0].page_content == TEXTS[1]


@pytest.mark.slow
def test_llama_index_takes_texts_and_images(clip, expected, tmp_path):
    embedding = llama_index_embedding(*clip, model_name="tiny", batch_size=2)
    IMAGES[0].save(tmp_path / "red.png")
    np.testing.assert_allclose(embedding.get_image_embedding(str(tmp_path / "red.png")), expected[0][0], atol=1e-6)
    np.testing.assert_allclose(embedding.get_image_embedding_batch(IMAGES), expected[0], atol=1e-6)
    np.testing.assert_allclose(embedding.get_text_embedding_batch(TEXTS), expected[1], atol=1e-6)
    np.testing.assert_allclose(asyncio.run(embedding.aget_query_embedding(TEXTS[0])), expected[1][0], atol=1e-6)
    assert embedding.to_payload()["model_name"] == "tiny"


def test_clip_score_is_that_of_torchmetrics(clip):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(255, (3, 3, 40, 48), dtype=torch.uint8, generator=generator)
    scores = clip_score(*clip, list(images), TEXTS)
    theirs = [their_clip_score(image, text, lambda: clip) for image, text in zip(images, TEXTS, strict=True)]
    torch.testing.assert_close(scores.clamp(min=0), torch.stack(theirs).detach(), atol=1e-4, rtol=0)
    metric = CLIPScore(model_name_or_path=lambda: clip)
    metric.update(images[:2], TEXTS[:2])
    metric.update(images[2:], TEXTS[2:])
    assert metric.compute().item() == pytest.approx(max(scores.mean().item(), 0), abs=1e-4)
    assert clip_score(*clip, list(images), TEXTS[0])[0] == pytest.approx(scores[0].item(), abs=1e-4)
    with pytest.raises(ValueError, match="`texts` has 2 texts for 3 images"):
        clip_score(*clip, list(images), TEXTS[:2])


def test_programs_that_read_a_mask_find_one(clip):
    _, processor = clip
    inputs = processor(text=TEXTS, images=IMAGES, return_tensors="pt")
    asked = processor(text=TEXTS, return_tensors="pt", return_attention_mask=True)["attention_mask"]
    assert "attention_mask" not in inputs and set(dict(**inputs)) == {"input_ids", "pixel_values"}
    for found in (inputs, copy.deepcopy(inputs), pickle.loads(pickle.dumps(inputs))):
        assert torch.equal(found.attention_mask, asked) and torch.equal(found["attention_mask"], asked)
    lists = processor(text=TEXTS[0]), processor(text=TEXTS, padding=False)
    assert lists[0].attention_mask == [1] * len(lists[0]["input_ids"])
    assert [sum(row) for row in lists[1]["attention_mask"]] == [len(row) for row in lists[1]["input_ids"]]
    with pytest.raises(AttributeError):
        processor(images=IMAGES, return_tensors="pt").attention_mask  # noqa: B018


def test_features_are_taken_for_tensors_by_programs_of_transformers_4(clip):
    model, processor = clip
    inputs = processor(text=TEXTS, images=IMAGES, return_tensors="pt")
    with torch.no_grad():
        image = model.get_image_features(inputs["pixel_values"])
        text = model.get_text_features(inputs["input_ids"])
        image_embeds = image / image.norm(p=2, dim=-1, keepdim=True)
        text_embeds = torch.nn.functional.normalize(text, dim=-1)
        torch.testing.assert_close(image_embeds, model.encode_image(inputs["pixel_values"]))
        torch.testing.assert_close(text_embeds, model.encode_text(inputs["input_ids"]))
        torch.testing.assert_close(image @ text.T, image.pooler_output @ text.pooler_output.T)
        torch.testing.assert_close(100.0 * image, image.pooler_output * 100)
        torch.testing.assert_close(torch.cat([image, image]), image.pooler_output.repeat(2, 1))
    assert image.shape == (3, 16) and image.cpu().numpy().dtype == np.float32
    assert copy.deepcopy(image).pooler_output.shape == (3, 16)
    with pytest.raises(AttributeError, match="nrom"):
        image.nrom()
