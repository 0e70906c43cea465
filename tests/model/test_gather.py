"""Heads gathered into batches and given back; stretches are cut where that pays."""

from __future__ import annotations

import pytest
import torch

from model.attention import Padding, make_layouts
from model.bands import Band
from model.compute import Compute, set_compute
from model.gather import Gather
from model.rankers import build_ranker
from model.tower import StreamTower, place_tokens
from tests.model.builders import make_config, make_input, make_spec


def test_what_is_taken_is_given_back_and_empty_places_can_be_cleared() -> None:
    places = [torch.tensor([[2, 0, -1], [1, 3, 4]]), torch.tensor([[5, -1]])]
    x_NHh = torch.arange(1.0, 6 * 2 * 3 + 1).view(6, 2, 3)
    beside = torch.cat([x_NHh, -x_NHh], dim=1)[:, :2]  # columns of something wider
    gather = Gather(places, 6, 2)
    for given in (x_NHh, beside, x_NHh.transpose(1, 2).contiguous().transpose(1, 2)):
        taken_Xh = gather.take(given, clear=True)
        first_bHwh = taken_Xh[:12].view(2, 2, 3, 3)
        assert torch.equal(first_bHwh[1], x_NHh[[1, 3, 4]].transpose(0, 1))
        assert not first_bHwh[0, :, 2].any()
        assert torch.equal(gather.give(taken_Xh), x_NHh)


def test_a_band_gives_back_the_sum_over_a_tokens_places() -> None:
    band, total = Band(4, 4), 10
    places_nt = band.places(3, total, torch.device("cpu"))
    assert places_nt[0].tolist() == [-1, -1, -1, -1, 0, 1, 2, 3]
    assert places_nt[2].tolist() == [4, 5, 6, 7, 8, 9, -1, -1]
    gather = Gather([places_nt], total, 2, band)
    x_NHh = torch.randn(total, 2, 3, dtype=torch.float64)
    times_N = torch.tensor([int((places_nt == token).sum()) for token in range(total)])
    torch.testing.assert_close(gather.give(gather.take(x_NHh)), x_NHh * times_N.view(-1, 1, 1))


def test_stretches_are_cut_where_that_spares_more_than_it_costs() -> None:
    """Of 16 rows of 0 … 200 events: the lowest layer in several, the cone's few tokens on top in one."""
    spec, config = make_spec(max_length=200), make_config(windows=(32, 16))
    tower = build_ranker(spec, config)
    assert isinstance(tower, StreamTower)
    lengths = [200 * row // 15 for row in range(16)]
    _, stream = place_tokens(spec, config, tower.tokens, make_input(spec, {"seen": lengths}, [1] * 16))
    layouts = make_layouts(stream, config.layer_windows)[-1]
    assert len(layouts[0].stretches) > 1
    assert [len(layout.stretches) for layout in layouts[2:]] == [1, 1]
    assert all(isinstance(stretch.queries, Padding) for layout in layouts for stretch in layout.stretches)


def test_a_second_backward_pass_over_a_fused_block_is_refused() -> None:
    """Its SwiGLU's gradient took the place of what was kept: no wrong number comes out."""
    spec = make_spec()
    ranker = build_ranker(spec, make_config()).double()
    set_compute(ranker, Compute())
    loss = ranker(make_input(spec, {"seen": [3, 5]}, [1, 2])).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
