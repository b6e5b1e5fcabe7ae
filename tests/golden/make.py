"""Makes golden checkpoints: tiny models as `save_pretrained` writes them, and what they give, to be loaded for ever.

`python -m tests.golden.make` makes those that are not there, `python -m tests.golden.make NAME` one of them. None is
ever written again: where a format changes, the old ones must still load, and new ones get new names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from hvq import HierarchicalVQ
from hvq.autoencoders import Autoencoder, build_autoencoder, initialize_codebooks
from hvq.config import AutoencoderConfig
from hvq.errors import ConfigurationError, HVQError
from hvq.files import write_tensors
from hvq.priors import (
    Condition,
    PixelCNNPrior,
    PixelSNAILPrior,
    Prior,
    SamplingOptions,
    TransformerPrior,
    sample_hierarchy,
)
from hvq.priors.vector_reader import standardize_vectors
from hvq.quantizers import (
    FiniteScalarQuantizer,
    GaussianBottleneck,
    GumbelQuantizer,
    LookupFreeQuantizer,
    Quantizer,
    ResidualQuantizer,
    SimQuantizer,
    VectorQuantizer,
)
from hvq.storage import Hierarchy

HERE = Path(__file__).parent
EXPECTED = "expected.safetensors"

# D, K of the two levels, and the size of images, all of which differ.
DIMENSION, TOP, BOTTOM, SIZE = 6, 7, 11, (16, 24)
CLASSES = ("cat", "dog", "owl")
# V, of the vectors that a prior is told.
VECTOR = 5
Tensors = dict[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)


# --- what a model gives -------------------------------------------------------------------------------------------


@torch.no_grad()
def run_quantizer(quantizer: Quantizer, given: Tensors) -> Tensors:
    """Codes of latents, and their vectors; means in place of codes, where there are none."""
    codes = quantizer.encode(given["latents"])
    return {"codes": codes, "vectors": quantizer.decode(codes), "mean_vector": quantizer.mean_vector()}


@torch.no_grad()
def run_autoencoder(model: Autoencoder, given: Tensors) -> Tensors:
    """Codes of images, images of codes, and those of the top level alone."""
    codes = model.encode(given["images"])
    finer = model.level_names[1:]
    return {
        **{f"codes_{name}": code for name, code in codes.items()},
        "reconstruction": model.decode(codes, size=given["images"].shape[2:]),
        "top_alone": model.decode(codes, size=given["images"].shape[2:], absent=finer),
    }


@torch.no_grad()
def run_prior(prior: Prior, given: Tensors) -> Tensors:
    """Logits by teacher forcing, and those of the first two steps of sampling."""
    condition = Condition(codes={"top": given["top"]}, labels=given["labels"], vector=given.get("vectors"))
    codes = given["codes"]
    cache = prior.make_cache(condition, len(codes), codes.shape[1:])
    first, cache = prior.step(None, cache)
    second, _ = prior.step(codes[:, 0, 0], cache)
    return {"logits": prior(codes, condition), "steps": torch.stack([first, second], dim=1)}


def run_hierarchy(model: HierarchicalVQ, given: Tensors) -> Tensors:
    """Codes of images, images of codes, and drawn codes."""
    codes, hierarchy = model.encode(given["images"]), model.hierarchy
    labels = given["labels"].tolist()
    drawn = sample_hierarchy(
        hierarchy.priors, hierarchy.grids, samples=range(len(labels)), labels=labels, seed=5, options=hierarchy.options
    )
    return {
        **{f"codes_{name}": code for name, code in codes.items()},
        **{f"drawn_{name}": code for name, code in drawn.items()},
        "reconstruction": model.decode(codes),
    }


# --- the models ---------------------------------------------------------------------------------------------------


def _scrambled(model: Model, scale: float) -> Model:
    """Every weight far from what a fresh model has, so that each part of it counts."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=scale)
    return model.eval()


def _one_dead(quantizer: Quantizer) -> Quantizer:
    """Codebooks as after a training: some codes often used, and one not alive."""
    for i, codebook in enumerate(quantizer.codebooks):
        codebook.moving_counts.copy_(torch.arange(1.0, quantizer.codebook_size + 1))
        codebook.alive[i + 1] = False
        codebook.initialized.fill_(True)
    return quantizer.eval()


def _sizes(number: int) -> dict[str, int]:
    return {"codebook_size": number, "code_dimension": DIMENSION}


def _vector() -> VectorQuantizer:
    return VectorQuantizer(**_sizes(BOTTOM))


QUANTIZERS: dict[str, Callable[[], Quantizer]] = {
    "vector": _vector,
    "vector-gradient": lambda: VectorQuantizer(**_sizes(BOTTOM), learning="gradient", estimator="rotation"),
    "vector-heads": lambda: VectorQuantizer(**_sizes(TOP), heads=2, projection_dimension=4, metric="cosine"),
    "residual": lambda: ResidualQuantizer(quantizers=[_vector() for _ in range(3)], dropout=0.25),
    "residual-shared": lambda: ResidualQuantizer(quantizers=[_vector()], codes_per_position=3),
    "finite_scalar": lambda: FiniteScalarQuantizer(**_sizes(35), levels=(5, 7)),
    "lookup_free": lambda: LookupFreeQuantizer(**_sizes(8), groups=2),
    "lookup_free-spherical": lambda: LookupFreeQuantizer(**_sizes(16), spherical=True),
    "sim": lambda: SimQuantizer(**_sizes(BOTTOM)),
    "gumbel": lambda: GumbelQuantizer(**_sizes(BOTTOM)),
    "gaussian": lambda: GaussianBottleneck(code_dimension=DIMENSION),
}

PRIORS: dict[str, Callable[[dict[str, int]], Prior]] = {
    "transformer": lambda coarser: TransformerPrior(
        codebook_size=BOTTOM if coarser else TOP,
        coarser=coarser,
        num_classes=len(CLASSES),
        width=12,
        layers=2,
        heads=3,
        context_blocks=1,
    ),
    "pixelsnail": lambda coarser: PixelSNAILPrior(
        codebook_size=BOTTOM,
        coarser=coarser,
        num_classes=len(CLASSES),
        width=8,
        heads=2,
        residual_width=5,
        residual_blocks=1,
        context_blocks=1,
    ),
    "pixelcnn": lambda coarser: PixelCNNPrior(
        codebook_size=BOTTOM, coarser=coarser, num_classes=len(CLASSES), width=6, layers=2, context_blocks=1
    ),
    "vectors": lambda coarser: _standardizing(
        PixelCNNPrior(
            codebook_size=BOTTOM,
            coarser=coarser,
            num_classes=len(CLASSES),
            vector_size=VECTOR,
            width=6,
            layers=1,
            context_blocks=1,
        )
    ),
}


def _standardizing(prior: Prior) -> Prior:
    standardize_vectors(prior, torch.arange(VECTOR), 1 + torch.arange(VECTOR))
    return prior


def _autoencoder(ratios: dict[str, int], **fields: object) -> Autoencoder:
    small = {"residual_blocks": 1, "residual_width": 3}
    codebooks = {"top": TOP, "bottom": BOTTOM}
    levels = {
        name: {**small, "width": 6 + 2 * i, "ratio": ratio, "codebook_size": codebooks[name], "code_dimension": 3 + i}
        for i, (name, ratio) in enumerate(ratios.items())
    }
    decoder = {**small, "width": 6, **dict(fields.pop("decoder", {}))}  # type: ignore[call-overload]
    plain = {"channels": 2, "levels": levels, "decoder": decoder, **fields}
    model = build_autoencoder(AutoencoderConfig.model_validate(plain)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # What is zero at the start would hide what stands behind it.
            if not bool(parameter.any()):
                parameter.normal_(std=0.2)
    initialize_codebooks(model, [torch.rand(32, 2, *SIZE) * 2 - 1])
    for quantizer in model.quantizers.values():
        _one_dead(quantizer)
    return model


AUTOENCODERS: dict[str, Callable[[], Autoencoder]] = {
    "one": lambda: _autoencoder({"top": 4}),
    "two": lambda: _autoencoder({"top": 2, "bottom": 4}, level_dropout=0.5),
    "two-vectors": lambda: _autoencoder({"top": 2, "bottom": 4}, decoder={"sees": "vectors", "learn_scale": True}),
}


# --- folders ------------------------------------------------------------------------------------------------------


def _make_quantizer(name: str, folder: Path) -> tuple[Tensors, Tensors]:
    quantizer, given = _one_dead(QUANTIZERS[name]()), {"latents": torch.randn(2, DIMENSION, 3, 5)}
    quantizer.save_pretrained(folder)
    return given, run_quantizer(quantizer, given)


def _make_autoencoder(name: str, folder: Path) -> tuple[Tensors, Tensors]:
    model, given = AUTOENCODERS[name](), {"images": torch.rand(2, 2, *SIZE) * 2 - 1}
    model.save_pretrained(folder, image_size=SIZE, classes=CLASSES)
    return given, run_autoencoder(model, given)


def _make_prior(name: str, folder: Path) -> tuple[Tensors, Tensors]:
    prior = _scrambled(PRIORS[name]({"top": TOP}), 0.3)
    prior.save_pretrained(folder, level="bottom", grid=(4, 6), image_size=SIZE, classes=CLASSES, encoder_hash="golden")
    given = {
        "codes": torch.randint(BOTTOM, (3, 4, 6)),
        "top": torch.randint(TOP, (3, 2, 3)),
        "labels": torch.tensor([0, 2, -1]),
    }
    if name == "vectors":
        # One that is told, one of zeros, and one that is hidden.
        given["vectors"] = torch.stack([torch.randn(VECTOR), torch.zeros(VECTOR), torch.full((VECTOR,), torch.nan)])
    return given, run_prior(prior, given)


def _make_hierarchy(name: str, folder: Path) -> tuple[Tensors, Tensors]:
    priors = {"top": PRIORS["transformer"]({}), "bottom": PRIORS["pixelsnail"]({"top": TOP})}
    hierarchy = Hierarchy.of(
        AUTOENCODERS[name](),
        {level: _scrambled(prior, 0.3) for level, prior in priors.items()},
        image_size=SIZE,
        classes=CLASSES,
        options={"top": SamplingOptions(temperature=0.75)},
    )
    hierarchy.save_pretrained(folder)
    given = {"images": torch.rand(2, 2, *SIZE), "labels": torch.tensor([2, 0, 1, -1])}
    return given, run_hierarchy(HierarchicalVQ(hierarchy), given)


Maker = Callable[[str, Path], tuple[Tensors, Tensors]]
CASES: dict[str, tuple[Maker, str]] = {
    **{f"quantizer-{name}": (_make_quantizer, name) for name in QUANTIZERS},
    **{f"autoencoder-{name}": (_make_autoencoder, name) for name in AUTOENCODERS},
    **{f"prior-{name}": (_make_prior, name) for name in PRIORS},
    "hierarchy": (_make_hierarchy, "two"),
}


def make(name: str, where: Path = HERE) -> None:
    """Make one golden checkpoint, from a seed of its own.

    Raises:
        ConfigurationError: where there is none of that name, or it is there already.
    """
    if name not in CASES:
        raise ConfigurationError(f"there is no golden checkpoint {name}; there are {', '.join(CASES)}")
    if (where / name).exists():
        raise ConfigurationError(f"{where / name} is there, and golden checkpoints stay as they are; give another name")
    torch.manual_seed(list(CASES).index(name))
    maker, kind = CASES[name]
    given, gives = maker(kind, where / name)
    tensors = {f"given.{key}": value for key, value in given.items()} | {f"gives.{k}": v for k, v in gives.items()}
    write_tensors(where / name / EXPECTED, tensors)


def main(names: Sequence[str]) -> int:
    """Make those that are named, or all that are not there."""
    try:
        for name in names or [name for name in CASES if not (HERE / name).exists()]:
            make(name)
            print(f"made {name}")
    except HVQError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
