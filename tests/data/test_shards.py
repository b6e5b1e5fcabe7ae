"""Tar shards: where they are, what they hold, and reading those that are not on this machine."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvq.data import (
    ShardImages,
    StreamedImages,
    Streaming,
    TrainingStream,
    ordered_batches,
    shard_index,
    shard_sources,
    tar,
)
from hvq.data.shards import expand_shards
from hvq.errors import DataError
from tests.data.kinds import encoded, names_of, same, save_folder, save_shards, write_tar

SIZE = (7, 5)
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset loads URLs with curl")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return save_folder(tmp_path / "images", 29)


def addresses(specification: str) -> list[str]:
    return [shard.address for shard in expand_shards(specification)]


def test_ranges_wildcards_folders_and_lists_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_tar(tmp_path / f"a-{number:02d}.tar", []) for number in range(3)]
    expected = [str(path) for path in paths]
    assert addresses(f"{tmp_path}/a-{{00..02}}.tar") == expected
    assert addresses(f"{tmp_path}/a-*.tar") == expected
    assert addresses(f"{tmp_path}/a-0[12].tar") == expected[1:]
    assert addresses(str(tmp_path)) == expected
    assert addresses(f"{expected[2]}::{expected[0]}::{expected[2]}") == [expected[2], expected[0]]
    assert addresses(paths[1].as_uri()) == [expected[1]]
    urls = [f"https://host/a-{number}.tar" for number in (7, 8)]
    assert addresses("https://host/a-{7..8}.tar") == urls
    assert not any(shard.local for shard in expand_shards("https://host/a-{7..8}.tar"))
    monkeypatch.setenv("WDS_WHERE", str(tmp_path))
    assert addresses("${WHERE}/a-01.tar") == expected[1:2]


def test_held_out_shards_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("a", "b", "val")):
        write_tar(tmp_path / "shards" / f"{name}.tar", sample(name, number))
    monkeypatch.chdir(tmp_path)
    held_out = f"{tmp_path}/shards/val.tar"
    for train in ("shards", "shards/*.tar", "./shards/../shards/*", "shards/[a-z]*.tar"):
        sources = shard_sources(train, held_out, size=SIZE)
        assert (names_of(sources.train), names_of(sources.validation)) == (["a.png", "b.png"], ["val.png"])
    (tmp_path / "link.tar").symlink_to("shards/val.tar")
    for train in ("shards/{a,val}.tar", "shards/*.tar::./shards/val.tar", "shards/a.tar::link.tar"):
        with pytest.raises(DataError, match=r"(val|link)\.tar cannot be both trained on and held out; leave it out"):
            shard_sources(train, held_out, size=SIZE)
    with pytest.raises(DataError, match=r"http://host/a.tar cannot be both"):
        shard_sources("http://host/{a,b}.tar", "http://host/a.tar")
    with pytest.raises(DataError, match="all shards at 'shards' are held out"):
        shard_sources("shards", "shards/*.tar", size=SIZE)


def test_one_shard_under_two_names_is_one(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [])
    assert addresses(f"{path}::{tmp_path}/./a.tar::{tmp_path}") == [str(path)]


def test_a_file_may_be_called_like_wildcards(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a[1].tar", [])
    assert addresses(str(path)) == [str(path)]


@pytest.mark.parametrize(
    ("specification", "sentence"),
    [
        ("pipe:cat a.tar", "would run a program"),
        ("-", "would run a program"),
        ("nowhere-*.tar", "there are no shards at 'nowhere-[*].tar'"),
        ("nowhere.tar", "shard nowhere.tar cannot be read .*No such file.*; name shards that exist"),
        ("${MISSING}.tar", "does not say where shards are: .*MISSING"),
        ("s3://host/a.tar", "shard s3://host/a.tar cannot be read .*no gopen handler"),
    ],
)
def test_what_names_no_shards_is_refused(specification: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        shard_sources(specification)


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(DataError, match=r'pip install "hvq\[data\]"'):
        shard_sources("a.tar")


# --- samples ---------------------------------------------------------------------------------------------------------


def sample(key: str, seed: int, label: str | None = None, **more: bytes) -> list[tuple[str, bytes]]:
    parts = {"png": encoded(seed)} | ({} if label is None else {"cls": label.encode()}) | more
    return [(f"{key}.{suffix}", content) for suffix, content in parts.items()]


def labels_of(path: Path, **options: Any) -> dict[str, str | None]:
    """The class of each sample, by key."""
    sources = shard_sources(str(path), size=SIZE, validation_share=0.3, **options)
    assert sources.train.classes == sources.validation.classes
    return {
        source.name(index).partition(".")[0]: source.classes[source.label(index)] if source.label(index) >= 0 else None
        for source in (sources.train, sources.validation)
        for index in range(len(source))
    }


def test_classes_are_numbers_or_names(tmp_path: Path) -> None:
    numbers = [*sample("0", 0, "2"), *sample("1", 1, " 0\n"), *sample("2", 2, "-1"), *sample("3", 3, "02")]
    assert labels_of(write_tar(tmp_path / "a.tar", numbers)) == {"0": "2", "1": "0", "2": None, "3": "2"}
    sources = shard_sources(str(tmp_path / "a.tar"), size=SIZE)
    assert sources.train.classes == ("0", "1", "2")
    names = [*sample("0", 0, "dog"), *sample("1", 1, "cat"), *sample("2", 2, "cat"), *sample("3", 3, "dog")]
    assert labels_of(write_tar(tmp_path / "b.tar", names)) == {"0": "dog", "1": "cat", "2": "cat", "3": "dog"}


def test_classes_under_a_key_of_json(tmp_path: Path) -> None:
    contents = [{"kind": "dog", "label": 5}, {"kind": "cat"}, {"text": "x", "kind": None}, {"kind": "dog"}]
    members = [
        part
        for index, value in enumerate(contents)
        for part in sample(str(index), index, json=json.dumps(value).encode())
    ]
    path = write_tar(tmp_path / "a.tar", members)
    assert labels_of(path, label_key="kind") == {"0": "dog", "1": "cat", "2": None, "3": "dog"}
    # Read anew for another key, though the shard is the same.
    assert labels_of(path, label_key="label") == {"0": "5", "1": None, "2": None, "3": None}
    assert labels_of(path) == dict.fromkeys("0123")


def test_folders_are_classes_where_nothing_else_says_so(tmp_path: Path) -> None:
    members = [part for index in range(7) for part in sample(f"./{'07' if index % 3 else 'cat'}/{index}", index)]
    path = write_tar(tmp_path / "a.tar", members)
    sources = shard_sources(str(path), size=SIZE, validation_share=0.3)
    assert sources.train.classes == ("07", "cat")
    for source in (sources.train, sources.validation):
        for index, name in enumerate(names_of(source)):
            assert source.classes[source.label(index)] == name.partition("/")[0]
    write_tar(path, [*members, *sample("loose", 9)])
    assert shard_sources(str(path), size=SIZE).train.classes == ()


def test_held_out_shards_have_classes_of_training(tmp_path: Path) -> None:
    train = write_tar(tmp_path / "a.tar", [*sample("0", 0, "dog"), *sample("1", 1, "cat")])
    held_out = write_tar(tmp_path / "b.tar", sample("2", 2, "dog"))
    sources = shard_sources(str(train), str(held_out), size=SIZE)
    assert (names_of(sources.train), names_of(sources.validation)) == (["0.png", "1.png"], ["2.png"])
    assert sources.validation.label(0) == 1
    stranger = write_tar(tmp_path / "c.tar", sample("3", 3, "emu"))
    with pytest.raises(DataError, match=r"c\.tar must have the same classes as .*a\.tar \(cat, dog\); found emu"):
        shard_sources(str(train), str(stranger), size=SIZE)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([*sample("0", 0), ("0.jpg", encoded(1, "JPEG"))], "'0' holds 2 images, 0.png and 0.jpg"),
        ([("0.png", encoded(0)), ("0.png", encoded(1))], "duplicate"),
        (sample("0", 0, "a" * 70_000), r"0\.cls holds 70,000 bytes"),
        ([("0.png", encoded(0)), ("0.cls", b"\xff\xfe")], "class of sample '0' cannot be read"),
        ([*sample("0", 0, "9" * 9), *sample("1", 1)], "numbers below 1,048,576; one has 9 digits"),
        ([("0.txt", b"a"), ("1.txt", b"b")], "must hold images; found none"),
        ([("0.png", b"x"), ("1.png", b"y")], "must hold images; found none, and 2 that cannot be read"),
        (sample("0", 0), "holds a single image"),
        (
            [("0.png", encoded(0)), ("1.png", encoded(1)), ("0.cls", b"1"), ("1.cls", b"0")],
            r"members of sample '0' do not lie side by side; write it with `tar --sort=name`",
        ),
        ([*sample("0", 0, "9" * 5_000), *sample("1", 1)], r"numbers below 1,048,576; one has 5,000 digits"),
    ],
)
def test_samples_that_are_not_as_they_should_be(tmp_path: Path, members: Any, sentence: str) -> None:
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=sentence) as raised:
        shard_sources(str(path), size=SIZE)
    assert "a.tar" in str(raised.value)


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"kind": [1]}', b'{"kind": true}', b"\xff"])
def test_json_that_holds_no_class(tmp_path: Path, content: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", [*sample("0", 0, json=content), *sample("1", 1)])
    with pytest.raises(DataError, match=r"shard .*a\.tar cannot be read \(the class of sample '0'"):
        shard_sources(str(path), size=SIZE, label_key="kind")


# --- reading ---------------------------------------------------------------------------------------------------------


def test_shards_are_looked_through_once_and_again_when_they_change(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = save_shards(root, 3)
    for path in root.glob("*.tar"):
        os.utime(path, ns=(10**18, 10**18))
    scanned: list[str] = []
    original = shard_index._scan

    def scan(shard: tar.Shard, *rest: Any) -> shard_index.ShardIndex:
        scanned.append(shard.address)
        return original(shard, *rest)

    monkeypatch.setattr(shard_index, "_scan", scan)
    first = shard_sources(shards, size=SIZE)
    assert len(scanned) == 3
    again = shard_sources(shards, size=SIZE)
    assert len(scanned) == 3
    assert names_of(first.train) == names_of(again.train)
    assert same(first.train.fetch(np.arange(9)), again.train.fetch(np.arange(9)))
    write_tar(root / "shard-1.tar", sample("cat/new", 3))
    assert "cat/new.png" in names_of(shard_sources(shards, size=SIZE, validation_share=0.0).train)
    assert [Path(address).name for address in scanned[3:]] == ["shard-1.tar"]


def test_order_is_that_of_names_however_samples_are_spread(root: Path) -> None:
    plain = shard_sources(save_shards(root, 2, "a-{}.tar"), size=SIZE, seed=3).train
    spread = shard_sources(save_shards(root, 5, "b-{}.tar", shuffled=True), size=SIZE, seed=3).train
    assert names_of(plain) == names_of(spread) == sorted(names_of(plain))
    assert same(plain.fetch(np.arange(len(plain))), spread.fetch(np.arange(len(plain))))
    assert plain.fingerprint() == spread.fingerprint()


def test_compressed_shards_are_read_in_sequence(root: Path) -> None:
    plain = shard_sources(save_shards(root, 2), size=SIZE, streaming=Streaming(enabled=True)).train
    for path in sorted(root.glob("*.tar")):
        path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    compressed = shard_sources(f"{root}/shard-*.tar.gz", size=SIZE).train
    assert isinstance(compressed, StreamedImages)
    for one, other in zip(*(islice(TrainingStream(s, batch_size=5), 9) for s in (plain, compressed)), strict=True):
        assert same(one[0], other[0])
    with pytest.raises(DataError, match=r"from end to end, .*; set data.streaming.enabled to true or null"):
        shard_sources(f"{root}/shard-*.tar.gz", size=SIZE, streaming=Streaming(enabled=False))


def test_a_compressed_shard_may_be_of_several_parts(tmp_path: Path) -> None:
    """As bgzip and pigz write them."""
    plain = write_tar(tmp_path / "a.tar", [part for index in range(5) for part in sample(str(index), index, "1")])
    content = plain.read_bytes()
    parts = [gzip.compress(content[start : start + 997]) for start in range(0, len(content), 997)]
    (tmp_path / "a.tar.gz").write_bytes(b"".join(parts))
    expected, found = (shard_sources(str(tmp_path / name), size=SIZE).train for name in ("a.tar", "a.tar.gz"))
    assert names_of(found) == names_of(expected)
    assert same(found.fetch(np.arange(4)), expected.fetch(np.arange(4)))
    (tmp_path / "a.tar.gz").write_bytes(b"".join(parts)[:-11])
    with pytest.raises(DataError, match=r"a\.tar\.gz cannot be read \(Compressed file ended before"):
        shard_sources(str(tmp_path / "a.tar.gz"), size=SIZE)


def test_links_are_named_among_those_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for index in range(3):
            member = tarfile.TarInfo(f"{index}.png")
            member.size = len(encoded(index))
            archive.addfile(member, io.BytesIO(encoded(index)))
        for kind, name in ((tarfile.LNKTYPE, "3.png"), (tarfile.SYMTYPE, "4.png"), (tarfile.DIRTYPE, "5.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "0.png"
            archive.addfile(member)
    sources = shard_sources(str(path), size=SIZE)
    assert sources.train.skipped == (f"{path}: 3.png", f"{path}: 4.png")
    streamed = shard_sources(str(path), size=SIZE, streaming=Streaming(enabled=True))
    assert len(streamed.train.fetch(np.arange(2))) == 2


class _Handler(SimpleHTTPRequestHandler):
    """Files of a folder; the first `broken` answers for a shard end in the middle, and as many fall silent."""

    broken = 0
    silent = 0
    asked: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        type(self).asked.append(Path(self.path).name)
        content = source.read()
        if type(self).broken > 0:
            type(self).broken -= 1
            content = content[: len(content) // 2]
        if type(self).silent > 0:
            type(self).silent -= 1
            outputfile.write(content[: len(content) // 2])
            outputfile.flush()
            # Until the other end has gone.
            self.connection.recv(1)
            return
        outputfile.write(content)


@pytest.fixture
def server(root: Path) -> Iterator[tuple[str, type[_Handler]]]:
    handler = type("Handler", (_Handler,), {"asked": [], "broken": 0})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(root))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", handler
        running.shutdown()


@needs_curl
def test_shards_by_url_give_what_streamed_files_give(root: Path, server: tuple[str, type[_Handler]]) -> None:
    save_shards(root, 3)
    options: dict[str, Any] = {"size": SIZE, "seed": 3, "crop": "random"}
    streaming = Streaming(lanes=2, shuffle_buffer=6)
    here = shard_sources(
        f"{root}/shard-{{0..2}}.tar", streaming=Streaming(enabled=True, lanes=2, shuffle_buffer=6), **options
    )
    there = shard_sources(f"{server[0]}/shard-{{0..2}}.tar", streaming=streaming, **options)
    assert isinstance(there.train, StreamedImages)
    assert names_of(here.train) == names_of(there.train)
    assert here.train.fingerprint() == there.train.fingerprint()
    streams = [
        TrainingStream(sources.train, batch_size=4, seed=3, workers=workers)
        for sources, workers in ((here, 0), (there, 2))
    ]
    for one, other in zip(*(islice(stream, 15) for stream in streams), strict=True):
        assert same(one[0], other[0])
    for one_batch, other_batch in zip(
        *(ordered_batches(sources.validation, chunk_size=3) for sources in (here, there)), strict=True
    ):
        assert same(one_batch, other_batch)


@needs_curl
def test_a_connection_that_breaks_off_is_taken_up_again(
    root: Path, server: tuple[str, type[_Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    save_shards(root, 1)
    address, handler = server
    # While it is looked through.
    handler.broken = 2
    source = shard_sources(f"{address}/shard-0.tar", size=SIZE).train
    assert handler.asked == ["shard-0.tar"] * 3
    expected = source.fetch(np.arange(len(source)))
    handler.broken = 2
    handler.asked.clear()
    assert same(source.fetch(np.arange(len(source))), expected)
    assert handler.asked == ["shard-0.tar"] * 3
    handler.broken = 9
    with pytest.raises(DataError, match=r"shard http://.*shard-0\.tar cannot be read"):
        source.fetch(np.arange(len(source)))


@needs_curl
def test_a_server_that_falls_silent_is_asked_again(
    root: Path, server: tuple[str, type[_Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar, "_SILENT_SECONDS", 0.5)
    save_shards(root, 1)
    address, handler = server
    source = shard_sources(f"{address}/shard-0.tar", size=SIZE).train
    expected = source.fetch(np.arange(len(source)))
    handler.asked.clear()
    handler.silent = 1
    assert same(source.fetch(np.arange(len(source))), expected)
    assert handler.asked == ["shard-0.tar"] * 2
    handler.silent = 3
    with pytest.raises(DataError, match=r"shard-0\.tar cannot be read \(nothing has come for 0.5 seconds\)"):
        source.fetch(np.arange(len(source)))


@needs_curl
def test_a_shard_that_is_another_by_now_is_named_and_read_anew(root: Path, server: tuple[str, type[_Handler]]) -> None:
    save_shards(root, 1)
    url = f"{server[0]}/shard-0.tar"
    source = shard_sources(url, size=SIZE).train
    write_tar(root / "shard-0.tar", [*sample("cat/x", 0), *sample("cat/y", 1), *sample("cat/z", 2)])
    with pytest.raises(DataError, match=r"shard-0\.tar is not the one that was read before: where .* there is cat/x"):
        source.image(0)
    assert len(shard_sources(url, size=SIZE, validation_share=0.0).train) == 2
    with pytest.raises(DataError, match=r"shard http://.*/missing\.tar cannot be read"):
        shard_sources(f"{server[0]}/missing.tar", size=SIZE)


def test_files_on_this_machine_are_read_at_random_unless_told_otherwise(root: Path) -> None:
    shards = save_shards(root, 2)
    assert isinstance(shard_sources(shards, size=SIZE).train, ShardImages)
    assert isinstance(shard_sources(shards, size=SIZE, streaming=Streaming(enabled=True)).train, StreamedImages)
