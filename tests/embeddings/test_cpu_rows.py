"""Our CPU kernels of looked-up rows against FBGEMM's, which they stand in for, and against plain rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from fbgemm_gpu.tbe.config.optimizer_config import WeightDecayMode

from embeddings import cpu_rows
from embeddings.cpu_rows import CpuRows, use_cpu_rows

ROWS = (500, 7, 300)  # of three tables in one module
OPTIMIZERS = [EmbOptimType.EXACT_SGD, EmbOptimType.EXACT_ADAGRAD, EmbOptimType.EXACT_ROWWISE_ADAGRAD]


def _module(optimizer: EmbOptimType, dtype: SparseType, decay: float = 0.0, width: int = 12) -> Any:
    arguments: dict[str, Any] = {"weight_decay": decay, "weight_decay_mode": WeightDecayMode.L2} if decay else {}
    module = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, width, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows in ROWS],
        optimizer=optimizer,
        learning_rate=0.2,
        eps=1e-4,
        pooling_mode=PoolingMode.NONE,
        weights_precision=dtype,
        output_dtype=SparseType.FP32,
        device=torch.device("cpu"),
        **arguments,
    )
    generator = torch.Generator().manual_seed(3)
    for weight in module.split_embedding_weights():
        weight.data.copy_(torch.randn(weight.shape, generator=generator))
    return module


def _batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of three features from two ranks each, as they arrive: many twice, one rank without any."""
    generator = torch.Generator().manual_seed(step)
    lengths = torch.tensor([80, 120, 5, 0, 33, 90])
    rows = [
        torch.randint(rows, (int(n),), generator=generator)
        for n, rows in zip(lengths, (500, 500, 7, 7, 300, 300), strict=True)
    ]
    return torch.cat(rows), torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


def _trained(module: Any, steps: int = 4) -> list[torch.Tensor]:
    """Weights and states of each table, and what the last step looked up."""
    for step in range(steps):
        out = module(*_batch(step))
        (out * torch.sin(torch.arange(out.numel()).view_as(out) + step)).sum().backward()
    weights = [weight.detach().float() for weight in module.split_embedding_weights()]
    return [*weights, *(state for states in module.split_optimizer_states() for state in states), out.detach()]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(SparseType.FP32, 1e-5), (SparseType.FP16, 4e-3)])
def test_rows_and_states_are_fbgemms(optimizer: EmbOptimType, dtype: SparseType, tolerance: float) -> None:
    ours, theirs = _module(optimizer, dtype), _module(optimizer, dtype)
    use_cpu_rows(ours)
    assert isinstance(ours.forward, CpuRows)
    for mine, expected in zip(_trained(ours), _trained(theirs), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=tolerance)


def test_weight_decay_is_fbgemms_l2_once_a_row() -> None:
    arguments = EmbOptimType.EXACT_ROWWISE_ADAGRAD, SparseType.FP32, 0.4
    ours, theirs, without = _module(*arguments), _module(*arguments), _module(*arguments[:2])
    use_cpu_rows(ours)
    use_cpu_rows(without)
    weights, expected, other = (_trained(module)[: len(ROWS)] for module in (ours, theirs, without))
    for mine, fbgemms, undecayed in zip(weights, expected, other, strict=True):
        torch.testing.assert_close(mine, fbgemms, rtol=0, atol=1e-5)
        assert float((mine - undecayed).abs().max()) > 1e-2


def test_half_weights_are_rounded_once_to_the_nearest() -> None:
    module = _module(EmbOptimType.EXACT_SGD, SparseType.FP16)
    use_cpu_rows(module)
    before = module.split_embedding_weights()[0].detach().clone()
    rows = torch.arange(500)
    gradient = torch.randn(500, 12)
    module(rows, torch.tensor([0, 500, 500, 500])).backward(gradient)
    assert torch.equal(module.split_embedding_weights()[0], (before.float() - 0.2 * gradient).half())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_number_of_threads_gives_the_same_bits(optimizer: EmbOptimType, monkeypatch: pytest.MonkeyPatch) -> None:
    one, several = _module(optimizer, SparseType.FP32), _module(optimizer, SparseType.FP32)
    use_cpu_rows(one)
    use_cpu_rows(several)
    expected = _trained(one)
    monkeypatch.setattr(cpu_rows, "ROWS_PER_THREAD", 10)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert all(torch.equal(a, b) for a, b in zip(_trained(several), expected, strict=True))


@pytest.mark.parametrize("row", [-1, 7])
def test_a_row_that_a_table_lacks_is_an_error_not_a_stray_write(row: int) -> None:
    module = _module(EmbOptimType.EXACT_SGD, SparseType.FP32)
    use_cpu_rows(module)
    with pytest.raises(IndexError, match="in a table that has 7"):
        module(torch.tensor([3, row]), torch.tensor([0, 0, 2, 2]))
