"""What the command lines of all recipes share: their arguments, `--help`, and how a fault reaches the person."""

from __future__ import annotations

import argparse
import atexit
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hvq.config import RunConfig
from hvq.config_fields import field_help
from hvq.config_loading import load_run_config
from hvq.errors import ConfigurationError, HVQError, TrainingStopped

# A launcher ends all processes as soon as one has failed. The main process speaks for all where all meet the same
# fault, so the others let it come first, and speak only where it has not ended them by then.
GRACE_SECONDS = 10.0
# Once they work together they meet the same fault at nearly the same time, and a fault of one alone is not to wait.
GRACE_IN_STEP_SECONDS = 2.0


class RecipeParser(argparse.ArgumentParser):
    """Arguments of a recipe; a wrong one is a `ConfigurationError` like any other wrong setting."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse where the arguments are not understood."""
        raise ConfigurationError(f"{message}; --help lists all arguments and fields")


@dataclass(frozen=True)
class Command:
    """What a person asked of a recipe.

    Attributes:
        config: the validated run.
        run_dir: the run folder.
        options: the recipe's own arguments.
    """

    config: RunConfig
    run_dir: Path
    options: argparse.Namespace


def recipe_parser(description: str | None, *, run_dir: Path | None = None, config: Path | None = None) -> RecipeParser:
    """The arguments that all recipes share; a recipe adds its own before it calls `read_command`.

    Args:
        description: what the recipe does.
        run_dir: the run folder when none is given; None makes `--run-dir` required.
        config: the configuration when none is given; None means the run folder's own `config.json`.
    """
    parser = RecipeParser(
        description=description,
        epilog=f"fields of the configuration, each with its default, to be set as FIELD=VALUE:\n\n{field_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    file = config or "config.json of the run folder, which the first stage leaves there"
    where = f" (default: {run_dir})" if run_dir else ""
    parser.add_argument("--config", type=Path, default=config, metavar="FILE", help=f"YAML or JSON (default: {file})")
    parser.add_argument(
        "--run-dir", type=Path, default=run_dir, required=run_dir is None, metavar="DIR", help=f"run folder{where}"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="FIELD=VALUE", help="set a field, as in autoencoder.levels.top.ratio=4"
    )
    return parser


def add_beginning(parser: argparse.ArgumentParser) -> None:
    """The arguments of a training that say how it begins."""
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest training checkpoint, if there is one"
    )
    parser.add_argument("--resume-at", type=int, metavar="STEP", help="go on from the training checkpoint of this step")
    parser.add_argument(
        "--init-from",
        type=Path,
        metavar="DIR",
        help="begin from the weights of a model, a run or a training checkpoint, as far as names and shapes agree; "
        "with --resume only where there is no checkpoint yet",
    )


def beginning(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_beginning` has read, as keywords of `fit_autoencoder` and `fit_prior`."""
    return {name: getattr(options, name) for name in ("resume", "resume_at", "init_from")}


def is_main_process() -> bool:
    """Whether this is the process that speaks: the first of those that a launcher started, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def say(message: str) -> None:
    """Print a line, once for all processes."""
    if is_main_process():
        print(message, flush=True)


def say_next(recipe: str, *words: str | Path) -> None:
    """Print the command that comes next, started as this one was.

    Args:
        recipe: name of the script, which lies beside this one.
        words: its arguments.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    alone = processes == 1 or os.environ.get("WORLD_SIZE", "1") != str(processes)
    launcher = ["python"] if alone else ["torchrun", "--nproc_per_node", str(processes)]
    command = shlex.join([*launcher, str(Path(sys.argv[0]).with_name(recipe)), *map(str, words)])
    on_cpus = not alone and "ACCELERATE_USE_CPU" in os.environ
    say(f"next: {'ACCELERATE_USE_CPU=true ' * on_cpus}{command}")


def _config_file(given: Path | None, run_dir: Path) -> Path:
    """The file to read: the one that was named, or the one that an earlier stage left in the run folder."""
    left = run_dir / "config.json"
    if given is None and not left.exists():
        raise ConfigurationError(
            f"there is no {left}; name a configuration with --config, such as --config recipes/configs/digits.yaml"
        )
    return left if given is None else given


def read_command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> Command:
    """Parse the command line and load the configuration that it names.

    Args:
        parser: made by `recipe_parser`.
        arguments: the words of the command line, by default the process's own.

    Raises:
        ConfigurationError: where the arguments or the configuration are wrong.
    """
    return loaded(parser.parse_intermixed_args(arguments))


def loaded(options: argparse.Namespace) -> Command:
    """The command of arguments that are parsed already.

    Raises:
        ConfigurationError: where the configuration that they name is wrong.
    """
    config = load_run_config(_config_file(options.config, options.run_dir), options.overrides, say=say)
    return Command(config=config, run_dir=options.run_dir, options=options)


def _in_step() -> bool:
    """Whether the processes have met; torch is imported by then."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _part() -> None:
    if _in_step():
        from hvq.training.processes import part

        part()


def _report(error: HVQError) -> None:
    rank = ""
    if not is_main_process():
        time.sleep(GRACE_IN_STEP_SECONDS if _in_step() else GRACE_SECONDS)
        rank = f" in process {os.environ['RANK']}"
    print(f"error{rank}: {error}", file=sys.stderr, flush=True)


def run(main: Callable[[], Any]) -> NoReturn:
    """Call a recipe and exit: a fault that a person can mend is a sentence, any other keeps its traceback.

    The exit code is 0 after success, 1 after a fault, 130 where the person interrupted, and 143 where a scheduler did.

    Args:
        main: the recipe; what it returns is ignored.
    """
    try:
        main()
        atexit.register(_part)
    except HVQError as error:
        _report(error)
        sys.exit(1)
    except RuntimeError as error:
        # Imported here, so that `--help` need not wait for torch.
        from hvq.training.processes import lost_process

        lost = lost_process(error)
        if lost is None:
            raise
        _report(lost)
        sys.exit(1)
    except TrainingStopped as stopped:
        say(str(stopped))
        atexit.register(_part)
        # What a shell gives for a process that a signal has ended.
        sys.exit(128 + stopped.signal_number)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    sys.exit(0)
