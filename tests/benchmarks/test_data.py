"""The benchmark of reading images measures every form of the same images, and goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

from tests.data.kinds import encoded

FIELDS = {"implementation", "workers", "images_per_second", "times_floor"}
NAMES = {"hvq/folder", "hvq/shards", "hvq/shards, streamed", "hvq/hub", "hvq/hub, streamed", "webdataset"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for index in range(11):
        path = tmp_path / "images" / str(index % 2) / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(index, "JPEG"))
    return tmp_path / "images"


@pytest.fixture
def benchmark(
    load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> ModuleType:
    data = load_benchmark("data")
    # The benchmark sets one of its own; the one before comes back with the end of the test.
    monkeypatch.setenv("HVQ_CACHE", str(tmp_path / "cache"))
    data.SIZE, data.BATCH, data.WARM = (7, 5), 3, 1
    return data


def test_every_implementation_has_a_row_for_each_number_of_workers(
    benchmark: ModuleType, images: Path, tmp_path: Path
) -> None:
    def rate(stream: Iterator[int], seconds: float) -> float:
        return float(next(stream))

    benchmark.rate = rate
    words = ["--quick", "--workers", "0", "--data", str(images), "--json", str(tmp_path / "rows.json")]
    assert benchmark.main(words) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert all(row.keys() == FIELDS and row["images_per_second"] > 0 for row in rows)
    assert {row["implementation"] for row in rows} == NAMES | {benchmark.FLOOR}
    benchmark.measure = lambda *_: pytest.fail("measured again")
    assert benchmark.main(words) == 0
    benchmark.measure = lambda make, workers, *_: (sum(islice(make(workers), 3)), 3.0)
    assert benchmark.main([*words[:1], "--workers", "1", "--only", "hvq/shards", *words[3:]]) == 0
    assert json.loads((tmp_path / "rows.json").read_text())[-1] == {
        "implementation": "hvq/shards",
        "workers": 1,
        "images_per_second": 9,
        "times_floor": 3.0,
    }


def test_all_forms_hold_the_same_images(benchmark: ModuleType, images: Path, tmp_path: Path) -> None:
    copies = benchmark.make_copies(images, tmp_path / "copies", 9)
    assert [path.read_bytes() for path in copies.files] == sorted(
        (path.read_bytes() for path in images.rglob("*.jpg")),
        key=[path.read_bytes() for path in sorted(images.rglob("*.jpg"))].index,
    )[:9]
    makers = benchmark.implementations(copies)
    assert set(makers) == NAMES
    # A file is held out where the project trains; what is left makes batches without end.
    for make in makers.values():
        assert list(islice(make(0), 4)) == [3, 3, 3, 3]
    with pytest.raises(SystemExit, match="at least 8 JPEG or PNG files"):
        benchmark.make_copies(images, tmp_path / "few", 5)
