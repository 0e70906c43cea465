"""From looked-up rows to field tokens, forward and backward, for 20 to 2,000 fields: ours, and a layer a group over
torch.cat of a tensor a field.

    python -m tests.benchmarks.field_part [--quick]

Every field has a table of its own, one id a row; half of the ids of a batch are distinct. The plain way is what the
trainer did before: one index_select for all fields, split into a tensor each, then per token one torch.cat and one
nn.Linear. Both read the same rows and weights, and give the same tokens and gradients. Host work is apart: `index` is
what the reader's arrays cost to become indices. CPU milliseconds of one thread, medians.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import click
import numpy as np
import torch

from embeddings.tables import group_kjts
from model.config import Tokens
from model.inputs import FieldSpec, RankerInput
from model.tokens import FieldTokens
from pipelines.batch import FieldIds
from tests.benchmarks import harness
from trainer.group_index import Block, GroupIndex, group_indices

FIELDS = (20, 100, 500, 2000)


@dataclass(frozen=True)
class Shape:
    rows: int = 256
    width: int = 16
    dim: int = 128
    rounds: int = 9


class FieldPart:
    """One number of fields: the same rows and layers for both contestants."""

    def __init__(self, shape: Shape, fields: int) -> None:
        self.shape, self.names = shape, [f"f{k}" for k in range(fields)]
        rng, rows = np.random.default_rng(5), shape.rows
        unique = rows // 2
        self._kjts = group_kjts({"w": self.names}, {name: np.arange(unique) for name in self.names})
        self._fields = {name: FieldIds(name, rng.integers(0, unique, rows).astype(np.int32)) for name in self.names}
        self._rows_UW = torch.randn(unique * fields, shape.width, requires_grad=True)
        self.tokens = FieldTokens(tuple(FieldSpec(name, shape.width) for name in self.names), Tokens(), shape.dim)
        self._blocks = tuple(group for group in self.tokens.groups if len(group) > 1)
        self._zeros_R = torch.zeros(rows, dtype=torch.int64)
        self._pull_RMD = torch.randn(rows, len(self.tokens.groups), shape.dim)
        self._ready = {True: self.index(self._blocks), False: self.index(())}

    def index(self, blocks: tuple[Block, ...]) -> GroupIndex:
        """What wrapping a batch does for its fields."""
        return group_indices(self._fields, self._kjts, blocks)["w"]

    def ours(self) -> torch.Tensor:
        """Rows → tokens."""
        parts = self._ready[True].parts(self._rows_UW)
        static = {key: found for key, found in parts.items() if isinstance(key, str)}
        blocks = {key: found for key, found in parts.items() if not isinstance(key, str)}
        batch = RankerInput(static, {}, {}, self._zeros_R, self._zeros_R, self._zeros_R, blocks)
        return self.tokens(batch, torch.float32)

    def plain(self) -> torch.Tensor:
        """The same, field by field."""
        columns = self._ready[False].columns(self._rows_UW)
        tokens = [
            projection(torch.cat([columns[name] for name in group], dim=1))
            for group, projection in zip(self.tokens.groups, self.tokens.projections, strict=True)
        ]
        return torch.stack(tokens, dim=1)

    def step(self, tokens: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        """Forward and backward: the gradients."""
        leaves = [self._rows_UW, *self.tokens.parameters()]
        return list(torch.autograd.grad((tokens() * self._pull_RMD).sum(), leaves))

    def contestants(self) -> dict[str, Callable[[], object]]:
        """What is timed."""
        return {
            "ours": lambda: self.step(self.ours),
            "plain": lambda: self.step(self.plain),
            "index, ours": lambda: self.index(self._blocks),
            "index, plain": lambda: self.index(()),
        }

    def products(self) -> float:
        """Multiplications of the projections, forward and backward."""
        return 3.0 * self.shape.rows * len(self.names) * self.shape.width * self.shape.dim


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return 1e3 * (time.process_time() - began)


def measured(shape: Shape, fields: int) -> tuple[dict[str, list[float]], float]:
    """CPU milliseconds of each round; multiplications."""
    part = FieldPart(shape, fields)
    for ours, plain in zip(part.step(part.ours), part.step(part.plain), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3)
    calls = part.contestants()
    for call in calls.values():
        call()
    timed = {name: partial(_milliseconds, call) for name, call in calls.items()}
    figures = harness.in_turn(timed, shape.rounds)
    return figures, part.products()


def ratios(shape: Shape) -> dict[str, float]:
    """{"field_part_plain_over_ours_FIELDS": ×}; prints the table they come from."""
    harness.show("shape", vars(shape) | {"tokens": "at most 32"})
    found, rows = {}, []
    for fields in FIELDS:
        figures, products = measured(shape, fields)
        own, plain = figures["ours"], figures["plain"]
        found[f"field_part_plain_over_ours_{fields}"] = harness.ratio(plain, own)
        rows.append(
            [
                f"{fields:,}",
                f"{median(own):.2f}",
                f"{median(plain):.2f}",
                f"{1e3 * median(own) / shape.rows:.1f}",
                f"{harness.ratio(plain, own):.2f}",
                f"{2e-6 * products / median(own):.0f}",
                f"{median(figures['index, ours']):.2f}",
                f"{median(figures['index, plain']):.2f}",
            ]
        )
    head = ["fields", "ours, ms", "plain, ms", "ours, µs a row", "plain ÷ ours", "GFLOP/s", "index, ms", "index, plain"]
    harness.table(head, rows)
    return found


@click.command()
@click.option("--quick", is_flag=True, help="Fewer rounds.")
@click.option("--rows", default=Shape.rows, help="Rows of a batch.")
@click.option("--tiny", is_flag=True, hidden=True, help="For the tests.")
def main(quick: bool, rows: int, tiny: bool) -> None:
    """From looked-up rows to field tokens, forward and backward."""
    harness.prepare_process()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # as the trainer runs on CPU
    shape = Shape(rows=8, rounds=1) if tiny else Shape(rows=rows, rounds=5 if quick else Shape.rounds)
    harness.finish("field_part", ratios(shape), 1)


if __name__ == "__main__":
    main()
