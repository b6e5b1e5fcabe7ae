"""Write a run's autoencoder for other programs: images to codes and codes to images, as ONNX or by `torch.export`.

The folder gets `encoder` and `decoder`, for any batch, and `export.json` with names, shapes and ranges of all that goes
in and comes out. Images are in [0, 1].
"""

from pathlib import Path
from typing import get_args

from command_line import read_command, recipe_parser, run, say

from hvq.export import export_autoencoder
from hvq.export.description import Format
from hvq.storage import RunFolder, load_autoencoder


def main() -> None:
    """Read the command line, export, say how it went."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="is made, or an export in it replaced")
    parser.add_argument("--format", choices=get_args(Format), default="onnx", help="of the files (default: onnx)")
    parser.add_argument(
        "--dynamic-size",
        action="store_true",
        help="for images whose sides are any multiples of the coarsest stride, from two on; of the run's own size by "
        "default",
    )
    command = read_command(parser)
    options = command.options
    model, about = load_autoencoder(RunFolder(command.run_dir).autoencoder)
    description = export_autoencoder(
        model,
        options.to,
        image_size=about.image_size,
        channels=about.autoencoder.channels,
        format=options.format,
        dynamic_size=options.dynamic_size,
    )
    say(f"{description.encoder.file}, {description.decoder.file} and export.json are in {options.to}")
    found = description.agreement
    say(
        "not run, for onnxruntime is not installed"
        if found is None
        else f"run beside the autoencoder: {found.codes - found.differing_codes} of {found.codes} codes are the same, "
        f"and images within {found.image_error:.1g}"
    )


if __name__ == "__main__":
    run(main)
