"""Write a run's codes as one parquet file, which `datasets`, pandas and others read: a row for each image."""

from pathlib import Path

from command_line import read_command, recipe_parser, run, say

from hvq.data import CodeFolder
from hvq.data.code_parquet import write_parquet
from hvq.storage import RunFolder
from hvq.training.codes import SPLITS


def main() -> None:
    """Read the command line, write."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="the file, such as codes.parquet")
    parser.add_argument("--split", choices=SPLITS, help="the codes to write; all by default, told apart by a column")
    command = read_command(parser)
    options, codes = command.options, RunFolder(command.run_dir).codes
    folders = [CodeFolder(codes, split) for split in ([options.split] if options.split else SPLITS)]
    rows = write_parquet(options.to, folders)
    say(f'{rows} rows are in {options.to}; datasets.load_dataset("parquet", data_files="{options.to}") reads them')


if __name__ == "__main__":
    run(main)
