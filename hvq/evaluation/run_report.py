"""The report of a run folder, from what the stages left there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hvq.config import RunConfig
from hvq.data import CodeFolder, ImageSource, Sources, ordered_batches
from hvq.data.pixels import kept_to_model
from hvq.data.views import as_pictures, noun
from hvq.evaluation.code_usage import CodeUsage
from hvq.evaluation.generation import decode_kept
from hvq.evaluation.pictures import reconstruction_grid, sample_grid
from hvq.evaluation.plots import rejection_curve, training_curves, usage_histogram
from hvq.evaluation.report import Picture, require_report_packages, write_report
from hvq.evaluation.sample_files import TENSORS, has_description, read_description
from hvq.files import read_tensors
from hvq.storage import Hierarchy, RunFolder, load_hierarchy

_ORIGINALS_SHOWN = 10


def write_run_report(config: RunConfig, run: RunFolder, sources: Sources, *, started: float | None = None) -> None:
    """Draw the pictures of a run, and write its report.

    Args:
        config: of the run.
        run: with an autoencoder at least.
        sources: the images.
        started: when the whole run began (`time.perf_counter`), for `seconds.total`; by default the total is the sum
            of the stages.

    Raises:
        ConfigurationError: where a package that draws it is not installed (`require_report_packages`).
    """
    require_report_packages()
    hierarchy = load_hierarchy(run)
    pictures = run_pictures(config, run, hierarchy, sources.validation)
    stages: dict[str, float] = dict(run.metrics().get("seconds", {}))
    stages.pop("total", None)
    total = sum(stages.values()) if started is None else time.perf_counter() - started
    metrics = run.add_seconds("total", total)
    names = hierarchy.autoencoder.level_names
    stand_ins = {name: metrics.get("levels", {}).get(name, {}).get("absent_stand_in", "") for name in names}
    write_report(
        run.path,
        title=run_title(config),
        metrics=metrics,
        pictures=pictures,
        level_names=names,
        summary=run_summary(hierarchy),
        notes={"reconstructions": _stand_in_note(stand_ins), "samples": _choice_note(run.samples / TENSORS)},
    )


def run_pictures(config: RunConfig, run: RunFolder, hierarchy: Hierarchy, source: ImageSource) -> dict[str, Picture]:
    """The pictures that a run's files allow: reconstructions, code usage, samples, rejection, curves."""
    names = hierarchy.autoencoder.level_names
    pictures: dict[str, Picture] = {"reconstructions": _reconstructions(hierarchy, source, config.chunk_size)}
    if (run.codes / "validation").exists():
        codes = CodeFolder(run.codes, "validation")
        pictures["usage"] = usage_histogram(code_counts(hierarchy, codes, config.chunk_size), names)
    if (run.samples / TENSORS).exists():
        samples, _ = read_tensors(run.samples / TENSORS, "samples")
        labels = samples["labels"] if hierarchy.classes else None
        pictures["samples"] = sample_grid(as_pictures(samples["images"]), labels, hierarchy.classes or None)
    if rejection := rejection_curve(run.metrics().get("rejection", {})):
        pictures["rejection"] = rejection
    curves = training_curves(run.lines(), names)
    return pictures | {f"curves.{stage}": picture for stage, picture in curves.items()}


def code_counts(hierarchy: Hierarchy, codes: CodeFolder, chunk_size: int) -> dict[str, Tensor]:
    """How often each code of each level occurs, int64 `[G, K]`, padding left out as it is wherever usage is measured.

    Args:
        hierarchy: that made the codes.
        codes: of a split.
        chunk_size: rows that are read at a time.
    """
    model = hierarchy.autoencoder
    grids = {name: torch.zeros(0, *grid) for name, grid in codes.grids.items()}
    if all(model.without_padding(grids, codes.image_size)[name].shape == grid.shape for name, grid in grids.items()):
        return {name: codes.counts(name) for name in model.level_names}
    usage = {
        name: CodeUsage(codebook_size=quantizer.codebook_size, codes_per_position=quantizer.codes_per_position)
        for name, quantizer in model.quantizers.items()
    }
    for batch in ordered_batches(codes, chunk_size=chunk_size):
        for name, some in model.without_padding(batch.codes, codes.image_size).items():
            usage[name].update(some)
    return {name: counted.counts for name, counted in usage.items()}


@torch.no_grad()
def _reconstructions(hierarchy: Hierarchy, source: ImageSource, chunk_size: int) -> Picture:
    """Held-out originals, and what is left of them from the top level alone, from the top and the next, and so on."""
    shown = min(_ORIGINALS_SHOWN, len(source))
    originals = torch.stack([source.image(i) for i in range(shown)])
    codes = hierarchy.autoencoder.encode(kept_to_model(originals))
    names = hierarchy.autoencoder.level_names
    rows = {
        " + ".join(names[: i + 1]): decode_kept(
            hierarchy, codes, chunk_size=chunk_size, size=source.size, absent=names[i + 1 :]
        )
        for i in range(len(names))
    }
    return reconstruction_grid(as_pictures(originals), {name: as_pictures(row) for name, row in rows.items()})


def run_title(config: RunConfig) -> str:
    """What kind of data, how many levels, and of what kind their latents are."""
    number = len(config.autoencoder.levels)
    gaussian = [level.quantizer.kind == "gaussian" for level in config.autoencoder.levels.values()]
    kinds = ["discrete"] * (not all(gaussian)) + ["Gaussian"] * any(gaussian)
    return f"{config.data.kind}: {number} level{'s' if number > 1 else ''} of {' and '.join(kinds)} latents"


def run_summary(hierarchy: Hierarchy) -> str:
    """One sentence: images of which size become codes of which grids, and how many bits these are."""
    levels = hierarchy.autoencoder.quantizers
    parts = [
        f"{name}: {'x'.join(map(str, hierarchy.grids[name]))} codes of {quantizer.codebook_size}"
        + f", {quantizer.codes_per_position} a position" * (quantizer.codes_per_position > 1)
        if quantizer.discrete
        else f"{name}: {'x'.join(map(str, hierarchy.grids[name]))} Gaussian latents of {quantizer.code_dimension}"
        for name, quantizer in levels.items()
    ]
    bits = sum(
        torch.Size(hierarchy.grids[name]).numel()
        * quantizer.codes_per_position
        * (quantizer.codebook_size - 1).bit_length()
        for name, quantizer in levels.items()
        if quantizer.discrete
    )
    size = hierarchy.image_size
    return f"{'x'.join(map(str, size))} {noun(size)}s as {'; '.join(parts)}{f': {bits} bits each' if bits else ''}."


def _stand_in_note(stand_ins: Mapping[str, str]) -> str:
    texts = [f"{name}: {text}" for name, text in stand_ins.items() if text]
    return f"Levels that are left out are replaced by a stand-in ({'; '.join(texts)})." if texts else ""


def _choice_note(path: Path) -> str:
    """Whether the samples were chosen among more; nothing of files that do not say, or were cut since."""
    if not path.exists():
        return ""
    tensors, metadata = read_tensors(path, "samples")
    if not has_description(metadata):
        return ""
    description, shown = read_description(metadata, path), len(tensors["labels"])
    if not description.chosen_of(shown):
        return ""
    return f"The {shown} of {description.candidates} candidates that a classifier was surest of."
