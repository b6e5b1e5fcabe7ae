"""No posterior collapse: under a strong decoder a VAE ignores its latent, and a VQ-VAE does not.

Digits at the 8x8 pixels and 17 shades that they were scanned at. One encoder gives 2x2 positions of D numbers, through
a Gaussian bottleneck (a plain VAE, reparametrised, trained on its ELBO, equation (6)) or a vector quantizer (equation
(9)). One convolutional decoder turns them into features for each pixel. Under the weak decoder these are the logits of
the pixel's shade, all pixels independent; under the strong one a gated PixelCNN over pixels is told them, which could
model digits alone. All four likelihoods are over the same 17 shades, so that nats compare. Measured on held-out digits:

- KL: nats per image, of the Gaussian to N(0, I); of the quantizer it is the constant positions x log K.
- active units: numbers of the latent whose posterior mean has a variance over images above 0.01 (Burda et al. 2016,
  arXiv 1509.00519); of the quantizer, whose scale is free, numbers of its vectors.
- used: by how many nats per image the likelihood falls when every image gets the latent of another one.
- probe: accuracy of a linear classifier of the digit on the latents, drawn as in training (of a mean, a classifier
  could read digits that the noise buries), and the lower bound on their mutual information that its cross entropy
  gives, H(digit) - CE, in nats (Barber and Agakov 2003), which says nothing where it is negative.

The claim holds if, as means over seeds,
(i) the VAE's KL and number of active units under the strong decoder are at most a tenth of those under the weak one;
(ii) under the strong decoder the VAE uses at most 0.5 nats, and its probe is right for at most 20 % (guessing: 10 %);
(iii) under the strong decoder the VQ-VAE uses at least 2 nats, and its probe is right for at least 50 %.

    python benchmarks/claims/posterior_collapse.py --quick --json claims.json
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plots
import torch
from frame import Options, Verdict, rounded, run_claim
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional
from training import Images, Schedule, digits, fit

from hvq.autoencoders import ConvolutionalDecoder, ConvolutionalEncoder
from hvq.distributed import Reduction
from hvq.priors import Condition, PixelCNNPrior, sample_level
from hvq.quantizers import GaussianBottleneck, Quantizer, QuantizerResult, VectorQuantizer

CLAIM = "posterior_collapse"
SHADES, SIDE, RATIO = 17, 8, 4
GRID = (SIDE // RATIO, SIDE // RATIO)
BOTTLENECKS, DECODERS = ("gaussian", "vector"), ("weak", "strong")
COMMITMENT_WEIGHT = 0.25
SHOWN = 10


@dataclass(frozen=True)
class Plan:
    """Sizes of the four models, and how long they are trained."""

    steps: int
    width: int
    layers: int
    dimension: int = 8
    codebook_size: int = 128
    seeds: tuple[int, ...] = (0,)


QUICK = Plan(steps=500, width=32, layers=4)
FULL = Plan(steps=1_500, width=48, layers=5, seeds=(0, 1, 2))


# --- the models ------------------------------------------------------------------------------------------------------


class PixelAutoencoder(nn.Module):
    """Shades to a latent, through a bottleneck, and to a distribution over shades.

    Args:
        plan: its sizes.
        bottleneck: "gaussian" or "vector".
        decoder: "weak" or "strong".

    Shapes:
        shades int64 `[B, 8, 8]`, latents `[B, D, 2, 2]`, features `[B, F, 8, 8]`, logits `[B, 8, 8, 17]`.
    """

    def __init__(self, plan: Plan, bottleneck: str, decoder: str) -> None:
        super().__init__()
        sizes = {"width": plan.width, "ratio": RATIO, "residual_blocks": 1, "residual_width": plan.width // 2}
        self.encoder = ConvolutionalEncoder(in_channels=1, **sizes)
        self.projection = nn.Conv2d(plan.width, plan.dimension, 1)
        self.bottleneck = make_bottleneck(plan, bottleneck)
        self.decoder = ConvolutionalDecoder(in_channels=plan.dimension, out_channels=plan.width, **sizes)
        self.independent = nn.Conv2d(plan.width, SHADES, 1) if decoder == "weak" else None
        self.autoregressive = (
            PixelCNNPrior(
                codebook_size=SHADES, width=plan.width, layers=plan.layers, kernel=5, feature_channels=plan.width
            )
            if decoder == "strong"
            else None
        )

    def latents(self, shades: Tensor) -> Tensor:
        """What the bottleneck is given."""
        pixels = shades.unsqueeze(1).float() / (SHADES - 1) * 2 - 1
        return self.projection(self.encoder(pixels))

    def logits(self, vectors: Tensor, shades: Tensor) -> Tensor:
        """Of every pixel's shade; the strong decoder's by teacher forcing."""
        features = self.decoder(vectors)
        if self.independent is not None:
            return self.independent(features).movedim(1, -1)
        return self.autoregressive(shades, Condition(features=features))

    @torch.no_grad()
    def draw(self, vectors: Tensor) -> Tensor:
        """Shades drawn given vectors."""
        features = self.decoder(vectors)
        if self.autoregressive is not None:
            condition, samples = Condition(features=features), range(len(vectors))
            return sample_level(self.autoregressive, condition, (SIDE, SIDE), level="pixels", samples=samples)
        shares = self.independent(features).movedim(1, -1).softmax(dim=-1)
        return shares.flatten(0, 2).multinomial(1).view(-1, SIDE, SIDE)


def make_bottleneck(plan: Plan, kind: str) -> Quantizer:
    """Of the kind that a model differs in."""
    if kind == "gaussian":
        return GaussianBottleneck(code_dimension=plan.dimension)
    return VectorQuantizer(codebook_size=plan.codebook_size, code_dimension=plan.dimension)


def nats(logits: Tensor, shades: Tensor) -> Tensor:
    """Negative log-likelihood of each image `[B]`."""
    each = functional.cross_entropy(logits.flatten(0, 2), shades.flatten(), reduction="none")
    return each.view(len(shades), -1).sum(dim=1)


def loss_of(model: PixelAutoencoder, shades: Tensor) -> tuple[Tensor, dict[str, QuantizerResult]]:
    """The negative ELBO in nats per pixel, or equation (9) with that likelihood."""
    # The KL is a mean over positions, each of which stands for RATIO² pixels.
    weights = {"kl": 1 / RATIO**2, "commitment": COMMITMENT_WEIGHT}
    result = model.bottleneck(model.latents(shades))
    likelihood = nats(model.logits(result.vectors, shades), shades).mean() / SIDE**2
    return likelihood + sum(weights[name] * value for name, value in result.losses.items()), {"top": result}


def train(model: PixelAutoencoder, shades: Tensor, plan: Plan, seed: int) -> None:
    """By `loss_of`; codebooks begin by k-means over all training images."""
    if model.bottleneck.starts_from_latents:
        with torch.no_grad():
            latents = model.latents(shades).movedim(1, -1).flatten(0, -2)
        model.bottleneck.initialize(latents, len(shades) / 64, Reduction())
    fit(
        model,
        shades,
        partial(loss_of, model),
        Schedule(plan.steps, learning_rate=2e-3),
        seed=seed,
        quantizers={"top": model.bottleneck},
    )


# --- what is measured of them ----------------------------------------------------------------------------------------


@torch.no_grad()
def drawn_latents(model: PixelAutoencoder, shades: Tensor) -> QuantizerResult:
    """Latents as in training: drawn, where the bottleneck is Gaussian."""
    torch.manual_seed(0)
    model.eval()
    model.bottleneck.train()
    return model.bottleneck(model.latents(shades))


def probe(train_latents: Tensor, train_labels: Tensor, latents: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy of a linear classifier on held-out latents, and the bound on mutual information in nats."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2_000, C=0.1))
    classifier.fit(train_latents.flatten(1).numpy(), train_labels.numpy())
    log_shares = classifier.predict_log_proba(latents.flatten(1).numpy())
    truth, shares = labels.numpy(), np.bincount(labels.numpy()) / len(labels)
    cross_entropy = -log_shares[np.arange(len(truth)), truth].mean()
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    return float((log_shares.argmax(axis=1) == truth).mean()), float(entropy - cross_entropy)


@torch.no_grad()
def numbers_of(model: PixelAutoencoder, images: Images, plan: Plan) -> dict[str, float]:
    """Everything but the pictures."""
    seen, held_out = to_shades(images.train), to_shades(images.held_out)
    result = drawn_latents(model, held_out)
    own = nats(model.logits(result.vectors, held_out), held_out).mean()
    others = nats(model.logits(result.vectors.roll(1, dims=0), held_out), held_out).mean()
    gaussian = isinstance(model.bottleneck, GaussianBottleneck)
    positions = math.prod(GRID)
    kl = positions * (float(result.losses["kl"]) if gaussian else math.log(plan.codebook_size))
    means = result.codes.flatten(1) if gaussian else result.vectors.flatten(1)
    accuracy, information = probe(
        drawn_latents(model, seen).vectors, images.train_labels, result.vectors, images.held_out_labels
    )
    return {
        "kl_nats": kl,
        "active_units": int((means.var(dim=0) > 0.01).sum()),
        "units": means.shape[1],
        "used_nats": float(others - own),
        "probe_accuracy": accuracy,
        "probe_nats": information,
        "likelihood_nats": float(own),
        "bits_per_dimension": (float(own) + kl) / SIDE**2 / math.log(2),
    }


@torch.no_grad()
def pictures_of(model: PixelAutoencoder, images: Images) -> dict[str, list[Any]]:
    """Shades drawn given the latents of some held-out images, and given latents of the prior."""
    chosen = drawn_latents(model, to_shades(one_of_each(images)))
    torch.manual_seed(1)
    if isinstance(model.bottleneck, GaussianBottleneck):
        prior = torch.randn_like(chosen.codes)
    else:
        prior = torch.randint(model.bottleneck.codebook_size, chosen.codes.shape)
    return {
        "given": model.draw(chosen.vectors).tolist(),
        "prior": model.draw(model.bottleneck.decode(prior)).tolist(),
    }


def to_shades(images: Tensor) -> Tensor:
    """int64 `[n, 8, 8]` of bytes `[n, 1, 8, 8]`."""
    return (images.squeeze(1).float() * (SHADES - 1) / 255).round().long()


def to_bytes(shades: Any) -> Tensor:
    """uint8 `[n, 1, 8, 8]` of shades."""
    return (torch.as_tensor(shades).float() * 255 / (SHADES - 1)).round().to(torch.uint8).unsqueeze(1)


def one_of_each(images: Images) -> Tensor:
    """The first held-out image of each class."""
    firsts = [int((images.held_out_labels == label).nonzero()[0]) for label in range(images.classes)]
    return images.held_out[firsts[:SHOWN]]


def run_cell(images: Images, plan: Plan, bottleneck: str, decoder: str, seed: int) -> dict[str, Any]:
    """Train one of the models, and measure it."""
    torch.manual_seed(seed)
    model = PixelAutoencoder(plan, bottleneck, decoder)
    train(model, to_shades(images.train), plan, seed)
    return {"numbers": numbers_of(model, images, plan), **pictures_of(model, images)}


# --- the verdict -----------------------------------------------------------------------------------------------------


def draw(
    cells: dict[str, list[dict[str, Any]]], numbers: dict[str, dict[str, float]], images: Images, folder: Path
) -> None:
    """Samples of the first seed, and bars of what is in the latent."""
    drawn = plots.Figure(figsize=(9.4, 5.2), layout="constrained", facecolor="white")
    above, below = drawn.subfigures(2, 1, height_ratios=(1.15, 1))
    axes = above.subplots(5, 2)
    titles = {"given": "drawn given the image's latent", "prior": "drawn given a latent of the prior"}
    for column, (name, title) in enumerate(titles.items()):
        axes[0, column].set_title(title, fontsize=10, color=plots.INK)
        for row, model in enumerate(cells, start=1):
            plots.strip_of_images(axes[row, column], to_bytes(cells[model][0][name]), model if column == 0 else "")
    originals = one_of_each(images)
    plots.strip_of_images(axes[0, 0], originals, "held-out image")
    plots.strip_of_images(axes[0, 1], torch.full_like(originals, 255), "")
    measures = {
        "kl_nats": "KL, nats (of the VQ-VAE a constant)",
        "used_nats": "used by the decoder, nats",
        "probe_accuracy": "accuracy of the probe",
    }
    bars = below.subplots(1, len(measures))
    for axis, (measure, title) in zip(bars, measures.items(), strict=True):
        values = [numbers[model][measure] for model in numbers]
        axis.bar(range(len(values)), values, color=[plots.COLOURS["vq" in model] for model in numbers])
        axis.set_xticks(range(len(values)), [model.replace(", ", "\n") for model in numbers], fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        plots.label(axis, title)
    plots.save(drawn, folder, CLAIM)


def verdict_of(numbers: dict[str, dict[str, float]]) -> bool:
    """The criterion."""
    weak, strong, quantized = numbers["vae, weak"], numbers["vae, strong"], numbers["vq-vae, strong"]
    return (
        all(strong[name] <= 0.1 * weak[name] for name in ("kl_nats", "active_units"))
        and strong["used_nats"] <= 0.5
        and strong["probe_accuracy"] <= 0.2
        and quantized["used_nats"] >= 2
        and quantized["probe_accuracy"] >= 0.5
    )


def measure(options: Options) -> Verdict:
    """Both bottlenecks under both decoders."""
    plan, images = QUICK if options.quick else FULL, digits(SIDE)
    about = {name: value for name, value in asdict(plan).items() if name != "seeds"}
    names = {"gaussian": "vae", "vector": "vq-vae"}
    cells = {
        f"{names[bottleneck]}, {decoder}": [
            options.cells.of(
                {**about, "bottleneck": bottleneck, "decoder": decoder, "seed": seed},
                partial(run_cell, images, plan, bottleneck, decoder, seed),
            )
            for seed in plan.seeds
        ]
        for bottleneck in BOTTLENECKS
        for decoder in DECODERS
    }
    numbers = {
        model: {name: float(np.mean([cell["numbers"][name] for cell in found])) for name in found[0]["numbers"]}
        for model, found in cells.items()
    }
    draw(cells, numbers, images, options.plots)
    return Verdict(CLAIM, verdict_of(numbers), rounded(numbers | {"about": asdict(plan)}))


def main(words: list[str] | None = None) -> int:
    """The command line."""
    return run_claim(__file__, __doc__, measure, words)


if __name__ == "__main__":
    sys.exit(main())
