"""The nearest codebook vector of every latent, with one implementation per device behind one function."""

from hvq.quantizers.search.nearest import available_backends, nearest_code

__all__ = ["available_backends", "nearest_code"]
