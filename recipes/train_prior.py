"""Stage 2: train the prior of one level on a run's codes, and leave it in the run folder as `priors/<level>/`."""

from command_line import read_command, recipe_parser, run

from hvq.storage import RunFolder
from hvq.training import fit_prior
from hvq.training.processes import make_accelerator


def main() -> None:
    """Read the command line, train, save."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--level", required=True, metavar="NAME", help="name of the level, such as top")
    parser.add_argument("--resume", action="store_true", help="go on from the training checkpoint, if there is one")
    command = read_command(parser)
    level = command.options.level
    folder = RunFolder(command.run_dir)
    accelerator = make_accelerator(command.config, folder)
    with folder.timed(f"prior.{level}", write=accelerator.is_main_process):
        fit_prior(command.config, folder, level, accelerator=accelerator, resume=command.options.resume)


if __name__ == "__main__":
    run(main)
