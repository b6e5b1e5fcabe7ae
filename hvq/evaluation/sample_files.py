"""Samples as a safetensors file, finished or with some levels still to be drawn, and what they belong to.

Letters: n samples, C H W image, h w grid, G codes per position.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import NonNegativeInt, ValidationError
from torch import Tensor

from hvq.config import CodeSamplingConfig, Precision
from hvq.config_base import FrozenModel
from hvq.distributed import Reduction
from hvq.errors import CheckpointError
from hvq.evaluation.generation import check_level_codes
from hvq.files import read_tensors, write_tensors
from hvq.level_names import in_level_order
from hvq.priors import SamplingOptions
from hvq.storage import Hierarchy, encoder_hash

TENSORS = "samples.safetensors"

# The one entry of a file's metadata: safetensors writes several in an order that changes from process to process.
_ENTRY = "samples"


class SamplesDescription(FrozenModel):
    """What a file of samples says of them, beside the tensors."""

    format_version: Literal[1] = 1
    encoder_hash: str
    seed: int
    options: dict[str, CodeSamplingConfig]
    candidates: NonNegativeInt
    chosen: NonNegativeInt = 0
    precision: Precision = "float32"

    def chosen_of(self, rows: int) -> int:
        """`chosen`, or 0 where the file has other rows than were chosen, since somebody took some of them."""
        return self.chosen if self.chosen == rows else 0


@dataclass(frozen=True)
class Samples:
    """Samples, with the codes of all levels or of some.

    Attributes:
        numbers: int64 `[n]`; a sample depends on seed, number, label and vector alone.
        labels: int64 `[n]`, -1 for none.
        seed: of the noise.
        options: how codes were drawn, by level name.
        codes: int64 `[n, *grid]`, or `[n, *grid, G]`, of the levels that are drawn, coarse to fine.
        images: as they are kept, uint8 `[n, C, H, W]` or float32 `[n, C, *size]`; None before all levels are drawn.
        candidates: how many were drawn to choose these from; n where all of them are here.
        chosen: n where these are the ones that a classifier was surest of, 0 where none chose among the candidates.
        precision: of the priors' weights while codes were drawn.
        vectors: float32 `[n, V]` that they were drawn given; None without.
    """

    numbers: Tensor
    labels: Tensor
    seed: int
    options: Mapping[str, SamplingOptions] = field(default_factory=dict)
    codes: Mapping[str, Tensor] = field(default_factory=dict)
    images: Tensor | None = None
    candidates: int = 0
    chosen: int = 0
    precision: Precision = "float32"
    vectors: Tensor | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, rows: Tensor) -> Samples:
        """Some of the samples, chosen from these."""
        return replace(
            self,
            numbers=self.numbers[rows],
            labels=self.labels[rows],
            codes={name: codes[rows] for name, codes in self.codes.items()},
            images=None if self.images is None else self.images[rows],
            vectors=None if self.vectors is None else self.vectors[rows],
            chosen=0,
        )


def write_samples_file(path: Path, samples: Samples, *, encoder: str) -> None:
    """Write samples, whole or not at all.

    Args:
        path: of the file.
        samples: finished, or with some levels.
        encoder: hash of the autoencoder that the codes belong to.
    """
    description = SamplesDescription(
        encoder_hash=encoder,
        seed=samples.seed,
        options={name: CodeSamplingConfig(**asdict(options)) for name, options in samples.options.items()},
        candidates=samples.candidates,
        chosen=samples.chosen,
        precision=samples.precision,
    )
    write_tensors(path, _tensors(samples), {_ENTRY: description.model_dump_json()})


def read_samples_file(path: Path, hierarchy: Hierarchy) -> Samples:
    """Samples that belong to a hierarchy.

    Args:
        path: a file, or the folder in which it lies as `samples.safetensors`.
        hierarchy: that they are to be of.

    Raises:
        CheckpointError: where the file is missing, damaged, or does not say what it belongs to, or the codes are of
            another autoencoder.
        DataError: where a level is unknown, or codes are not those of their level.
    """
    path = path / TENSORS if path.is_dir() else path
    tensors, metadata = read_tensors(path, "samples")
    description = read_description(metadata, path)
    if description.encoder_hash != encoder_hash(hierarchy.autoencoder):
        raise CheckpointError(
            f"the codes in {path} are of another autoencoder than that of this run; draw them with this run's priors"
        )
    numbers, labels = _columns(tensors, path)
    _check_labels(labels, len(hierarchy.classes), path)
    codes = {name.removeprefix("codes."): codes for name, codes in tensors.items() if name.startswith("codes.")}
    check_level_codes(hierarchy, codes, rows=len(labels), what=f"in {path}, codes.")
    present = [name for name in hierarchy.autoencoder.level_names if name in codes]
    return Samples(
        numbers=numbers,
        labels=labels,
        seed=description.seed,
        options={name: SamplingOptions(**options.model_dump()) for name, options in description.options.items()},
        codes={name: codes.long() for name, codes in in_level_order(codes, present, "codes").items()},
        images=tensors.get("images"),
        candidates=description.candidates,
        chosen=description.chosen_of(len(labels)),
        precision=description.precision,
        vectors=_vectors(tensors, hierarchy, path),
    )


def has_description(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata of a file says anything of samples; other tools leave entries of their own."""
    return _ENTRY in metadata


def read_description(metadata: Mapping[str, str], path: Path) -> SamplesDescription:
    """What the metadata of a file of samples says.

    Raises:
        CheckpointError: where it says nothing, or something else.
    """
    if not has_description(metadata):
        raise CheckpointError(
            f"{path} does not say which autoencoder its codes are of, and from which seed; take a file that this "
            "version of hvq has drawn, or pass codes of your own to HierarchicalVQ.sample"
        )
    try:
        return SamplesDescription.model_validate(json.loads(metadata[_ENTRY]))
    except (json.JSONDecodeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"what {path} says of its samples cannot be read: {first}; draw them again") from None


def read_everywhere(read: Callable[[], Samples], *, reduction: Reduction, device: torch.device, path: Path) -> Samples:
    """Samples that each process reads for itself, the same on all; where one of them cannot, none goes on.

    Args:
        read: gives them, or raises.
        reduction: over the processes.
        device: of the models, through which processes exchange tensors.
        path: that they are read from.

    Raises:
        CheckpointError: where another process could not read them, or processes see different ones.
    """
    samples, fault = None, None
    try:
        samples = read()
    except Exception as error:
        # Raised at once, it would leave the other processes waiting for this one.
        fault = error
    failed = int(reduction.sum(torch.tensor([fault is not None], dtype=torch.int64, device=device)))
    if fault is not None:
        raise fault
    if samples is None or failed:
        raise CheckpointError(
            f"all {reduction.size} processes must read the samples at {path}, and {failed} cannot; put it on a disk "
            "that all of them share"
        )
    require_same_everywhere(samples, reduction=reduction, device=device, path=path)
    return samples


def require_same_everywhere(samples: Samples, *, reduction: Reduction, device: torch.device, path: Path) -> None:
    """Refuse, in all processes alike, samples that they do not all see; none goes on before all have read theirs.

    Args:
        samples: that this process has read.
        reduction: over the processes.
        device: of the models, through which processes exchange tensors.
        path: that they were read from.

    Raises:
        CheckpointError: where they differ.
    """
    digest = torch.frombuffer(bytearray(_digest(samples)), dtype=torch.uint8).long().unsqueeze(0)
    digests = reduction.concatenate(digest.to(device))
    if bool((digests != digests[:1]).any()):
        raise CheckpointError(f"processes see different samples at {path}; put it on a disk that all of them share")


def _tensors(samples: Samples) -> dict[str, Tensor]:
    tensors = {"numbers": samples.numbers, "labels": samples.labels}
    if samples.images is not None:
        tensors["images"] = samples.images
    if samples.vectors is not None:
        tensors["vectors"] = samples.vectors
    return tensors | {f"codes.{name}": codes for name, codes in samples.codes.items()}


def _digest(samples: Samples) -> bytes:
    digest = hashlib.sha256(f"{samples.seed} {samples.precision}".encode())
    for name, tensor in sorted(_tensors(samples).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.digest()


def _columns(tensors: Mapping[str, Tensor], path: Path) -> tuple[Tensor, Tensor]:
    """Numbers and labels, int64 `[n]` each; numbers from 0 where the file has none."""
    if "labels" not in tensors:
        raise CheckpointError(f"{path} has no labels; it must hold int64 labels [n] beside codes.LEVEL [n, h, w]")
    labels = tensors["labels"]
    numbers = tensors.get("numbers", torch.arange(len(labels)))
    for name, column in (("labels", labels), ("numbers", numbers)):
        if column.dtype != torch.int64 or column.shape != labels.shape[:1]:
            raise CheckpointError(
                f"{path} must hold int64 {name}, one for each sample; received {column.dtype} {list(column.shape)}"
            )
    return numbers, labels


def _vectors(tensors: Mapping[str, Tensor], hierarchy: Hierarchy, path: Path) -> Tensor | None:
    """The vectors of samples, where they are those of the hierarchy's priors."""
    vectors = tensors.get("vectors")
    if vectors is None:
        return None
    shape = (len(tensors["labels"]), hierarchy.vector_size)
    if vectors.dtype != torch.float32 or vectors.shape != shape:
        raise CheckpointError(
            f"vectors in {path} must be float32 {list(shape)}, as this run's priors take them; received "
            f"{vectors.dtype} {list(vectors.shape)}: the samples are of another run"
        )
    return vectors


def _check_labels(labels: Tensor, classes: int, path: Path) -> None:
    if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < classes:
        known = f"0 .. {classes - 1}, or -1" if classes else "-1, for this run has no classes"
        raise CheckpointError(
            f"labels in {path} must be {known}; received {int(labels.min())} .. {int(labels.max())}: "
            "the samples are of another run"
        )
