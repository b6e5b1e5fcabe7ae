"""Draw new images from a run's priors, and leave them in the run folder as `samples/`: a picture, and safetensors."""

from command_line import read_command, recipe_parser, run, say

from hvq.distributed import current_reduction
from hvq.errors import DataError
from hvq.evaluation.samples import sample_run
from hvq.storage import RunFolder, load_hierarchy
from hvq.training.processes import describe, make_accelerator


def chosen_labels(names: list[str] | None, classes: tuple[str, ...], number: int) -> list[int] | None:
    """`number` labels of each class that was named; None where none was, for the configuration's own choice."""
    if names is None:
        return None
    unknown = [name for name in names if name not in classes]
    if unknown:
        known = ", ".join(classes) if classes else "none: it was trained without labels"
        raise DataError(f"unknown class {', '.join(unknown)}; the classes of this run are {known}")
    return [classes.index(name) for name in names for _ in range(number)]


def main() -> None:
    """Read the command line, draw, save."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--classes", metavar="NAME", help="classes to draw, with commas between; all by default")
    parser.add_argument("--seed", type=int, help="of the samples; the run's own by default")
    command = read_command(parser)
    folder = RunFolder(command.run_dir)
    accelerator = make_accelerator(command.config, folder)
    hierarchy = load_hierarchy(folder).to(accelerator.device)
    names = command.options.classes.split(",") if command.options.classes else None
    labels = chosen_labels(names, hierarchy.classes, command.config.sampling.samples_per_class)
    reduction = current_reduction()
    say(f"drawing samples: {describe(accelerator)}")
    with folder.timed("samples", write=accelerator.is_main_process):
        sample_run(command.config, folder, hierarchy, reduction=reduction, labels=labels, seed=command.options.seed)
    say(f"samples are in {folder.samples}")


if __name__ == "__main__":
    run(main)
