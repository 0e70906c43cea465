"""The tower alone: forward, backward and dense optimizer of ours against a plain PyTorch user's, on the same rows.

    python -m tests.benchmarks.tower [--quick] [--threads 2]

Looked-up fields are given as tensors that want gradients; no table is in the timed part. `…_over_plain` compares with
the fastest fp32 form of the plain tower (plain_tower.py), `…_over_plain_bf16` with the fastest of its bf16 forms. An
example is one candidate of the plain tower, and one supervised event in `history` supervision. docs/benchmarks/tower.md
says what every key means.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import nn

from model.compute import Compute, set_compute
from model.config import Model, Savings
from model.rankers import build_ranker
from tests.benchmarks import harness
from tests.benchmarks.plain_tower import FORMS, PlainForward, PlainTower, ffn_of_same_size
from tests.benchmarks.tower_memory import peak_bytes
from tests.benchmarks.tower_products import seconds_of_products
from tests.benchmarks.tower_rows import Shape, Supervision, draw, leaves_of, pad, spec_of, uniform_lengths
from trainer import machine
from trainer.flops import FORWARD_AND_BACKWARD, Rows, ranker_work

OURS, OURS_BF16, HISTORY = "ours", "ours, bf16", "ours, history"


@dataclass(frozen=True)
class Plan:
    """forms: of the plain tower. savings: of ours, each switched off as a contestant of its own.
    growth: history lengths of the curve, with `growth_rows` rows of each."""

    shape: Shape
    forms: tuple[str, ...]
    rounds: int
    growth: tuple[int, ...]
    growth_rows: int
    savings: tuple[str, ...] = ()


FULL = Plan(Shape(rows=32), tuple(FORMS), 5, (256, 512, 1024, 2048, 4096), 4, ("cone", "packed", "request_rows"))
QUICK = Plan(Shape(rows=16), ("fp32", "bf16 module, products"), 3, (256, 512, 1024, 2048), 2)
TINY = Plan(
    Shape(rows=4, longest=12, dim=16, windows=(4, 2)),
    ("fp32", "bf16 module"),
    1,
    (8, 16, 32),
    2,
    ("cone", "packed", "request_rows"),
)
# What grows with a history, and in which regime: layers that slide; the cone of layers over one full one, which asks
# at the cone's places only; and the tower in its default pattern, whose lowest layer is quadratic.
GROWTH: dict[str, tuple[Supervision, dict[str, Any]]] = {
    "sliding": ("history", {"full_layers": 0}),
    "cone": ("candidates", {"full_layers": 1}),
    "tower": ("candidates", {}),
}


class Step:
    """`step()`: forward, loss, backward, AdamW, on one batch."""

    def __init__(self, module: nn.Module, leaves: list[torch.Tensor], forward: Callable[[], torch.Tensor]) -> None:
        self._leaves, self._forward = leaves, forward
        self._optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
        with torch.no_grad():
            self._labels = (torch.arange(forward().numel()) % 5 == 0).float()

    def step(self) -> None:
        """One training step of the tower."""
        for leaf in self._leaves:
            leaf.grad = None
        self._optimizer.zero_grad(set_to_none=True)
        loss = F.binary_cross_entropy_with_logits(self._forward().flatten(), self._labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()


def ours(
    shape: Shape,
    config: Model,
    supervision: Supervision,
    lengths: list[int],
    candidates: int,
    dtype: torch.dtype | None = None,
    **spec: Any,
) -> Step:
    """dtype: of the products; None = float32."""
    torch.manual_seed(1)
    made = spec_of(shape, supervision, **spec)
    ranker = build_ranker(made, config)
    set_compute(ranker, Compute(dtype))
    batch = draw(made, lengths, candidates)
    return Step(ranker, leaves_of(batch), lambda: ranker(batch))


def plain(shape: Shape, form: str, ffn: int, lengths: list[int], candidates: int) -> Step:
    torch.manual_seed(1)
    dtype = FORMS[form].module
    tower = PlainTower(shape, ffn).to(dtype)
    batch = pad(draw(spec_of(shape, "candidates"), lengths, candidates), dtype)
    return Step(tower, batch.leaves(), PlainForward(tower, batch, FORMS[form]).forward)


def timed(name: str, step: Callable[[], None]) -> float:
    """Seconds. Ours keeps the trainer's promise to repeat itself to the bit; a plain user would not pay for it."""
    torch.use_deterministic_algorithms(name.startswith("ours"))
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def compete(steps: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant, round by round, after one step to warm up."""
    for name, step in steps.items():
        timed(name, step)
    return harness.in_turn({name: partial(timed, name, step) for name, step in steps.items()}, rounds)


def settings(plan: Plan) -> dict[str, float]:
    """The three comparisons → ratios."""
    shape, ffn, ratios = plan.shape, ffn_of_same_size(plan.shape), {}
    lengths, seconds = uniform_lengths(shape), dict[str, dict[str, list[float]]]()
    for key, candidates in (("candidates", 4), ("single_candidate", 1)):
        steps = {OURS: ours(shape, shape.model(), "candidates", lengths, candidates)}
        steps |= {f"plain, {form}": plain(shape, form, ffn, lengths, candidates) for form in plan.forms}
        for name in plan.savings if candidates > 1 else ():
            config = shape.model(savings=Savings(**{name: False}))
            steps[f"ours, {name} off"] = ours(shape, config, "candidates", lengths, candidates)
        steps[OURS_BF16] = ours(shape, shape.model(), "candidates", lengths, candidates, dtype=torch.bfloat16)
        if candidates == 1:
            steps[HISTORY] = ours(shape, shape.model(), "history", lengths, 0)
            steps[f"{HISTORY}, bf16"] = ours(shape, shape.model(), "history", lengths, 0, dtype=torch.bfloat16)
        seconds[key] = compete({name: made.step for name, made in steps.items()}, plan.rounds)
        memory = {name: peak_bytes(made.step) for name, made in steps.items()}
        asked = {name: sum(lengths) if name.startswith(HISTORY) else shape.rows * candidates for name in steps}
        show_setting(f"K = {candidates}", seconds[key], asked, memory, tokens_of(shape, candidates))
        ratios |= over_plain(f"{key}_over_plain", seconds[key], OURS, asked)
        if candidates == 1:
            ratios |= over_plain("history_over_plain_per_example", seconds[key], HISTORY, asked)
            ratios["memory_over_plain"] = memory["plain, fp32"] / memory[OURS]
            ratios["bytes_per_token"] = memory[OURS] / tokens_of(shape, 1)[OURS]
    ratios |= matmul_shares(shape, lengths, seconds)
    return ratios


def tokens_of(shape: Shape, candidates: int) -> dict[str, int]:
    """Tokens of the batch, by contestant's first word: packed and padded."""
    lengths = uniform_lengths(shape)
    packed = sum(lengths) + shape.rows * (shape.fields + 2 + candidates)
    padded = shape.rows * candidates * (shape.fields + 1 + max(lengths))
    return {OURS: packed, HISTORY: 2 * sum(lengths) + shape.rows * (shape.fields + 1), "plain": padded}


def over_plain(key: str, seconds: dict[str, list[float]], name: str, asked: dict[str, int]) -> dict[str, float]:
    """Examples per second over the fastest plain forms': fp32 over fp32, `_bf16` bf16 over bf16, `_auto` the faster of
    ours over plain fp32."""

    def over(own: str, kind: str) -> float:
        rivals = [rival for rival in seconds if rival.startswith(kind)]
        return min(harness.ratio(seconds[rival], seconds[own]) * asked[own] / asked[rival] for rival in rivals)

    found = {key: over(name, "plain, fp32"), f"{key}_bf16": over(f"{name}, bf16", "plain, bf16")}
    return found | {f"{key}_auto": max(found[key], over(f"{name}, bf16", "plain, fp32"))}


def show_setting(
    title: str, seconds: dict[str, list[float]], asked: dict[str, int], memory: dict[str, int], tokens: dict[str, int]
) -> None:
    rows = []
    for name, values in seconds.items():
        of = tokens["plain" if name.startswith("plain") else HISTORY if name.startswith(HISTORY) else OURS]
        rows.append(
            [
                name,
                harness.spread([second * 1e3 for second in values]),
                f"{asked[name] / median(values):,.1f}",
                f"{memory[name] / 1e6:,.0f} MB",
                f"{memory[name] / of:,.0f}",
            ]
        )
    harness.table([title, "ms a step", "examples/s", "peak memory", "bytes a token"], rows)


def matmul_shares(shape: Shape, lengths: list[int], seconds: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Time that the machine's own matrix products of the same shapes take, over the time of our step."""
    rows, found = [], {}
    cases: tuple[tuple[str, str, Supervision, str, int], ...] = (
        ("matmul_share", "candidates", "candidates", OURS, 4),
        ("matmul_share_single", "single_candidate", "candidates", OURS, 1),
        ("matmul_share_history", "single_candidate", "history", HISTORY, 0),
    )
    for key, setting, supervision, name, candidates in cases:
        work = ranker_work(
            spec_of(shape, supervision),
            shape.model(),
            Rows(
                {"events": torch.tensor(lengths).double().numpy()},
                torch.full((shape.rows,), float(candidates)).double().numpy(),
            ),
        )
        flops = FORWARD_AND_BACKWARD * work.flops
        products = seconds_of_products(work, shape.rows, shape.heads)
        step = median(seconds[setting][name])
        found[key] = products / step
        rows.append(
            [
                f"{key}",
                f"{flops / 1e9:,.2f}",
                f"{flops / step / 1e9:,.1f}",
                f"{flops / products / 1e9:,.1f}",
                f"{found[key]:.3f}",
            ]
        )
    harness.table(["executed work", "GFLOP a step", "GFLOP/s", "GFLOP/s of the products alone", "share"], rows)
    return found


def growth(plan: Plan) -> dict[str, float]:
    """Time and memory by history length → exponents between the last and the length of a quarter of it."""
    ratios, rows = {}, []
    for name, (supervision, changes) in GROWTH.items():
        seconds, memory = [], []
        for length in plan.growth:
            shape = replace(plan.shape, longest=length)
            candidates = 1 if supervision == "candidates" else 0
            made = ours(
                shape, shape.model(**changes), supervision, [length] * plan.growth_rows, candidates, actions=False
            )
            seconds.append(median(compete({"ours": made.step}, plan.rounds)["ours"]))
            memory.append(peak_bytes(made.step))
            rows.append([name, supervision, str(length), f"{seconds[-1] * 1e3:,.1f}", f"{memory[-1] / 1e6:,.1f} MB"])
        span = math.log(plan.growth[-1] / plan.growth[-3])
        ratios[f"{name}_growth_exponent"] = max(0.01, math.log(seconds[-1] / seconds[-3]) / span)
        ratios[f"{name}_memory_exponent"] = max(0.01, math.log(memory[-1] / memory[-3]) / span)
    harness.table(["growth", "supervision", "history", "ms a step", "peak memory"], rows)
    return ratios


@click.command()
@click.option("--quick", is_flag=True, help="Ends within a minute on 2 cores.")
@click.option("--threads", default=0, help="Of torch; 0 = the cores there are.")
@click.option("--tiny", is_flag=True, hidden=True, help="For the tests.")
def main(quick: bool, threads: int, tiny: bool) -> None:
    """The tower against a plain PyTorch user's."""
    harness.prepare_process()
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # as the trainer has it
    torch.set_num_threads(threads or machine.cores())
    plan = TINY if tiny else QUICK if quick else FULL
    ffn = ffn_of_same_size(plan.shape)
    harness.show("shape", plan.shape.facts())
    harness.show("plain", {"feed-forward, two matrices": ffn, "as many weights a layer as": "ours"})
    harness.show("measured", {"rounds": plan.rounds, "threads": torch.get_num_threads()})
    ratios = settings(plan)
    ratios |= growth(plan)
    harness.finish("tower", ratios, torch.get_num_threads())


if __name__ == "__main__":
    main()
