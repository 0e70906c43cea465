"""What a table may be on CPU and on CUDA: FBGEMM has other kernels on each."""

from __future__ import annotations

import logging

from embeddings.config import Embeddings
from embeddings.errors import PlanError
from embeddings.specs import TableSpec

log = logging.getLogger(__name__)

NEAREST = {"adam": "adagrad", "rowwise_adam": "rowwise_adagrad"}


def check_device(specs: dict[str, TableSpec], config: Embeddings, device: str) -> None:
    """device: "cpu" or "cuda". Raises PlanError with every table that cannot live there; says what it does instead of
    what was asked for where nothing is lost but precision on the wire."""
    if device == "cuda":
        return
    refused: dict[str, list[str]] = {}
    for spec in specs.values():
        if spec.dtype == "bf16":
            rule = f"dtype = 'bf16' on {device} → FBGEMM has it on CUDA only → dtype = 'fp16', of the same size"
            refused.setdefault(rule, []).append(spec.name)
        if spec.optimizer in NEAREST:
            rule = (
                f"optimizer = {spec.optimizer!r} on {device} → FBGEMM has it on CUDA only → "
                f"optimizer = {NEAREST[spec.optimizer]!r}"
            )
            refused.setdefault(rule, []).append(spec.name)
    problems = [f"{_named(tables)}: {rule}" for rule, tables in refused.items()]
    if problems:
        raise PlanError(problems)
    for key, codec in (("forward_codec", config.forward_codec), ("backward_codec", config.backward_codec)):
        if codec == "bf16":
            log.warning("embeddings.%s = 'bf16' → gloo does not carry it → 'fp16' travels on CPU", key)


def _named(tables: list[str]) -> str:
    """One line for a setting that a thousand tables share."""
    first = ", ".join(repr(table) for table in tables[:3])
    more = f" and {len(tables) - 3} more" if len(tables) > 3 else ""
    return f"table{'s' if len(tables) > 1 else ''} {first}{more}"
