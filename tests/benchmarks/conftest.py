"""Benchmarks are scripts that import their neighbours by bare name, as `python benchmarks/x.py` finds them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
TINY_PIXELSNAIL = {
    "kind": "pixelsnail",
    "width": 16,
    "residual_width": 8,
    "blocks": 1,
    "residual_blocks": 1,
    "kernel": 3,
}
TINY_MODELS = {
    "pixelsnail-top": {**TINY_PIXELSNAIL, "attention": True, "heads": 2},
    "pixelsnail-bottom": {**TINY_PIXELSNAIL, "attention": False, "context_blocks": 1},
    "pixelcnn": {"kind": "pixelcnn", "width": 8, "kernel": 3},
    "transformer-85m": {"kind": "transformer", "width": 16, "heads": 2},
    "transformer-26m": {"kind": "transformer", "width": 16, "heads": 2, "layers": 1},
}
# What the benchmarks call of rosinality/vq-vae-2-pytorch; `heights` is the rows of each forward.
PEER = """
import torch
from torch import nn

class PixelSNAIL(nn.Module):
    def __init__(self, shape, n_class, channel, kernel_size, n_block, n_res_block, res_channel, attention=True,
                 n_cond_res_block=0, cond_res_channel=0):
        super().__init__()
        self.embedding = nn.Embedding(n_class, channel)
        self.output = nn.Linear(channel, n_class)
        self.conditioned = n_cond_res_block > 0
        self.heights = []

    def forward(self, input, condition=None, cache=None):
        assert (condition is not None) == self.conditioned
        self.heights.append(input.shape[1])
        return self.output(self.embedding(input)).movedim(-1, 1), cache
"""


@pytest.fixture
def load_benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A script, and what it imports of its folder, as new modules that a test may change."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for file in FOLDER.glob("*.py"):
        sys.modules.pop(file.stem, None)
    return importlib.import_module


@pytest.fixture
def tiny_models(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    """The module of models, all of them tiny; scripts that are loaded after it see them."""
    models = load_benchmark("prior_models")
    models.MODELS.update(TINY_MODELS)
    for grids in (models.GRIDS, models.QUICK_GRIDS):
        grids.update(dict.fromkeys(grids, (2, 2)), **{"pixelsnail-bottom": (4, 4)})
    return models


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    """A folder that stands in for a checkout of the peer."""
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "pixelsnail.py").write_text(PEER)
    return tmp_path / "peer"
