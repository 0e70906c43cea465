"""Field tokens: fields that come in blocks are, forward and backward, what fields that come one by one are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import Tokens
from model.inputs import FieldSpec, RankerInput
from model.tokens import STACKED_WIDTH, FieldTokens, group_fields


def _input(
    static: dict[str, torch.Tensor], rows: int, blocks: dict[tuple[str, ...], torch.Tensor] | None = None
) -> RankerInput:
    zeros_R = torch.zeros(rows, dtype=torch.int64)
    return RankerInput(static, {}, {}, zeros_R, zeros_R, zeros_R, blocks or {})


def _plain(tokens: FieldTokens, static: dict[str, torch.Tensor]) -> torch.Tensor:
    """Equation by equation: every token by itself, field by field."""
    found = []
    for group, projection in zip(tokens.groups, tokens.projections, strict=True):
        first, token_RD = 0, projection.bias
        for name in group:
            width = static[name].shape[1]
            token_RD = token_RD + static[name] @ projection.weight[:, first : first + width].T
            first += width
        found.append(token_RD)
    return torch.stack(found, dim=1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    fields=st.integers(1, 90),
    most=st.integers(1, 33),
    rows=st.integers(0, 5),
    widths=st.sampled_from([(1,), (8,), (1, 3, 16), (STACKED_WIDTH, STACKED_WIDTH + 1)]),
    kinds=st.integers(1, 3),
)
def test_blocks_are_their_fields(
    seed: int, fields: int, most: int, rows: int, widths: tuple[int, ...], kinds: int
) -> None:
    """For random widths, groups and blocks; a block's fields need not be neighbours. In float64, with gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> int:
        return int(torch.randint(0, count, (), generator=generator))

    specs = tuple(FieldSpec(f"f{k}", widths[draw(len(widths))]) for k in range(fields))
    named = {"a": ("f0", f"f{fields - 1}")} if fields > 1 and draw(2) else {}
    config = Tokens(groups=named, max_field_tokens=most)
    torch.manual_seed(seed % 1000)
    tokens = FieldTokens(specs, config, 6).double()
    static = {
        f.name: torch.randn(rows, f.width, generator=generator, dtype=torch.float64, requires_grad=True) for f in specs
    }
    blocks: dict[tuple[str, ...], torch.Tensor] = {}
    for group in tokens.groups:
        kind_of = {name: draw(kinds + 1) for name in group}  # kind 0 comes alone
        for kind in range(1, kinds + 1):
            block = tuple(name for name in group if kind_of[name] == kind)
            if block:
                blocks[block] = torch.cat([static[name] for name in block], dim=1)
    alone = {name: value for name, value in static.items() if not any(name in block for block in blocks)}

    ours, theirs = tokens(_input(alone, rows, blocks), torch.float64), _plain(tokens, static)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    leaves = [*static.values(), *tokens.parameters()]
    pull = torch.randn(theirs.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad((ours * pull).sum(), leaves)
    expected = torch.autograd.grad((theirs * pull).sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_a_block_over_two_tokens_is_refused() -> None:
    tokens = FieldTokens((FieldSpec("a", 2), FieldSpec("b", 2)), Tokens(), 4)
    with pytest.raises(ValueError, match="of one field token"):
        tokens(_input({}, 1, {("a", "b"): torch.zeros(1, 4)}), torch.float32)


@pytest.mark.parametrize("fields", [32, 33, 500, 2000])
def test_thousands_of_fields_are_at_most_32_tokens_in_even_runs(fields: int) -> None:
    names = [f"f{k}" for k in range(fields)]
    groups = group_fields(names, Tokens())
    sizes = {len(group) for group in groups}
    assert len(groups) == 32
    assert max(sizes) - min(sizes) <= 1
    assert [name for group in groups for name in group] == names


def test_in_blocks_torch_is_called_as_often_for_2000_fields_as_for_64() -> None:
    calls = []
    for fields in (64, 2000):
        tokens = FieldTokens(tuple(FieldSpec(f"f{k}", 40) for k in range(fields)), Tokens(), 4)
        blocks = {group: torch.zeros(3, 40 * len(group)) for group in tokens.groups}
        with torch.profiler.profile() as profile:
            tokens(_input({}, 3, blocks), torch.float32)
        calls.append(sum(event.count for event in profile.key_averages()))
    assert calls[1] == calls[0] < 400
