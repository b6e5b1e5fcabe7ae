"""Publish the models of a run on the hub, or write the same folder here: weights, configuration and a model card.

The card has the run's numbers, pictures and configuration. --to needs neither network nor token. Either is loaded again
by `hvq.HierarchicalVQ.from_pretrained`.
"""

from argparse import Namespace
from pathlib import Path

from command_line import read_command, recipe_parser, run, say

from hvq.errors import ConfigurationError
from hvq.evaluation.run_card import run_card
from hvq.model_card import UNKNOWN_LICENSE
from hvq.storage import RunFolder, load_hierarchy


def require_one_place(options: Namespace) -> None:
    """Refuse a call that names no place, or both."""
    if (options.repo is None) == (options.to is None):
        raise ConfigurationError("name one place: --repo OWNER/NAME to publish, or --to FOLDER to write it here")


def main() -> None:
    """Read the command line, load, write or publish."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--repo", metavar="OWNER/NAME", help="repository of the hub; made where there is none")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="folder to write in its place, without network")
    parser.add_argument("--private", action="store_true", help="others cannot see a repository that is made")
    parser.add_argument(
        "--license",
        default=UNKNOWN_LICENSE,
        metavar="NAME",
        help=f"of the weights, as the hub abbreviates it, such as mit (default: {UNKNOWN_LICENSE})",
    )
    command = read_command(parser)
    options, folder = command.options, RunFolder(command.run_dir)
    require_one_place(options)
    hierarchy = load_hierarchy(folder)
    card = run_card(command.config, folder, hierarchy, license=options.license)
    config, metrics = command.config, folder.metrics()
    if options.to is not None:
        hierarchy.save_pretrained(options.to, card=card, config=config, metrics=metrics)
        say(f"the model is in {options.to}; see {options.to / 'README.md'}")
        return
    # The token is that of HF_TOKEN or `hf auth login`: on a command line, others would see it.
    address = hierarchy.push_to_hub(options.repo, private=options.private, card=card, config=config, metrics=metrics)
    say(f"the model is at {address}")


if __name__ == "__main__":
    run(main)
