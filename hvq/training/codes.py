"""Between the stages: the codes of all images, written once."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from hvq.autoencoders import Autoencoder
from hvq.chunks import map_chunks
from hvq.config import RunConfig
from hvq.data import (
    Batch,
    CodesDescription,
    CodeShardWriter,
    ImageSource,
    Sources,
    build_sources,
    clear_codes,
    ordered_batches,
    write_index,
)
from hvq.data.pixels import bytes_to_model
from hvq.distributed import current_reduction
from hvq.storage import RunFolder, encoder_hash, load_autoencoder, require_channels
from hvq.training.log import progress_bar
from hvq.training.processes import make_accelerator

SPLITS = ("train", "validation")


def extract_codes(
    config: RunConfig, run: RunFolder, *, accelerator: Accelerator | None = None, sources: Sources | None = None
) -> None:
    """Encode both splits with the autoencoder of a run, and leave the codes in the run folder.

    Args:
        config: of the whole run; `extraction.augmented_epochs` says how often training images are encoded.
        run: where everything lies.
        accelerator: of the processes; made from the configuration by default.
        sources: the images; those of `config.data` by default.

    Raises:
        CheckpointError: where the autoencoder is missing or damaged.
        DataError: where the images are smaller than its coarsest stride, or have other channels.
    """
    accelerator = accelerator or make_accelerator(config, run)
    model, about = load_autoencoder(run.autoencoder)
    model.to(accelerator.device)
    sources = sources or build_sources(config.data, config.seed)
    require_channels(about.autoencoder.channels, sources.train.channels)
    for split, source in zip(SPLITS, (sources.train, sources.validation), strict=True):
        epochs = config.extraction.augmented_epochs if split == "train" else 1
        description = _describe(model, source, epochs)
        if accelerator.is_main_process:
            clear_codes(run.codes, split)
        accelerator.wait_for_everyone()
        _write_split(config, run, split, source, model, description, accelerator)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_index(run.codes, split, description)
        accelerator.wait_for_everyone()


def _describe(model: Autoencoder, source: ImageSource, epochs: int) -> CodesDescription:
    height, width = source.size
    return CodesDescription(
        level_names=model.level_names,
        codebook_sizes={name: quantizer.codebook_size for name, quantizer in model.quantizers.items()},
        codes_per_position={
            name: quantizer.codes_per_position
            for name, quantizer in model.quantizers.items()
            if quantizer.codes_per_position > 1
        },
        grids={name: (grid[0], grid[1]) for name, grid in model.grids((height, width)).items()},
        image_size=source.size,
        encoder_hash=encoder_hash(model),
        classes=source.classes,
        num_images=len(source),
        augmented_epochs=epochs,
    )


def _write_split(
    config: RunConfig,
    run: RunFolder,
    split: str,
    source: ImageSource,
    model: Autoencoder,
    description: CodesDescription,
    accelerator: Accelerator,
) -> None:
    reduction = current_reduction()
    writer = CodeShardWriter(
        run.codes,
        split,
        description,
        rank=reduction.rank,
        images_per_shard=config.extraction.images_per_shard,
    )
    bar = progress_bar(description.num_rows, f"codes of {split}", "image", accelerator)
    for epoch in range(description.augmented_epochs):
        batches = ordered_batches(
            source,
            chunk_size=config.chunk_size,
            rank=reduction.rank,
            processes=reduction.size,
            # The first pass is over the images as they are.
            epoch=epoch or None,
            workers=config.data.workers,
        )
        for batch in batches:
            codes = encode_batch(model, batch, config.chunk_size)
            writer.add(codes, labels=batch.labels, indices=batch.indices, augmented_epoch=epoch)
            bar.update(min(len(batch) * reduction.size, description.num_rows - int(bar.n)))
    writer.close()
    bar.close()


@torch.no_grad()
def encode_batch(model: Autoencoder, batch: Batch, chunk_size: int) -> dict[str, torch.Tensor]:
    """Codes of a batch on the CPU, by level name, from a forward of exactly `chunk_size` images."""
    images = bytes_to_model(batch.images.to(next(model.parameters()).device))
    (codes,) = map_chunks(lambda part: model.encode(part["images"]), {"images": images}, chunk_size)
    return {name: code.cpu() for name, code in codes.items()}
