"""KL is log K: the posterior of a VQ-VAE is one-hot, so its divergence from the uniform prior is a constant.

Equations (5) to (8). A VQ-VAE is trained on digits for each of several codebook sizes K. On held-out images the
posterior of every position is written out as K probabilities in float64, and its divergence taken by the definition and
by `torch.distributions`. Then the loss of one batch is differentiated with and without the divergence added to it, and
all parameters are moved at random, far enough to change codes, to see whether the divergence moves.

Beside it stands a model that differs in its posterior alone: Gumbel-softmax, which is not one-hot, and for which all of
this must fail, or the test would show nothing.

The claim holds if for every K (i) the divergence of every code is within 1e-9 nats of log K by both routes, (ii) the
gradients of all parameters are equal bit for bit with and without it, (iii) it moves by less than 1e-9 nats where moved
parameters change at least 1 % of the codes; and for the Gumbel posterior the divergence is at least 1e-3 nats away from
log K, and the gradients differ.

    python benchmarks/claims/kl_is_log_k.py --quick --json claims.json
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import plots
import torch
from frame import Options, Verdict, rounded, run_claim
from torch import Tensor
from torch.distributions import OneHotCategorical, kl_divergence
from torch.nn import functional
from training import Images, Schedule, digits, make_autoencoder, train_autoencoder

from hvq.autoencoders import Autoencoder, AutoencoderLoss
from hvq.data.pixels import bytes_to_model
from hvq.quantizers import GumbelQuantizer

CLAIM = "kl_is_log_k"
TOLERANCE = 1e-9
MEASURED = 100
TEMPERATURES = tuple(10.0**power for power in range(2, -5, -1))


@dataclass(frozen=True)
class Plan:
    """Codebook sizes, and how long each model is trained."""

    sizes: tuple[int, ...]
    steps: int


QUICK = Plan(sizes=(2, 8, 64, 512), steps=200)
FULL = Plan(sizes=(2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096), steps=2_000)


def make_model(kind: dict[str, Any], size: int) -> Autoencoder:
    """One level of 4x4 codes on digits of 16x16."""
    features = {"width": 32, "residual_blocks": 1, "residual_width": 16}
    level = {"ratio": 4, "codebook_size": size, "code_dimension": 8, "quantizer": kind, **features}
    return make_autoencoder(0, channels=1, levels={"top": level}, decoder=features)


def divergence(shares: Tensor) -> Tensor:
    """KL of each posterior `[N, K]` to the uniform prior by the definition, in nats, float64 `[N]`; 0 log 0 is 0."""
    return torch.xlogy(shares, shares * shares.shape[1]).sum(dim=1)


def divergence_by_torch(shares: Tensor) -> Tensor:
    """The same by `torch.distributions`."""
    uniform = torch.full_like(shares, 1 / shares.shape[1])
    return kl_divergence(OneHotCategorical(probs=shares), OneHotCategorical(probs=uniform))


def one_hot(model: Autoencoder, pixels: Tensor) -> Tensor:
    """Posteriors `[N, K]`, float64, of all positions of images."""
    codes = model(pixels).codes["top"]
    return functional.one_hot(codes.flatten(), model.quantizers["top"].codebook_size).double()


def posterior(model: Autoencoder, pixels: Tensor) -> Tensor:
    """The same for either posterior, with the gradient that it has: none where it is one-hot."""
    quantizer = model.quantizers["top"]
    if isinstance(quantizer, GumbelQuantizer):
        return quantizer.logits(model.latents(pixels, "top")).double().softmax(dim=1)
    return one_hot(model, pixels)


def gradients(model: Autoencoder, pixels: Tensor, weight: float) -> Tensor:
    """Of equation (9), and the divergence in nats per code times a weight, by all parameters, joined."""
    torch.manual_seed(0)
    total, _ = AutoencoderLoss(kl_weight=0.0)(model(pixels), pixels)
    total = total + weight * divergence(posterior(model, pixels)).mean()
    parameters = list(model.parameters())
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return torch.cat(
        [torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(found, parameters, strict=True)]
    )


@torch.no_grad()
def moved(model: Autoencoder, pixels: Tensor) -> tuple[float, float]:
    """Largest change of the divergence where parameters move by a tenth of their size, and the share of new codes."""
    before, start = one_hot(model, pixels), [parameter.clone() for parameter in model.parameters()]
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(0.1 * parameter.norm() / math.sqrt(parameter.numel()) * torch.randn_like(parameter))
    after = one_hot(model, pixels)
    for parameter, value in zip(model.parameters(), start, strict=True):
        parameter.copy_(value)
    changed = (before.argmax(dim=1) != after.argmax(dim=1)).double().mean()
    return float((divergence(after) - divergence(before)).abs().max()), float(changed)


@torch.no_grad()
def tempered(model: Autoencoder, pixels: Tensor) -> list[float]:
    """Mean divergence of softmax(-distance² / T), which tends to the one-hot posterior as T goes to 0."""
    latents, (codebook,) = model.latents(pixels, "top").double(), model.quantizers["top"].codebooks
    distances = torch.cdist(latents, codebook.vectors.double()).square()
    return [float(divergence((-distances / temperature).softmax(dim=1)).mean()) for temperature in TEMPERATURES]


def run_cell(images: Images, kind: str, size: int, steps: int) -> dict[str, Any]:
    """Train one model, and look at its posterior."""
    fields = {"kind": "vector", "learning": "gradient"} if kind == "vector" else {"kind": "gumbel"}
    model = make_model(fields, size)
    train_autoencoder(model, images.train, Schedule(steps), seed=0)
    pixels = bytes_to_model(images.held_out[:MEASURED])
    with torch.no_grad():
        shares = posterior(model, pixels)
    without, with_it = gradients(model, pixels, 0.0), gradients(model, pixels, 1.0)
    found = {
        "kl": float(divergence(shares).mean()),
        "error": float((divergence(shares) - math.log(size)).abs().max()),
        "error_by_torch": float((divergence_by_torch(shares) - math.log(size)).abs().max()),
        "gradient_change": float((with_it - without).norm() / without.norm()),
    }
    if kind == "vector":
        found["moved"], found["new_codes"] = moved(model, pixels)
        found["tempered"] = tempered(model, pixels)
    return found


def draw(plan: Plan, cells: dict[str, list[dict[str, Any]]], options: Options) -> None:
    """Divergence over K, and over the temperature of a posterior that is not one-hot yet."""
    drawn, axes = plots.figure(1, 2)
    left, right = axes[0]
    left.plot(plan.sizes, [math.log(size) for size in plan.sizes], color="black", linewidth=0.8, label="log K")
    for kind, marker in (("vector", "o"), ("gumbel", "s")):
        left.plot(plan.sizes, [cell["kl"] for cell in cells[kind]], marker, label=kind)
    left.set_xscale("log", base=2)
    left.legend(fontsize=8)
    plots.label(left, "divergence from the uniform prior", "K", "nats per code")
    for size, cell in zip(plan.sizes[1::2], cells["vector"][1::2], strict=True):
        (line,) = right.plot(TEMPERATURES, cell["tempered"], ".-", label=f"K = {size}")
        right.axhline(math.log(size), color=line.get_color(), linewidth=0.8, linestyle=":")
    right.set_xscale("log")
    right.legend(fontsize=8)
    plots.label(right, "softmax(-distance² / T) tends to the one-hot posterior", "T (dotted: log K)", "nats per code")
    plots.save(drawn, options.plots, CLAIM)


def measure(options: Options) -> Verdict:
    """Every size, with both posteriors."""
    plan, images = QUICK if options.quick else FULL, digits()
    cells = {
        kind: [
            options.cells.of(
                {"kind": kind, "size": size, "steps": plan.steps},
                partial(run_cell, images, kind, size, plan.steps),
            )
            for size in plan.sizes
        ]
        for kind in ("vector", "gumbel")
    }
    draw(plan, cells, options)
    vector, gumbel = cells["vector"], cells["gumbel"]
    numbers = {
        "largest_error_nats": max(cell["error"] for cell in vector),
        "largest_error_by_torch_nats": max(cell["error_by_torch"] for cell in vector),
        "largest_gradient_change": max(cell["gradient_change"] for cell in vector),
        "largest_move_nats": max(cell["moved"] for cell in vector),
        "fewest_new_codes": min(cell["new_codes"] for cell in vector),
        "gumbel_least_distance_nats": min(cell["error"] for cell in gumbel),
        "gumbel_least_gradient_change": min(cell["gradient_change"] for cell in gumbel),
    }
    holds = (
        max(numbers["largest_error_nats"], numbers["largest_error_by_torch_nats"]) < TOLERANCE
        and numbers["largest_gradient_change"] == 0.0
        and numbers["largest_move_nats"] < TOLERANCE
        and numbers["fewest_new_codes"] >= 0.01
        and numbers["gumbel_least_distance_nats"] > 1e-3
        and numbers["gumbel_least_gradient_change"] > 0.0
    )
    return Verdict(CLAIM, holds, rounded(numbers | {"about": asdict(plan)}))


def main(words: list[str] | None = None) -> int:
    """The command line."""
    return run_claim(__file__, __doc__, measure, words)


if __name__ == "__main__":
    sys.exit(main())
