"""Pictures of any size to codes and back: leaves the codes, and what they are rebuilt to, of each.

NAME.safetensors holds a tensor of integers for each level, which `HierarchicalVQ.decode` takes, and NAME.png the
rebuilt picture. With --tile no forward sees more than a tile, so that memory hardly grows with the picture.
"""

import json
from pathlib import Path

import torch
from command_line import read_command, recipe_parser, run, say

from hvq import HierarchicalVQ
from hvq.data.pictures import READ_ERRORS, decode_whole, open_regular, to_picture
from hvq.data.pixels import bytes_to_unit, unit_to_bytes
from hvq.errors import ConfigurationError, DataError
from hvq.files import write_file, write_tensors
from hvq.storage import RunFolder, encoder_hash, load_hierarchy


def require_names_of_their_own(paths: list[Path]) -> None:
    """Refuse pictures whose results would have one name."""
    names = [path.stem for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"pictures must have names of their own; several are {', '.join(twice)}")


def require_nothing_lost(paths: list[Path], folder: Path) -> None:
    """Refuse to write over pictures: those that are given, and others that no earlier call has left."""
    given = {path.resolve() for path in paths}
    for path in paths:
        picture, codes = folder / f"{path.stem}.png", folder / f"{path.stem}.safetensors"
        if picture.resolve() in given or (picture.exists() and not codes.exists()):
            raise ConfigurationError(f"{picture} is there already, and would be written over; take another --to")


def read(path: Path, channels: int) -> torch.Tensor:
    """A picture as it is, `[1, C, H, W]` in [0, 1]."""
    try:
        with open_regular(path) as file:
            return bytes_to_unit(decode_whole(file, channels=channels)[None])
    except READ_ERRORS as error:
        raise DataError(f"picture {path} cannot be read ({error}); leave it out") from None


def main() -> None:
    """Read the command line, encode and decode one picture after the other."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--images", type=Path, nargs="+", required=True, metavar="FILE", help="pictures of any size")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="where codes and pictures go")
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="pixels per side that a forward sees at most; whole pictures by default",
    )
    options = read_command(parser).options
    require_names_of_their_own(options.images)
    require_nothing_lost(options.images, options.to)
    hierarchy = load_hierarchy(RunFolder(options.run_dir))
    if len(hierarchy.image_size) != 2:
        raise ConfigurationError(
            f"pictures have two axes, and what this run was trained on has {len(hierarchy.image_size)}; take "
            "HierarchicalVQ.encode and decode"
        )
    hierarchy.to("cuda" if torch.cuda.is_available() else "cpu")
    # One picture at a time: a chunk would be filled up.
    model, encoder = HierarchicalVQ(hierarchy, chunk_size=1), encoder_hash(hierarchy.autoencoder)
    for path in options.images:
        image = read(path, hierarchy.channels)
        codes = model.encode(image, tile=options.tile)
        rebuilt = model.decode(codes, size=image.shape[2:], tile=options.tile)
        about = json.dumps({"size": list(image.shape[2:]), "encoder_hash": encoder})
        write_tensors(options.to / f"{path.stem}.safetensors", codes, {"codes": about})
        picture = to_picture(unit_to_bytes(rebuilt[0]))
        write_file(options.to / f"{path.stem}.png", lambda partial, picture=picture: picture.save(partial, "PNG"))  # type: ignore[misc]
        error = float((rebuilt - image).square().mean())
        say(f"{path}: {image.shape[2]}x{image.shape[3]}, mean squared error {error:.5f} on [0, 1]")
    say(f"codes and rebuilt pictures are in {options.to}")


if __name__ == "__main__":
    run(main)
