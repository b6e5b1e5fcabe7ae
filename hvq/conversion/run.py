"""Checkpoints of other projects to the folder of a run, where all stages and `load_hierarchy` find them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hvq.autoencoders import Autoencoder
from hvq.config import RunConfig
from hvq.conversion import codebooks
from hvq.conversion.codebooks import convert_codebooks
from hvq.conversion.kinds import AUTOENCODERS, detect_kind
from hvq.conversion.rosinality_prior import KIND as PRIOR_KIND
from hvq.conversion.rosinality_prior import ConvertedPrior, convert_rosinality_prior
from hvq.conversion.tensors import ForeignCheckpoint, unwrap
from hvq.errors import CheckpointError, ConfigurationError
from hvq.storage import RunFolder, encoder_hash, load_autoencoder, save_autoencoder, save_prior
from hvq.storage.models import AutoencoderDescription, PriorDescription


@dataclass(frozen=True)
class _Source:
    """A file to convert: its path, what it holds, and its kind."""

    path: str
    checkpoint: ForeignCheckpoint
    kind: str

    @property
    def name(self) -> str:
        """What descriptions say, which are published: folders of this machine are nobody's concern."""
        return Path(self.path).name


@dataclass(frozen=True)
class _Prior:
    """A prior, and the file that it is of."""

    source: _Source
    converted: ConvertedPrior


# A folder, and what writes it.
_Write = tuple[Path, Callable[[Path], None]]


def convert_checkpoints(
    run: RunFolder,
    contents: Mapping[str, object],
    *,
    kind: str | None = None,
    image_size: tuple[int, int] | None = None,
    data_path: str = "images",
) -> list[Path]:
    """Write what other projects' checkpoints hold as model folders of a run, and the run's configuration.

    Args:
        run: where `autoencoder/`, `priors/<level>/` and `config.json`, or `quantizer/`, will stand.
        contents: what each file holds, plain tensors by name, bare or wrapped, by the path of the file: an autoencoder,
            its priors, or both; priors alone go to an autoencoder that is there.
        kind: one of `KINDS`, for all of them; None tells it from the names of the tensors.
        image_size: (H, W) that the autoencoder was trained on; None takes what the priors' grids say, or else the
            project's own.
        data_path: the folder of images that the configuration names, for stages that read some.

    Returns:
        The folders that were written.

    Raises:
        CheckpointError: where a checkpoint does not fit its kind, parts do not belong together, or a folder that would
            be written is there already.
    """
    sources = [_source(path, content, kind) for path, content in contents.items()]
    _require_one([source for source in sources if source.kind in AUTOENCODERS], "autoencoder")
    _require_one([source for source in sources if source.kind == codebooks.KIND], "quantizer")
    priors = [_Prior(source, _in(source, convert_rosinality_prior)) for source in sources if source.kind == PRIOR_KIND]
    for level in {prior.converted.level for prior in priors}:
        _require_one([prior.source for prior in priors if prior.converted.level == level], f"prior of level {level}")
    # All is converted before anything is written.
    writes = [_quantizer(run, source) for source in sources if source.kind == codebooks.KIND]
    of_images = [source for source in sources if source.kind in AUTOENCODERS]
    if of_images or priors:
        model, described = _autoencoder(run, of_images, priors, image_size)
        if of_images:
            writes.append((run.autoencoder, partial(save_autoencoder, model=model, description=described)))
        writes += [_described_prior(run, prior, model, described) for prior in priors]
        config = _run_config(run, described, priors, data_path)
    _require_free([folder for folder, _ in writes])
    for folder, write in writes:
        write(folder)
    if of_images or priors:
        run.save_config(config)
    return [folder for folder, _ in writes]


def _source(path: str, content: object, kind: str | None) -> _Source:
    try:
        checkpoint = unwrap(content)
        return _Source(path, checkpoint, kind or detect_kind(checkpoint.tensors))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _in(source: _Source, convert: Callable[[ForeignCheckpoint], Any]) -> Any:
    """The conversion of a file, with its name before what is wrong with it."""
    try:
        return convert(source.checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{source.path}: {error}") from None


def _require_one(sources: Sequence[_Source], what: str) -> None:
    if len(sources) > 1:
        raise CheckpointError(
            f"a run has one {what}; received {', '.join(source.path for source in sources)}: convert each into a "
            "folder of its own"
        )


def _require_free(folders: Sequence[Path]) -> None:
    if there := [str(folder) for folder in folders if folder.exists()]:
        raise CheckpointError(f"{there[0]} is there already; name another run folder, or remove it")


def _quantizer(run: RunFolder, source: _Source) -> _Write:
    converted = _in(source, lambda checkpoint: convert_codebooks(checkpoint.tensors))
    others = f", without {converted.left_out} other tensors of the model" if converted.left_out else ""
    write = partial(converted.model.save_pretrained, about=f"Codebooks of {source.name}{others}.")
    return run.path / "quantizer", write


def _autoencoder(
    run: RunFolder, sources: Sequence[_Source], priors: Sequence[_Prior], image_size: tuple[int, int] | None
) -> tuple[Autoencoder, AutoencoderDescription]:
    """The one that is among the sources, or else that of the run."""
    if not sources:
        return load_autoencoder(run.autoencoder)
    (source,) = sources
    kind = AUTOENCODERS[source.kind]
    model, config = _in(source, lambda checkpoint: kind.convert(checkpoint.tensors))
    if image_size is None and priors:
        prior = priors[0].converted
        # A level that it does not have is refused with the prior.
        stride = model.strides.get(prior.level, 1)
        image_size = (prior.grid[0] * stride, prior.grid[1] * stride)
    about = f"Converted from {kind.project} ({source.name}). {kind.pixels(config.channels)}"
    return model, AutoencoderDescription(autoencoder=config, image_size=image_size or kind.image_size, about=about)


def _described_prior(run: RunFolder, prior: _Prior, model: Autoencoder, described: AutoencoderDescription) -> _Write:
    description = _describe_prior(prior.source, prior.converted, model, described)
    folder = run.prior(prior.converted.level)
    return folder, partial(save_prior, weights=prior.converted.model.state_dict(), description=description)


def _describe_prior(
    source: _Source, prior: ConvertedPrior, model: Autoencoder, described: AutoencoderDescription
) -> PriorDescription:
    _require_same_codes(source, prior, model)
    expected = model.grids(described.image_size)[prior.level]
    if prior.grid != expected:
        stride = model.strides[prior.level]
        grid, size = "x".join(map(str, prior.grid)), "x".join(str(n * stride) for n in prior.grid)
        raise CheckpointError(
            f"{source.path}: the prior is of a grid of {grid}, so of images of {size}; the autoencoder's are of "
            f"{'x'.join(map(str, described.image_size))}: convert it for images of {size}"
        )
    return PriorDescription(
        model=prior.config,
        level=prior.level,
        codebook_size=prior.codebook_size,
        coarser=prior.coarser,
        grid=prior.grid,
        image_size=described.image_size,
        encoder_hash=encoder_hash(model),
        about=f"Converted from rosinality/vq-vae-2-pytorch ({source.name}).",
    )


def _require_same_codes(source: _Source, prior: ConvertedPrior, model: Autoencoder) -> None:
    sizes = {name: quantizer.codebook_size for name, quantizer in model.quantizers.items()}
    for level, size in {**prior.coarser, prior.level: prior.codebook_size}.items():
        if sizes.get(level) != size:
            raise CheckpointError(
                f"{source.path}: the prior is of a level {level} of {size} codes; the autoencoder's levels have "
                f"{', '.join(f'{name} {number}' for name, number in sizes.items())}: they do not belong together"
            )


def _run_config(
    run: RunFolder, described: AutoencoderDescription, priors: Sequence[_Prior], data_path: str
) -> RunConfig:
    """The run's own, or a new one, with the priors that are new."""
    channels = described.autoencoder.channels
    if channels not in (1, 3):
        raise ConfigurationError(f"images of a run have 1 or 3 channels; the autoencoder's have {channels}")
    if run.config_file.exists():
        plain = run.load_config().model_dump(mode="json")
    else:
        data = {"kind": "folder", "path": data_path, "size": described.image_size, "channels": channels}
        plain = {"data": data, "priors": {}}
    models = {p.converted.level: {"model": p.converted.config.model_dump(mode="json")} for p in priors}
    plain |= {"autoencoder": described.autoencoder.model_dump(mode="json"), "priors": {**plain["priors"], **models}}
    return RunConfig.model_validate(plain)
