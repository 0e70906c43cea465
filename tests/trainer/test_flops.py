"""Operations counted from lengths are those that torch counts, and visible pairs those that the mask lets see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model import attention
from model.cone import needed_tokens
from model.mask import sight, visible
from model.rankers import build_ranker
from model.tower import StreamTower, place_tokens
from tests.model.builders import make_config, make_input, make_spec
from trainer.flops import Rows, ranker_work
from trainer.flops_stream import first_needed, layer_tokens, stream_rows, visible_pairs

PRODUCTS = ("aten.mm", "aten.addmm")


def rows_of(lengths: dict[str, list[int]], candidates: list[int]) -> Rows:
    return Rows({name: np.array(counts, float) for name, counts in lengths.items()}, np.array(candidates, float))


@pytest.mark.parametrize("supervision", ["candidates", "history"])
@pytest.mark.parametrize("changes", [{}, {"full_layers": 0}, {"kind": "transformer"}, {"gate": False}])
def test_products_of_the_stream_are_those_that_torch_counts(supervision: str, changes: dict[str, object]) -> None:
    spec, config = make_spec(supervision), make_config(**changes)
    lengths, candidates = {"seen": [0, 3, 8, 5]}, [2, 1, 0, 3] if supervision == "candidates" else [0] * 4
    ranker = build_ranker(spec, config).double()
    batch = make_input(spec, lengths, candidates)
    with FlopCounterMode(display=False) as counter:
        ranker(batch)
    counted = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if str(op).startswith(PRODUCTS))
    work = ranker_work(spec, config, rows_of(lengths, candidates))
    assert sum(product.flops for product in work.products) == counted


@pytest.mark.parametrize("supervision", ["candidates", "history"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"full_layers": 0},
        {"full_layers": 1, "windows": (7, 3, 1)},
        {"kind": "transformer"},
        {"candidates_see": "all"},
        {"field_attention": "bidirectional"},
        {"action_tokens": "separate"},
    ],
)
def test_tokens_and_visible_pairs_are_those_of_cone_and_mask(supervision: str, changes: dict[str, object]) -> None:
    spec, config = make_spec(supervision), make_config(**changes)
    lengths, candidates = {"seen": [0, 3, 8, 5, 1]}, [2, 1, 0, 3, 5] if supervision == "candidates" else [0] * 5
    batch = make_input(spec, lengths, candidates)
    ranker = build_ranker(spec, config)
    assert isinstance(ranker, StreamTower)
    stream = place_tokens(spec, config, ranker.tokens, batch)[1]
    chain = needed_tokens(stream, config.layer_windows)
    found = stream_rows(spec, config, rows_of(lengths, candidates))
    firsts = first_needed(found, config.layer_windows)
    everything = torch.arange(stream.order_N.shape[0])
    assert layer_tokens(found, firsts) == [len(everything if taken is None else taken) for taken in chain]
    for level, window in enumerate(config.layer_windows):
        queries = everything if chain[level + 1] is None else chain[level + 1]
        sights = sight(stream, window)
        sights[:, 3], sights[:, 4] = 1, 0  # all is known to everybody: clocks are not counted
        seen = visible(sights[queries], sights) & (stream.row_N[queries].unsqueeze(1) == stream.row_N)
        top = level == len(config.layer_windows) - 1
        assert visible_pairs(found, window, firsts[level + 1], top=top) == int(seen.sum()), f"layer {level}"


@pytest.mark.parametrize("supervision", ["candidates", "history"])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("hstu", {}),
        ("dcnv2", {}),
        ("dcnv2", {"dcnv2": {"rank": 3, "hidden": ()}}),
        ("din", {}),
        ("onetrans", {}),
        ("hyformer", {"hyformer": {"encoder": "full"}}),
        ("hyformer", {"hyformer": {"encoder": "recent", "recent": 3}}),
        ("hyformer", {"hyformer": {"encoder": "swiglu"}}),
    ],
)
def test_products_of_every_kind_are_those_that_torch_counts(
    kind: str, changes: dict[str, object], supervision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of packed tokens: the products that attention is made of on CPU run over padded places, so that it is left
    out here, and left to the test of visible pairs."""
    monkeypatch.setattr(attention, "products", lambda query, *_: query)
    if kind == "hyformer" and supervision == "history":
        return
    spec, config = make_spec(supervision), make_config(kind=kind, **changes)
    lengths, candidates = {"seen": [0, 3, 8, 5]}, [2, 1, 0, 3] if supervision == "candidates" else [0] * 4
    ranker = build_ranker(spec, config).double()
    with FlopCounterMode(display=False) as counter:
        ranker(make_input(spec, lengths, candidates))
    ops = (*PRODUCTS, "aten.baddbmm")  # a network for each token or query: HyFormer's
    counted = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if str(op).startswith(ops))
    work = ranker_work(spec, config, rows_of(lengths, candidates))
    own = sum(
        part.flops for part in work.products if kind == "onetrans" and part.times > 1
    )  # aten.bmm, as attention is
    assert sum(product.flops for product in work.products) - own == counted
