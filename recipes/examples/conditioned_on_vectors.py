"""Priors told a vector for each image: digits drawn by thickness, slant and height, which are measured in the images.

Text embeddings, or whatever else is known of images, go the same way. Takes about a minute of one CPU core.

python recipes/examples/conditioned_on_vectors.py
"""

from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from hvq import HierarchicalVQ
from hvq.config import RunConfig
from hvq.data import ImageSource, build_sources, write_vectors
from hvq.priors import SamplingOptions
from hvq.storage import RunFolder
from hvq.training import extract_codes, fit_autoencoder, fit_prior

ATTRIBUTES = ("thickness", "slant", "height")


def attributes_of(images: Tensor) -> Tensor:
    """Thickness of strokes, slant to the right per row, and height: `[N, 3]` of images `[N, 1, H, W]` in [0, 1]."""
    ink = images.squeeze(1).double()
    rows, columns = torch.meshgrid(*(torch.arange(float(n)) for n in ink.shape[1:]), indexing="ij")
    total = ink.sum((1, 2)).clamp(min=1e-6)

    def mean(values: Tensor) -> Tensor:
        return (ink * values).sum((1, 2)) / total

    down, right = (place - mean(place)[:, None, None] for place in (rows, columns))
    across, along = torch.gradient(ink, dim=(1, 2))
    edges = torch.hypot(across, along).sum((1, 2)).clamp(min=1e-6)
    slant = -mean(down * right) / mean(down**2).clamp(min=1e-6)
    # Every stroke has an edge on each side.
    return torch.stack([2 * total / edges, slant, mean(down**2).sqrt()], dim=1).float()


def names_of(source: ImageSource) -> list[str]:
    """What the images of a split are called, by which vectors find them."""
    return [source.name(i) for i in range(len(source))]


def images_of(source: ImageSource) -> Tensor:
    """All images of a split, `[N, 1, H, W]` in [0, 1]."""
    return torch.stack([source.image(i) for i in range(len(source))]) / 255


def configuration(vectors: Path, steps: int) -> RunConfig:
    """One level of 4x4 codes; no augmentation but shifts, which change none of the attributes."""
    training = {"batch_size": 64, "learning_rate": 3e-3, "steps": steps, "evaluate_every": max(1, steps // 4)}
    level = {"ratio": 4, "width": 48, "residual_blocks": 1, "codebook_size": 128, "code_dimension": 16}
    # The vector is hidden more often than the class, so that the class alone can be asked for too.
    hidden = {"label_dropout": 0.1, "vector_dropout": 0.2}
    return RunConfig.model_validate(
        {
            "chunk_size": 120,
            "trackers": [],
            "data": {
                "kind": "digits",
                "size": [16, 16],
                "augmentation": {"shift": 0.5},
                "vectors": {"train": str(vectors)},
            },
            "autoencoder": {"channels": 1, "levels": {"top": level}, "decoder": {"width": 48, "residual_blocks": 1}},
            "autoencoder_training": training,
            "extraction": {"augmented_epochs": 4},
            "priors": {"top": {"model": {"width": 96, "layers": 3}, "training": {**training, **hidden}}},
        }
    )


def correlations(asked: Tensor, images: Tensor) -> list[float]:
    """Spearman's rank correlation between each attribute that was asked for and the same, measured in the samples."""
    found = attributes_of(images)
    return [float(spearman_corrcoef(found[:, i], asked[:, i])) for i in range(len(ATTRIBUTES))]


def main(folder: str = "runs/conditioned_on_vectors", steps: int = 600) -> dict[str, list[float]]:
    """Measure, train, draw what held-out digits have, and see whether the samples have it too."""
    vectors = Path(folder) / "vectors.safetensors"
    config, run = configuration(vectors, steps), RunFolder(folder)
    sources = build_sources(config.data)
    splits = (sources.train, sources.validation)
    # One file for both splits: rows are found by the name of the image.
    measured = torch.cat([attributes_of(images_of(split)) for split in splits])
    write_vectors(vectors, measured, [name for split in splits for name in names_of(split)])

    fit_autoencoder(config, run, sources=sources)
    extract_codes(config, run, sources=sources)
    fit_prior(config, run, "top")

    model = HierarchicalVQ.from_pretrained(folder, chunk_size=120)
    asked = measured[-len(sources.validation) :]
    labels = [sources.validation.label(i) for i in range(len(asked))]
    guided = {"top": SamplingOptions(guidance=2.0)}
    found = {
        "class alone": correlations(asked, model.sample(labels)),
        "class and vector": correlations(asked, model.sample(labels, vectors=asked)),
        "guided by 2": correlations(asked, model.sample(labels, vectors=asked, options=guided)),
    }
    print(f"rank correlation of asked and measured, {len(asked)} samples: {', '.join(ATTRIBUTES)}")
    for name, values in found.items():
        print(f"{name:>16}  " + "  ".join(f"{value:+.2f}" for value in values))
    return found


if __name__ == "__main__":
    found = main()
    followed = all(vector > 0.5 for vector in found["class and vector"])
    print("the samples follow the vector" if followed else "the samples do not follow the vector")
    raise SystemExit(not followed)
