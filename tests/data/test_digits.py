"""The digits are those of scikit-learn, every fifth held out."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from hvq.data import digit_sources
from hvq.errors import DataError


def test_digits_in_their_own_size_are_scikit_learns() -> None:
    digits, sources = load_digits(), digit_sources(size=(8, 8))
    assert (len(sources.train), len(sources.validation)) == (1437, 360)
    for source, original in ((sources.train, 1), (sources.train, 2), (sources.validation, 0)):
        index = {1: 0, 2: 1, 0: 0}[original]
        assert np.array_equal(source.image(index)[0].numpy(), np.round(digits.images[original] * 255 / 16))
        assert source.label(index) == digits.target[original]
        assert source.name(index) == f"digit-{original:04d}"


def test_splits_share_no_digit_and_all_classes() -> None:
    sources = digit_sources(size=(8, 8))
    names = [{source.name(i) for i in range(len(source))} for source in (sources.train, sources.validation)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 1797
    assert sources.train.classes == sources.validation.classes == tuple("0123456789")
    assert {sources.validation.label(i) for i in range(360)} == set(range(10))


@pytest.mark.parametrize("channels", [1, 3])
def test_resized_digits_keep_their_ink(channels: int) -> None:
    small, large = digit_sources(size=(8, 8)).validation, digit_sources(size=(31, 37), channels=channels).validation
    batch = large.fetch(np.arange(17)).images.double()
    assert batch.shape == (17, channels, 31, 37)
    ink = small.fetch(np.arange(17)).images.double().mean((1, 2, 3))
    assert torch.allclose(batch.mean((2, 3)), ink[:, None].expand(-1, channels), rtol=0.06)


def test_missing_scikit_learn_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r'pip install "hvq\[data\]"'):
        digit_sources()
