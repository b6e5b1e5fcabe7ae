"""Attacks on runs: whatever happens, nothing that was finished is lost, and nothing half-written is read as whole.

    python benchmarks/faults.py --json faults.json

Recipes run as they are, in real processes, on a tiny hierarchy and images that are made on the spot. A kill is SIGKILL
at a random instant, after which every file that carries its final name must be whole, the newest checkpoint must not be
older than it was, and the recipe, called again, must end with the very files of a run that nobody disturbed. `exact` is
that for every model, number of processes and of loader workers. Other faults must end in one sentence and exit code 1,
leave what was there before, and let the run go on once the cause is gone.

`tried` counts attacks, `survived` those after which all of that held, `lost` the others. A call with the same file goes
on where the last one stopped.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attacked_runs import (
    KINDS,
    LEAVES,
    LEVELS,
    STAGES,
    AttackError,
    Setting,
    difference,
    faults_of,
    let_end,
    make_setting,
    newest,
    prepared,
    undisturbed,
    words_of,
    write_configuration,
)
from hostile_images import HOSTILE
from measuring import load_rows, markdown, save_rows
from recipe_processes import Ended, run_to_end, started

from hvq.errors import CheckpointError
from hvq.storage import RunFolder, load_autoencoder, load_prior
from hvq.training.checkpoint_files import CheckpointFolders, read_checkpoint

# What is waited for comes within this time, or something is wrong.
PATIENCE_SECONDS = 120.0
# Of all kills, the share that each stage gets.
KILL_SHARES = {"autoencoder": 0.35, "prior.top": 0.15, "prior.bottom": 0.15, "codes": 0.2, "samples": 0.15}
FLIPPED_BITS_PER_FILE = 32


@dataclass(frozen=True)
class Row:
    """Attacks of one kind; `cell` names the call that made them."""

    fault: str
    tried: int
    survived: int
    lost: int
    cell: str = ""


class Tally:
    """Counts attacks of one kind, and tells of those that did harm."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.tried = self.survived = 0

    def note(self, *harm: str | None) -> None:
        """One attack, and what is wrong after it; None and empty strings are nothing."""
        found = [text for text in harm if text]
        self.tried += 1
        self.survived += not found
        if found:
            print(f"LOST, {self.fault}: {'; '.join(found)}", file=sys.stderr, flush=True)

    def row(self) -> Row:
        """All of them."""
        return Row(self.fault, self.tried, self.survived, self.tried - self.survived)


def wait_until(condition: Callable[[], bool]) -> None:
    """Look every millisecond."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise AttackError("what an attack waits for did not come")
        time.sleep(0.001)


def unless_sentence(ended: Ended) -> str | None:
    """None where a recipe ended with code 1 and one sentence; how it ended otherwise."""
    return None if ended.is_sentence else f"ended with code {ended.code}: {ended.said[-400:]}"


def harm_in_the_end(stage: str, setting: Setting, straight: RunFolder, run: RunFolder) -> str | None:
    """Let a stage go on to its end; how what it leaves differs from what it leaves undisturbed."""
    try:
        let_end(stage, setting, run)
    except AttackError as error:
        return str(error)
    return difference(straight, run, LEAVES[stage])


# --- kills -----------------------------------------------------------------------------------------------------------


def kills_of(stage: str, number: int, setting: Setting) -> list[Row]:
    """Kill a stage again and again until it is done, compare what it leaves, and begin anew."""
    begun = time.monotonic()
    straight = undisturbed(stage, setting)
    seconds, tally = time.monotonic() - begun, Tally(f"kill -9, {stage}")
    while tally.tried < number:
        run, chain = prepared(stage, setting, setting.folder / "killed"), []
        while tally.tried + len(chain) < number:
            harm = _kill_once(stage, run, setting, seconds)
            if harm is None:
                break
            chain.append(harm)
        end = harm_in_the_end(stage, setting, straight, run)
        for harm in chain:
            tally.note(harm, end)
    return [tally.row()]


def _kill_once(stage: str, run: RunFolder, setting: Setting, seconds: float) -> str | None:
    """Begin or go on, and kill at a random instant; what is wrong then, or None where it was done before."""
    before = newest(run, stage)
    with started(*words_of(stage, setting, run)) as running:
        if running.wait(setting.chance.uniform(0.0, seconds)):
            ended = running.ended()
            return None if ended.code == 0 else f"ended with code {ended.code}: {ended.said[-300:]}"
        running.kill()
        running.ended()
    after = newest(run, stage)
    regress = f"the newest checkpoint was of step {before} and is of {after}" if after < before else ""
    return "; ".join([*faults_of(run), *([regress] if regress else [])])


def exact(model: str, processes: int, workers: int, setting: Setting) -> list[Row]:
    """One kill in the middle of an epoch, and the end as if nothing had been."""
    stage = "autoencoder" if model == "autoencoder" else "prior.bottom"
    kind = "transformer" if model == "autoencoder" else model
    config = write_configuration(setting.folder / "exact.json", setting.folder / "images", kind=kind, workers=workers)
    straight = undisturbed(stage, setting, config, processes)
    run = prepared(stage, setting, setting.folder / "killed")
    wanted = setting.chance.randint(4, 17)
    with started(*words_of(stage, setting, run, config), processes=processes) as running:
        wait_until(lambda: any(row["step"] >= wanted for row in run.lines()))
        # One process dies a little before the others, as on machines that fail.
        running.kill(setting.chance.randrange(processes))
        time.sleep(setting.chance.uniform(0.0, 0.1))
    early = "it was done before it was killed" if newest(run, stage) == sys.maxsize else None
    tally = Tally(f"exact: {model}, {processes} process{'es' * (processes > 1)}, {workers} workers")
    try:
        let_end(stage, setting, run, config, processes)
        tally.note(early, difference(straight, run, LEAVES[stage]))
    except AttackError as error:
        tally.note(str(error))
    return [tally.row()]


def signals(number: int, setting: Setting) -> list[Row]:
    """SIGTERM and SIGINT at random instants: a checkpoint, the signal's code, and the end as if nothing had been."""
    stage = "autoencoder"
    straight, tally = undisturbed(stage, setting), Tally("SIGTERM and SIGINT")
    for i in range(number):
        chosen = (signal.SIGTERM, signal.SIGINT)[i % 2]
        run = prepared(stage, setting, setting.folder / "asked")
        with started(*words_of(stage, setting, run)) as running:
            wait_until(lambda run=run: bool(run.lines()))
            time.sleep(setting.chance.uniform(0.0, 0.05))
            running.ask_to_stop(chosen)
            ended = running.ended()
        # What comes as the last step is done lets training end.
        asked = ended.code == 0 or (ended.code == 128 + chosen and "go on with --resume" in ended.said)
        harm = None if asked else f"{chosen.name} ended it with code {ended.code}: {ended.said[-300:]}"
        tally.note(harm, harm_in_the_end(stage, setting, straight, run))
    return [tally.row()]


# --- disks -----------------------------------------------------------------------------------------------------------


def full_disk(setting: Setting) -> list[Row]:
    """Files cannot grow beyond a limit, in each stage; once they can, it goes on."""
    tally = Tally("full disk")
    for stage in STAGES:
        straight = undisturbed(stage, setting)
        for limit in (1, 4, 16, 64):
            run = prepared(stage, setting, setting.folder / "full")
            ended = run_to_end(*words_of(stage, setting, run), limits={resource.RLIMIT_FSIZE: limit * 1024})
            said = unless_sentence(ended) if ended.code else None
            tally.note(said, *faults_of(run), harm_in_the_end(stage, setting, straight, run))
    return [tally.row()]


def read_only(setting: Setting) -> list[Row]:
    """Folders that cannot be made, for a file stands in their place: permissions do not bind every user."""
    tally = Tally("folder that cannot be written")
    for stage in ("autoencoder", "codes", "prior.top", "samples"):
        run = prepared(stage, setting, setting.folder / "read-only")
        for part in ("checkpoints", "codes", "samples"):
            if not (run.path / part).exists():
                (run.path / part).write_text("not a folder")
        tally.note(unless_sentence(run_to_end(*words_of(stage, setting, run))), *faults_of(run))
    return [tally.row()]


# --- damage ----------------------------------------------------------------------------------------------------------


def damaged_checkpoints(setting: Setting) -> list[Row]:
    """A checkpoint truncated at every kilobyte, and with bits flipped: refused by the name of the file."""
    run = prepared("autoencoder", setting, setting.folder / "damaged")
    with started(*words_of("autoencoder", setting, run)):
        wait_until(lambda: newest(run, "autoencoder") >= 6)
    folders = CheckpointFolders(run.checkpoint("autoencoder"))
    folder = folders.of_step(folders.steps()[-1])
    truncated, flipped = Tally("checkpoint truncated at every kilobyte"), Tally("checkpoint with a flipped bit")
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for length in range(0, len(content), 1024):
            truncated.note(_unless_refused(read_checkpoint, file, content[:length]))
        for _ in range(FLIPPED_BITS_PER_FILE):
            damaged = bytearray(content)
            damaged[setting.chance.randrange(len(content))] ^= 1 << setting.chance.randrange(8)
            flipped.note(_unless_refused(read_checkpoint, file, bytes(damaged)))
        file.write_bytes(content)
    read_checkpoint(folder)
    return [truncated.row(), flipped.row()]


def damaged_models(setting: Setting) -> list[Row]:
    """The finished models, truncated at every kilobyte."""
    tally = Tally("model truncated at every kilobyte")
    readers: dict[Path, Callable[[Path], Any]] = {
        setting.done.autoencoder: load_autoencoder,
        **{setting.done.prior(level): load_prior for level in LEVELS},
    }
    for folder, read in readers.items():
        file = folder / "model.safetensors"
        content = file.read_bytes()
        for length in range(0, len(content), 1024):
            tally.note(_unless_refused(read, file, content[:length]))
        file.write_bytes(content)
    return [tally.row()]


def _unless_refused(read: Callable[[Path], Any], file: Path, content: bytes) -> str | None:
    """None where a folder is refused by the name of the file that is given this content."""
    file.write_bytes(content)
    try:
        read(file.parent)
    except CheckpointError as error:
        return None if file.name in str(error) else f"{file.name} is not named in: {error}"
    return f"{file.name} of {len(content)} bytes was read as whole"


# --- numbers ---------------------------------------------------------------------------------------------------------


def not_finite(setting: Setting) -> list[Row]:
    """A learning rate that ruins the weights: steps are skipped, and training ends with a sentence."""
    tally = Tally("loss that is not finite")
    for stage, field in (("autoencoder", "autoencoder_training"), ("prior.top", "priors.top.training")):
        run = prepared(stage, setting, setting.folder / "nan")
        words = [f"{field}.learning_rate=1e20", f"{field}.skipped_steps=5", f"{field}.gradient_clip=1e30"]
        ended = run_to_end(*words_of(stage, setting, run), *words)
        named = None if "not finite 5 steps in a row" in ended.said else f"said {ended.said[-300:]}"
        tally.note(unless_sentence(ended), named, *faults_of(run))
    return [tally.row()]


# --- images ----------------------------------------------------------------------------------------------------------


def hostile_images(setting: Setting) -> list[Row]:
    """One hostile file after the other among the images: left out, or read as it should be, or named; never a crash."""
    tally = Tally("hostile image")
    for name, write in HOSTILE.items():
        images = _copied_images(setting)
        write(images / "train" / "block" / name)
        run = prepared("autoencoder", setting, setting.folder / "hostile")
        config = write_configuration(setting.folder / "hostile.json", images, steps=9)
        ended = run_to_end(*words_of("autoencoder", setting, run, config))
        tally.note(unless_sentence(ended) if ended.code or "Traceback" in ended.said else None)
    return [tally.row()]


def changing_folder(setting: Setting) -> list[Row]:
    """Files that go, or become garbage, while training reads them: one sentence that names the file."""
    tally = Tally("folder that changes under the run")
    for content in (None, b"garbage", b""):
        images = _copied_images(setting)
        run = prepared("autoencoder", setting, setting.folder / "changing")
        config = write_configuration(setting.folder / "changing.json", images, steps=100_000)
        with started(*words_of("autoencoder", setting, run, config)) as running:
            wait_until(lambda run=run: bool(run.lines()))
            for path in (images / "train").rglob("*.png"):
                path.unlink() if content is None else path.write_bytes(content)
            ended = running.ended()
        named = None if ".png" in ended.said else "the file is not named"
        tally.note(unless_sentence(ended), named, *faults_of(run))
    return [tally.row()]


def _copied_images(setting: Setting) -> Path:
    images = setting.folder / "changed-images"
    shutil.rmtree(images, ignore_errors=True)
    shutil.copytree(setting.folder / "images", images)
    return images


# --- all of it -------------------------------------------------------------------------------------------------------

Cell = Callable[[Setting], list[Row]]


def kill_cells(kills: int) -> dict[str, Cell]:
    """Kills of every stage, so many in all."""

    def cell(stage: str, share: float) -> Cell:
        return lambda setting: kills_of(stage, max(1, round(share * kills)), setting)

    return {f"kill {stage}": cell(stage, share) for stage, share in KILL_SHARES.items()}


def exact_cells(models: Sequence[str]) -> dict[str, Cell]:
    """The matrix: codes are mapped into memory, so priors have no loader workers."""

    def cell(model: str, processes: int, workers: int) -> Cell:
        return lambda setting: exact(model, processes, workers, setting)

    return {
        f"exact {model} {processes} {workers}": cell(model, processes, workers)
        for model in models
        for processes in (1, 2)
        for workers in ((0, 2) if model == "autoencoder" else (0,))
    }


def cells(kills: int, quick: bool) -> dict[str, Cell]:
    """Every attack, by name."""
    return {
        **kill_cells(kills),
        **exact_cells(("autoencoder", "transformer") if quick else ("autoencoder", *KINDS)),
        "signals": lambda setting: signals(2 if quick else 16, setting),
        "full disk": full_disk,
        "read-only": read_only,
        "checkpoints": damaged_checkpoints,
        "models": damaged_models,
        "not finite": not_finite,
        "images": hostile_images,
        "changing": changing_folder,
    }


def table(rows: Sequence[Row]) -> str:
    """All rows, and their sum."""
    total = Row("all", *(sum(getattr(row, name) for row in rows) for name in ("tried", "survived", "lost")))
    lines = [[row.fault, f"{row.tried:,}", f"{row.survived:,}", f"{row.lost:,}"] for row in (*rows, total)]
    return markdown(["fault", "tried", "survived", "lost"], lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, attack, report; the exit code is 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten kills, and fewer cells of the matrix")
    parser.add_argument("--kills", type=int, default=120, help="at random instants, over all stages (default: 120)")
    parser.add_argument("--json", type=Path, help="file of rows; what it holds is not tried again")
    parser.add_argument("--only", nargs="*", metavar="CELL", help="beginnings of names of cells; all by default")
    options = parser.parse_args(arguments)
    rows = load_rows(options.json, Row)
    done = {row.cell for row in rows}
    every = cells(10 if options.quick else options.kills, options.quick)
    wanted = {name: cell for name, cell in every.items() if name not in done and _is_wanted(name, options.only)}
    with tempfile.TemporaryDirectory() as folder:
        setting = make_setting(Path(folder)) if wanted else None
        for name, cell in wanted.items():
            assert setting is not None
            found = [replace(row, cell=name) for row in cell(setting)]
            rows += found
            save_rows(options.json, rows)
            for row in found:
                print(f"{row.fault}: {row.survived} of {row.tried}", file=sys.stderr, flush=True)
    print(table(rows))
    return int(any(row.lost for row in rows))


def _is_wanted(name: str, beginnings: Sequence[str] | None) -> bool:
    return beginnings is None or any(name.startswith(beginning) for beginning in beginnings)


if __name__ == "__main__":
    sys.exit(main())
