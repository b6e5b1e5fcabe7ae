"""What was saved once loads for ever, and gives what it gave: codes exactly, floating point within 1e-5."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from hvq import HierarchicalVQ
from hvq.autoencoders import Autoencoder
from hvq.config_quantizers import QuantizerConfig
from hvq.errors import ConfigurationError
from hvq.files import read_json, read_tensors
from hvq.priors import Prior
from hvq.priors.build import KINDS as PRIOR_KINDS
from hvq.quantizers import Quantizer
from hvq.storage import load_autoencoder, load_prior
from tests.golden.make import (
    CASES,
    EXPECTED,
    HERE,
    make,
    run_autoencoder,
    run_hierarchy,
    run_prior,
    run_quantizer,
)
from tests.pickling import block_pickle

# Of everything that is committed, whether or not it can still be made.
NAMES = sorted(path.name for path in HERE.iterdir() if (path / EXPECTED).exists())
RUNS: dict[str, tuple[Callable[[Path], Any], Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]]] = {
    "quantizer": (Quantizer.from_pretrained, run_quantizer),
    "autoencoder": (Autoencoder.from_pretrained, run_autoencoder),
    "prior": (Prior.from_pretrained, run_prior),
    "hierarchy": (HierarchicalVQ.from_pretrained, run_hierarchy),
}


def _expected(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tensors, _ = read_tensors(folder / EXPECTED, "expected outputs")
    parts: dict[str, dict[str, Tensor]] = {"given": {}, "gives": {}}
    for name, tensor in tensors.items():
        part, key = name.split(".", 1)
        parts[part][key] = tensor
    return parts["given"], parts["gives"]


@pytest.mark.parametrize("name", NAMES)
def test_it_gives_what_it_gave(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block_pickle(monkeypatch)
    load, run = RUNS[name.split("-")[0]]
    given, gives = _expected(HERE / name)
    again = run(load(HERE / name), given)
    assert again.keys() == gives.keys()
    for key, expected in gives.items():
        assert again[key].dtype == expected.dtype, key
        if expected.is_floating_point():
            torch.testing.assert_close(
                again[key], expected, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
            )
        else:
            assert torch.equal(again[key], expected), key


def test_expected_outputs_say_something() -> None:
    """One whose outputs were all alike would be matched by anything."""
    for name in NAMES:
        for key, tensor in _expected(HERE / name)[1].items():
            least = 4 if key.startswith(("codes", "drawn")) else 1 if key == "mean_vector" else 2
            assert len(tensor.unique()) >= least, (name, key)


def test_every_public_module_has_one() -> None:
    assert set(CASES) <= set(NAMES)
    quantizers = {read_json(HERE / n / "config.json", "x")["quantizer"]["kind"] for n in NAMES if n.startswith("quant")}
    assert quantizers == _quantizer_kinds()
    priors = {read_json(HERE / n / "config.json", "x")["model"]["kind"] for n in NAMES if n.startswith("prior")}
    assert priors == set(PRIOR_KINDS)
    levels = {len(load_autoencoder(HERE / n)[0].level_names) for n in NAMES if n.startswith("autoencoder")}
    assert levels >= {1, 2}


def _quantizer_kinds() -> set[str]:
    """Of the configuration, so that a new kind is missed here."""
    return set(TypeAdapter(QuantizerConfig).json_schema()["discriminator"]["mapping"])


def test_the_loaders_of_run_folders_read_them_too() -> None:
    assert load_prior(HERE / "prior-pixelcnn")[1].level == "bottom"
    assert load_prior(HERE / "hierarchy" / "priors" / "bottom")[1].coarser == {"top": 7}
    assert load_autoencoder(HERE / "hierarchy" / "autoencoder")[1].image_size == (16, 24)


@pytest.mark.parametrize("name", ["quantizer-sim", "hierarchy"])
def test_the_script_makes_what_is_committed(name: str, tmp_path: Path) -> None:
    make(name, tmp_path)
    made, kept = _expected(tmp_path / name), _expected(HERE / name)
    for some, others in zip(made, kept, strict=True):
        assert {key: (t.dtype, t.shape) for key, t in some.items()} == {
            key: (t.dtype, t.shape) for key, t in others.items()
        }


def test_nothing_is_written_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="golden checkpoints stay as they are; give another name"):
        make("quantizer-sim")
    with pytest.raises(ConfigurationError, match="there is no golden checkpoint quantizer-new; there are quantizer-v"):
        make("quantizer-new", tmp_path)
