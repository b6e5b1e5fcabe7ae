"""Numbers, pictures and the report of a run, each usable by itself on plain tensors."""

from hvq.evaluation.classification import (
    SmallClassifier,
    class_probabilities,
    classification_accuracy,
    fit_classifier,
    predict_classes,
)
from hvq.evaluation.code_usage import CodeHistogram, CodeUsage
from hvq.evaluation.copies import CopyReport, copy_share, nearest_squared_errors
from hvq.evaluation.pictures import image_grid, reconstruction_grid, sample_grid, training_curves, usage_histogram
from hvq.evaluation.reconstruction import ReconstructionMetrics
from hvq.evaluation.report import write_report

__all__ = [
    "CodeHistogram",
    "CodeUsage",
    "CopyReport",
    "ReconstructionMetrics",
    "SmallClassifier",
    "class_probabilities",
    "classification_accuracy",
    "copy_share",
    "fit_classifier",
    "image_grid",
    "nearest_squared_errors",
    "predict_classes",
    "reconstruction_grid",
    "sample_grid",
    "training_curves",
    "usage_histogram",
    "write_report",
]
