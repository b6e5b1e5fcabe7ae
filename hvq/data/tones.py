"""Tones of eight notes, made on the spot: harmonic partials that a pluck or a breath sets going, and that die away.

Letters: N tones, T values.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hvq.data.sources import Sources, TensorImages
from hvq.errors import ConfigurationError
from hvq.randomness import uniform

NOTES = ("c4", "d4", "e4", "f4", "g4", "a4", "b4", "c5")
HELD_OUT_EVERY = 5

_SEMITONES = (0, 2, 4, 5, 7, 9, 11, 12)
_LOWEST = 261.63
_PARTIALS = 8
_LONGEST_ONSET = 0.02
_SMALLEST_TONES = 10


def tone_sources(
    *, size: tuple[int, ...] = (2_048,), channels: int = 1, sample_rate: int = 8_000, tones: int = 2_000, seed: int = 0
) -> Sources:
    """Tones, each a function of (seed, index); the class is the note, and every fifth is held out.

    A tone is a sum of eight partials of its note, the k-th of amplitude k^-b, under an attack and a decay that is the
    faster the higher the partial. Brightness b, decay, tuning (20 cents up or down), the instant at which it begins and
    its loudness are drawn.

    Args:
        size: (T).
        channels: 1.
        sample_rate: in Hz; partials from half of it on are left out.
        tones: N, of both splits together.
        seed: of all that is drawn.

    Raises:
        ConfigurationError: where there are fewer than ten tones, or more than one channel.

    >>> sources = tone_sources(size=(64,), tones=10)
    >>> len(sources.train), len(sources.validation), sources.train.classes[0], sources.train.image(0).shape
    (8, 2, 'c4', torch.Size([1, 64]))
    """
    if tones < _SMALLEST_TONES or channels != 1:
        raise ConfigurationError(
            f"tones are of one channel, and at least {_SMALLEST_TONES}; received {channels} channels and {tones} tones"
        )
    indices = np.arange(tones)
    held_out = indices % HELD_OUT_EVERY == 0

    def split(chosen: NDArray[np.bool_]) -> TensorImages:
        waves = [_tone(index, size[0], sample_rate, seed) for index in indices[chosen].tolist()]
        return TensorImages(
            torch.from_numpy(np.stack(waves)[:, None]),
            labels=indices[chosen] % len(NOTES),
            classes=NOTES,
            names=[f"tone-{index:05d}" for index in indices[chosen]],
            seed=seed,
        )

    return Sources(train=split(~held_out), validation=split(held_out))


def _tone(index: int, length: int, sample_rate: int, seed: int) -> NDArray[np.float32]:
    """float32 `[T]` in [-1, 1]."""

    def drawn(purpose: str, low: float, high: float) -> float:
        return low + (high - low) * float(uniform(seed, "tone", purpose, index))

    note = _LOWEST * 2 ** ((_SEMITONES[index % len(NOTES)] + drawn("tuning", -0.2, 0.2)) / 12)
    partials = np.arange(1, _PARTIALS + 1)[:, None]
    # Seconds since it began; silence before.
    seconds = np.maximum(np.arange(length) / sample_rate - drawn("onset", 0.0, _LONGEST_ONSET), 0.0)
    amplitudes = partials ** -drawn("brightness", 0.8, 2.2) * (partials * note < sample_rate / 2)
    decays = np.exp(-drawn("decay", 0.0, 4.0) * partials * seconds)
    wave = (amplitudes * decays * np.sin(2 * np.pi * note * partials * seconds)).sum(0)
    attack = 1 - np.exp(-seconds * drawn("attack", 100.0, 800.0))
    # Amplitudes alone bound the sum.
    loudness = drawn("loudness", 0.5, 1.0) / amplitudes.sum()
    return (loudness * attack * wave).astype(np.float32)
