"""Codes are whole or absent: whoever writes them, whatever interrupts them, and whatever was there before."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hvq.data import CodeExtraction, CodeFolder, code_writing
from hvq.data.code_files import shard_name
from hvq.errors import CheckpointError, DataError, HVQError
from tests.data.small_codes import (
    EPOCHS,
    IMAGES,
    LABELS,
    SIZES,
    add_rows,
    codes_of,
    description,
    memory,
    write,
    write_large,
    write_shards,
)
from tests.processes import run_in_processes
from tests.runs import files_below

SHARDS = 7


def begun(folder: Path, *, resume: bool = False) -> CodeExtraction:
    extraction = CodeExtraction(folder, "train", description())
    extraction.begin(resume=resume)
    return extraction


def go_on(folder: Path) -> list[int]:
    """What another call does with what an interrupted one has left; which files it wrote."""
    extraction = begun(folder, resume=True)
    kept = {shard: extraction.kept(shard) for shard in range(SHARDS)}
    missing = [shard for shard, counts in kept.items() if counts is None]
    counts = write_shards(extraction, missing)
    for found in kept.values():
        for level, count in (found or {}).items():
            counts[level] += count
    extraction.finish(counts)
    return missing


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_files_do_not_depend_on_who_writes_them(tmp_path: Path, processes: int, chunk: int) -> None:
    extraction = begun(tmp_path / "several")
    counts = [
        write_shards(extraction, list(range(SHARDS))[rank::processes], chunk) for rank in reversed(range(processes))
    ]
    extraction.finish({level: torch.stack([count[level] for count in counts]).sum(0) for level in SIZES})
    write(tmp_path / "one")
    assert files_below(tmp_path / "several") == files_below(tmp_path / "one")


def test_interrupted_writing_is_not_taken_for_a_whole(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no complete codes .* extract the codes first$"):
        CodeFolder(tmp_path, "train")
    extraction = begun(tmp_path)
    counts = write_shards(extraction, [0, 1, 2, 4, 5, 6])
    with pytest.raises(CheckpointError, match=r"no complete codes .*go on with --resume"):
        CodeFolder(tmp_path, "train")
    with pytest.raises(CheckpointError, match=r"missing the file .*shard-00003"):
        extraction.finish(counts)
    assert not (tmp_path / "train").exists()


def test_what_is_whole_is_kept_and_the_rest_is_written(tmp_path: Path) -> None:
    expected = files_below(write(tmp_path / "straight"))
    extraction = begun(tmp_path)
    write_shards(extraction, [5, 1, 2, 4])
    (extraction.path / shard_name(4)).write_bytes(b"half of it")
    shutil.copy(extraction.path / shard_name(1), extraction.path / shard_name(3))
    # As `kill -9` leaves it.
    (extraction.path / f".{shard_name(6)}.12345.partial").write_bytes(b"half")
    assert go_on(tmp_path) == [0, 3, 4, 6]
    assert files_below(tmp_path / "train") == expected
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_whole_extraction_is_left_as_it_is_but_for_damage(tmp_path: Path) -> None:
    path = write(tmp_path)
    expected, times = files_below(path), {file: file.stat().st_mtime_ns for file in path.iterdir()}
    assert go_on(tmp_path) == []
    assert times == {file: file.stat().st_mtime_ns for file in path.iterdir()}
    (path / shard_name(3)).write_bytes((path / shard_name(3)).read_bytes()[:-1])
    (path / "counts.safetensors").unlink()
    assert go_on(tmp_path) == [3]
    assert files_below(path) == expected


@pytest.mark.parametrize("resume", [False, True])
def test_codes_of_another_autoencoder_are_not_kept(tmp_path: Path, resume: bool) -> None:
    """Neither whole ones nor begun ones; and what is whole stays until what is new is whole."""
    write(tmp_path, encoder_hash="old")
    other = CodeExtraction(tmp_path, "train", description(encoder_hash="other", images_per_shard=2))
    other.begin()
    write_shards(other, [0, 16])
    extraction = begun(tmp_path, resume=resume)
    assert [extraction.kept(shard) for shard in range(SHARDS)] == [None] * SHARDS
    assert CodeFolder(tmp_path, "train").encoder_hash == "old"
    extraction.finish(write_shards(extraction, list(range(SHARDS))))
    assert CodeFolder(tmp_path, "train").encoder_hash == "abc"
    assert files_below(tmp_path / "train") == files_below(write(tmp_path / "straight"))


def test_without_resume_everything_is_written_again(tmp_path: Path) -> None:
    write(tmp_path)
    extraction = begun(tmp_path)
    write_shards(extraction, [0, 1])
    again = begun(tmp_path)
    assert [again.kept(shard) for shard in range(SHARDS)] == [None] * SHARDS
    assert len(CodeFolder(tmp_path, "train")) == IMAGES * EPOCHS


def _found(folder: Path) -> str:
    """The autoencoder of the codes that a reader finds, or what else it is told."""
    try:
        return CodeFolder(folder, "train").encoder_hash
    except CheckpointError as error:
        return "go on with --resume" if "go on with --resume" in str(error) else str(error)


class Ended(BaseException):
    """Stands for the end of the process."""


def test_ended_at_any_instant_of_the_exchange_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends before its n-th change to the disk while new codes take the place of old ones."""
    straight = files_below(write(tmp_path / "straight"))
    for n in range(20):
        folder = tmp_path / str(n)
        write(folder, encoder_hash="old")
        extraction = begun(folder)
        counts = write_shards(extraction, list(range(SHARDS)))
        with monkeypatch.context() as patch:
            left = iter(range(n, -1, -1))

            def counted(original: Callable[..., None], left: object = left) -> Callable[..., None]:
                def change(*words: object, **options: object) -> None:
                    if next(left) == 0:  # type: ignore[call-overload]
                        raise Ended
                    original(*words, **options)

                return change

            patch.setattr(os, "replace", counted(os.replace))
            patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
            try:
                extraction.finish(counts)
            except Ended:
                ended = True
            else:
                ended = False
        assert _found(folder) in ("old", "abc", "go on with --resume")
        assert go_on(folder) == []
        assert files_below(folder / "train") == straight
        assert [path.name for path in folder.iterdir()] == ["train"]
        if not ended:
            break
    assert not ended
    assert n > 4


def _peaks(folder: str, numbers: tuple[int, ...]) -> list[int]:
    """What a process has at most, in bytes, beyond what it has before it writes so many images."""
    peaks = []
    for i, images in enumerate(numbers):
        # From here on, what the process has at most is what it has now.
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmHWM")
        write_large(Path(folder) / str(i), images)
        peaks.append(memory("VmHWM") - before)
    return peaks


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="reads how much memory the process has")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """Ten times as many images, whose codes take 40 MB more; in a process that no other test has left anything in."""
    peaks = run_in_processes(_peaks, 1, str(tmp_path), (17, *(17, 170) * 3))[0][1:]
    # A busy system takes pages away and gives them back, which is no growth: that would be there every time.
    assert min(many - few for few, many in zip(peaks[::2], peaks[1::2], strict=True)) < 10e6


def test_what_cannot_be_written_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HVQError, match=r"file cannot be written: Not a directory"):
        begun(tmp_path / "file")
    extraction = begun(tmp_path)
    write_shards(extraction, [0])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(code_writing, "write_shard", full)
    with pytest.raises(HVQError, match=r"cannot be written: No space left on device"):
        write_shards(extraction, [1])
    monkeypatch.undo()
    assert go_on(tmp_path) == list(range(1, SHARDS))


def _bad_additions() -> dict[str, dict[str, Tensor]]:
    good = {level: values[:5] for level, values in codes_of().items()}
    return {
        "too large": good | {"top": good["top"] + 7},
        "negative": good | {"bottom": good["bottom"] - 300},
        "other grid": good | {"top": good["top"][:, :1]},
        "level missing": {"top": good["top"]},
        "level unknown": good | {"middle": good["top"]},
    }


@pytest.mark.parametrize("fault", _bad_additions())
def test_codes_that_do_not_fit_their_description_are_not_written(tmp_path: Path, fault: str) -> None:
    extraction = begun(tmp_path)
    writer = extraction.writer(0)
    with pytest.raises(HVQError, match="codes"):
        writer.add(_bad_additions()[fault], labels=LABELS[:5], indices=torch.arange(5))
    with pytest.raises(DataError, match=r"shard-00000\.safetensors of codes takes 5 rows; received 0"):
        writer.close()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_labels_and_images_that_do_not_belong_there_are_refused(tmp_path: Path) -> None:
    writer = begun(tmp_path).writer(3)
    good = {level: values[:2] for level, values in codes_of().items()}
    # Row 15 is the last but one of the first pass, row 17 the first of the second.
    with pytest.raises(DataError, match=r"shard-00003.* takes images 15 to 16 next; received 0 to 1"):
        writer.add(good, labels=LABELS[:2], indices=torch.arange(2))
    with pytest.raises(DataError, match=r"labels must be one per image, \[2\]; received \[3\]"):
        writer.add(good, labels=LABELS[:3], indices=torch.tensor([15, 16]))
    with pytest.raises(DataError, match="labels must go from -1 to below 2; received 1 to 2"):
        writer.add(good, labels=torch.tensor([1, 2]), indices=torch.tensor([15, 16]))
    add_rows(writer, range(15, 20))
    with pytest.raises(DataError, match="takes images none next; received 3 to 4"):
        writer.add(good, labels=LABELS[:2], indices=torch.tensor([3, 4]))
    counts = writer.close()
    for level, values in codes_of().items():
        expected = np.bincount(values[15:20].flatten().numpy(), minlength=SIZES[level])
        assert counts[level].tolist() == [expected.tolist()]
