from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvq.quantizers.search.plain import nearest_plain


@pytest.mark.parametrize(("tile", "rows"), [(16, 7), (32, 101), (512, 31)])
def test_tiles_and_blocks_do_not_change_the_codes(tile: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, codebook = torch.randn(103, 5, dtype=torch.float64), torch.randn(149, 5, dtype=torch.float64)
    monkeypatch.setattr("hvq.quantizers.search.plain._TILE", tile)
    monkeypatch.setattr("hvq.quantizers.search.plain._ROWS", {"cpu": rows})
    expected = torch.cdist(latents, codebook, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
    assert torch.equal(nearest_plain(latents, codebook, None), expected)


@given(size=st.integers(1, 1_300), copies=st.integers(1, 700), seed=st.integers(0, 99))
def test_ties_go_to_the_lowest_index_across_groups_and_tiles(size: int, copies: int, seed: int) -> None:
    """A grid of whole numbers, on which scores are exact, and a latent in the middle of it."""
    torch.manual_seed(seed)
    codebook = torch.randint(-3, 4, (size, 2)).float().repeat(1 + copies // size, 1)
    latents = torch.randint(-2, 3, (7, 2)).float() + 0.5
    latents = latents - codebook.mean(dim=0) + codebook.mean(dim=0).round()
    distances = (latents.unsqueeze(1) - codebook).double().square().sum(dim=2)
    codes = nearest_plain(latents, codebook, None)
    chosen = codebook[codes]
    first = torch.stack([(codebook == vector).all(dim=1).nonzero()[0, 0] for vector in chosen])
    assert torch.equal(codes, first), "of equal vectors, the first"
    assert float((distances.gather(1, codes.unsqueeze(1))[:, 0] - distances.amin(dim=1)).max()) < 1e-4
