"""Effective rank where it is known, sums that do not care how rows are batched, and observers that see what rankers
compute."""

from __future__ import annotations

import pytest
import torch

from model.collapse import moments, spectrum
from model.mask import sight, visible
from model.observe import can_observe, observe
from model.observed import KEYS, Layer, select_rows
from model.rankers import build_ranker
from model.tower import StreamTower, place_tokens
from tests.model.builders import make_config, make_input, make_spec

pytestmark = pytest.mark.timeout(30)


def test_one_direction_is_rank_one_and_all_alike_are_rank_d() -> None:
    line_nD = torch.arange(-4.0, 5).unsqueeze(1) * torch.tensor([[1.0, -2.0, 0.5]]) + 7.0
    found = spectrum(moments(line_nD))
    assert found.tokens == 9
    assert found.effective_rank == pytest.approx(1, abs=1e-5)
    assert found.participation == pytest.approx(1)
    for dim in (2, 5, 20):
        corners_nD = torch.cat([torch.eye(dim), -torch.eye(dim)]) * 3 - 100
        found = spectrum(moments(corners_nD))
        assert found.effective_rank == pytest.approx(dim)
        assert found.participation == pytest.approx(dim)
        assert found.spectrum == pytest.approx([1 / dim] * min(dim, 16))


def test_rank_of_two_unlike_directions_is_the_exponential_of_their_entropy() -> None:
    x_nD = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    found = spectrum(moments(x_nD))
    assert found.spectrum == pytest.approx([0.75, 0.25])
    assert found.effective_rank == pytest.approx(4 / 3**0.75)
    assert found.participation == pytest.approx(100 / 82)


def test_vectors_all_the_same_have_no_rank() -> None:
    assert spectrum(moments(torch.full((50, 3), 0.1))).effective_rank is None
    assert spectrum(moments(torch.empty(0, 3))).tokens == 0


def test_moments_add_up() -> None:
    x_nD = torch.randn(60, 7, generator=torch.Generator().manual_seed(2)) * torch.arange(1.0, 8) + 5
    parts = sum(moments(part) for part in x_nD.split([1, 0, 20, 39]))
    assert isinstance(parts, torch.Tensor)
    whole, summed = spectrum(moments(x_nD)), spectrum(parts)
    assert summed.effective_rank == pytest.approx(whole.effective_rank, rel=1e-12)
    direct_D = torch.linalg.svdvals(x_nD.double() - x_nD.double().mean(dim=0))
    assert whole.spectrum == pytest.approx((direct_D / direct_D.sum()).tolist())


LENGTHS = {"seen": [5, 0, 8, 1, 3], "bought": [2, 0, 4, 0, 7]}
KINDS = ["tokenformer", "transformer", "hstu", "onetrans", "hyformer"]


def _observed(kind: str, supervision: str, static: int = 3, **changes: object) -> tuple[StreamTower, list[Layer]]:
    spec = make_spec(supervision, 2, static=static)
    torch.manual_seed(3)
    ranker = build_ranker(spec, make_config(kind=kind, **changes)).double().eval()
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    batch = make_input(spec, LENGTHS, [2, 1, 3, 1, 2])
    layers = observe(ranker, batch)
    if kind in ("tokenformer", "transformer"):
        assert isinstance(ranker, StreamTower)
        of = "candidate" if supervision == "candidates" else "sequence"
        _, stream = place_tokens(ranker.spec, ranker.config, ranker.tokens, batch)
        logits_NK = ranker.head(ranker.final_norm(layers[-1].tokens[of]))
        if supervision == "candidates":  # in packed order; the ranker's are in the batch's
            logits_NK = logits_NK.index_select(0, stream.supervised_S.argsort().argsort())
            torch.testing.assert_close(logits_NK, ranker(batch))
        else:  # of both histories; the supervised ones are among them
            found = {tuple(row) for row in logits_NK.detach().numpy().round(9).tolist()}
            assert {tuple(row) for row in ranker(batch).detach().numpy().round(9).tolist()} <= found
    parts = [
        observe(ranker, select_rows(batch, torch.tensor(kept)))
        for kept in ([1, 0, 0, 1, 0], [0, 1, 1, 0, 1])
        for kept in [[bool(k) for k in kept]]
    ]
    for level, layer in enumerate(layers):
        for name, x_nD in layer.tokens.items():
            summed = sum(moments(part[level].tokens[name]) for part in parts)
            torch.testing.assert_close(summed, moments(x_nD), rtol=1e-9, atol=1e-9)
    return ranker, layers  # type: ignore[return-value]


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_the_rankers_own_however_rows_are_batched(kind: str) -> None:
    _, layers = _observed(kind, "candidates", onetrans={"kept": (100,)} if kind == "onetrans" else {})
    assert len(layers) == 5
    assert all(layer.tokens.keys() == {"sequence", "field", "candidate"} for layer in layers)
    assert layers[0].tokens["sequence"].shape[0] == sum(map(sum, LENGTHS.values()))
    if kind != "hyformer":
        _, layers = _observed(kind, "history")
        assert {"sequence", "action", "field"} <= layers[0].tokens.keys()


@pytest.mark.parametrize("supervision", ["candidates", "history"])
def test_attention_is_shared_out_as_the_mask_allows(supervision: str) -> None:
    tower, layers = _observed("tokenformer", supervision)
    assert not layers[0].attention
    field = KEYS.index("field")
    for level, layer in enumerate(layers[1:]):
        for shares in (*layer.attention.values(), *layer.even.values()):
            torch.testing.assert_close(shares.sum(dim=1), torch.ones_like(shares[:, 0]))
            assert (shares > -1e-12).all()
        on_fields = layer.attention["sequence"][:, field]
        assert (on_fields > 0).all() if level < 2 else (on_fields == 0).all(), "fields are out of sight where it slides"
    batch = make_input(tower.spec, LENGTHS, [2, 1, 3, 1, 2])
    _check_first_layer_by_hand(tower, batch, layers[1])


def _check_first_layer_by_hand(tower: StreamTower, batch: object, layer: Layer) -> None:
    """Attention on fields of every behaviour, one query, key and head at a time."""
    from model.rope import rotate

    timeline, stream = place_tokens(tower.spec, tower.config, tower.tokens, batch)  # type: ignore[arg-type]
    x_ND = tower.tokens(batch, timeline).index_select(0, stream.source_N)
    block = tower.blocks[0]
    normed = block.attention_norm(x_ND)
    turns = tower._rotation(stream, x_ND.dtype)
    heads = (x_ND.shape[0], tower.config.num_heads, -1)
    query = rotate(block.query(normed).view(heads), turns)
    key = rotate(block.key_value(normed).chunk(2, dim=-1)[0].reshape(heads), turns)
    sights = sight(stream, None)
    states = (stream.source_N >= stream.num_rows * (stream.num_fields + 1)) & (
        stream.source_N < stream.num_rows * (stream.num_fields + 1) + timeline.row_E.shape[0]
    )
    expected = []
    for q in states.nonzero().flatten().tolist():
        total = 0.0
        for head in range(tower.config.num_heads):
            weights = {}
            for t in (stream.row_N == stream.row_N[q]).nonzero().flatten().tolist():
                if bool(visible(sights[q : q + 1], sights[t : t + 1])):
                    score = query[q, head] @ key[t, head] / query.shape[-1] ** 0.5
                    weights[t] = float(score.exp())
            fields = sum(w for t, w in weights.items() if int(stream.order_N[t]) < stream.num_fields)
            total += fields / sum(weights.values()) / tower.config.num_heads
        expected.append(total)
    assert layer.attention["sequence"][:, KEYS.index("field")].tolist() == pytest.approx(expected)


def test_without_fields_no_attention_is_on_them() -> None:
    _, layers = _observed("transformer", "candidates", static=0)
    assert "field" not in layers[0].tokens
    assert all((shares[:, 0] == 0).all() for layer in layers[1:] for shares in layer.attention.values())


def test_rankers_of_single_examples_have_no_layers_to_look_at() -> None:
    blind = [
        kind for kind in (*KINDS, "din", "dcnv2") if not can_observe(build_ranker(make_spec(), make_config(kind=kind)))
    ]
    assert blind == ["din", "dcnv2"]
