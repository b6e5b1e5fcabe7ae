"""What all claims share: verdicts and their file, cells that are not run twice, and the command line.

A claim is a script of this folder with a criterion in its docstring, stated before anything is measured, and a function
`measure(options)` that returns a verdict; `run_claim` does the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Scripts find their neighbours by bare name; what all benchmarks share lies one folder up.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from measuring import load_rows, markdown, save_rows

from hvq.errors import HVQError
from hvq.files import write_json

HERE = Path(__file__).resolve().parent
SHARED_DATA = HERE.parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Verdict:
    """What a claim comes to.

    Attributes:
        claim: name of the script.
        holds: by the criterion in its docstring; None where it could not be measured.
        numbers: by name; those of the criterion first.
    """

    claim: str
    holds: bool | None
    numbers: dict[str, Any]


class Cells:
    """Results of parts of a claim by what they were made from, saved one by one.

    Args:
        file: where they are kept; None keeps them in memory alone.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self._found: dict[str, Any] = json.loads(file.read_text()) if file and file.exists() else {}

    def of(self, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """The result of this key: found, or made and saved.

        Args:
            key: all that the result hangs on.
            make: gives what JSON can hold.
        """
        name = json.dumps(key, sort_keys=True)
        if name not in self._found:
            started = time.perf_counter()
            self._found[name] = make()
            print(f"{', '.join(f'{k} {v}' for k, v in key.items())}: {time.perf_counter() - started:.1f} s", flush=True)
            if self.file:
                write_json(self.file, self._found)
        return self._found[name]


@dataclass(frozen=True)
class Options:
    """What a person asks of a claim.

    Attributes:
        quick: minutes on two CPU cores, rather than what a good measurement takes.
        data: folder with cifar10-{train,val}.safetensors.
        plots: folder for the plot.
        cells: of this claim.
    """

    quick: bool
    data: Path
    plots: Path
    cells: Cells


def parser_of(text: str | None) -> argparse.ArgumentParser:
    """The options that every claim, and all of them together, take."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one to three minutes on two CPU cores")
    parser.add_argument(
        "--json",
        type=Path,
        help="file of verdicts, in which that of this claim is replaced; cells lie beside it, and are not run again",
    )
    parser.add_argument("--data", type=Path, default=SHARED_DATA, help="folder with cifar10-{train,val}.safetensors")
    parser.add_argument("--plots", type=Path, default=HERE, help="folder for the plot")
    return parser


def run_claim(
    script: str, text: str | None, measure: Callable[[Options], Verdict], words: list[str] | None = None
) -> int:
    """Measure one claim, print its verdict, and put it into the file of verdicts.

    Args:
        script: the file of the claim.
        text: its docstring.
        measure: gives the verdict, and leaves the plot.
        words: the command line; that of the process by default.
    """
    arguments = parser_of(text).parse_args(words)
    claim = Path(script).stem
    file = arguments.json.with_suffix(".cells") / f"{claim}.json" if arguments.json else None
    try:
        verdict = measure(Options(arguments.quick, arguments.data, arguments.plots, Cells(file)))
    except HVQError as error:
        print(error, file=sys.stderr)
        return 1
    put_verdict(arguments.json, verdict)
    print(table([verdict]))
    return 0


def put_verdict(file: Path | None, verdict: Verdict) -> None:
    """The verdict into a file, in place of an earlier one of the same claim."""
    others = [row for row in load_rows(file, Verdict) if row.claim != verdict.claim]
    save_rows(file, [*others, verdict])


def table(verdicts: list[Verdict]) -> str:
    """Markdown."""
    return markdown(
        ["claim", "holds", "numbers"],
        [[verdict.claim, _word(verdict.holds), _numbers(verdict.numbers)] for verdict in verdicts],
    )


def rounded(value: Any, digits: int = 4) -> Any:
    """Plain numbers for a file of verdicts: what is in a mapping, a list or a dataclass, to a few digits.

    >>> rounded({"nats": 1.23456789, "steps": 7})
    {'nats': 1.235, 'steps': 7}
    """
    if isinstance(value, Mapping):
        return {name: rounded(part, digits) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part, digits) for part in value]
    if hasattr(value, "__dataclass_fields__"):
        return rounded(asdict(value), digits)
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _word(holds: bool | None) -> str:
    return "not measured" if holds is None else "yes" if holds else "no"


def _numbers(numbers: Mapping[str, Any], prefix: str = "") -> str:
    parts = [
        _numbers(value, f"{prefix}{name} / ") if isinstance(value, Mapping) else f"{prefix}{name}: {_text(value)}"
        for name, value in numbers.items()
    ]
    return "; ".join(parts)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
