"""What a recipe does, as functions that a notebook can call, each loop readable from top to bottom."""

from hvq.training.autoencoder import fit_autoencoder
from hvq.training.codes import extract_codes
from hvq.training.prior import fit_prior

__all__ = ["extract_codes", "fit_autoencoder", "fit_prior"]
