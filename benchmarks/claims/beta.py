"""Beta between 0.1 and 2.0 hardly matters (VQ-VAE, section 3.2).

Beta multiplies the commitment loss alone, equation (9). One level of codes is trained with seven values of it, spaced
evenly on a logarithmic scale, from three seeds each (first weights and order of images), once with a codebook that
learns by gradient and once with one of moving averages; all else is alike. What is compared is the reconstruction error
on the held-out split, as mean squared error on [0, 1].

The spread between betas is the standard deviation, over the seven, of the mean error over seeds; the spread between
seeds is that of single trainings with one beta, pooled over the seven. Where beta does nothing, the first is about
1 / √3 of the second, or less. Beside them stands a stricter measure, `ratio_to_residual`: the same three seeds serve
every beta, so that what a seed does to all of them alike can be taken out of the spread before it is compared.

The claim holds if for both codebooks the spread between betas is at most twice the spread between seeds.

Quick on digits; at full length on CIFAR-10.

    python benchmarks/claims/beta.py --json claims.json --data FOLDER
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import plots
from frame import Options, Verdict, rounded, run_claim
from numpy.typing import NDArray
from one_level import LEARNING, OneLevel
from training import Images, train_autoencoder

from hvq.autoencoders import AutoencoderLoss

CLAIM = "beta"
LARGEST_RATIO = 2.0


@dataclass(frozen=True)
class Plan(OneLevel):
    """What is trained for each beta, seed and codebook."""

    betas: tuple[float, ...] = tuple(round(float(beta), 3) for beta in np.geomspace(0.1, 2.0, 7))


QUICK = Plan(data="digits", steps=200, batch_size=64, width=32, codebook_size=128)
FULL = Plan(data="cifar10", steps=1_000, batch_size=128, width=64, codebook_size=512)


def run_cell(images: Images, plan: Plan, learning: str, beta: float, seed: int) -> dict[str, float]:
    """Train one model; error and usage on the held-out split."""
    model = plan.model(seed, images.channels, learning=learning)
    loss = AutoencoderLoss(commitment_weight=beta)
    train_autoencoder(model, images.train, plan.schedule, seed=seed, loss=loss)
    return plan.look(model, images)


def spreads(errors: NDArray[np.float64]) -> dict[str, float]:
    """What errors `[betas, seeds]` say.

    >>> found = spreads(np.array([[1.0, 3.0], [2.0, 4.5]]))
    >>> round(found["between_betas"], 4), round(found["between_seeds"], 4), round(found["ratio_to_residual"], 4)
    (0.8839, 1.6008, 3.5355)
    """
    means = errors.mean(axis=1)
    between = float(means.std(ddof=1))
    within = float(np.sqrt(errors.var(axis=1, ddof=1).mean()))
    residual = errors - means[:, None] - errors.mean(axis=0) + errors.mean()
    freedom = (errors.shape[0] - 1) * (errors.shape[1] - 1)
    left = float(np.sqrt(np.square(residual).sum() / freedom))
    return {
        "ratio": between / within,
        "ratio_to_residual": between / max(left, 1e-30),
        "between_betas": between,
        "between_seeds": within,
        "mean_error": float(means.mean()),
        "worst_over_best_beta": float(means.max() / means.min()),
    }


def draw(plan: Plan, errors: dict[str, NDArray[np.float64]], options: Options) -> None:
    """Every training as a dot, and the mean over seeds as a line."""
    drawn, axes = plots.figure(1, len(errors), sharey=True)
    for axis, (learning, found) in zip(axes[0], errors.items(), strict=True):
        for i in range(found.shape[1]):
            axis.plot(plan.betas, found[:, i], "o", markersize=4, color=plots.COLOURS[0], alpha=0.6)
        axis.plot(plan.betas, found.mean(axis=1), color=plots.COLOURS[1], label="mean of seeds")
        axis.set_xscale("log")
        axis.set_ylim(0, 1.25 * max(float(part.max()) for part in errors.values()))
        plots.label(axis, f"codebook by {learning.replace('_', ' ')}", "beta", "held-out error" * (axis is axes[0][0]))
    axes[0][0].legend(fontsize=8, loc="lower left")
    plots.save(drawn, options.plots, CLAIM)


def measure(options: Options) -> Verdict:
    """All betas, seeds and codebooks."""
    plan = QUICK if options.quick else FULL
    images, about = plan.images(options.data), {k: v for k, v in asdict(plan).items() if k not in ("betas", "seeds")}
    cells: dict[str, list[list[dict[str, Any]]]] = {
        learning: [
            [
                options.cells.of(
                    {**about, "learning": learning, "beta": beta, "seed": seed},
                    partial(run_cell, images, plan, learning, beta, seed),
                )
                for seed in plan.seeds
            ]
            for beta in plan.betas
        ]
        for learning in LEARNING
    }
    errors = {name: np.array([[cell["mse"] for cell in row] for row in rows]) for name, rows in cells.items()}
    draw(plan, errors, options)
    numbers: dict[str, Any] = {name: spreads(found) for name, found in errors.items()}
    for name, rows in cells.items():
        numbers[name]["least_usage"] = min(cell["usage"] for row in rows for cell in row)
    holds = all(numbers[name]["ratio"] <= LARGEST_RATIO for name in LEARNING)
    return Verdict(CLAIM, holds, rounded(numbers | {"about": asdict(plan)}))


def main(words: list[str] | None = None) -> int:
    """The command line."""
    return run_claim(__file__, __doc__, measure, words)


if __name__ == "__main__":
    sys.exit(main())
