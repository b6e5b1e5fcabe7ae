"""Numbers, pictures and the report of a run, each usable by itself on plain tensors."""

from hvq.evaluation.classification import (
    SmallClassifier,
    class_probabilities,
    classification_accuracy,
    fit_classifier,
    predict_classes,
    top_accuracy,
)
from hvq.evaluation.code_usage import CodeHistogram, CodeUsage
from hvq.evaluation.cooccurrence import CodeCooccurrence
from hvq.evaluation.copies import CopyReport, copy_share, nearest_squared_errors
from hvq.evaluation.extractors import ClassifierExtractor, FeatureExtractor, InceptionExtractor
from hvq.evaluation.feature_distance import load_feature_distance
from hvq.evaluation.frechet import FrechetDistance
from hvq.evaluation.inception_score import InceptionScore
from hvq.evaluation.kernel_distance import KernelDistance
from hvq.evaluation.likelihood import PixelPairs, bits_per_dimension
from hvq.evaluation.perceptual import PerceptualDistance
from hvq.evaluation.pictures import image_grid, reconstruction_grid, sample_grid
from hvq.evaluation.plots import rejection_curve, training_curves, usage_histogram
from hvq.evaluation.precision_recall import ManifoldPrecisionRecall
from hvq.evaluation.pretrained import load_inception_network, load_lpips_network
from hvq.evaluation.reconstruction import ReconstructionMetrics
from hvq.evaluation.report import write_report

__all__ = [
    "ClassifierExtractor",
    "CodeCooccurrence",
    "CodeHistogram",
    "CodeUsage",
    "CopyReport",
    "FeatureExtractor",
    "FrechetDistance",
    "InceptionExtractor",
    "InceptionScore",
    "KernelDistance",
    "ManifoldPrecisionRecall",
    "PerceptualDistance",
    "PixelPairs",
    "ReconstructionMetrics",
    "SmallClassifier",
    "bits_per_dimension",
    "class_probabilities",
    "classification_accuracy",
    "copy_share",
    "fit_classifier",
    "image_grid",
    "load_feature_distance",
    "load_inception_network",
    "load_lpips_network",
    "nearest_squared_errors",
    "predict_classes",
    "reconstruction_grid",
    "rejection_curve",
    "sample_grid",
    "top_accuracy",
    "training_curves",
    "usage_histogram",
    "write_report",
]
