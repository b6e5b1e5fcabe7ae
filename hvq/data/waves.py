""".wav files: stretches of the sounds of any folder, read from where they lie, and sounds that are written.

Letters: C channels, T values.
"""

from __future__ import annotations

import os
import wave
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvq.data.folder import listed_classes, split_listing
from hvq.data.listing import Listing, paths_below, stamp_of, top_of
from hvq.data.pictures import open_regular
from hvq.data.sources import UNAUGMENTED, ImageSource, Indices, Sources, checked_labels
from hvq.errors import DataError

SUFFIXES = frozenset({".wav", ".wave"})
_WIDTHS = (1, 2)
_UNREADABLE = (wave.Error, EOFError, OSError)


class WaveFiles(ImageSource):
    """Stretches of .wav files, float32 `[C, T]` in [-1, 1]: at random where there is an epoch, else at the center.

    Args:
        listing: of the files.
        labels: integers `[N]`; `None` where there are none.
        classes: names of the classes, in the order of labels.
        size: (T); shorter sounds are followed by silence.
        channels: C; of stereo the mean of both is taken for 1, and mono is repeated for 2.
        seed: of the places.
    """

    def __init__(
        self,
        listing: Listing,
        *,
        labels: list[int] | None = None,
        classes: tuple[str, ...] = (),
        size: tuple[int, ...] = (16_384,),
        channels: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(size=size, channels=channels, classes=classes, skipped=listing.skipped, seed=seed)
        self._listing = listing
        self._labels = checked_labels(labels, len(listing.readable), len(classes))

    def __len__(self) -> int:
        return len(self._listing.readable)

    def positions(self, indices: Indices, epochs: Indices) -> NDArray[np.float64]:
        """Random ones where there is an epoch; the center otherwise."""
        random, center = self.random_positions(indices, epochs), super().positions(indices, epochs)
        return np.where(epochs[:, None] == UNAUGMENTED, center, random)

    def picture(self, index: int, position: tuple[float, ...]) -> Tensor:
        """A stretch of sound `index`; no more than that is read.

        Raises:
            DataError: where the file has gone, has changed, or is damaged.
        """
        path = self._listing.root / self.name(index)
        try:
            with open_regular(path) as file:
                if stamp_of(os.fstat(file.fileno())) != tuple(self._listing.stamps[index].tolist()):
                    raise DataError(
                        f"sound {path} is not the file that was there when the run began: it has been replaced or "
                        "written to; put the old one back, or start again with the new one"
                    )
                with wave.open(file) as sound:
                    values = _stretch(sound, self.size[0], position[0])
        except _UNREADABLE as error:
            raise DataError(
                f"sound {path} cannot be read ({error}); remove or replace the file and start again"
            ) from None
        return _with_channels(torch.from_numpy(values), self.channels)

    def label(self, index: int) -> int:
        """Index of the class of sound `index`; -1 where it is unknown."""
        return -1 if self._labels is None else int(self._labels[index])

    def content(self, index: int) -> bytes:
        """The size of the file."""
        return str(int(self._listing.stamps[index, 0])).encode()

    def name(self, index: int) -> str:
        """The relative path of sound `index`."""
        return self._listing.readable[index]


def wave_sources(
    path: str | Path,
    *,
    size: tuple[int, ...] = (16_384,),
    channels: int = 1,
    sample_rate: int = 16_000,
    validation_share: float = 0.05,
    labelled: bool = True,
    seed: int = 0,
) -> Sources:
    """The .wav files below a folder, at any depth: PCM of 8 or 16 bits, of one or two channels.

    Classes and held-out files are found as `folder_sources` finds those of images.

    Args:
        path: the folder.
        size: (T), length of the stretches that are taken.
        channels: 1 for mono, 2 for stereo; sounds are converted.
        sample_rate: in Hz, which all files must have.
        validation_share: share of files held out by hash, from 0 to below 1.
        labelled: whether subfolders are classes.
        seed: of the places of stretches; the choice of held-out files does not depend on it.

    Raises:
        DataError: where the folder or its sounds are missing, one has another rate or another number of bits, or the
            splits disagree about the classes.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"data.path must be a folder of sounds; there is no folder {root}")
    splits = split_listing(_list_waves(root, sample_rate), validation_share, what="sounds", suffixes=SUFFIXES)
    classes = listed_classes(*splits) if labelled else ()
    train, validation = (
        WaveFiles(
            listing,
            labels=[classes.index(top_of(name)) for name in listing.readable] if classes else None,
            classes=classes,
            size=size,
            channels=channels,
            seed=seed,
        )
        for listing in splits
    )
    return Sources(train=train, validation=validation)


def write_wave(path: Path, values: Tensor, sample_rate: int) -> None:
    """Write a sound as PCM of 16 bits.

    Args:
        path: of the file.
        values: floating point `[C, T]`; what lies beyond [-1, 1] is cut.
        sample_rate: in Hz.
    """
    integers = (values.double() * 32_767).round().clamp(-32_768, 32_767).to(torch.int16)
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(len(values))
        sound.setsampwidth(2)
        sound.setframerate(sample_rate)
        sound.writeframes(integers.T.contiguous().numpy().astype("<i2").tobytes())


def _list_waves(root: Path, sample_rate: int) -> Listing:
    readable, stamps, skipped = [], [], []
    for name in sorted(paths_below(root, SUFFIXES)):
        try:
            with open_regular(root / name) as file, wave.open(file) as sound:
                _require_known(root / name, sound, sample_rate)
                _require_whole(file, sound)
                stamps.append(stamp_of(os.fstat(file.fileno())))
                readable.append(name)
        except _UNREADABLE:
            skipped.append(name)
    return Listing(root, tuple(readable), np.array(stamps, np.int64).reshape(-1, 2), tuple(skipped))


def _require_whole(file: BinaryIO, sound: wave.Wave_read) -> None:
    """A header may claim more than there is, of a file cut short or written to a pipe."""
    claimed = sound.getnframes() * sound.getnchannels() * sound.getsampwidth()
    if claimed > os.fstat(file.fileno()).st_size - file.tell():
        raise EOFError("the sound ends before its header says so")


def _require_known(path: Path, sound: wave.Wave_read, sample_rate: int) -> None:
    if sound.getframerate() != sample_rate:
        raise DataError(
            f"sound {path} must have {sample_rate} Hz, as data.sample_rate says; it has {sound.getframerate()}: set "
            "data.sample_rate, or convert the files to one rate"
        )
    if sound.getsampwidth() not in _WIDTHS or sound.getnchannels() not in (1, 2):
        raise DataError(
            f"sound {path} must be of 8 or 16 bits and of one or two channels; it is of {8 * sound.getsampwidth()} "
            f"bits and {sound.getnchannels()} channels: convert it"
        )


def _stretch(sound: wave.Wave_read, length: int, share: float) -> NDArray[np.float32]:
    """float32 `[C, T]`, with silence behind what is too short."""
    free = max(0, sound.getnframes() - length)
    sound.setpos(min(int(share * (free + 1)), free))
    data = sound.readframes(length)
    if sound.getsampwidth() == 1:
        # Of 8 bits without a sign, of which 128 is silence.
        values = (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    else:
        values = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 32_768
    channels = sound.getnchannels()
    frames = values[: len(values) // channels * channels].reshape(-1, channels).T
    return np.pad(frames, ((0, 0), (0, length - frames.shape[1])))


def _with_channels(values: Tensor, channels: int) -> Tensor:
    if len(values) == channels:
        return values
    return values.mean(0, keepdim=True) if channels == 1 else values.expand(channels, -1)
