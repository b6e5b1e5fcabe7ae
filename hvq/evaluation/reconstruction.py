"""How near reconstructions come to their images: MSE, PSNR, SSIM and MS-SSIM, means over images."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from hvq.errors import DataError

SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window (sigma 1.5 pixels), and so of the smallest image that has an SSIM."""

MS_SSIM_SIDE = 161
"""Side of the smallest image that has an MS-SSIM: its window of 11 pixels, on a grid that was halved four times."""

SMALLEST_MSE = 1e-10
"""An image rebuilt exactly counts as 100 dB; its true PSNR is infinite, and so would be any mean with it."""

_PICTURE_DIMENSIONS = 4

ROUNDING = 1e-3
"""How far outside [0, 1] a pixel may lie and still pass for one."""


class ReconstructionMetrics(Metric):  # type: ignore[misc]  # torchmetrics is not analysed, so its Metric is Any
    """Mean squared error, peak signal-to-noise ratio, and structural similarity at one scale and at five.

    All are computed per image and averaged over images, so that they are equal for any batch size; over processes,
    `torchmetrics` sums the states when `compute` is called. With m the mean of (x - y)^2 over an image's numbers, MSE
    is m, in [0, 1], and PSNR -10 log10 m, in dB. SSIM, in [-1, 1], is that of Wang et al. (2004) with the Gaussian
    window of 11 pixels, averaged over channels and over all windows inside the image. MS-SSIM, in [0, 1], is that of
    Wang, Simoncelli and Bovik (2003): the product over five scales, each half as large as the one before, of the mean
    contrast and structure, to the powers 0.0448, 0.2856, 0.3001, 0.2363 and 0.1333, the last scale with its luminance;
    as `torchmetrics` computes it, which takes a negative mean for 0, and has the windows of the last scale reach over
    the border by reflection.

    Args:
        dtype: what sums and distances are kept in; `torch.float32` for a device that has no float64.

    Example:
        >>> metrics = ReconstructionMetrics()
        >>> metrics.update(torch.zeros(2, 3, 16, 16), torch.full((2, 3, 16, 16), 0.1))
        >>> values = metrics.compute()
        >>> round(values["mse"], 6), round(values["psnr"], 3)
        (0.01, 20.0)
    """

    is_differentiable = False
    full_state_update = False

    squared_error: Tensor
    signal_to_noise: Tensor
    similarity: Tensor
    multiscale: Tensor
    images: Tensor
    images_with_similarity: Tensor
    images_with_multiscale: Tensor
    without_pictures: Tensor

    def __init__(self, *, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        for name in ("squared_error", "signal_to_noise", "similarity", "multiscale"):
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")
        for name in ("images", "images_with_similarity", "images_with_multiscale", "without_pictures"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        """Add a batch.

        Args:
            images: float [B, C, H, W] in [0, 1]; of signals and volumes [B, C, *size], which have no SSIM.
            reconstructions: float of the same shape in [0, 1].

        Raises:
            DataError: where the shapes differ, or pixels lie outside [0, 1].
        """
        if images.ndim not in (3, 4, 5) or images.shape != reconstructions.shape:
            raise DataError(
                "images and reconstructions must share one shape [B, C, *size]; "
                f"received {list(images.shape)} and {list(reconstructions.shape)}"
            )
        if images.shape[0] == 0:
            return
        _check_range(images, "images")
        _check_range(reconstructions, "reconstructions")
        truth, rebuilt = images.to(self.squared_error.dtype), reconstructions.to(self.squared_error.dtype)
        mse = (truth - rebuilt).square().flatten(1).mean(dim=1)
        self.squared_error += mse.sum()
        self.signal_to_noise += (-10.0 * mse.clamp_min(SMALLEST_MSE).log10()).sum()
        self.images += images.shape[0]
        if images.ndim != _PICTURE_DIMENSIONS:
            self.without_pictures += images.shape[0]
            return
        if min(images.shape[2:]) >= SSIM_WINDOW:
            self.similarity += _similarity(truth, rebuilt).sum()
            self.images_with_similarity += images.shape[0]
        if min(images.shape[2:]) >= MS_SSIM_SIDE:
            self.multiscale += _multiscale_similarity(truth, rebuilt).sum()
            self.images_with_multiscale += images.shape[0]

    def compute(self) -> dict[str, float | None]:
        """`mse`, `psnr` in dB, `ssim` and `ms_ssim`, over all images of all processes.

        `ssim` and `ms_ssim` are None where some image was too small for them; `about` then says so.

        Raises:
            DataError: where no image was added.
        """
        count = int(self.images)
        if count == 0:
            raise DataError("reconstruction metrics need at least one image; none was added")
        return {
            "mse": float(self.squared_error) / count,
            "psnr": float(self.signal_to_noise) / count,
            "ssim": float(self.similarity) / count if int(self.images_with_similarity) == count else None,
            "ms_ssim": float(self.multiscale) / count if int(self.images_with_multiscale) == count else None,
        }

    def about(self) -> dict[str, str]:
        """What each number of `compute` means, in one sentence each."""
        texts = {
            "mse": "mean squared error of pixels in [0, 1], over pixels, channels and images; lower is better",
            "psnr": "peak signal-to-noise ratio in dB for pixels in [0, 1], mean over images; higher is better",
            "ssim": "structural similarity for pixels in [0, 1], Gaussian window of 11 pixels, mean over images; "
            "1 is identical",
            "ms_ssim": "structural similarity at five scales for pixels in [0, 1], Gaussian window of 11 pixels, mean "
            "over images; 1 is identical",
        }
        if bool(self.without_pictures):
            reason = "left out, since its windows are of images, which have two axes"
            return {**texts, "ssim": reason, "ms_ssim": reason}
        if bool(self.images_with_similarity != self.images):
            texts["ssim"] = f"left out, since some images are smaller than its window of {SSIM_WINDOW} pixels"
        if bool(self.images_with_multiscale != self.images):
            texts["ms_ssim"] = (
                f"left out, since some images are smaller than the {MS_SSIM_SIDE} pixels that its five scales take"
            )
        return texts


def _check_range(pixels: Tensor, what: str) -> None:
    if not pixels.is_floating_point():
        raise DataError(f"{what} must be floating point in [0, 1]; received {pixels.dtype}; divide bytes by 255")
    low, high = (float(bound) for bound in torch.aminmax(pixels.detach()))
    if not (low >= -ROUNDING and high <= 1.0 + ROUNDING):
        raise DataError(
            f"{what} must lie in [0, 1]; received values from {low:.4g} to {high:.4g}; "
            "map a model's [-1, 1] by (x + 1) / 2 and clamp it"
        )


def _similarity(images: Tensor, reconstructions: Tensor) -> Tensor:
    """SSIM of each image, [B]: the mean over channels and over the windows that lie inside the image."""
    _, similarities = structural_similarity_index_measure(
        reconstructions,
        images,
        gaussian_kernel=True,
        sigma=1.5,
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )
    border = SSIM_WINDOW // 2
    inside: Tensor = similarities[..., border:-border, border:-border]
    return inside.mean(dim=(1, 2, 3))


def _multiscale_similarity(images: Tensor, reconstructions: Tensor) -> Tensor:
    """MS-SSIM of each image, [B]."""
    similarities: Tensor = multiscale_structural_similarity_index_measure(
        reconstructions,
        images,
        gaussian_kernel=True,
        sigma=1.5,
        # Of a Gaussian window, whose size follows from sigma, this says nothing but which images torchmetrics refuses:
        # at 11 those under 176 pixels, while MS_SSIM_SIDE is the limit that others have.
        kernel_size=9,
        data_range=1.0,
        reduction="none",
        normalize="relu",
    )
    return similarities
