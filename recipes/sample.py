"""Draw new images from a run's priors, and leave them in the run folder as `samples/`: a picture, and safetensors.

Levels are drawn one after the other, and each that is finished is kept: where a call was ended, `--from-codes` goes on.
"""

from pathlib import Path

from command_line import read_command, recipe_parser, run, say, say_next

from hvq.data import read_vectors
from hvq.distributed import current_reduction
from hvq.errors import DataError
from hvq.evaluation.samples import GRID, STAGE, is_left, levels_left, sample_run
from hvq.storage import RunFolder, load_hierarchy
from hvq.training.processes import describe, make_accelerator
from hvq.training.trackers import show_file


def chosen_labels(names: list[str] | None, classes: tuple[str, ...], number: int) -> list[int] | None:
    """`number` labels of each class that was named; None where none was, for the configuration's own choice."""
    if names is None:
        return None
    unknown = [name for name in names if name not in classes]
    if unknown:
        known = ", ".join(classes) if classes else "none: it was trained without labels"
        raise DataError(f"unknown class {', '.join(unknown)}; the classes of this run are {known}")
    return [classes.index(name) for name in names for _ in range(number)]


def labels_of_rows(names: list[str] | None, classes: tuple[str, ...], rows: int) -> list[int] | None:
    """A label for each of so many vectors, of one class that was named or of as many; None where none was."""
    labels = chosen_labels(names, classes, 1)
    if labels is not None and len(labels) not in (1, rows):
        raise DataError(f"--classes must name one class, or one for each of the {rows} vectors; received {len(labels)}")
    return labels if labels is None or len(labels) == rows else labels * rows


def main() -> None:
    """Read the command line, draw, save."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--classes", metavar="NAME", help="classes to draw, with commas between; all by default")
    parser.add_argument("--seed", type=int, help="of the samples; the run's own by default")
    parser.add_argument(
        "--from-codes",
        type=Path,
        metavar="PATH",
        help="samples, a folder or a safetensors file: levels found there are taken, with seed and classes, and the "
        "rest is drawn",
    )
    parser.add_argument(
        "--keep",
        type=float,
        metavar="SHARE",
        help="share of the candidates to keep, such as 0.25: four times as many are drawn, and of each class those are "
        "kept that a classifier is surest of; it learns from the run's training images, which must be there",
    )
    parser.add_argument(
        "--vectors",
        type=Path,
        metavar="FILE",
        help="safetensors file whose `vectors`, float32 [n, V], are told to the priors: one image is drawn for each "
        "row; --classes then names one class for all, or one for each row",
    )
    command = read_command(parser)
    options, folder = command.options, RunFolder(command.run_dir)
    accelerator = make_accelerator(command.config, folder)
    hierarchy = load_hierarchy(folder).to(accelerator.device, prior_precision=command.config.sampling.precision)
    names = options.classes.split(",") if options.classes else None
    vectors = None if options.vectors is None else read_vectors(options.vectors).vectors
    if vectors is None:
        labels = chosen_labels(names, hierarchy.classes, command.config.sampling.samples_per_class)
    else:
        labels = labels_of_rows(names, hierarchy.classes, len(vectors))
    say(f"drawing samples: {describe(accelerator)}")
    if hierarchy.vector_size and vectors is None and options.from_codes is None:
        say(
            f"vectors are hidden, as in a share of training; --vectors FILE tells some, of {hierarchy.vector_size} "
            "numbers each"
        )
    left = levels_left(folder)
    if left is not None and (options.from_codes is None or not is_left(options.from_codes, folder)):
        begun = "from the start" if options.from_codes is None else f"what is not in {options.from_codes}"
        say(f"drawing {begun}; levels that an earlier call left would be taken with --from-codes {left}")
    with folder.timed("samples", write=accelerator.is_main_process):
        samples = sample_run(
            command.config,
            folder,
            hierarchy,
            reduction=current_reduction(),
            labels=labels,
            vectors=vectors,
            seed=options.seed,
            from_codes=options.from_codes,
            keep=options.keep,
        )
    chosen = f", the surest of {samples.candidates} candidates," if samples.chosen else ""
    say(f"{len(samples)} samples{chosen} are in {folder.samples}")
    show_file(accelerator, folder.path, STAGE, folder.samples / GRID)
    say_next("evaluate.py", "--run-dir", command.run_dir)


if __name__ == "__main__":
    run(main)
