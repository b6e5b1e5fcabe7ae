"""Between the stages: encode all images with a run's autoencoder, and leave the codes in the run folder as `codes/`."""

from command_line import read_command, recipe_parser, run, say, say_next

from hvq.storage import RunFolder
from hvq.training import extract_codes
from hvq.training.processes import describe, make_accelerator


def main() -> None:
    """Read the command line, encode, save."""
    parser = recipe_parser(__doc__)
    parser.add_argument(
        "--resume", action="store_true", help="keep what an interrupted call has written of these very codes"
    )
    command = read_command(parser)
    folder = RunFolder(command.run_dir)
    accelerator = make_accelerator(command.config, folder)
    say(f"extracting codes: {describe(accelerator)}")
    extract_codes(command.config, folder, accelerator=accelerator, resume=command.options.resume)
    say_next("train_prior.py", "--run-dir", command.run_dir)


if __name__ == "__main__":
    run(main)
