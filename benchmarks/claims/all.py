"""All claims of the papers, each in a process of its own, so that one that fails does not lose the others.

    python benchmarks/claims/all.py --quick --json claims.json

The file gets one row for each claim: `claim`, `holds` (null where it could not be measured) and `numbers`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from frame import HERE, Verdict, load_rows, parser_of, put_verdict, table

# Scripts of this folder, in the order in which they are run.
CLAIMS = (
    "kl_is_log_k",
    "beta",
    "posterior_collapse",
    "vae",
    "codebook_learning",
    "levels",
    "priors",
    "rejection",
)


def run_one(claim: str, arguments: argparse.Namespace, file: Path) -> None:
    """Run a script, which puts its verdict into the file; where it fails, the last line it said is put there."""
    words = ["--json", file, "--data", arguments.data, "--plots", arguments.plots, *["--quick"] * arguments.quick]
    command = [sys.executable, str(HERE / f"{claim}.py"), *map(str, words)]
    started = time.perf_counter()
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
        put_verdict(file, Verdict(claim, None, {"error": said[-1]}))
    print(f"{claim}: {time.perf_counter() - started:.0f} s", flush=True)


def run_all(arguments: argparse.Namespace, file: Path) -> list[Verdict]:
    """Every claim that is asked for; their verdicts, in the order of `CLAIMS`."""
    for claim in arguments.only:
        run_one(claim, arguments, file)
    found = {verdict.claim: verdict for verdict in load_rows(file, Verdict)}
    return [found[claim] for claim in arguments.only]


def main(words: list[str] | None = None) -> int:
    """Run them, and print the table; 1 where one could not be measured."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=CLAIMS, default=list(CLAIMS), help="claims; all by default")
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        verdicts = run_all(arguments, arguments.json or Path(folder) / "claims.json")
    print(table(verdicts))
    return int(any(verdict.holds is None for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
