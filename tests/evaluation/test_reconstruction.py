"""MSE, PSNR, SSIM and MS-SSIM against scikit-image and numpy, over batch sizes and over processes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from hvq.errors import DataError
from hvq.evaluation.reconstruction import ReconstructionMetrics
from tests.processes import run_in_processes


def _pairs(count: int = 7, channels: int = 3, height: int = 17, width: int = 13) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, channels, height, width, generator=generator)
    noise = torch.randn(images.shape, generator=generator) * torch.linspace(0.01, 0.3, count).view(-1, 1, 1, 1)
    return images, (images + noise).clamp(0, 1)


def _measured(images: Tensor, reconstructions: Tensor, batch_size: int) -> dict[str, float]:
    """The numbers that images of this size have."""
    metrics = ReconstructionMetrics()
    for image_part, reconstruction_part in zip(
        images.split(batch_size), reconstructions.split(batch_size), strict=True
    ):
        metrics.update(image_part, reconstruction_part)
    return {name: value for name, value in metrics.compute().items() if value is not None}


@pytest.mark.parametrize("channels", [1, 3])
def test_equals_scikit_image(channels: int) -> None:
    images, reconstructions = _pairs(channels=channels)
    pairs = list(zip(images.double().numpy(), reconstructions.double().numpy(), strict=True))
    expected = {
        "mse": np.mean([((a - b) ** 2).mean() for a, b in pairs]),
        "psnr": np.mean([peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in pairs]),
        "ssim": np.mean(
            [
                structural_similarity(
                    a, b, data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
                )
                for a, b in pairs
            ]
        ),
    }
    assert _measured(images, reconstructions, 7) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=10, deadline=None)
@given(batch_size=st.integers(1, 7))
def test_is_equal_for_any_batch_size(batch_size: int) -> None:
    images, reconstructions = _pairs()
    expected = _measured(images, reconstructions, 7)
    assert _measured(images, reconstructions, batch_size) == pytest.approx(expected, rel=1e-12)


def test_psnr_is_the_mean_over_images_and_not_that_of_the_mean_error() -> None:
    images = torch.zeros(2, 1, 11, 11)
    reconstructions = torch.stack([torch.full((1, 11, 11), 0.1), torch.full((1, 11, 11), 0.01)])
    assert _measured(images, reconstructions, 2)["psnr"] == pytest.approx(30.0, abs=1e-4)


def test_exact_reconstructions_have_finite_numbers() -> None:
    images, _ = _pairs()
    assert _measured(images, images, 7) == {"mse": 0.0, "psnr": pytest.approx(100.0), "ssim": pytest.approx(1.0)}


def test_images_smaller_than_the_window_have_no_ssim_and_the_text_says_so() -> None:
    metrics = ReconstructionMetrics()
    metrics.update(torch.zeros(2, 3, 7, 13), torch.full((2, 3, 7, 13), 0.1))
    values = metrics.compute()
    assert values["ssim"] is None
    assert values["psnr"] == pytest.approx(20.0, abs=1e-4)
    assert "11" in metrics.about()["ssim"]
    assert "left out" in metrics.about()["ssim"]


def _windowed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted means over windows of 11 pixels around each pixel of [H, W], which reflect at the border."""
    weights = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    padded = np.pad(values, 5, mode="reflect")
    rows = sum(w * padded[i : i + values.shape[0]] for i, w in enumerate(weights))
    return sum(w * rows[:, i : i + values.shape[1]] for i, w in enumerate(weights))


def _multiscale(image: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """MS-SSIM of one image [C, H, W], in plain numpy."""
    product = 1.0
    for scale, power in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        contrasts, similarities = [], []
        for one, two in zip(image, other, strict=True):
            means = _windowed(one), _windowed(two)
            variances = _windowed(one**2) - means[0] ** 2, _windowed(two**2) - means[1] ** 2
            covariance = _windowed(one * two) - means[0] * means[1]
            contrast = (2 * covariance + 0.03**2) / (variances[0] + variances[1] + 0.03**2)
            luminance = (2 * means[0] * means[1] + 0.01**2) / (means[0] ** 2 + means[1] ** 2 + 0.01**2)
            contrasts.append(contrast[5:-5, 5:-5])
            similarities.append(contrast * luminance)
        product *= np.mean(similarities if scale == 4 else contrasts) ** power
        height, width = (side // 2 * 2 for side in image.shape[1:])
        image, other = (
            x[:, :height, :width].reshape(len(x), height // 2, 2, width // 2, 2).mean((2, 4)) for x in (image, other)
        )
    return float(product)


@pytest.mark.parametrize("channels", [1, 3])
def test_equals_a_plain_computation_at_five_scales(channels: int) -> None:
    images, reconstructions = _pairs(count=3, channels=channels, height=161, width=179)
    # Noise has no structure at any scale.
    images = (images.cumsum(-1) % 17) / 17
    reconstructions = (0.8 * images + 0.2 * reconstructions).clamp(0, 1)
    expected = np.mean(
        [_multiscale(a, b) for a, b in zip(images.double().numpy(), reconstructions.double().numpy(), strict=True)]
    )
    assert 0.1 < expected < 0.99
    for batch_size in (1, 2, 3):
        assert _measured(images, reconstructions, batch_size)["ms_ssim"] == pytest.approx(expected, rel=1e-7)


def test_five_scales_take_161_pixels_and_the_text_says_so() -> None:
    metrics = ReconstructionMetrics()
    metrics.update(torch.zeros(1, 1, 161, 160), torch.full((1, 1, 161, 160), 0.1))
    assert metrics.compute()["ms_ssim"] is None
    assert metrics.about()["ms_ssim"].startswith("left out")
    assert "161 pixels" in metrics.about()["ms_ssim"]
    metrics.reset()
    metrics.update(torch.zeros(1, 1, 161, 161), torch.zeros(1, 1, 161, 161))
    assert metrics.compute()["ms_ssim"] == pytest.approx(1.0)
    assert "left out" not in metrics.about()["ms_ssim"]


def test_can_keep_its_sums_in_float32() -> None:
    images, reconstructions = _pairs()
    metrics = ReconstructionMetrics(dtype=torch.float32)
    metrics.update(images, reconstructions)
    assert metrics.squared_error.dtype == torch.float32
    values = {name: value for name, value in metrics.compute().items() if value is not None}
    assert values == pytest.approx(_measured(images, reconstructions, 7), rel=1e-4)


def test_an_empty_batch_changes_nothing() -> None:
    images, reconstructions = _pairs()
    metrics = ReconstructionMetrics()
    metrics.update(images[:0], reconstructions[:0])
    metrics.update(images, reconstructions)
    assert metrics.compute() == {**_measured(images, reconstructions, 7), "ms_ssim": None}


@pytest.mark.parametrize(
    ("images", "reconstructions", "text"),
    [
        (torch.zeros(2, 1, 11, 11), torch.zeros(2, 1, 11, 13), "one shape"),
        (torch.zeros(2, 1, 11, 11), torch.full((2, 1, 11, 11), -0.5), "reconstructions must lie"),
        (torch.full((2, 1, 11, 11), 255.0), torch.zeros(2, 1, 11, 11), "images must lie"),
        (torch.zeros(2, 1, 11, 11), torch.full((2, 1, 11, 11), torch.nan), "nan"),
        (torch.zeros(2, 1, 11, 11, dtype=torch.uint8), torch.zeros(2, 1, 11, 11), "divide bytes by 255"),
    ],
)
def test_refuses_what_is_not_images_in_0_to_1(images: Tensor, reconstructions: Tensor, text: str) -> None:
    with pytest.raises(DataError, match=text):
        ReconstructionMetrics().update(images, reconstructions)


def test_refuses_to_average_over_nothing() -> None:
    metrics = ReconstructionMetrics()
    metrics.update(torch.zeros(0, 3, 17, 13), torch.zeros(0, 3, 17, 13))
    with pytest.raises(DataError, match="at least one image"):
        metrics.compute()


def _measured_on_one_of_two_processes() -> dict[str, float]:
    images, reconstructions = _pairs()
    rank = torch.distributed.get_rank()
    shares = (slice(0, 2), slice(2, 7))
    return _measured(images[shares[rank]], reconstructions[shares[rank]], 2)


@pytest.mark.processes
def test_two_processes_with_unequal_shares_agree_with_one() -> None:
    expected = _measured(*_pairs(), 7)
    for values in run_in_processes(_measured_on_one_of_two_processes, 2):
        assert values == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [(191,), (5, 7, 11)])
def test_signals_and_volumes_have_errors_and_no_ssim(size: tuple[int, ...]) -> None:
    images = torch.rand(3, 2, *size, dtype=torch.float64)
    reconstructions = torch.rand(3, 2, *size, dtype=torch.float64)
    metrics = ReconstructionMetrics()
    metrics.update(images, reconstructions)
    errors = [float((images[i] - reconstructions[i]).square().mean()) for i in range(3)]
    found = metrics.compute()
    assert found["mse"] == pytest.approx(sum(errors) / 3, abs=1e-12)
    assert found["psnr"] == pytest.approx(sum(-10 * math.log10(error) for error in errors) / 3, abs=1e-9)
    assert found["ssim"] is found["ms_ssim"] is None
    about = metrics.about()
    assert about["ssim"] == about["ms_ssim"] == "left out, since its windows are of images, which have two axes"
