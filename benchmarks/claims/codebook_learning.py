"""Moving averages against the codebook loss: faster to converge, and no worse in usage.

Appendix A.1 of the VQ-VAE paper has moving averages of the latents in place of the codebook term of equation (9), and
VQ-VAE-2 uses them throughout; that they converge faster is what is said of them. One level of codes is trained with
either, from three seeds each, all else alike, in two ways:

- bare: as in the papers. Codebooks begin at random, and no code is revived. The papers do not say at which scale they
  begin; here it is N(0, 1), which is not that of the first latents.
- helped: as the project has it by default, for both. Codebooks begin by k-means, and dead codes are revived.

Measured on the held-out split at twelve steps, spaced evenly on a logarithmic scale: the mean squared error on [0, 1],
and usage, the share of the codes that occur. `share_of_steps` is how much of the training moving averages need to reach
the error with which the codebook loss ends, between measured steps by interpolation; 1 where they need all of it, or
never reach it.

The claim holds if in both ways, as means over seeds, moving averages need at most 90 % of the steps, and end with a
usage at most 0.01 below that of the codebook loss.

Quick on digits; at full length on CIFAR-10.

    python benchmarks/claims/codebook_learning.py --json claims.json --data FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plots
from frame import Options, Verdict, rounded, run_claim
from one_level import LEARNING, OneLevel
from training import Images, train_autoencoder

CLAIM = "codebook_learning"
TITLES = {"gradient": "codebook loss", "moving_average": "moving averages"}
WAYS = ("bare", "helped")
LOOKS = 12
LARGEST_SHARE, LARGEST_LOSS_OF_USAGE = 0.9, 0.01


QUICK = OneLevel(data="digits", steps=300, batch_size=64, width=32, codebook_size=128)
FULL = OneLevel(data="cifar10", steps=2_000, batch_size=128, width=64, codebook_size=512, held_out=2_000)


def looks(steps: int) -> list[int]:
    """Steps at which a training of so many is looked at.

    >>> looks(300)
    [10, 14, 19, 25, 34, 47, 64, 87, 119, 162, 220, 300]
    """
    return sorted({max(1, round(float(step))) for step in np.geomspace(min(10, steps), steps, LOOKS)})


def run_cell(images: Images, plan: OneLevel, learning: str, way: str, seed: int) -> dict[str, list[float]]:
    """Train one model; error and usage on the held-out split at each look."""
    bare: dict[str, Any] = {"revival_threshold": 0.0} if way == "bare" else {}
    model = plan.model(seed, images.channels, learning=learning, **bare)
    found: dict[str, list[float]] = {"steps": [], "mse": [], "usage": []}

    def observe(step: int) -> None:
        if step in wanted:
            model.eval()
            for name, value in {"steps": step, **plan.look(model, images)}.items():
                found[name].append(value)
            model.train()

    wanted = looks(plan.steps)
    train_autoencoder(model, images.train, plan.schedule, seed=seed, kmeans=way == "helped", observe=observe)
    return found


def share_of_steps(steps: Sequence[int], errors: Sequence[float], wanted: float) -> float:
    """Steps until an error is reached, over all of them; 1 where it is not.

    >>> share_of_steps([10, 20, 40], [0.4, 0.2, 0.1], 0.3)
    0.375
    >>> share_of_steps([10, 20, 40], [0.4, 0.2, 0.1], 0.05), share_of_steps([10, 20, 40], [0.4, 0.2, 0.1], 0.5)
    (1.0, 0.25)
    """
    reached = next((i for i, error in enumerate(errors) if error <= wanted), None)
    if reached is None:
        return 1.0
    if reached == 0:
        return steps[0] / steps[-1]
    between = (errors[reached - 1] - wanted) / (errors[reached - 1] - errors[reached])
    return (steps[reached - 1] + between * (steps[reached] - steps[reached - 1])) / steps[-1]


def compare(cells: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What the cells of one way, by learning and seed, come to."""
    pairs = list(zip(cells["moving_average"], cells["gradient"], strict=True))
    shares = [share_of_steps(own["steps"], own["mse"], other["mse"][-1]) for own, other in pairs]
    final = {
        name: {learning: float(np.mean([cell[name][-1] for cell in found])) for learning, found in cells.items()}
        for name in ("mse", "usage")
    }
    return {
        "share_of_steps": float(np.mean(shares)),
        "share_of_steps_by_seed": shares,
        "final_mse": final["mse"],
        "final_usage": final["usage"],
        "least_usage": {learning: min(min(cell["usage"]) for cell in found) for learning, found in cells.items()},
    }


def verdict_of(numbers: dict[str, dict[str, Any]]) -> bool:
    """The criterion."""
    return all(
        found["share_of_steps"] <= LARGEST_SHARE
        and found["final_usage"]["moving_average"] >= found["final_usage"]["gradient"] - LARGEST_LOSS_OF_USAGE
        for found in numbers.values()
    )


def draw(cells: dict[str, dict[str, list[dict[str, Any]]]], folder: Path) -> None:
    """Error above, usage below, over steps; every training as a thin line, the mean over seeds as a thick one."""
    drawn, axes = plots.figure(2, len(cells), height=2.6, sharex=True, sharey="row")
    for column, (way, by_learning) in enumerate(cells.items()):
        for row, (name, title) in enumerate({"mse": "held-out error", "usage": "usage"}.items()):
            axis = axes[row, column]
            for colour, (learning, found) in zip(plots.COLOURS, by_learning.items(), strict=False):
                for cell in found:
                    axis.plot(cell["steps"], cell[name], color=colour, linewidth=0.7, alpha=0.5)
                mean = np.mean([cell[name] for cell in found], axis=0)
                axis.plot(found[0]["steps"], mean, color=colour, linewidth=2, label=TITLES[learning])
            axis.set_xscale("log")
            plots.label(axis, way * (row == 0), "step" * (row == 1), title * (column == 0))
        axes[0, column].set_yscale("log")
        axes[1, column].set_ylim(0, 1.05)
    axes[0, 0].legend(fontsize=8)
    plots.save(drawn, folder, CLAIM)


def measure(options: Options) -> Verdict:
    """Both codebooks in both ways."""
    plan = QUICK if options.quick else FULL
    images, about = plan.images(options.data), {k: v for k, v in asdict(plan).items() if k != "seeds"}
    cells = {
        way: {
            learning: [
                options.cells.of(
                    {**about, "way": way, "learning": learning, "seed": seed},
                    partial(run_cell, images, plan, learning, way, seed),
                )
                for seed in plan.seeds
            ]
            for learning in LEARNING
        }
        for way in WAYS
    }
    draw(cells, options.plots)
    numbers: dict[str, Any] = {way: compare(found) for way, found in cells.items()}
    return Verdict(CLAIM, verdict_of(numbers), rounded(numbers | {"about": asdict(plan)}))


def main(words: list[str] | None = None) -> int:
    """The command line."""
    return run_claim(__file__, __doc__, measure, words)


if __name__ == "__main__":
    sys.exit(main())
