"""Stage 1: train the autoencoder of a run, and leave it in the run folder as `autoencoder/`."""

from command_line import add_beginning, beginning, read_command, recipe_parser, run, say_next

from hvq.evaluation.feature_distance import load_feature_distance
from hvq.storage import RunFolder
from hvq.training import fit_autoencoder
from hvq.training.processes import make_accelerator
from hvq.training.sources import build_sources_in_turn


def main() -> None:
    """Read the command line, train, save."""
    parser = recipe_parser(__doc__)
    add_beginning(parser)
    command = read_command(parser)
    folder = RunFolder(command.run_dir)
    accelerator = make_accelerator(command.config, folder)
    sources = build_sources_in_turn(command.config.data, command.config.seed, accelerator)
    fit_autoencoder(
        command.config,
        folder,
        accelerator=accelerator,
        sources=sources,
        load_distance=load_feature_distance,
        **beginning(command.options),
    )
    kinds = {level.quantizer.kind for level in command.config.autoencoder.levels.values()}
    # A gaussian level has no codes for what else would come.
    say_next("evaluate.py" if "gaussian" in kinds else "extract_codes.py", "--run-dir", command.run_dir)


if __name__ == "__main__":
    run(main)
