"""What training on many GPUs sends, and from which batch on computing takes longer: computed, not measured.

    python benchmarks/network.py --json network.json

Parameters are counted in the presets' models, and operations of a training step (forward and backward, one sample) by
torch's own counter; neither takes the memory of the model. Everything else is arithmetic from the assumptions below,
which the printed tables repeat. `recipes/accelerate/README.md` shows them.

    gradients, DDP          2 (p - 1) / p x 4 bytes x parameters, while the backward pass goes on
    weights, FSDP           3 (p - 1) / p x 4 bytes x parameters: gathered for the forward and the backward pass of each
                            micro-batch, and its gradients scattered, while both go on
    codebooks               2 (p - 1) / p x 8 bytes x (K + K x D + candidates), after the backward pass
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import markdown, save_rows
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from hvq.autoencoders import AutoencoderLoss, build_autoencoder
from hvq.config import RunConfig
from hvq.config_loading import load_run_config
from hvq.priors import Condition, build_prior

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
PRESETS = ("cifar10-vqvae2", "imagenet256-vqvae2", "ffhq1024-3level")
GPUS = (8, 64, 512)
# 40 % of the dense bf16 rate of an H100. A slower GPU hides the network behind a smaller batch.
OPERATIONS_PER_SECOND = 400e12
# Of 450 in either direction by NVLink within a node of 8, and of 50 by one network card of 400 Gbit/s for each GPU.
BYTES_PER_SECOND = {8: 300e9, 64: 40e9, 512: 40e9}
# Of a collective, for each doubling of the GPUs.
LATENCY_SECONDS = 10e-6
# DDP sends gradients in parts of this size, each with a latency of its own.
BUCKET_BYTES = 25 * 2**20
# Share of a step that what cannot be hidden may take.
EXPOSED_SHARE = 0.02


@dataclass(frozen=True)
class Model:
    """What one step of a model computes and sends.

    Attributes:
        name: preset, then "autoencoder" or the level of the prior.
        parameters: that have gradients.
        operations: floating-point operations of forward and backward, for one sample.
        codebooks: codebook size and code dimension of each.
    """

    name: str
    parameters: int
    operations: int
    codebooks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Row:
    """A model on a number of GPUs.

    Attributes:
        gradient_bytes: sent by each GPU and step with DDP.
        sharded_bytes: the same with FSDP, and one micro-batch; None where FSDP is refused.
        codebook_bytes: sent by each GPU and step, in either case.
        batch: samples per GPU from which on gradients are hidden behind the backward pass.
        sharded_batch: samples per GPU and micro-batch from which on FSDP is hidden.
        codebook_batch: samples per GPU from which on codebooks, and what is agreed on, take 2 % of the step at most.
    """

    model: str
    parameters: int
    operations_per_sample: int
    gpus: int
    gradient_bytes: float
    sharded_bytes: float | None
    codebook_bytes: float
    batch: int
    sharded_batch: int | None
    codebook_batch: int


# --- models ----------------------------------------------------------------------------------------------------------


def models_of(preset: str) -> list[Model]:
    """The autoencoder and the priors of a preset."""
    config = load_run_config(CONFIGS / f"{preset}.yaml", [])
    return [autoencoder_of(preset, config), *(prior_of(preset, config, level) for level in config.priors)]


def autoencoder_of(preset: str, config: RunConfig) -> Model:
    """The autoencoder, on tensors without memory; its search for codes is counted in the form of matrix products."""
    with _plain_search(), FakeTensorMode(), FlopCounterMode(display=False) as counter:
        model = build_autoencoder(config.autoencoder).train()
        images = torch.zeros(1, config.data.channels, *config.data.size)
        AutoencoderLoss()(model(images), images)[0].backward()
    codebooks = [codebook for quantizer in model.quantizers.values() for codebook in quantizer.codebooks]
    shapes = tuple((len(codebook.vectors), codebook.vectors.shape[1]) for codebook in codebooks)
    return Model(f"{preset}, autoencoder", parameters_of(model), counter.get_total_flops(), shapes)


def prior_of(preset: str, config: RunConfig, level: str) -> Model:
    """The prior of a level, without classes."""
    names = list(config.autoencoder.levels)
    sizes = {name: config.autoencoder.levels[name].codebook_size for name in names}
    coarser = {name: sizes[name] for name in names[: names.index(level)]}
    with torch.device("meta"):
        grids = build_autoencoder(config.autoencoder).grids(config.data.size)
        prior = build_prior(
            config.prior(level).model,
            codebook_size=sizes[level],
            coarser=coarser,
            spatial_dims=config.autoencoder.spatial_dims,
        ).train()
        codes = torch.zeros(1, *grids[level], 1, dtype=torch.int64)
        condition = Condition(codes={name: torch.zeros(1, *grids[name], dtype=torch.int64) for name in coarser})
        with FlopCounterMode(display=False) as counter:
            # As `forward` does it once it has looked at the codes, which have no values here.
            prior.head(prior.features(codes, condition), codes).sum().backward()
    return Model(f"{preset}, {level}", parameters_of(prior), counter.get_total_flops())


def parameters_of(model: nn.Module) -> int:
    """How many numbers have a gradient."""
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _plain_search() -> Iterator[None]:
    before = os.environ.get("HVQ_SEARCH_BACKEND")
    os.environ["HVQ_SEARCH_BACKEND"] = "torch"
    try:
        yield
    finally:
        del os.environ["HVQ_SEARCH_BACKEND"]
        if before is not None:
            os.environ["HVQ_SEARCH_BACKEND"] = before


# --- arithmetic ------------------------------------------------------------------------------------------------------


def codebook_numbers(codebooks: tuple[tuple[int, int], ...], gpus: int) -> int:
    """Numbers that travel for the codebooks' step: counts, sums, and candidates for revival, an even share of each."""
    numbers = 0
    for size, dimension in codebooks:
        candidates = max(16, size // 16)
        numbers += size + size * dimension + gpus * -(-candidates // gpus) * dimension
    return numbers


def row_of(model: Model, gpus: int) -> Row:
    """A model on a number of GPUs, by the assumptions at the top."""
    share, rate = (gpus - 1) / gpus, BYTES_PER_SECOND[gpus]
    latency = LATENCY_SECONDS * math.log2(gpus)
    buckets = -(-4 * model.parameters // BUCKET_BYTES)
    gradients, sharded = 2 * share * 4 * model.parameters, 3 * share * 4 * model.parameters
    codebooks = 2 * share * 8 * codebook_numbers(model.codebooks, gpus)
    seconds = model.operations / OPERATIONS_PER_SECOND
    # Losses and faults are agreed on in one collective, codebooks in another.
    exposed = codebooks / rate + (2 if model.codebooks else 1) * latency
    return Row(
        model=model.name,
        parameters=model.parameters,
        operations_per_sample=model.operations,
        gpus=gpus,
        gradient_bytes=gradients,
        sharded_bytes=None if model.codebooks else sharded,
        codebook_bytes=codebooks,
        # The backward pass is two thirds of the operations.
        batch=math.ceil((gradients / rate + buckets * latency) / (seconds * 2 / 3)),
        sharded_batch=None if model.codebooks else math.ceil(sharded / rate / seconds),
        codebook_batch=math.ceil(exposed * (1 - EXPOSED_SHARE) / EXPOSED_SHARE / seconds),
    )


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(rows: list[Row]) -> str:
    """What README.md of recipes/accelerate shows."""
    names = list(dict.fromkeys(row.model for row in rows))
    by_name = {name: [row for row in rows if row.model == name] for name in names}
    several = f"{' / '.join(map(str, GPUS))} GPUs"
    sent = markdown(
        ["model", "parameters", "GFLOP per sample", f"MB by DDP, {several}", "MB by FSDP", "MB for codebooks"],
        (
            [
                name,
                f"{of[0].parameters / 1e6:,.1f} M",
                f"{of[0].operations_per_sample / 1e9:,.1f}",
                _several(f"{row.gradient_bytes / 1e6:,.0f}" for row in of),
                _several(None if row.sharded_bytes is None else f"{row.sharded_bytes / 1e6:,.0f}" for row in of),
                _several(f"{row.codebook_bytes / 1e6:,.2f}" if row.codebook_bytes else None for row in of),
            ]
            for name, of in by_name.items()
        ),
    )
    hidden = markdown(
        ["model", f"DDP hidden, {several}", "FSDP hidden", f"the rest at most {100 * EXPOSED_SHARE:.0f} %"],
        (
            [
                name,
                _several(f"{row.batch:,}" for row in of),
                _several(None if row.sharded_batch is None else f"{row.sharded_batch:,}" for row in of),
                _several(f"{row.codebook_batch:,}" for row in of),
            ]
            for name, of in by_name.items()
        ),
    )
    return f"{sent}\n\n{hidden}"


def _several(texts: Iterator[str | None]) -> str:
    """One text for each number of GPUs; nothing where there is none."""
    found = [text for text in texts if text is not None]
    return " / ".join(found)


def main(words: list[str] | None = None) -> int:
    """Compute and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest preset alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where rows are kept")
    arguments = parser.parse_args(words)
    presets = PRESETS[:1] if arguments.quick else PRESETS
    rows = [row_of(model, gpus) for preset in presets for model in models_of(preset) for gpus in GPUS]
    save_rows(arguments.json, rows)
    print(tables(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
