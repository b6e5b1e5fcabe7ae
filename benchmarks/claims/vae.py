"""VQ-VAE against VAE: nearly as many bits per dimension, from the same encoder, decoder and training.

On CIFAR-10 the paper (VQ-VAE, section 4.1) has 4.51 bits per dimension for a VAE, 4.67 for a VQ-VAE and 5.14 for VIMCO,
so that discrete latents cost 3.5 %; networks of that size are out of reach here, and VIMCO is not measured. Two models
differ in one line, `quantizer: {kind: gaussian}` or `{kind: vector}`, on 8x8 positions of 16 numbers, and are trained
alike: the VAE on its ELBO with a Gaussian likelihood, whose variance follows the error of each batch (Rybkin et al.
2021, arXiv 2006.13202), the VQ-VAE on equation (9). Measured on held-out images:

- reconstruction: mean squared error on [0, 1], the VAE's from latents drawn as in training, and from their means.
- sharpness: share of the images' own power above half of the highest frequency that reconstructions from the means
  keep, from the radial power spectrum of grey images under a Hann window.
- bits per dimension: the negative ELBO over 3,072 ln 2. The likelihood is a Gaussian around the reconstruction,
  integrated over each of the 256 shades, of one standard deviation, that of the errors on training images; the VAE's z
  is drawn. To it comes the VAE's KL to N(0, I), or the VQ-VAE's codes: at log K each under the uniform prior, and at
  the held-out nats of a gated PixelCNN fitted to the training codes.

A VAE chooses by itself how many bits its latent takes; a VQ-VAE has as many as it is given. As in the paper, which
varied the capacity, it is given more and more codes of 512 at each position, and the best number of them counts.

The claim holds if the VQ-VAE's bits per dimension under the uniform prior are at most 5 % above the VAE's. (At first
one code per position was all there was; at 3,000 steps it took 7 % more bits than the VAE, which showed that the two
differed in capacity above all. `ratio_of_one_code` still says it.)

    python benchmarks/claims/vae.py --quick --json claims.json --data FOLDER
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import plots
import torch
from frame import Options, Verdict, rounded, run_claim
from torch import Tensor
from torch.nn import functional
from training import (
    CHUNK,
    Images,
    Schedule,
    cifar10,
    codes_of,
    fit,
    make_autoencoder,
    reconstructions,
    train_autoencoder,
)

from hvq.autoencoders import Autoencoder, AutoencoderResult
from hvq.data.pixels import bytes_to_model, unit_to_bytes
from hvq.priors import Condition, PixelCNNPrior
from hvq.quantizers import QuantizerResult, elbo_weight

CLAIM = "vae"
RATIO, DIMENSION, CODEBOOK_SIZE = 4, 16, 512
COMMITMENT_WEIGHT = 0.25
LEARNING_RATE = 2e-3
BINS = 255
SHOWN = 10
LARGEST_RATIO = 1.05
PAPER = {"vae": 4.51, "vq-vae": 4.67, "vimco": 5.14}


@dataclass(frozen=True)
class Plan:
    """Sizes of both models and of the prior, and how long they are trained."""

    images: int | None
    held_out: int | None
    steps: int
    batch_size: int
    width: int
    residual_blocks: int
    prior_steps: int
    prior_width: int
    codes: tuple[int, ...] = (1, 2, 4)


QUICK = Plan(
    10_000, 1_000, steps=600, batch_size=64, width=64, residual_blocks=1, prior_steps=100, prior_width=32, codes=(1, 4)
)
FULL = Plan(None, None, steps=5_000, batch_size=128, width=128, residual_blocks=2, prior_steps=2_000, prior_width=64)


# --- training --------------------------------------------------------------------------------------------------------


def make_model(plan: Plan, quantizer: dict[str, Any]) -> Autoencoder:
    """One level of 8x8 positions; the line that differs is the last one of the level."""
    features = {"width": plan.width, "residual_blocks": plan.residual_blocks, "residual_width": plan.width // 2}
    level = {
        "ratio": RATIO,
        "codebook_size": CODEBOOK_SIZE,
        "code_dimension": DIMENSION,
        **features,
        "quantizer": quantizer,
    }
    return make_autoencoder(0, channels=3, levels={"top": level}, decoder=features)


def weigh(result: AutoencoderResult, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Error plus what its bottleneck adds: the negative ELBO at the variance of this batch's error, or equation (9)."""
    error = functional.mse_loss(result.reconstruction, pixels)
    values_per_position = pixels.shape[1] * RATIO**2
    weights = {
        "kl": elbo_weight(variance=float(error.detach()), values_per_position=values_per_position),
        "commitment": COMMITMENT_WEIGHT,
    }
    terms = result.levels["top"].losses
    return error + sum(weights[name] * value for name, value in terms.items()), terms


def prior_nats(model: Autoencoder, images: Images, plan: Plan) -> float:
    """Held-out nats per code of a gated PixelCNN fitted to the training codes."""
    torch.manual_seed(0)
    several = model.quantizers["top"].codes_per_position
    prior = PixelCNNPrior(
        codebook_size=CODEBOOK_SIZE, width=plan.prior_width, layers=5, kernel=5, codes_per_position=several
    )

    def nats(codes: Tensor) -> Tensor:
        return functional.cross_entropy(prior(codes, Condition()).flatten(0, -2), codes.flatten())

    def loss(codes: Tensor) -> tuple[Tensor, Mapping[str, QuantizerResult]]:
        return nats(codes), {}

    fit(prior, codes_of(model, images.train)["top"], loss, Schedule(plan.prior_steps, 64, LEARNING_RATE), seed=0)
    with torch.no_grad():
        held_out = codes_of(model, images.held_out)["top"].split(CHUNK)
        return sum(float(nats(part)) * len(part) for part in held_out) / len(images.held_out)


# --- measuring -------------------------------------------------------------------------------------------------------


def discretised_nats(means: Tensor, images: Tensor, deviation: float) -> Tensor:
    """Negative log-probability, in nats, of bytes under a Gaussian over [-1, 1] that is integrated over each shade.

    The darkest and the brightest shade take what lies beyond them, so that the 256 probabilities add up to 1.

    Args:
        means: `[...]`, in [-1, 1] or beyond.
        images: uint8 `[...]`.
        deviation: standard deviation of the Gaussian.

    >>> shades = torch.arange(256, dtype=torch.uint8)
    >>> round(float((-discretised_nats(torch.full((256,), 0.3), shades, 0.2)).exp().sum()), 6)
    1.0
    """
    offset = images.double() / (BINS / 2) - 1 - means.double()
    above = torch.where(images == BINS, math.inf, (offset + 1 / BINS) / deviation)
    below = torch.where(images == 0, -math.inf, (offset - 1 / BINS) / deviation)
    # Of the two tails, the one that is small: there differences keep their digits.
    upper = torch.where(above + below > 0, -below, above)
    lower = torch.where(above + below > 0, -above, below)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return -(log_upper + torch.log1p(-(log_lower - log_upper).exp()))


@torch.no_grad()
def drawn(model: Autoencoder, images: Tensor) -> tuple[Tensor, float]:
    """Reconstructions in [-1, 1] from drawn latents, and the bottleneck's mean KL per position, 0 where it has none."""
    torch.manual_seed(0)
    model.eval()
    model.quantizers["top"].train()
    results = [model(bytes_to_model(part)) for part in images.split(CHUNK)]
    model.eval()
    shares = [len(result.reconstruction) / len(images) for result in results]
    kl = sum(
        share * float(result.levels["top"].losses.get("kl", torch.zeros(())))
        for share, result in zip(shares, results, strict=True)
    )
    return torch.cat([result.reconstruction for result in results]), kl


def spectrum(images: Tensor) -> Tensor:
    """Radial power spectrum of square images in [0, 1], made grey, under a Hann window.

    Args:
        images: `[n, C, H, H]`.

    Returns:
        `[H / 2 + 1]`, the mean power at 0, 1, 2 and so on cycles per image, up to Nyquist's frequency.

    >>> wave = torch.cos(torch.arange(32) * 2 * math.pi * 5 / 32).expand(1, 1, 32, 32)
    >>> int(spectrum(wave)[1:].argmax()) + 1
    5
    """
    grey = images.double().mean(dim=1)
    side = grey.shape[-1]
    window = torch.hann_window(side, periodic=False, dtype=torch.float64)
    power = torch.fft.fft2((grey - grey.mean(dim=(1, 2), keepdim=True)) * window * window[:, None]).abs().square()
    frequencies = torch.fft.fftfreq(side, 1 / side)
    radius = (frequencies.square() + frequencies[:, None].square()).sqrt().round().long()
    rings = radius.flatten().clamp(max=side)
    sums = torch.zeros(side + 1, dtype=torch.float64).scatter_add_(0, rings, power.mean(dim=0).flatten())
    return (sums / torch.bincount(rings, minlength=side + 1).clamp(min=1))[: side // 2 + 1]


def run_cell(images: Images, plan: Plan, codes: int) -> dict[str, Any]:
    """Train the VAE, where there are no codes, or a VQ-VAE of so many at each position, and measure it."""
    model = make_model(plan, {"kind": "vector", "heads": codes} if codes else {"kind": "gaussian"})
    train_autoencoder(model, images.train, Schedule(plan.steps, plan.batch_size, LEARNING_RATE), seed=0, loss=weigh)
    seen = images.train[: len(images.held_out)]
    deviation = float((drawn(model, seen)[0] - bytes_to_model(seen)).double().square().mean().sqrt())
    restored, kl = drawn(model, images.held_out)
    values, positions = images.held_out[0].numel(), (images.held_out.shape[-1] // RATIO) ** 2
    sharp = reconstructions(model, images.held_out)
    powers, own = spectrum(sharp), spectrum(images.held_out.float() / 255)
    high = len(own) // 2
    latent_nats = {"normal": kl}
    if codes:
        latent_nats = {
            "uniform": codes * math.log(CODEBOOK_SIZE),
            "trained": codes * prior_nats(model, images, plan),
        }
    nats = discretised_nats(restored, images.held_out, deviation).sum(dim=(1, 2, 3)).mean()
    return {
        "mse": float(((restored - bytes_to_model(images.held_out)) / 2).double().square().mean()),
        "mse_from_means": float((sharp - images.held_out.float() / 255).double().square().mean()),
        "high_frequencies_kept": float(powers[high:].sum() / own[high:].sum()),
        "likelihood_bits": float(nats) / values / math.log(2),
        "latent_bits": {name: positions * value / values / math.log(2) for name, value in latent_nats.items()},
        "deviation": deviation / 2,
        "spectrum": powers.tolist(),
        "images": unit_to_bytes(sharp[:SHOWN]).tolist(),
    }


# --- the verdict -----------------------------------------------------------------------------------------------------


def draw(cells: dict[str, dict[str, Any]], images: Images, folder: Path) -> None:
    """Reconstructions, spectra, and where the bits go."""
    drawn_figure = plots.Figure(figsize=(9.4, 5.4), layout="constrained", facecolor="white")
    above, below = drawn_figure.subfigures(2, 1, height_ratios=(1, 1.1))
    rows = {"held out": images.held_out[:SHOWN]}
    rows |= {name: torch.tensor(cell["images"], dtype=torch.uint8) for name, cell in cells.items()}
    for axis, (name, strip) in zip(above.subplots(len(rows), 1), rows.items(), strict=True):
        plots.strip_of_images(axis, strip, name)
    left, right = below.subplots(1, 2)
    own = spectrum(images.held_out.float() / 255)
    cycles = range(1, len(own))
    left.plot(cycles, own[1:], color="black", linewidth=1, label="images")
    for i, (name, cell) in enumerate(cells.items()):
        left.plot(cycles, cell["spectrum"][1:], color=plots.COLOURS[i], label=name)
    left.set_yscale("log")
    left.legend(fontsize=8)
    plots.label(left, "radial power spectrum", "cycles per image", "power")
    bars = {
        f"{name}, {prior} prior": (name, bits)
        for name, cell in cells.items()
        for prior, bits in cell["latent_bits"].items()
    }
    names = list(bars)
    likelihoods = [cells[name]["likelihood_bits"] for name, _ in bars.values()]
    right.barh(names, likelihoods, color=plots.COLOURS[0], label="image given latent")
    right.barh(names, [bits for _, bits in bars.values()], left=likelihoods, color=plots.COLOURS[1], label="latent")
    right.invert_yaxis()
    right.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False)
    plots.label(right, "bits per dimension")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    plots.save(drawn_figure, folder, CLAIM)


def measure(options: Options) -> Verdict:
    """The VAE, and a VQ-VAE of every capacity."""
    plan = QUICK if options.quick else FULL
    images = cifar10(options.data, train=plan.images, held_out=plan.held_out)
    about = {name: value for name, value in asdict(plan).items() if name != "codes"}
    names = {"vae": 0, **{f"vq-vae, {codes} code{'s' * (codes > 1)}": codes for codes in plan.codes}}
    cells = {
        name: options.cells.of({**about, "codes": codes}, partial(run_cell, images, plan, codes))
        for name, codes in names.items()
    }
    draw(cells, images, options.plots)
    bits = {
        name: {prior: cell["likelihood_bits"] + latent for prior, latent in cell["latent_bits"].items()}
        for name, cell in cells.items()
    }
    uniform = {name: found["uniform"] for name, found in bits.items() if "uniform" in found}
    ratios = {name: found / bits["vae"]["normal"] for name, found in uniform.items()}
    numbers: dict[str, Any] = {
        "ratio": min(ratios.values()),
        "ratio_of_one_code": ratios.get("vq-vae, 1 code"),
        "bits_per_dimension": bits,
        "paper_bits_per_dimension": PAPER,
    }
    for name, cell in cells.items():
        numbers[name] = {key: value for key, value in cell.items() if key not in ("spectrum", "images")}
    return Verdict(CLAIM, numbers["ratio"] <= LARGEST_RATIO, rounded(numbers | {"about": asdict(plan)}))


def main(words: list[str] | None = None) -> int:
    """The command line."""
    return run_claim(__file__, __doc__, measure, words)


if __name__ == "__main__":
    sys.exit(main())
