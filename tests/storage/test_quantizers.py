"""A quantizer by itself comes back as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hvq.config_quantizers import QuantizerConfig, ResidualQuantizerConfig, VectorQuantizerConfig
from hvq.errors import CheckpointError
from hvq.quantizers.build import build_quantizer
from hvq.storage import load_quantizer, save_quantizer
from hvq.storage.quantizers import QuantizerDescription
from tests.pickling import block_pickle


@pytest.mark.parametrize("config", [VectorQuantizerConfig(heads=2), ResidualQuantizerConfig(num_quantizers=3)])
def test_a_quantizer_comes_back(tmp_path: Path, config: QuantizerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_quantizer(config, codebook_size=7, code_dimension=6).eval()
    description = QuantizerDescription(quantizer=config, codebook_size=7, code_dimension=6, about="of a test")
    save_quantizer(tmp_path / "model", model, description)
    block_pickle(monkeypatch)
    loaded, found = load_quantizer(tmp_path / "model")
    assert found == description
    assert not loaded.training
    latents = torch.randn(2, 6, 11)
    assert torch.equal(loaded.encode(latents), model.encode(latents))


def test_a_missing_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no quantizer in"):
        load_quantizer(tmp_path / "nothing")
