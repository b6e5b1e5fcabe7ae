"""Stage 2: train the priors of a run on its codes, and leave each in the run folder as `priors/<level>/`.

One level's prior with `--level`, or those of all levels, one after the other, coarse to fine.
"""

from command_line import add_beginning, beginning, read_command, recipe_parser, run, say, say_next

from hvq.errors import ConfigurationError
from hvq.storage import RunFolder
from hvq.training import fit_prior
from hvq.training.processes import make_accelerator


def main() -> None:
    """Read the command line, train, save."""
    parser = recipe_parser(__doc__)
    parser.add_argument(
        "--level", metavar="NAME", help="name of the level, such as top; by default all, coarse to fine"
    )
    add_beginning(parser)
    command = read_command(parser)
    config, folder = command.config, RunFolder(command.run_dir)
    levels = [command.options.level] if command.options.level else list(config.autoencoder.levels)
    if command.options.resume_at is not None and len(levels) > 1:
        raise ConfigurationError(
            f"--resume-at takes the step of one training; name whose it is with --level: {', '.join(levels)}"
        )
    accelerator = make_accelerator(config, folder)
    if len(levels) > 1:
        say(f"training the priors of levels {', '.join(levels)}, in this order")
    for level in levels:
        fit_prior(config, folder, level, accelerator=accelerator, **beginning(command.options))
        # What the accelerator holds of one prior is not to take memory from the next.
        accelerator.free_memory()
    missing = next((level for level in config.autoencoder.levels if not folder.prior(level).exists()), None)
    if missing is None:
        say_next("sample.py", "--run-dir", command.run_dir)
    else:
        say_next("train_prior.py", "--run-dir", command.run_dir, "--level", missing)


if __name__ == "__main__":
    run(main)
