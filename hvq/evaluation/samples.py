"""Samples of a run, on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hvq.config import RunConfig
from hvq.config_data import ArrayConfig, TonesConfig, WavesConfig
from hvq.data import Sources, build_sources
from hvq.data.views import as_pictures
from hvq.data.waves import write_wave
from hvq.distributed import Reduction
from hvq.errors import CheckpointError, ConfigurationError
from hvq.evaluation.generation import Generated, generate, level_code_shape
from hvq.evaluation.pictures import sample_grid
from hvq.evaluation.rejection import candidate_labels, check_share, fit_judge
from hvq.evaluation.sample_files import (
    TENSORS,
    Samples,
    read_everywhere,
    read_samples_file,
    write_samples_file,
)
from hvq.files import remove_folder, write_folder
from hvq.priors import SamplingOptions
from hvq.priors.sampling import AfterLevel, AfterPosition
from hvq.progress import Progress, progress_bar
from hvq.storage import Hierarchy, RunFolder, encoder_hash

GRID = "samples.png"
STAGE = "samples"


def class_labels(num_classes: int, per_class: int) -> list[int]:
    """`per_class` labels of each class, class by class; as many times -1 without classes.

    >>> class_labels(2, 3)
    [0, 0, 0, 1, 1, 1]
    """
    return [label for label in (range(num_classes) if num_classes else [-1]) for _ in range(per_class)]


def sampling_options(config: RunConfig, hierarchy: Hierarchy) -> dict[str, SamplingOptions]:
    """What `priors.<level>.sampling` says of each level that has a prior."""
    return {name: SamplingOptions(**config.prior(name).sampling.model_dump()) for name in hierarchy.priors}


def sampling_text(config: RunConfig, hierarchy: Hierarchy) -> str:
    """How `draw_samples` draws by default, in words: precision of the priors, seed, and options of each level."""
    texts = [f"priors in {config.sampling.precision}", f"seed {config.seed}"]
    for name, options in sampling_options(config, hierarchy).items():
        top_k = "none" if options.top_k is None else options.top_k
        texts.append(
            f"{name}: temperature {options.temperature:g}, top_k {top_k}, top_p {options.top_p:g}, "
            f"guidance {options.guidance:g}"
        )
    return "; ".join(texts)


def draw_samples(
    config: RunConfig,
    hierarchy: Hierarchy,
    labels: Sequence[int],
    *,
    reduction: Reduction,
    vectors: Tensor | None = None,
    seed: int | None = None,
    what: str = "samples",
    numbers: Sequence[int] | None = None,
    given: Mapping[str, Tensor] | None = None,
    after_level: AfterLevel | None = None,
) -> Generated:
    """Samples of some classes, with a progress bar in codes per second on the first process's terminal.

    Args:
        config: of the run; `priors.<level>.sampling` says how codes are drawn, and `sampling.precision` with weights
            of which precision.
        hierarchy: with a prior for every level that is not given, in the precision in which it was saved, or already
            in that one; it is left as it is.
        labels: a class for each sample.
        reduction: over the processes that share the work.
        vectors: `[n, V]`, a vector for each sample; None without.
        seed: of the noise; the run's by default.
        what: is drawn, for the bar, which names the level too.
        numbers: of the samples; from 0 on by default.
        given: codes of levels that are taken as they are.
        after_level: told each level that was drawn, and its codes, on every process.
    """
    given = given or {}
    chunks = math.ceil(math.ceil(len(labels) / config.chunk_size) / reduction.size)
    codes_at_once = config.chunk_size * reduction.size
    codes_of_each = sum(math.prod(level_code_shape(hierarchy, name)) for name in hierarchy.grids if name not in given)
    total = chunks * codes_of_each * codes_at_once
    with progress_bar(total, what, "code", shown=reduction.rank == 0, scaled=True) as bar:
        return generate(
            hierarchy.with_prior_precision(config.sampling.precision),
            samples=range(len(labels)) if numbers is None else numbers,
            labels=labels,
            vectors=vectors,
            seed=config.seed if seed is None else seed,
            chunk_size=config.chunk_size,
            options=sampling_options(config, hierarchy),
            given=given,
            reduction=reduction,
            after_position=_counting(bar, what, codes_at_once),
            after_level=after_level,
        )


def write_samples(
    folder: Path, samples: Samples, *, encoder: str, classes: Sequence[str], sample_rate: int | None = None
) -> None:
    """Leave samples as one safetensors file (images, labels, numbers, codes by level) and one picture.

    Of signals the picture shows the waves, of volumes the middle planes.

    Args:
        folder: where they go; whole or not at all.
        samples: with images.
        encoder: hash of the autoencoder that the codes belong to.
        classes: their names.
        sample_rate: of sounds, in Hz, each of which is then a .wav file too.
    """
    assert samples.images is not None
    images = samples.images
    grid = sample_grid(as_pictures(images), samples.labels if classes else None, classes or None)

    def write(partial: Path) -> None:
        write_samples_file(partial / TENSORS, samples, encoder=encoder)
        grid.save(partial / GRID)
        if sample_rate is not None:
            for name, sound in zip(_sound_names(samples, classes), images, strict=True):
                write_wave(partial / name, sound, sample_rate)

    write_folder(folder, write)


def _sound_names(samples: Samples, classes: Sequence[str]) -> list[str]:
    """Number and class of each, such as 00007-c4.wav."""
    pairs = zip(samples.numbers.tolist(), samples.labels.tolist(), strict=True)
    return [f"{number:05d}{f'-{Path(classes[label]).name}' if label >= 0 else ''}.wav" for number, label in pairs]


def sample_run(
    config: RunConfig,
    run: RunFolder,
    hierarchy: Hierarchy,
    *,
    reduction: Reduction,
    labels: Sequence[int] | None = None,
    vectors: Tensor | None = None,
    seed: int | None = None,
    from_codes: Path | None = None,
    keep: float | None = None,
    sources: Sources | None = None,
) -> Samples:
    """Draw the samples that a run's configuration asks for, and leave them in the run folder.

    Each level that is finished is kept in `checkpoints/samples/` until all are, so that a call that is ended loses the
    level that was being drawn at most: another one goes on from there.

    Args:
        config: of the run.
        run: where everything lies.
        hierarchy: with a prior for every level that is not taken from a file.
        reduction: over the processes that share the work.
        labels: classes to draw; by default those of `from_codes`, or else `sampling.samples_per_class` of each.
        vectors: float32 `[n, V]`, a vector for each sample, which `labels` then are as many as; by default those of
            `from_codes`, or else none: priors that are conditioned on vectors draw as they do where these are hidden.
        seed: of the noise; by default that of `from_codes`, or else the run's.
        from_codes: samples, as a folder or a safetensors file; levels that are found there are taken, the rest drawn.
        keep: share of the candidates to keep, those that a classifier of real images is surest of; so many more are
            drawn that as many as were asked for are left.
        sources: the images that the classifier learns from; those of `config.data` by default.

    Raises:
        CheckpointError: where a prior is missing, or the samples of `from_codes` are not of this run, not those that
            are asked for, or not there for every process.
        ConfigurationError: where `keep` is not in (0, 1] or asked for with vectors, or guidance is asked for without
            classes and vectors.
        DataError: where `keep` is asked for, and there are no classes or no real images, or vectors are not those of
            the priors.
    """
    samples = _begun(
        config,
        hierarchy,
        labels=labels,
        vectors=vectors,
        seed=seed,
        from_codes=from_codes,
        keep=keep,
        reduction=reduction,
    )
    judge, drawn = None, any(name not in samples.codes for name in hierarchy.grids)
    if keep is not None:
        # Before anything is drawn, so that missing images are noticed at once.
        images = (sources or build_sources(config.data, config.seed)).train
        judge = fit_judge(config, hierarchy, images, labels=samples.labels.tolist(), share=keep, reduction=reduction)
    encoder = encoder_hash(hierarchy.autoencoder)
    samples = _finished(config, run, hierarchy, samples, reduction=reduction, encoder=encoder)
    if judge is not None:
        samples = judge.choose(samples, reduction)
    if reduction.rank == 0:
        write_samples(
            run.samples, samples, encoder=encoder, classes=hierarchy.classes, sample_rate=_sample_rate(config)
        )
        if drawn or (from_codes is not None and is_left(from_codes, run)):
            # Otherwise what lies there is of another call.
            remove_folder(run.checkpoint(STAGE))
    # No process goes on before the files are there, for it may read them next.
    reduction.sum(torch.zeros(1, device=next(hierarchy.autoencoder.parameters()).device))
    return samples


def _sample_rate(config: RunConfig) -> int | None:
    """Of sounds, where the data say it."""
    data = config.data
    return data.sample_rate if isinstance(data, ArrayConfig | TonesConfig | WavesConfig) else None


def _begun(
    config: RunConfig,
    hierarchy: Hierarchy,
    *,
    labels: Sequence[int] | None,
    vectors: Tensor | None,
    seed: int | None,
    from_codes: Path | None,
    keep: float | None,
    reduction: Reduction,
) -> Samples:
    """What is to be drawn, and the codes that are there already; the same on every process."""
    vectors = None if vectors is None else vectors.float()
    if keep is not None:
        check_share(keep)
        if vectors is not None:
            raise ConfigurationError(
                "the surest samples are kept of those of a class, and each vector has one sample: keep all, or draw "
                "without vectors"
            )
    if labels is None and from_codes is None:
        number = config.sampling.samples_per_class
        labels = class_labels(len(hierarchy.classes), number) if vectors is None else [-1] * len(vectors)
    if labels is not None and keep is not None:
        labels = candidate_labels(labels, keep)
    if from_codes is not None:
        return read_everywhere(
            lambda: _taken(config, hierarchy, labels, vectors, seed, from_codes),
            reduction=reduction,
            device=next(hierarchy.autoencoder.parameters()).device,
            path=from_codes,
        )
    assert labels is not None
    return Samples(
        numbers=torch.arange(len(labels)),
        labels=torch.tensor(labels, dtype=torch.int64),
        seed=config.seed if seed is None else seed,
        candidates=len(labels),
        precision=config.sampling.precision,
        vectors=vectors,
    )


def levels_left(run: RunFolder) -> Path | None:
    """Where a call that was ended left the levels that it had finished; None where it had finished none."""
    folder = run.checkpoint(STAGE)
    return folder if (folder / TENSORS).exists() else None


def is_left(path: Path, run: RunFolder) -> bool:
    """Whether a path is where a call that was ended left its finished levels."""
    folder = run.checkpoint(STAGE).resolve()
    return path.resolve() in (folder, folder / TENSORS)


def _taken(
    config: RunConfig,
    hierarchy: Hierarchy,
    labels: Sequence[int] | None,
    vectors: Tensor | None,
    seed: int | None,
    path: Path,
) -> Samples:
    """The samples of a file, where they are those that are asked for."""
    samples = read_samples_file(path, hierarchy)
    _require_asked_for(samples, labels, vectors, seed, path)
    missing = [name for name in hierarchy.grids if name not in samples.codes]
    if missing and samples.precision != config.sampling.precision:
        raise CheckpointError(
            f"the samples in {path} are drawn in {samples.precision}; asked for is {config.sampling.precision} for "
            f"the rest, {', '.join(missing)}: set sampling.precision={samples.precision} to go on with theirs, or draw "
            "new ones"
        )
    return samples


def _require_asked_for(
    samples: Samples, labels: Sequence[int] | None, vectors: Tensor | None, seed: int | None, path: Path
) -> None:
    if seed is not None and seed != samples.seed:
        raise CheckpointError(
            f"the samples in {path} are of seed {samples.seed}; asked for is seed {seed}: leave it out to go on with "
            "theirs, or draw new ones"
        )
    if labels is not None and list(labels) != samples.labels.tolist():
        raise CheckpointError(
            f"the {len(samples)} samples in {path} are not of the {len(labels)} classes, in their order, that are "
            "asked for: leave the classes out to go on with theirs, or draw new ones"
        )
    if vectors is not None and not _same_vectors(samples.vectors, vectors):
        raise CheckpointError(
            f"the samples in {path} are not of the vectors that are asked for: leave these out to go on with theirs, "
            "or draw new ones"
        )


def _same_vectors(one: Tensor | None, other: Tensor) -> bool:
    """Whether vectors are equal, and hidden, which is NaN, in the same rows."""
    if one is None or one.shape != other.shape:
        return False
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _finished(
    config: RunConfig,
    run: RunFolder,
    hierarchy: Hierarchy,
    samples: Samples,
    *,
    reduction: Reduction,
    encoder: str,
) -> Samples:
    """Draw the levels that are missing, keep each as soon as it is there, and decode."""
    drawn, options = dict(samples.codes), _options(config, hierarchy, samples)

    def keep_level(name: str, codes: Tensor) -> None:
        drawn[name] = codes
        if reduction.rank == 0:
            so_far = replace(
                samples, codes=dict(drawn), options={level: how for level, how in options.items() if level in drawn}
            )
            write_samples_file(run.checkpoint(STAGE) / TENSORS, so_far, encoder=encoder)

    generated = draw_samples(
        config,
        hierarchy,
        samples.labels.tolist(),
        reduction=reduction,
        vectors=samples.vectors,
        seed=samples.seed,
        numbers=samples.numbers.tolist(),
        given=samples.codes,
        after_level=keep_level,
    )
    return replace(samples, codes=generated.codes, images=generated.images, options=options)


def _options(config: RunConfig, hierarchy: Hierarchy, samples: Samples) -> dict[str, SamplingOptions]:
    """How each level was or will be drawn; nothing of a level whose codes come from a file that does not say."""
    configured = sampling_options(config, hierarchy)
    known = {name: (samples.options if name in samples.codes else configured).get(name) for name in hierarchy.grids}
    return {name: options for name, options in known.items() if options is not None}


def _counting(bar: Progress, what: str, codes_at_once: int) -> AfterPosition:
    def after_position(level: str) -> None:
        bar.set_description(f"{what}, {level}", refresh=False)
        bar.update(codes_at_once)

    return after_position
