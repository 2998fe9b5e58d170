"""LangChain's `Embeddings`, of texts and of images."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from hf_clip.model.embedding_hf_clip import embed_images, embed_texts
from hf_clip.model.typing_hf_clip import DualEncoder, Processor


def langchain_embeddings(
    model: DualEncoder, processor: Processor, *, batch_size: int = 32, text_batch_size: int = 256
) -> Any:
    """An object of LangChain's `Embeddings`, which vector stores take.

        embeddings = langchain_embeddings(*hf_clip.load("openai/clip-vit-base-patch32"))
        store = InMemoryVectorStore(embeddings)
        image_embeds = embeddings.embed_image(["cat.jpg", "dog.jpg"])

    It has `embed_documents` and `embed_query` of texts, and `embed_image`, as LangChain's other embeddings of images
    call it: a list of images to a list of lists. All are unit embeddings of one space. The asynchronous methods are
    LangChain's own.

    Args:
        batch_size, text_batch_size: images and texts encoded at once.

    Raises:
        ImportError: where `langchain-core` is not installed.
    """
    return _embeddings_class()(model, processor, batch_size, text_batch_size)


@cache
def _embeddings_class() -> type:
    from langchain_core.embeddings import Embeddings

    class HFCLIPEmbeddings(Embeddings):
        def __init__(self, model: DualEncoder, processor: Processor, batch_size: int, text_batch_size: int):
            self.model, self.processor = model, processor
            self.batch_size, self.text_batch_size = batch_size, text_batch_size

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            if not texts:
                return []
            return embed_texts(self.model, self.processor, texts, batch_size=self.text_batch_size).tolist()

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

        def embed_image(self, uris: Sequence[Any]) -> list[list[float]]:
            if not uris:
                return []
            return embed_images(self.model, self.processor, list(uris), batch_size=self.batch_size).tolist()

    return HFCLIPEmbeddings
