"""The fused halves of a block equal the plain modules; bf16, checkpointing and dropout change no
more than they say."""

from __future__ import annotations

import pytest
import torch

from model.compute import Compute, set_compute
from model.config import Model
from model.dropout import dropout_mask
from model.rankers import build_ranker
from tests.model.builders import float_leaves, make_config, make_input, make_spec

LENGTHS = {"seen": [5, 0, 8, 1, 3]}
CANDIDATES = [3, 1, 2, 4, 1]
KINDS = {
    "gated": {},
    "no gate": {"gate": False},
    "full layers": {"full_layers": 4},
    "sliding layers": {"full_layers": 0},
}


def _run(
    config: Model,
    compute: Compute,
    dtype: torch.dtype = torch.float64,
    supervision: str = "candidates",
    lengths: list[int] | None = None,
    seed: int = 1,
) -> tuple[list[torch.Tensor], int]:
    """Logits, then the gradients of all inputs and parameters; and the bytes kept for backward."""
    spec = make_spec(supervision)
    torch.manual_seed(seed)
    ranker = build_ranker(spec, config).to(dtype)
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    assert set_compute(ranker, compute) >= config.num_layers
    batch = make_input(spec, {"seen": lengths} if lengths else LENGTHS, [1] * len(lengths) if lengths else CANDIDATES)
    leaves = [*(leaf.requires_grad_() for leaf in float_leaves(batch)), *ranker.parameters()]
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = ranker(batch)
    pull = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=logits.dtype)
    grads = torch.autograd.grad((logits * pull).sum(), leaves, allow_unused=True, materialize_grads=True)
    return [logits.detach(), *grads], sum(kept.values())


@pytest.mark.parametrize("supervision", ["candidates", "history"])
@pytest.mark.parametrize("kind", KINDS)
def test_fused_equals_plain(kind: str, supervision: str) -> None:
    config = make_config(dropout=0.3, **KINDS[kind])
    fused, plain = (_run(config, Compute(fused=on), supervision=supervision)[0] for on in (True, False))
    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_bfloat16_products_leave_dtypes_and_err_no_more_than_plain_modules() -> None:
    """Means over draws: of one draw the two errors differ by up to a half, either way."""
    config = make_config(dim=64, ffn_dim=128)
    errors: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(4):
        exact = _run(config, Compute(), torch.float32, seed=seed)[0]
        size = sum(float(theirs.norm()) ** 2 for theirs in exact) ** 0.5
        for fused, found in errors.items():
            rounded = _run(config, Compute(torch.bfloat16, fused=fused), torch.float32, seed=seed)[0]
            assert [tensor.dtype for tensor in rounded] == [tensor.dtype for tensor in exact]
            off = sum(float((ours - theirs).norm()) ** 2 for ours, theirs in zip(rounded, exact, strict=True)) ** 0.5
            found.append(off / size)
    assert 1e-4 < sum(errors[True]) / 4 < 0.05  # it is bfloat16, and close
    assert sum(errors[True]) < 1.3 * sum(errors[False])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_checkpointing_repeats_to_the_bit_and_keeps_less(dropout: float, dtype: torch.dtype | None) -> None:
    config = make_config(dropout=dropout, dim=32)
    (kept, bytes_kept), (again, bytes_again) = (
        _run(config, Compute(dtype, checkpoint=on), torch.float32) for on in (False, True)
    )
    for ours, theirs in zip(again, kept, strict=True):
        assert torch.equal(ours, theirs)
    assert bytes_again < 0.5 * bytes_kept


def test_fused_keeps_less_than_plain_modules() -> None:
    config = make_config(dim=32, ffn_dim=128, full_layers=4)
    fused, plain = (_run(config, Compute(fused=on), torch.float32, lengths=[300])[1] for on in (True, False))
    assert fused < 0.9 * plain


def test_dropout_mask_keeps_the_mean_and_drops_its_share() -> None:
    like = torch.empty(501, 333)
    assert dropout_mask(like, 0.0, torch.float32) is None
    for probability in (0.1, 0.5, 0.97):
        torch.manual_seed(4)
        mask = dropout_mask(like, probability, torch.float64)
        assert mask is not None
        spread = (probability * (1 - probability) / like.numel()) ** 0.5
        assert abs(float((mask == 0).double().mean()) - probability) < 5 * spread + 2**-16
        assert abs(float(mask.mean()) - 1) < 5 * spread / (1 - probability)
        torch.manual_seed(4)
        again = dropout_mask(like, probability, torch.float64)
        assert again is not None
        assert torch.equal(mask, again)
