"""How good a model is by the protocols of the paper, retrieval and zero-shot classification; plots of it."""

from hf_clip.evaluation.features import ImageFeatures, embed_images, embed_texts
from hf_clip.evaluation.plots import plot_retrievals, plot_similarity, plot_training
from hf_clip.evaluation.retrieval import (
    RetrievalResult,
    evaluate_pairs,
    evaluate_retrieval,
    retrieval_metrics,
    source_pairs,
)
from hf_clip.evaluation.zero_shot import ZeroShotResult, evaluate_zero_shot

__all__ = [
    "ImageFeatures",
    "RetrievalResult",
    "ZeroShotResult",
    "embed_images",
    "embed_texts",
    "evaluate_pairs",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "plot_retrievals",
    "plot_similarity",
    "plot_training",
    "retrieval_metrics",
    "source_pairs",
]
