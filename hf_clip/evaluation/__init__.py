"""How good a model is by the protocols of the paper, from zero-shot classification to linear probes; plots of it."""

from hf_clip.evaluation.cache import FeatureCache
from hf_clip.evaluation.calibration import Calibration, calibrate, fit_temperature
from hf_clip.evaluation.features import Encoding, ImageFeatures, embed_images, embed_texts
from hf_clip.evaluation.few_shot import FewShotResult, evaluate_few_shot
from hf_clip.evaluation.linear_probe import LinearProbeResult, evaluate_linear_probe
from hf_clip.evaluation.plots.figures import plot_retrievals, plot_similarity, plot_training, plot_wording
from hf_clip.evaluation.retrieval import RetrievalResult, evaluate_pairs, evaluate_retrieval, retrieval_metrics
from hf_clip.evaluation.robustness import RobustnessResult, effective_robustness, evaluate_corruptions, evaluate_shift
from hf_clip.evaluation.template_study import WordingResult, measure_wording, select_templates
from hf_clip.evaluation.zero_shot import ZeroShotResult, evaluate_zero_shot

__all__ = [
    "Calibration",
    "Encoding",
    "FeatureCache",
    "FewShotResult",
    "ImageFeatures",
    "LinearProbeResult",
    "RetrievalResult",
    "RobustnessResult",
    "WordingResult",
    "ZeroShotResult",
    "calibrate",
    "effective_robustness",
    "embed_images",
    "embed_texts",
    "evaluate_corruptions",
    "evaluate_few_shot",
    "evaluate_linear_probe",
    "evaluate_pairs",
    "evaluate_retrieval",
    "evaluate_shift",
    "evaluate_zero_shot",
    "fit_temperature",
    "measure_wording",
    "plot_retrievals",
    "plot_similarity",
    "plot_training",
    "plot_wording",
    "retrieval_metrics",
    "select_templates",
]
