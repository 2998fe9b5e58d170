"""Other libraries' interfaces to embeddings, each as one small adapter over `embed_images` and `embed_texts`."""

from hf_clip.tools.langchain import langchain_embeddings
from hf_clip.tools.llama_index import llama_index_embedding

__all__ = ["langchain_embeddings", "llama_index_embedding"]
