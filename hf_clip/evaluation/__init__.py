"""How good a model is by the tasks of the paper, from zero-shot classification to linear probes; plots of it."""

from hf_clip.evaluation.cache import FeatureCache
from hf_clip.evaluation.calibration import Calibration, calibrate, fit_temperature
from hf_clip.evaluation.clip_score import ClipScoreResult, clip_score, evaluate_clip_score
from hf_clip.evaluation.features import Encoding, ImageFeatures, encode_images, encode_texts
from hf_clip.evaluation.few_shot import FewShotResult, evaluate_few_shot
from hf_clip.evaluation.groups import GroupsResult, evaluate_groups
from hf_clip.evaluation.languages import LanguagesResult, evaluate_languages
from hf_clip.evaluation.linear_probe import LinearProbeResult, evaluate_linear_probe
from hf_clip.evaluation.operating_points import OperatingPoint, OperatingPoints, find_operating_points
from hf_clip.evaluation.plots.image_sheets import plot_retrievals, plot_similarity
from hf_clip.evaluation.plots.result_charts import plot_per_template_accuracy
from hf_clip.evaluation.plots.training_curves import plot_training
from hf_clip.evaluation.retrieval import RetrievalResult, evaluate_pairs, evaluate_retrieval, retrieval_metrics
from hf_clip.evaluation.robustness import RobustnessResult, effective_robustness, evaluate_corruptions, evaluate_shift
from hf_clip.evaluation.segmentation import SegmentationResult, evaluate_segmentation
from hf_clip.evaluation.template_study import PerTemplateAccuracy, per_template_accuracy, select_templates
from hf_clip.evaluation.zero_shot import ZeroShotResult, evaluate_zero_shot

__all__ = [
    "Calibration",
    "ClipScoreResult",
    "Encoding",
    "FeatureCache",
    "FewShotResult",
    "GroupsResult",
    "ImageFeatures",
    "LanguagesResult",
    "LinearProbeResult",
    "OperatingPoint",
    "OperatingPoints",
    "PerTemplateAccuracy",
    "RetrievalResult",
    "RobustnessResult",
    "SegmentationResult",
    "ZeroShotResult",
    "calibrate",
    "clip_score",
    "effective_robustness",
    "encode_images",
    "encode_texts",
    "evaluate_clip_score",
    "evaluate_corruptions",
    "evaluate_few_shot",
    "evaluate_groups",
    "evaluate_languages",
    "evaluate_linear_probe",
    "evaluate_pairs",
    "evaluate_retrieval",
    "evaluate_segmentation",
    "evaluate_shift",
    "evaluate_zero_shot",
    "find_operating_points",
    "fit_temperature",
    "per_template_accuracy",
    "plot_per_template_accuracy",
    "plot_retrievals",
    "plot_similarity",
    "plot_training",
    "retrieval_metrics",
    "select_templates",
]
