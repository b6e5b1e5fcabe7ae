"""From pixels to new pixels: all stages in one go, on scanned digits or on whatever the configuration says.

Trains the autoencoder, extracts codes, trains a prior for each level, samples, measures, and writes a report.

With --data DIR it chooses everything by itself, for any folder of pictures: it looks at some of them, times a few steps
on this machine, takes sizes, models and steps that fit into --minutes, and says what it chose and why. Where a stage
takes more or less time than was reckoned, priors and measurements to come get less or more.
"""

import argparse
import time
from pathlib import Path

from command_line import loaded, recipe_parser, run, say

from hvq.choosing import Plan, choose_run
from hvq.choosing.costs import AUTOENCODER, CODES, SAMPLES, stage_of_prior
from hvq.distributed import current_reduction
from hvq.errors import ConfigurationError
from hvq.evaluation.evaluate import evaluate
from hvq.evaluation.feature_distance import load_feature_distance
from hvq.evaluation.number_table import number_table
from hvq.evaluation.report import require_report_packages
from hvq.evaluation.run_report import write_run_report
from hvq.evaluation.samples import GRID, STAGE, sample_run
from hvq.storage import RunFolder, load_hierarchy
from hvq.training import extract_codes, fit_autoencoder, fit_prior
from hvq.training.processes import make_accelerator
from hvq.training.sources import build_sources_in_turn
from hvq.training.trackers import show_file

RUN_DIR = Path("runs/quickstart")
CONFIG = Path(__file__).parent / "configs" / "digits.yaml"
MINUTES = 10.0


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = recipe_parser(__doc__, run_dir=RUN_DIR, config=CONFIG)
    parser.add_argument("--resume", action="store_true", help="go on where an earlier call was stopped")
    parser.add_argument("--data", type=Path, metavar="DIR", help="any folder of pictures, for which all is chosen")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help=f"with --data, for all of the run (default: {MINUTES:g})"
    )
    options = parser.parse_intermixed_args()
    if options.data is None and options.minutes is not None:
        raise ConfigurationError(
            "--minutes goes with --data DIR; without, the configuration says how many steps there are"
        )
    if options.data is not None and options.config != CONFIG:
        raise ConfigurationError(
            f"--data chooses the configuration, and --config names one, {options.config}; leave one of them out: with "
            "--config, data.path=DIR sets the folder"
        )
    return options


def plan_of(options: argparse.Namespace, started: float) -> Plan:
    """The run that is asked for: as configured, or chosen, or as it was chosen before where it is resumed."""
    folder = RunFolder(options.run_dir)
    if options.data is None:
        return Plan(loaded(options).config)
    if options.resume and folder.config_file.exists():
        say(f"going on with what was chosen before, {folder.config_file}")
        options.config = folder.config_file
        return Plan(loaded(options).config)
    minutes = MINUTES if options.minutes is None else options.minutes
    return choose_run(options.data, folder, minutes=minutes, overrides=options.overrides, started=started, say=say)


def main() -> None:
    """Read the command line, and run every stage."""
    started = time.perf_counter()
    options = read_options()
    # It ends with a report; that something is missing is better known now than after training.
    require_report_packages()
    plan = plan_of(options, started)
    resume = options.resume
    config, folder = plan.config, RunFolder(options.run_dir)
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
    plan.finished(AUTOENCODER)
    extract_codes(plan.config, folder, accelerator=accelerator, sources=sources, resume=resume)
    plan.finished(CODES)
    for level in config.autoencoder.levels:
        fit_prior(plan.config, folder, level, accelerator=accelerator, resume=resume)
        accelerator.free_memory()
        plan.finished(stage_of_prior(level))
    with folder.timed("samples", write=is_main):
        hierarchy = load_hierarchy(folder).to(accelerator.device, prior_precision=config.sampling.precision)
        sample_run(plan.config, folder, hierarchy, reduction=current_reduction())
    plan.finished(SAMPLES)
    show_file(accelerator, folder.path, STAGE, folder.samples / GRID)
    with folder.timed("evaluation", write=is_main):
        numbers = evaluate(plan.config, folder, accelerator=accelerator, sources=sources)
    if is_main:
        write_run_report(plan.config, folder, sources, started=None if resume else started)
    for line in number_table(numbers):
        say(line)
    say(f"done in {time.perf_counter() - started:.0f} seconds; open {folder.report}")


if __name__ == "__main__":
    run(main)
