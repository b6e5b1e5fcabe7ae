"""From pixels to new pixels: all stages in one go, on scanned digits or on whatever the configuration says.

Trains the autoencoder, extracts codes, trains a prior for each level, samples, measures, and writes a report.
"""

import time
from pathlib import Path

from command_line import read_command, recipe_parser, run, say

from hvq.distributed import current_reduction
from hvq.evaluation.evaluate import evaluate
from hvq.evaluation.feature_distance import load_feature_distance
from hvq.evaluation.number_table import number_table
from hvq.evaluation.run_report import write_run_report
from hvq.evaluation.samples import GRID, STAGE, sample_run
from hvq.storage import RunFolder, load_hierarchy
from hvq.training import extract_codes, fit_autoencoder, fit_prior
from hvq.training.processes import make_accelerator
from hvq.training.sources import build_sources_in_turn
from hvq.training.trackers import show_file

RUN_DIR = Path("runs/quickstart")
CONFIG = Path(__file__).parent / "configs" / "digits.yaml"


def main() -> None:
    """Read the command line, and run every stage."""
    started = time.perf_counter()
    parser = recipe_parser(__doc__, run_dir=RUN_DIR, config=CONFIG)
    parser.add_argument("--resume", action="store_true", help="go on where an earlier call was stopped")
    command = read_command(parser)
    resume = command.options.resume
    config, folder = command.config, RunFolder(command.run_dir)
    accelerator = make_accelerator(config, folder)
    is_main = accelerator.is_main_process
    sources = build_sources_in_turn(config.data, config.seed, accelerator)
    fit_autoencoder(
        config,
        folder,
        accelerator=accelerator,
        sources=sources,
        resume=resume,
        load_distance=load_feature_distance,
    )
    # What the accelerator holds of one model is not to take memory from the next.
    accelerator.free_memory()
    extract_codes(config, folder, accelerator=accelerator, sources=sources, resume=resume)
    for level in config.autoencoder.levels:
        fit_prior(config, folder, level, accelerator=accelerator, resume=resume)
        accelerator.free_memory()
    with folder.timed("samples", write=is_main):
        hierarchy = load_hierarchy(folder).to(accelerator.device, prior_precision=config.sampling.precision)
        sample_run(config, folder, hierarchy, reduction=current_reduction())
    show_file(accelerator, folder.path, STAGE, folder.samples / GRID)
    with folder.timed("evaluation", write=is_main):
        numbers = evaluate(config, folder, accelerator=accelerator, sources=sources)
    if is_main:
        write_run_report(config, folder, sources, started=None if resume else started)
    for line in number_table(numbers):
        say(line)
    say(f"done in {time.perf_counter() - started:.0f} seconds; open {folder.report}")


if __name__ == "__main__":
    run(main)
