"""What the claims about a single codebook share: one level of codes, its images, and what is measured of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import Images, Schedule, cifar10, codes_of, digits, make_autoencoder, reconstruction_error

from hvq.autoencoders import Autoencoder
from hvq.histograms import count_codes, usage

LEARNING = ("gradient", "moving_average")


@dataclass(frozen=True)
class OneLevel:
    """An autoencoder of one level, and how it is trained.

    Attributes:
        data: "digits" or "cifar10".
        steps: of the optimizer.
        batch_size: images of each.
        width: channels of its features.
        codebook_size: K.
        held_out: held-out images that are looked at; None for all.
        seeds: of first weights and the order of images.
    """

    data: str
    steps: int
    batch_size: int
    width: int
    codebook_size: int
    held_out: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def schedule(self) -> Schedule:
        """Of the steps."""
        return Schedule(self.steps, self.batch_size, 2e-3)

    def images(self, folder: Path) -> Images:
        """The digits, or CIFAR-10 from its folder."""
        return digits() if self.data == "digits" else cifar10(folder, held_out=self.held_out)

    def model(self, seed: int, channels: int, **quantizer: Any) -> Autoencoder:
        """With fresh weights; a quarter of the image's size is the grid."""
        features = {"width": self.width, "residual_blocks": 1, "residual_width": self.width // 2}
        level = {"ratio": 4, "codebook_size": self.codebook_size, "code_dimension": 16, "quantizer": quantizer}
        return make_autoencoder(seed, channels=channels, levels={"top": {**level, **features}}, decoder=features)

    def look(self, model: Autoencoder, images: Images) -> dict[str, float]:
        """`mse` on [0, 1] and `usage` on the held-out split."""
        codes = codes_of(model, images.held_out)["top"].flatten()
        return {
            "mse": reconstruction_error(model, images.held_out),
            "usage": usage(count_codes(codes, self.codebook_size)),
        }
