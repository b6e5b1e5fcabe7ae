"""Signals and volumes: arrays, folders of sounds, and those made on the spot."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from hvq.config_data import ArrayConfig, TonesConfig, VolumesConfig, WavesConfig
from hvq.data import Sources, TensorImages, array_sources, build_sources, tone_sources, volume_sources, wave_sources
from hvq.data.pixels import kept_to_bytes, kept_to_model, kept_to_unit, unit_to_kept
from hvq.data.signals import cropped
from hvq.data.waves import write_wave
from hvq.errors import DataError

ONE, THREE = (29,), (3, 5, 7)


def write_pcm(path: Path, values: NDArray[np.generic], rate: int = 1000) -> None:
    """Frames `[T, C]` of uint8 or int16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(values.shape[1])
        file.setsampwidth(values.dtype.itemsize)
        file.setframerate(rate)
        file.writeframes(values.tobytes())


def ramp(length: int, channels: int = 1, start: int = 0) -> NDArray[np.int16]:
    """int16 `[T, C]`, each value of which tells its place."""
    return np.arange(start, start + length * channels, dtype=np.int16).reshape(length, channels)


# --- ranges ---


def test_bytes_are_kept_as_they_are_and_others_in_the_range_of_models() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(unit_to_kept(kept_to_unit(pixels)), pixels)
    assert torch.equal(kept_to_bytes(pixels), pixels)
    signal = torch.linspace(-1, 1, 29, dtype=torch.float64).float().view(1, 1, 29)
    assert torch.equal(kept_to_model(signal), signal)
    assert torch.allclose(unit_to_kept(kept_to_unit(signal)), signal, atol=1e-6)
    assert kept_to_bytes(signal).flatten()[[0, 14, 28]].tolist() == [0, 128, 255]


@pytest.mark.parametrize(("kind", "size"), [(torch.uint8, ONE), (torch.float32, (5, 7)), (torch.float64, THREE)])
def test_other_types_than_those_that_are_kept_are_refused(kind: torch.dtype, size: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"images must be uint8 .* or float32"):
        TensorImages(torch.zeros(2, 1, *size).to(kind))


def test_a_part_lies_where_it_is_said() -> None:
    values = torch.arange(2 * 5 * 7 * 11).view(2, 5, 7, 11)
    assert torch.equal(cropped(values, (5, 3, 4), (0.3, 0.0, 1.0 - 1e-9)), values[:, :, :3, 7:])
    assert torch.equal(cropped(values, (3, 7, 11), (0.5, 0.9, 0.1)), values[:, 1:4])


# --- arrays ---


@pytest.mark.parametrize("size", [ONE, THREE])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64])
def test_arrays_of_every_type_are_numbers_in_the_range_of_models(
    tmp_path: Path, size: tuple[int, ...], kind: type[np.generic]
) -> None:
    random = np.random.default_rng(3)
    wanted = random.uniform(-1, 1, (5, 2, *size))
    scale = {np.uint8: 127.5, np.int16: 32_768}.get(kind)  # type: ignore[call-overload]
    lifted = (wanted + 1) * 127.5 if kind is np.uint8 else wanted * (scale or 1)
    stored = (np.round(lifted) if scale else lifted).astype(kind)
    for name in ("a", "b"):
        save_file({"images": stored, "labels": np.arange(5) % 3}, tmp_path / f"{name}.safetensors")
    sources = array_sources(tmp_path / "a.safetensors", tmp_path / "b.safetensors", size=size, channels=2)
    batch = sources.train.fetch(np.array([4, 1]), np.array([0, 0]))
    assert batch.images.dtype == torch.float32
    assert batch.labels.tolist() == [1, 1]
    error = (batch.images.double().numpy() - wanted[[4, 1]]).__abs__().max()
    assert error <= (0.51 / scale if scale else 1e-7)


def test_arrays_without_an_axis_of_channels_have_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((3, *ONE), np.float32))
    np.savez(tmp_path / "b.npz", images=np.zeros((3, *THREE), np.float32))
    for file, size in (("a.npz", ONE), ("b.npz", THREE)):
        source = array_sources(tmp_path / file, tmp_path / file, size=size, channels=1).train
        assert source.image(0).shape == (1, *size)


@pytest.mark.parametrize(("axes", "size"), [((41,), (29,)), ((7, 5, 11), THREE)])
def test_larger_ones_are_cropped_by_seed_epoch_and_index_while_training(
    tmp_path: Path, axes: tuple[int, ...], size: tuple[int, ...]
) -> None:
    values = np.random.default_rng(5).uniform(-1, 1, (23, 1, *axes)).astype(np.float32)
    np.savez(tmp_path / "a.npz", images=values)
    path = tmp_path / "a.npz"
    first, again, other = (array_sources(path, path, size=size, channels=1, seed=seed).train for seed in (0, 0, 1))
    rows, epochs = np.arange(23), np.full(23, 2)
    taken = first.fetch(rows, epochs).images
    assert taken.shape == (23, 1, *size)
    assert torch.equal(again.fetch(rows[::-1], epochs).images, taken.flip(0))
    assert not torch.equal(other.fetch(rows, epochs).images, taken)
    assert not torch.equal(first.fetch(rows, epochs + 1).images, taken)
    middle = tuple(slice((n - m + 1) // 2, (n - m + 1) // 2 + m) for n, m in zip(axes, size, strict=True))
    assert np.array_equal(first.fetch(rows).images.numpy(), values[(..., *middle)])


@pytest.mark.parametrize(
    ("values", "size", "channels", "fault"),
    [
        (np.zeros((3, 2, 29), np.float32), ONE, 1, "must have 1 channel.* they have 2, and 29"),
        (np.zeros((3, 1, 23), np.float32), ONE, 1, "at least data.size, 29; they have 1, and 23"),
        (np.full((3, 29), 1.5, np.float32), ONE, 1, r"must lie in \[-1, 1\]; received values in \[1.5, 1.5\]"),
        (np.full((3, 29), np.nan), ONE, 1, r"must lie in \[-1, 1\]"),
        (np.zeros((3, 29), np.int64), ONE, 1, r"floating point, int16 or uint8 \[N, T\] or \[N, C, T\]"),
        (np.zeros((3, 5, 7, 11, 13, 2), np.uint8), THREE, 1, r"since data.size has 3 length\(s\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, values: NDArray[np.generic], size: tuple[int, ...], channels: int, fault: str
) -> None:
    np.savez(tmp_path / "a.npz", images=values)
    with pytest.raises(DataError, match=fault):
        array_sources(tmp_path / "a.npz", tmp_path / "a.npz", size=size, channels=channels)


def test_encoded_pictures_are_no_signals(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", jpeg_bytes=np.zeros(3, np.uint8), offsets=np.array([0, 3]))
    with pytest.raises(DataError, match=r"must hold `images`; it holds jpeg_bytes, offsets"):
        array_sources(tmp_path / "a.npz", tmp_path / "a.npz", size=ONE, channels=1)


# --- folders of sounds ---


def test_a_sound_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    values = torch.tensor([[0.0, 0.5, -0.25, 1.0, -1.0], [0.1, -0.1, 0.0, 1.7, -1.7]])
    write_wave(tmp_path / "a.wav", values, 11)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (2, 2, 11, 5)
        found = np.frombuffer(file.readframes(5), "<i2").reshape(5, 2).T / 32_768
    assert np.abs(found - values.clamp(-1, 1).numpy()).max() < 2**-14


def test_stretches_are_of_seed_epoch_and_index_in_training_and_the_middle_otherwise(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "validation/c"):
        write_pcm(tmp_path / f"{name}.wav", ramp(41))
    sources, other = (wave_sources(tmp_path, size=(13,), sample_rate=1000, seed=seed) for seed in (0, 1))
    assert (len(sources.train), len(sources.validation)) == (2, 1)
    middle = torch.arange(14, 27) / 32_768
    assert torch.equal(sources.validation.image(0)[0], middle)
    assert torch.equal(sources.train.image(1)[0], middle)
    starts = {int(sources.train.image(0, epoch)[0, 0] * 32_768) for epoch in range(60)}
    assert len(starts) > 15
    assert starts <= set(range(29))
    assert [sources.train.image(0, epoch)[0, 0] for epoch in range(9)] == [
        sources.train.image(0, epoch)[0, 0] for epoch in range(9)
    ]
    assert any(bool(other.train.image(0, n)[0, 0] != sources.train.image(0, n)[0, 0]) for n in range(9))


def test_eight_bits_and_both_numbers_of_channels(tmp_path: Path) -> None:
    frames = np.array([[0, 128], [128, 192], [255, 64]], np.uint8)
    for name in ("a", "b"):
        write_pcm(tmp_path / f"{name}.wav", frames)
    stereo = (frames.T.astype(np.float32) - 128) / 128
    for channels, expected in ((2, stereo), (1, stereo.mean(0, keepdims=True))):
        source = wave_sources(tmp_path, size=(3,), channels=channels, sample_rate=1000, validation_share=0.5).train
        assert np.array_equal(source.image(0).numpy(), expected)
    write_pcm(tmp_path / "mono/a.wav", frames[:, :1])
    write_pcm(tmp_path / "mono/b.wav", frames[:, :1])
    both = wave_sources(tmp_path / "mono", size=(3,), channels=2, sample_rate=1000).train.image(0)
    assert torch.equal(both[0], both[1])


def test_a_short_sound_is_followed_by_silence(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_pcm(tmp_path / f"{name}.wav", ramp(3, start=7))
    image = wave_sources(tmp_path, size=(5,), sample_rate=1000).train.image(0, epoch=3)
    assert (image[0] * 32_768).tolist() == [7, 8, 9, 0, 0]


def test_subfolders_are_classes_and_damaged_files_are_left_out(tmp_path: Path) -> None:
    for name in ("cat/a", "dog/b", "dog/c", "cat/d"):
        write_pcm(tmp_path / f"{name}.wav", ramp(11))
    (tmp_path / "cat" / "damaged.wav").write_bytes(b"RIFFxxxx")
    sources = wave_sources(tmp_path, size=(5,), sample_rate=1000, validation_share=0.3)
    assert sources.train.classes == ("cat", "dog")
    assert sources.train.skipped == ("cat/damaged.wav",)
    assert len(sources.train) + len(sources.validation) == 4
    for source in (sources.train, sources.validation):
        assert all(source.classes[source.label(i)] == source.name(i).partition("/")[0] for i in range(len(source)))
    assert wave_sources(tmp_path, size=(5,), sample_rate=1000, labelled=False).train.label(0) == -1


def test_sounds_that_end_before_their_headers_say_are_left_out(tmp_path: Path) -> None:
    for name in ("one", "short", "two"):
        write_pcm(tmp_path / f"{name}.wav", ramp(101))
    content = (tmp_path / "short.wav").read_bytes()
    (tmp_path / "short.wav").write_bytes(content[:-1])
    # As programs do that write to a pipe, and do not know how long the sound will be.
    place = content.index(b"data") + 4
    (tmp_path / "piped.wav").write_bytes(content[:place] + b"\xff\xff\xff\x7f" + content[place + 4 :])
    sources = wave_sources(tmp_path, size=ONE, channels=1, sample_rate=1000, validation_share=0.0, seed=0)
    assert (len(sources.train), len(sources.validation)) == (1, 1)
    assert {*sources.train.skipped, *sources.validation.skipped} == {"piped.wav", "short.wav"}


@pytest.mark.parametrize("fault", ["rate", "bits", "none", "folder", "changed"])
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, fault: str) -> None:
    for name in ("a", "b"):
        write_pcm(tmp_path / f"{name}.wav", ramp(11))
    sentence, folder, rate = "", tmp_path, 1000
    if fault == "rate":
        sentence, rate = "must have 500 Hz, as data.sample_rate says; it has 1000", 500
    elif fault == "bits":
        write_pcm(tmp_path / "c.wav", np.zeros((5, 1), np.int32))
        sentence = "of 8 or 16 bits .* it is of 32"
    elif fault == "none":
        folder = tmp_path / "empty"
        folder.mkdir()
        sentence = r"must hold sounds \(.wav, .wave\), at any depth; found none"
    elif fault == "folder":
        folder, sentence = tmp_path / "nowhere", "data.path must be a folder of sounds"
    else:
        source = wave_sources(tmp_path, size=(5,), sample_rate=1000).train
        write_pcm(tmp_path / source.name(0), ramp(13))
        with pytest.raises(DataError, match="replaced or written to"):
            source.image(0)
        return
    with pytest.raises(DataError, match=sentence):
        wave_sources(folder, size=(5,), sample_rate=rate)


# --- made on the spot ---


def made(kind: str, seed: int = 0, number: int = 80) -> Sources:
    if kind == "tones":
        return tone_sources(size=(1021,), tones=number, seed=seed)
    return volume_sources(size=(11, 7, 13), volumes=number, seed=seed)


@pytest.mark.parametrize("kind", ["tones", "volumes"])
def test_they_are_a_function_of_seed_and_index(kind: str) -> None:
    sources, again, more, other = made(kind), made(kind), made(kind, number=95), made(kind, seed=1)
    assert (len(sources.train), len(sources.validation)) == (64, 16)
    first = sources.train.fetch(np.arange(64))
    assert torch.equal(again.train.fetch(np.arange(64)).images, first.images)
    assert torch.equal(more.train.fetch(np.arange(64)).images, first.images)
    assert not torch.equal(other.train.fetch(np.arange(64)).images, first.images)
    assert torch.equal(sources.train.fetch(np.arange(64), np.full(64, 3)).images, first.images)
    assert len(first.images.flatten(1).unique(dim=0)) == 64
    assert float(first.images.abs().max()) <= 1
    assert first.labels.bincount().tolist() == [64 // len(sources.train.classes)] * len(sources.train.classes)


def test_a_tone_sounds_at_its_note() -> None:
    source = tone_sources(size=(4096,), tones=40).train
    notes = {"c4": 261.63, "a4": 440.0, "c5": 523.25}
    for index in range(len(source)):
        name = source.classes[source.label(index)]
        if name in notes:
            spectrum = torch.fft.rfft(source.image(index)[0].double()).abs()
            assert abs(float(spectrum.argmax()) * 8000 / 4096 / notes[name] - 1) < 0.02


def test_a_volume_has_a_body_and_is_empty_at_its_corners() -> None:
    source = volume_sources(size=(16, 16, 16), volumes=40).train
    for index in range(len(source)):
        volume = source.image(index)[0]
        assert float(volume.max()) > 0
        assert float((volume[::15, ::15, ::15] < -0.9).float().mean()) > 0.85


@pytest.mark.parametrize("kind", ["array", "waves", "tones", "volumes"])
def test_they_are_built_from_a_configuration(tmp_path: Path, kind: str) -> None:
    write_pcm(tmp_path / "a.wav", ramp(17))
    write_pcm(tmp_path / "b.wav", ramp(17))
    file = str(tmp_path / "a.npz")
    np.savez(file, images=np.zeros((3, 2, 17), np.int16))
    config: ArrayConfig | WavesConfig | TonesConfig | VolumesConfig = {
        "array": ArrayConfig(train=file, validation=file, size=(11,), channels=2),
        "waves": WavesConfig(path=str(tmp_path), size=(11,), channels=2, sample_rate=1000),
        "tones": TonesConfig(size=(11,), tones=13),
        "volumes": VolumesConfig(size=(5, 2, 3), volumes=13),
    }[kind]
    sources = build_sources(config, seed=3)
    for source in (sources.train, sources.validation):
        assert source.image(0, epoch=1).shape == (config.channels, *config.size)
        assert source.seed == 3
        assert source.fingerprint() != build_sources(config, seed=4).train.fingerprint()
