"""LlamaIndex's `MultiModalEmbedding`."""

import asyncio
from functools import cache
from typing import Any

from hf_clip.model.embedding_hf_clip import embed_images, embed_texts
from hf_clip.model.typing_hf_clip import DualEncoder, Processor


def llama_index_embedding(
    model: DualEncoder, processor: Processor, *, model_name: str = "hf_clip", batch_size: int = 32
) -> Any:
    """An object of LlamaIndex's `MultiModalEmbedding`, which its indexes take for texts and for images.

        embedding = llama_index_embedding(*hf_clip.load("openai/clip-vit-base-patch32"))
        index = VectorStoreIndex(nodes, embed_model=embedding)

    Queries, texts and images are unit embeddings of one space. The asynchronous methods encode in a thread.

    Args:
        model_name: what LlamaIndex's events call it.
        batch_size: texts or images encoded at once.

    Raises:
        ImportError: where `llama-index-core` is not installed.
    """
    embedding = _embedding_class()(model_name=model_name, embed_batch_size=batch_size)
    embedding._encoder = (model, processor)
    return embedding


@cache
def _embedding_class() -> type:
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.embeddings import MultiModalEmbedding

    class HFCLIPEmbedding(MultiModalEmbedding):
        _encoder: Any = PrivateAttr()

        @classmethod
        def class_name(cls) -> str:
            return "HFCLIPEmbedding"

        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            model, processor = self._encoder
            return embed_texts(model, processor, texts, batch_size=self.embed_batch_size).tolist()

        def _get_text_embedding(self, text: str) -> list[float]:
            return self._get_text_embeddings([text])[0]

        def _get_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return await asyncio.to_thread(self._get_query_embedding, query)

        def _get_image_embeddings(self, img_file_paths: list[Any]) -> list[list[float]]:
            model, processor = self._encoder
            return embed_images(model, processor, img_file_paths, batch_size=self.embed_batch_size).tolist()

        def _get_image_embedding(self, img_file_path: Any) -> list[float]:
            return self._get_image_embeddings([img_file_path])[0]

        async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
            return await asyncio.to_thread(self._get_image_embedding, img_file_path)

    return HFCLIPEmbedding
