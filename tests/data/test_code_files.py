"""What lies where among the files of a folder of codes, and what a damaged one is found by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from hvq.data.code_files import code_type, label_type, open_shard, open_verified, shard_name
from hvq.errors import CheckpointError
from tests.data.small_codes import EPOCHS, LABELS, codes_of, description, write


@given(images=st.integers(1, 31), epochs=st.integers(1, 5), per_shard=st.integers(1, 70))
def test_files_hold_every_image_of_every_epoch_once_and_in_order(images: int, epochs: int, per_shard: int) -> None:
    described = description(num_images=images, augmented_epochs=epochs, images_per_shard=per_shard)
    shards = range(described.num_shards)
    passes = [described.passes(shard) for shard in shards]
    found = [(epoch, image) for parts in passes for epoch, start, stop in parts for image in range(start, stop)]
    assert found == [(epoch, image) for epoch in range(epochs) for image in range(images)]
    lengths = [sum(stop - start for _, start, stop in parts) for parts in passes]
    assert lengths == [len(described.rows(shard)) for shard in shards]
    assert all(length == per_shard for length in lengths[:-1])


def test_files_have_the_size_asked_for_and_the_smallest_types(tmp_path: Path) -> None:
    files = sorted(write(tmp_path).glob("shard-*"))
    assert [file.name for file in files] == [shard_name(shard) for shard in range(7)]
    shards = [load_file(file) for file in files]
    assert [len(shard["labels"]) for shard in shards] == [5] * 6 + [4]
    types = {name: column.dtype for name, column in shards[0].items()}
    assert types == {"codes.top": torch.uint8, "codes.bottom": torch.int16, "labels": torch.int8}
    for level, values in codes_of().items():
        assert torch.equal(torch.cat([shard[f"codes.{level}"] for shard in shards]).long(), values)
    labels = torch.cat([shard["labels"] for shard in shards]).long()
    assert torch.equal(labels, LABELS.repeat(EPOCHS))


@pytest.mark.parametrize("size", [1, 256, 257, 32_768, 32_769, 65_536])
def test_every_code_survives_its_type(size: int) -> None:
    assert torch.tensor([size - 1]).to(code_type(size)).item() == size - 1


@pytest.mark.parametrize("classes", [0, 1, 128, 129, 32_768, 32_769])
def test_every_label_survives_its_type(classes: int) -> None:
    assert torch.tensor([-1, classes - 1]).to(label_type(classes)).tolist() == [-1, classes - 1]


def test_a_file_of_other_codes_is_not_taken(tmp_path: Path) -> None:
    path = write(tmp_path)
    (path / shard_name(2)).write_bytes((path / shard_name(3)).read_bytes())
    with pytest.raises(CheckpointError, match=r"shard-00002\.safetensors holds other codes than index\.json"):
        open_shard(path, description(), 2)
    with pytest.raises(CheckpointError, match="holds other codes"):
        open_shard(path, description(encoder_hash="xyz"), 1)
    open_shard(path, description(), 1)


def test_no_flipped_bit_and_no_truncation_goes_unnoticed(tmp_path: Path) -> None:
    path = write(tmp_path)
    file = path / shard_name(1)
    whole = file.read_bytes()
    generator = np.random.default_rng(0)
    flips = np.unique(np.concatenate([np.arange(60), generator.integers(0, len(whole), 60)]))
    for place in flips.tolist():
        changed = bytearray(whole)
        changed[place] ^= 1 << int(generator.integers(0, 8))
        file.write_bytes(bytes(changed))
        assert open_verified(path, description(), 1) is None, place
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert open_verified(path, description(), 1) is None, length
    file.write_bytes(whole)
    columns = open_verified(path, description(), 1)
    assert columns is not None
    assert torch.equal(columns["codes.top"].long(), codes_of()["top"][5:10])
    assert len(columns["labels"]) == 5
