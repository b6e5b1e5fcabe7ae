"""Measure what a run has so far, into `metrics.json` and `report.html` in the run folder."""

from command_line import read_command, recipe_parser, run, say

from hvq.evaluation.evaluate import evaluate
from hvq.evaluation.number_table import number_table
from hvq.evaluation.report import require_report_packages
from hvq.evaluation.run_report import write_run_report
from hvq.storage import RunFolder
from hvq.training.processes import describe, make_accelerator
from hvq.training.sources import build_sources_in_turn


def main() -> None:
    """Read the command line, measure, report."""
    command = read_command(recipe_parser(__doc__))
    require_report_packages()
    folder = RunFolder(command.run_dir)
    accelerator = make_accelerator(command.config, folder)
    sources = build_sources_in_turn(command.config.data, command.config.seed, accelerator)
    say(f"evaluating: {describe(accelerator)}")
    with folder.timed("evaluation", write=accelerator.is_main_process):
        numbers = evaluate(command.config, folder, accelerator=accelerator, sources=sources)
    if accelerator.is_main_process:
        write_run_report(command.config, folder, sources)
    for line in number_table(numbers):
        say(line)
    say(f"the report is {folder.report}")


if __name__ == "__main__":
    run(main)
