"""Models and runs on disk: folders of safetensors and JSON, loadable with nothing but their path."""

from hvq.storage.hierarchy import Hierarchy, load_hierarchy
from hvq.storage.models import (
    encoder_hash,
    load_autoencoder,
    load_prior,
    require_channels,
    save_autoencoder,
    save_prior,
)
from hvq.storage.run_folder import RunFolder

__all__ = [
    "Hierarchy",
    "RunFolder",
    "encoder_hash",
    "load_autoencoder",
    "load_hierarchy",
    "load_prior",
    "require_channels",
    "save_autoencoder",
    "save_prior",
]
