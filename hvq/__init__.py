"""Hierarchical discrete latents: VQ-VAE and VQ-VAE-2 of any depth, with an autoregressive prior per level."""

from hvq.pipeline import HierarchicalVQ

__version__ = "0.1.0"
__all__ = ["HierarchicalVQ"]
