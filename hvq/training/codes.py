"""Between the stages: the codes of all images, written once."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from hvq.autoencoders import Autoencoder
from hvq.chunks import map_chunks
from hvq.config import RunConfig
from hvq.data import (
    Batch,
    CodeExtraction,
    CodesDescription,
    ImageSource,
    Sources,
    build_vectors,
    ordered_batches,
)
from hvq.data.code_files import Counts, empty_counts
from hvq.data.pixels import kept_to_model
from hvq.data.vectors import hash_vectors
from hvq.distributed import Reduction, current_reduction
from hvq.progress import Progress, progress_bar
from hvq.storage import RunFolder, encoder_hash, load_autoencoder, require_channels
from hvq.training.processes import make_accelerator
from hvq.training.sources import build_sources_in_turn
from hvq.training.stage import told_by_the_first

SPLITS = ("train", "validation")


def extract_codes(
    config: RunConfig,
    run: RunFolder,
    *,
    accelerator: Accelerator | None = None,
    sources: Sources | None = None,
    resume: bool = False,
) -> None:
    """Encode both splits with the autoencoder of a run, and leave the codes in the run folder.

    Codes that are there stay until those of both splits are whole. Which images a file holds, and the codes of each,
    depend neither on the number of processes nor on interruptions. Vectors of the images lie beside them, where
    `data.vectors` names any.

    Args:
        config: of the whole run; `extraction.augmented_epochs` says how often training images are encoded.
        run: where everything lies.
        accelerator: of the processes; made from the configuration by default.
        sources: the images; those of `config.data` by default.
        resume: keep the files of codes that are whole, and of this autoencoder, these images and these settings; they
            may be of an interrupted call with another number of processes. Codes that are whole are left as they are;
            vectors are not among what they depend on, and are put beside them.

    Raises:
        CheckpointError: where the autoencoder is missing or damaged.
        ConfigurationError: where a level has no codes, for its bottleneck is Gaussian.
        DataError: where the images are smaller than its coarsest stride, or have other channels, or the vectors do not
            fit them.
        HVQError: where the disk is full, or nothing may be written there.
    """
    started = time.perf_counter()
    accelerator = accelerator or make_accelerator(config, run)
    model, about = load_autoencoder(run.autoencoder)
    model.require_codes("extraction")
    model.to(accelerator.device)
    sources = sources or build_sources_in_turn(config.data, config.seed, accelerator)
    require_channels(about.autoencoder.channels, sources.train.channels)
    reduction = current_reduction()
    vectors = build_vectors(config.data.vectors, sources)
    splits = [
        _Split(
            config=config,
            model=model,
            source=source,
            extraction=CodeExtraction(run.codes, name, _describe(config, model, source, epochs, reduction, of_images)),
            vectors=of_images,
            accelerator=accelerator,
            reduction=reduction,
        )
        for name, source, epochs, of_images in (
            (SPLITS[0], sources.train, config.extraction.augmented_epochs, vectors[0]),
            (SPLITS[1], sources.validation, 1, vectors[1]),
        )
    ]
    for split in splits:
        split.begin(resume)
    missing = [split.missing() for split in splits]
    counts = [split.write(*found) for split, found in zip(splits, missing, strict=True)]
    # Not before both are whole: train and validation belong together.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for split, their_counts in zip(splits, counts, strict=True):
            split.extraction.finish(their_counts, split.vectors)
        if any(shards for shards, _ in missing):
            # What was there already has its seconds already.
            run.add_seconds("codes", time.perf_counter() - started)
    accelerator.wait_for_everyone()


def _describe(
    config: RunConfig,
    model: Autoencoder,
    source: ImageSource,
    epochs: int,
    reduction: Reduction,
    vectors: Tensor | None,
) -> CodesDescription:
    return CodesDescription(
        level_names=model.level_names,
        codebook_sizes={name: quantizer.codebook_size for name, quantizer in model.quantizers.items()},
        codes_per_position={
            name: quantizer.codes_per_position
            for name, quantizer in model.quantizers.items()
            if quantizer.codes_per_position > 1
        },
        grids=model.grids(source.size),
        image_size=source.size,
        encoder_hash=encoder_hash(model),
        data_hash=_data_hash(source, config.chunk_size, reduction, next(model.parameters()).device),
        classes=source.classes,
        num_images=len(source),
        augmented_epochs=epochs,
        images_per_shard=config.extraction.images_per_shard,
        vector_size=0 if vectors is None else vectors.shape[1],
        vectors_hash="" if vectors is None else hash_vectors(vectors),
    )


def _data_hash(source: ImageSource, chunk_size: int, reduction: Reduction, device: torch.device) -> str:
    """Stands for the images and how they are encoded."""
    found = told_by_the_first(source, reduction, device, contents=True)
    return hashlib.sha256(f"{found} {chunk_size}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Split:
    """One split, its codes in the making, and what a process encodes them with."""

    config: RunConfig
    model: Autoencoder
    source: ImageSource
    extraction: CodeExtraction
    vectors: Tensor | None
    accelerator: Accelerator
    reduction: Reduction

    def begin(self, resume: bool) -> None:
        """The first process makes ready, and tells the others where files go."""
        if self.reduction.rank == 0:
            self.extraction.begin(resume=resume)
        decided = torch.tensor([int(self.extraction.in_place)], device=self.accelerator.device)
        self.extraction.in_place = bool(self.reduction.first(decided))

    def write(self, missing: list[int], counts: Counts) -> Counts:
        """Write files, each by one process; how often each code occurs in all files.

        Args:
            missing: the files that are to be written.
            counts: how often each code occurs in those of the others that this process has read.
        """
        description = self.extraction.description
        name, kept = self.extraction.target.name, description.num_shards - len(missing)
        if kept:
            self.accelerator.print(f"codes of {name}: {kept} of {description.num_shards} files are there already")
        rows = sum(len(description.rows(shard)) for shard in missing)
        with progress_bar(rows, f"codes of {name}", "image", shown=self.accelerator.is_main_process) as bar:
            for shard in missing[self.reduction.rank :: self.reduction.size]:
                _add(counts, self._write_shard(shard, bar))
        return {level: self.reduction.sum(count.to(self.accelerator.device)).cpu() for level, count in counts.items()}

    def missing(self) -> tuple[list[int], Counts]:
        """The files that are to be written, and the counts of the codes of the others; processes share the reading."""
        counts = empty_counts(self.extraction.description)
        missing = torch.zeros(self.extraction.description.num_shards, dtype=torch.int64)
        for shard in range(len(missing))[self.reduction.rank :: self.reduction.size]:
            kept = self.extraction.kept(shard)
            if kept is None:
                missing[shard] = 1
            else:
                _add(counts, kept)
        return self.reduction.sum(missing.to(self.accelerator.device)).nonzero().flatten().tolist(), counts

    def _write_shard(self, shard: int, bar: Progress) -> Counts:
        writer = self.extraction.writer(shard)
        for epoch, start, stop in self.extraction.description.passes(shard):
            batches = ordered_batches(
                self.source,
                chunk_size=self.config.chunk_size,
                # The first pass is over the images as they are.
                epoch=epoch or None,
                workers=self.config.data.workers,
                start=start,
                stop=stop,
            )
            for batch in batches:
                codes = encode_batch(self.model, batch, self.config.chunk_size)
                writer.add(codes, labels=batch.labels, indices=batch.indices)
                bar.update(min(len(batch) * self.reduction.size, int(bar.total or 0) - int(bar.n)))
        return writer.close()


def _add(counts: Counts, more: Counts) -> None:
    for level, count in more.items():
        counts[level] += count


@torch.no_grad()
def encode_batch(model: Autoencoder, batch: Batch, chunk_size: int) -> dict[str, Tensor]:
    """Codes of a batch on the CPU, by level name, from a forward of exactly `chunk_size` images."""
    images = kept_to_model(batch.images.to(next(model.parameters()).device))
    (codes,) = map_chunks(lambda part: model.encode(part["images"]), {"images": images}, chunk_size)
    return {name: code.cpu() for name, code in codes.items()}
