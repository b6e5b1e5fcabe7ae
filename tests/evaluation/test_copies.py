"""Copies: by equal codes, by near pixels, exactly, for any chunk size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hvq.errors import DataError, HVQError
from hvq.evaluation import copies
from hvq.evaluation.copies import CopyReport, copy_share, nearest_squared_errors
from tests.sizes import LargestFloat


def _images(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 5, 7), dtype=torch.uint8, generator=generator)


def _codes(count: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"top": (count, 1, 2), "bottom": (count, 3, 5)}
    return {level: torch.randint(0, 11, shape, generator=generator) for level, shape in shapes.items()}


@settings(max_examples=10, deadline=None)
@given(chunk_size=st.integers(1, 20))
def test_nearest_errors_equal_all_pairs(chunk_size: int) -> None:
    generated, training = _images(5, seed=0), _images(17, seed=1)
    a, b = generated.numpy() / 255.0, training.numpy() / 255.0
    expected = ((a[:, None] - b[None]) ** 2).mean(axis=(2, 3, 4)).min(axis=1)
    np.testing.assert_allclose(nearest_squared_errors(generated, training, chunk_size=chunk_size), expected, rtol=1e-12)


def test_no_more_than_a_few_images_are_in_floating_point_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 105 values; 3 of them in float64 take 2520 bytes."""
    generated, training = _images(53, seed=0), _images(61, seed=1)
    expected = nearest_squared_errors(generated, training)
    monkeypatch.setattr(copies, "_BYTES_AT_ONCE", 3 * 8 * 105)
    with LargestFloat() as largest:
        assert torch.equal(nearest_squared_errors(generated, training), expected)
    assert largest.values == 3 * 105
    # An image that is larger than that is compared alone.
    monkeypatch.setattr(copies, "_BYTES_AT_ONCE", 1)
    with LargestFloat() as largest:
        assert torch.equal(nearest_squared_errors(generated, training), expected)
    assert largest.values == 105


def test_an_exact_copy_has_error_zero_and_one_grey_level_has_its_own() -> None:
    training = _images(3, seed=1).clamp(0, 254)
    changed = training[1:2].clone()
    changed[0, 0, 0, 0] += 1
    errors = nearest_squared_errors(torch.cat([training[2:], changed]), training)
    assert errors.tolist() == [0.0, 1 / (105 * 255.0**2)]


def test_unrelated_samples_are_no_copies() -> None:
    report = copy_share(_images(5, 0), _codes(5, 0), _images(17, 1), _codes(17, 1), threshold=1e-3)
    assert report == CopyReport(share=0.0, by_codes=0.0, by_pixels=0.0)


def test_copies_by_codes_and_by_pixels_are_counted_once() -> None:
    generated, training = _images(5, 0), _images(17, 1)
    generated_codes, training_codes = _codes(5, 0), _codes(17, 1)
    for level in generated_codes:
        generated_codes[level][[0, 1]] = training_codes[level][[9, 9]]
    generated[[1, 2]] = training[[4, 5]]
    report = copy_share(generated, generated_codes, training, training_codes, threshold=0.0)
    assert report == CopyReport(share=3 / 5, by_codes=2 / 5, by_pixels=2 / 5)


@pytest.mark.parametrize("changed", ["top", "bottom"])
def test_a_single_other_code_makes_it_no_copy(changed: str) -> None:
    codes = _codes(7, 0)
    other = {level: values.clone() for level, values in codes.items()}
    other[changed][:, -1, -1] += 11
    assert copy_share(_images(7, 0), other, _images(7, 1), codes, threshold=0.0).by_codes == 0.0


def test_codes_of_one_image_are_not_mixed_with_those_of_another() -> None:
    codes = _codes(2, 0)
    crossed = {"top": codes["top"][[0]], "bottom": codes["bottom"][[1]]}
    assert copy_share(_images(1, 0), crossed, _images(2, 1), codes, threshold=0.0).by_codes == 0.0


def test_levels_may_come_in_any_order_and_of_any_integer_type() -> None:
    codes = _codes(7, 0)
    shuffled = {level: codes[level].to(torch.int16) for level in ("bottom", "top")}
    assert copy_share(_images(7, 0), shuffled, _images(7, 1), codes, threshold=0.0).by_codes == 1.0


def test_threshold_is_a_mean_squared_error_on_0_to_1() -> None:
    black, grey = torch.zeros(1, 3, 5, 7, dtype=torch.uint8), torch.full((1, 3, 5, 7), 51, dtype=torch.uint8)
    codes, other = _codes(1, 0), _codes(1, 1)
    assert copy_share(grey, codes, black, other, threshold=0.0401).by_pixels == 1.0
    assert copy_share(grey, codes, black, other, threshold=0.0399).by_pixels == 0.0


def test_refuses_what_does_not_belong_together() -> None:
    images, codes = _images(5, 0), _codes(5, 0)
    with pytest.raises(DataError, match="one size"):
        copy_share(images, codes, images[..., :5], codes, threshold=0.0)
    with pytest.raises(DataError, match="uint8"):
        copy_share(images.float(), codes, images, codes, threshold=0.0)
    with pytest.raises(DataError, match="5 samples"):
        copy_share(images, _codes(3, 0), images, codes, threshold=0.0)
    with pytest.raises(HVQError, match="missing bottom"):
        copy_share(images, codes, images, {"top": codes["top"]}, threshold=0.0)
