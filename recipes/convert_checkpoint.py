"""Convert checkpoints of other projects into a run folder, where all other recipes find them.

Known are the autoencoder and the PixelSNAIL priors of rosinality/vq-vae-2-pytorch, the autoencoder of vvvm23/vqvae-2,
and codebooks of vector-quantize-pytorch and encodec. Files are read as plain tensors: no code of theirs is run.
"""

import argparse
import pickle
import re
from pathlib import Path

import torch
from command_line import RecipeParser, run, say

from hvq.conversion import KINDS, convert_checkpoints
from hvq.errors import CheckpointError
from hvq.files import read_json, read_tensors
from hvq.storage import RunFolder
from hvq.storage.models import CONFIG

_CLASS = re.compile(r"GLOBAL (\S+) (?:was not|whose)")


def read_plain(path: Path) -> object:
    """What a file holds, plain tensors by name and the arguments of a script beside them; nothing in it is run.

    Raises:
        CheckpointError: where it is missing or damaged, or holds objects.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path, "checkpoint")[0]
    try:
        # A namespace is plain data: a script's arguments by name.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}") from None
    except pickle.UnpicklingError as error:
        found = _CLASS.search(str(error))
        what = f"an object of {found[1]}" if found else "more than tensors, or is damaged"
        raise CheckpointError(
            f"{path} holds {what}, and reading it could run any code: load it where it comes from, and save its "
            "state_dict()"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "it ends too early")
        raise CheckpointError(f"{path} cannot be read as a checkpoint of torch: {reason}") from None


def main() -> None:
    """Read the command line and the files, convert, save."""
    parser = RecipeParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="torch or safetensors: an autoencoder, its priors, or both"
    )
    parser.add_argument("--run-dir", type=Path, required=True, metavar="DIR", help="run folder")
    parser.add_argument(
        "--from",
        dest="kind",
        choices=KINDS,
        metavar="KIND",
        help=f"what the files are: {', '.join(KINDS)} (default: as the names of the tensors say)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="side of the images that an autoencoder was trained on (default: as the grid of a prior says, or 256)",
    )
    parser.add_argument(
        "--data", default="images", metavar="DIR", help="images for the stages that read some (default: images)"
    )
    options = parser.parse_args()
    folder = RunFolder(options.run_dir)
    contents = {str(file): read_plain(file) for file in options.files}
    size = None if options.image_size is None else (options.image_size, options.image_size)
    written = convert_checkpoints(folder, contents, kind=options.kind, image_size=size, data_path=options.data)
    for model in written:
        description = read_json(model / CONFIG, "model configuration")
        sides = "x".join(map(str, description.get("image_size", [])))
        say(f"{model}: {description['about']}" + f" Images are taken to be of {sides}." * bool(sides))


if __name__ == "__main__":
    run(main)
