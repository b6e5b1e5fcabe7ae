"""One pass over held-out images: reconstruction, the use of each level's codes, and which codes occur together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hvq.chunks import map_chunks
from hvq.config import RunConfig
from hvq.data import Batch, ImageSource, ordered_batches
from hvq.data.pixels import kept_to_model, kept_to_unit, model_to_unit, unit_to_bytes
from hvq.data.views import noun
from hvq.distributed import Reduction
from hvq.errors import DataError
from hvq.evaluation.code_usage import CodeUsage
from hvq.evaluation.cooccurrence import (
    LARGEST_TABLE,
    CodeCooccurrence,
    Pairs,
    covered_codes,
    lower_neighbours,
    right_neighbours,
)
from hvq.evaluation.likelihood import PixelPairs
from hvq.evaluation.measured import Measured, Numbers, loaded_everywhere
from hvq.evaluation.perceptual import SMALLEST_SIDE, PerceptualDistance
from hvq.evaluation.pretrained import load_lpips_network
from hvq.evaluation.reconstruction import ReconstructionMetrics
from hvq.storage import Hierarchy

_PICTURE_AXES = 2
_ABOUT_LEVELS = (
    "usage: share of codes that occur in the held-out split; perplexity: exp of the entropy of their histogram over "
    "it, both left out where a level's bottleneck is Gaussian and it has no codes; absent_mse: error on [0, 1] with "
    "that level alone replaced by its stand-in"
)
_ABOUT_COOCCURRENCE = (
    "mutual information in nats of codes and their right and lower neighbours (the next along the last axis and the "
    "last but one), and of codes of a level and the finer ones that they cover, over the held-out split of {images} "
    "{noun}s. mutual_information: of the counts as they are, "
    "which chance alone lifts above 0; corrected: less what chance adds (Miller and Madow); pairs: their number"
)


@dataclass(frozen=True)
class HeldOut:
    """What a pass over held-out images gives.

    Attributes:
        measured: `reconstruction`, `levels` and `cooccurrence`.
        pixel_pairs: int64 `[256, 256]`, how often each value of a reconstruction meets each value of an image; nothing
            is counted of signals and volumes.
    """

    measured: Measured
    pixel_pairs: Tensor


@torch.no_grad()
def encode_and_restore(
    hierarchy: Hierarchy, images: Tensor, chunk_size: int, *, absent: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Codes and reconstructions of images.

    Args:
        hierarchy: the trained system.
        images: as they are kept, uint8 `[B, C, H, W]` or float32 `[B, C, *size]`.
        chunk_size: images in each forward.
        absent: levels, without each of which alone the images are decoded once more.

    Returns:
        `codes.<level>`, `images`, and `absent.<level>`, the images in [0, 1], on the models' device.
    """
    model = hierarchy.autoencoder
    device = next(model.parameters()).device
    size = images.shape[2:]

    def forward(part: dict[str, Tensor]) -> dict[str, Tensor]:
        codes = model.encode(kept_to_model(part["images"].to(device)))
        results = {f"codes.{name}": code for name, code in codes.items()}
        results["images"] = model_to_unit(model.decode(codes, size=size))
        for name in absent:
            results[f"absent.{name}"] = model_to_unit(model.decode(codes, size=size, absent=(name,)))
        return results

    parts = list(map_chunks(forward, {"images": images}, chunk_size))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def measure_reconstruction(
    config: RunConfig, hierarchy: Hierarchy, source: ImageSource, reduction: Reduction
) -> HeldOut:
    """Distances of reconstructions over a split; usage, perplexity, and error without it, of each level."""
    device = next(hierarchy.autoencoder.parameters()).device
    names, size = hierarchy.autoencoder.level_names, source.size
    metrics, pixel_pairs = ReconstructionMetrics().to(device), PixelPairs().to(device)
    perceptual, no_perceptual = _perceptual_distance(source, reduction, device)
    levels, together = _Levels(hierarchy, device), _Together(hierarchy, device)
    for batch in _share(source, config, reduction):
        kept = batch.images.to(device)
        images = kept_to_unit(kept)
        restored = encode_and_restore(hierarchy, batch.images, config.chunk_size, absent=names)
        metrics.update(images, restored["images"])
        if kept.dtype == torch.uint8:
            pixel_pairs.update(kept, unit_to_bytes(restored["images"]))
        if perceptual is not None:
            perceptual.update(images, restored["images"])
        # Padding is left out, as it is where codebooks learn.
        codes = hierarchy.autoencoder.without_padding({name: restored[f"codes.{name}"] for name in names}, size)
        levels.update(codes, images, restored)
        together.update(codes)
    lpips = None if perceptual is None else perceptual.compute().lpips
    grey = ", grey images repeated to three channels" * (source.channels == 1)
    lpips_about = (
        f"LPIPS on AlexNet for pixels in [0, 1]{grey}, mean over images; lower is better, 0 is identical"
        f"{_in_loss(config)}"
    )
    about = {
        **{f"reconstruction.{name}": text for name, text in metrics.about().items()},
        "reconstruction.lpips": no_perceptual or lpips_about,
        "split": f"{len(source)} held-out {noun(size)}s, {'x'.join(map(str, size))}, {hierarchy.channels} channel(s), "
        f"{'pixels' if len(size) == _PICTURE_AXES else 'values'} in [0, 1]",
        "levels": _ABOUT_LEVELS,
    }
    counted = pixel_pairs.compute() if source.dtype == torch.uint8 else pixel_pairs.counts
    numbers = {"reconstruction": {**metrics.compute(), "lpips": lpips}, "levels": levels.numbers(reduction)}
    return HeldOut(Measured(numbers, about).joined(together.measured(len(source))), counted)


class _Levels:
    """Usage of each level's codebook, and the error without the level."""

    def __init__(self, hierarchy: Hierarchy, device: torch.device) -> None:
        self._levels = hierarchy.autoencoder.levels
        self._usage = {
            name: CodeUsage(codebook_size=quantizer.codebook_size, codes_per_position=quantizer.codes_per_position).to(
                device
            )
            for name, quantizer in hierarchy.autoencoder.quantizers.items()
            if quantizer.discrete
        }
        self._absent = {name: torch.zeros(2, dtype=torch.float64, device=device) for name in self._levels}

    def update(self, codes: Mapping[str, Tensor], images: Tensor, restored: Mapping[str, Tensor]) -> None:
        for name, usage in self._usage.items():
            usage.update(codes[name])
        for name in self._levels:
            squared = (restored[f"absent.{name}"] - images).double().square().sum()
            self._absent[name] += torch.stack([squared, squared.new_tensor(images.numel())])

    def numbers(self, reduction: Reduction) -> Numbers:
        levels: Numbers = {}
        for name, level in self._levels.items():
            squared_sum, count = reduction.sum(self._absent[name]).tolist()
            levels[name] = {
                **self._usage_numbers(name),
                "absent_mse": squared_sum / count,
                "absent_stand_in": "learned vector" if level.absent is not None else self._mean_vector(name),
            }
        return levels

    def _mean_vector(self, name: str) -> str:
        return "mean codebook vector" if name in self._usage else "mean of the prior"

    def _usage_numbers(self, name: str) -> dict[str, float]:
        """Of a level; none where it has no codes."""
        if name not in self._usage:
            return {}
        histogram = self._usage[name].compute()
        return {"usage": float(histogram.usage), "perplexity": float(histogram.perplexity)}


class _Together:
    """Which codes occur together: `<level>.right`, `<level>.below`, and `<level>-<next finer level>`."""

    def __init__(self, hierarchy: Hierarchy, device: torch.device) -> None:
        model = hierarchy.autoencoder
        self._strides, self._noun = model.strides, noun(hierarchy.image_size)
        self._metrics: dict[str, CodeCooccurrence] = {}
        self._reasons: dict[str, str] = {}
        for name, (first, second) in _pairings(model.level_names).items():
            sizes = [model.quantizers[level].codebook_size for level in (first, second)]
            if name.endswith(".below") and len(hierarchy.image_size) == 1:
                self._reasons[name] = "left out, since codes on a grid of one axis have no lower neighbours"
            elif not all(model.quantizers[level].discrete for level in (first, second)):
                self._reasons[name] = "left out, since a Gaussian level has no codes"
            elif max(model.quantizers[level].codes_per_position for level in (first, second)) > 1:
                self._reasons[name] = "left out, since positions have several codes"
            elif sizes[0] * sizes[1] > LARGEST_TABLE:
                self._reasons[name] = (
                    f"left out, since codebooks of {sizes[0]} and {sizes[1]} have more pairs than the {LARGEST_TABLE} "
                    "that are counted"
                )
            else:
                self._metrics[name] = CodeCooccurrence(first_size=sizes[0], second_size=sizes[1]).to(device)

    def update(self, codes: Mapping[str, Tensor]) -> None:
        pairings = _pairings(tuple(codes))
        for name, metric in self._metrics.items():
            metric.update(*self._pairs(name, codes, *pairings[name]))

    def _pairs(self, name: str, codes: Mapping[str, Tensor], first: str, second: str) -> Pairs:
        if first != second:
            return covered_codes(codes[first], codes[second], self._strides[first] // self._strides[second])
        return right_neighbours(codes[first]) if name.endswith(".right") else lower_neighbours(codes[first])

    def measured(self, images: int) -> Measured:
        numbers: Numbers = {}
        reasons = dict(self._reasons)
        for name, metric in self._metrics.items():
            try:
                found = metric.compute()
            except DataError:
                reasons[name] = "left out, since no code of a grid of one row or column has such a neighbour"
                continue
            numbers[name] = {
                "mutual_information": found.mutual_information,
                "corrected": found.corrected,
                "pairs": found.pairs,
            }
        about = {"cooccurrence": _ABOUT_COOCCURRENCE.format(images=images, noun=self._noun)}
        about |= {f"cooccurrence.{name}": text for name, text in reasons.items()}
        return Measured({"cooccurrence": numbers}, about)


def _pairings(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """What is paired, by name, as the level of the first codes and that of the second.

    >>> list(_pairings(["top", "bottom"]))
    ['top.right', 'top.below', 'bottom.right', 'bottom.below', 'top-bottom']
    """
    within = {f"{name}.{side}": (name, name) for name in names for side in ("right", "below")}
    return within | {f"{coarser}-{finer}": (coarser, finer) for coarser, finer in pairwise(names)}


def _perceptual_distance(
    source: ImageSource, reduction: Reduction, device: torch.device
) -> tuple[PerceptualDistance | None, str]:
    """LPIPS, and an empty text; or None, and why there is none."""
    if len(source.size) != _PICTURE_AXES:
        return None, "left out, since AlexNet sees images of two axes"
    if min(source.size) < SMALLEST_SIDE:
        return None, f"left out, since images are smaller than the {SMALLEST_SIDE} pixels that AlexNet takes"
    network, reason = loaded_everywhere(load_lpips_network, reduction, device)
    return (None, f"left out: {reason}") if network is None else (PerceptualDistance(network).to(device), "")


def _in_loss(config: RunConfig) -> str:
    terms = config.autoencoder_training.reconstruction.items()
    names = [name for name, term in terms if term.kind == "perceptual" and term.extractor == "lpips"]
    return "".join(f"; the autoencoder's own loss {name} is this very distance, which flatters it" for name in names)


def _share(source: ImageSource, config: RunConfig, reduction: Reduction) -> Iterator[Batch]:
    return ordered_batches(
        source,
        chunk_size=config.chunk_size,
        rank=reduction.rank,
        processes=reduction.size,
        workers=config.data.workers,
    )
