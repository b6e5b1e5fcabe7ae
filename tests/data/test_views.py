from __future__ import annotations

import pytest
import torch

from hvq.data.views import as_pictures, noun


def test_images_are_shown_as_they_are() -> None:
    images = torch.randint(256, (3, 2, 5, 7), dtype=torch.uint8)
    assert as_pictures(images) is images


def test_of_a_volume_the_middle_plane_is_shown() -> None:
    volumes = torch.rand(3, 2, 5, 7, 11) * 2 - 1
    shown = as_pictures(volumes)
    assert shown.dtype == torch.uint8
    assert float((shown.float() / 127.5 - 1 - volumes[:, :, 2]).abs().max()) <= 0.5 / 127.5 + 1e-5


@pytest.mark.parametrize("length", [23, 191, 5003])
def test_a_wave_is_a_line_without_gaps_at_the_height_of_its_values(length: int) -> None:
    wave = torch.sin(torch.arange(length) * (6.0 / length)).view(1, 1, -1)
    inked = as_pictures(wave)[0, 0] < 128
    rows, columns = inked.shape
    heights = 1 - (2 * torch.arange(rows) + 1) / rows
    for column in range(columns):
        places = inked[:, column].nonzero().flatten()
        assert len(places)
        assert int(places[-1] - places[0]) == len(places) - 1
        value = float(wave[0, 0, min(length - 1, int((column + 0.5) * length / columns))])
        assert float((heights[places] - value).abs().min()) < 0.1
        if column:
            before = inked[:, column - 1].nonzero().flatten()
            assert int(places[0]) <= int(before[-1]) + 1
            assert int(before[0]) <= int(places[-1]) + 1


def test_silence_and_what_swings_between_the_ends_fit_the_picture() -> None:
    silence, square = torch.zeros(1, 1, 384), torch.tensor([1.0, -1.0]).repeat(192).view(1, 1, 384)
    quiet, loud = (as_pictures(signal)[0, 0] < 128 for signal in (silence, square))
    assert quiet.any(dim=1).nonzero().flatten().tolist() == [31, 32]
    assert bool(loud.all())


def test_nouns() -> None:
    assert [noun((2,) * axes) for axes in (1, 2, 3)] == ["signal", "image", "volume"]
