"""Weighted binary cross-entropy over several tasks, product tasks among them.

Shape suffixes: S supervised positions · K tasks · J factors of a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class TaskHead:
    """One column of the logits. loss_weight: in the loss. product_of: tasks whose probabilities multiply to this
    one's; its own logit is then not read."""

    name: str
    loss_weight: float = 1.0
    product_of: tuple[str, ...] = ()


class Heads(tuple[TaskHead, ...]):
    """Tasks in the order of the logits' columns. ValueError, one line a problem, where a product's factors are not
    plain tasks of it."""

    def __new__(cls, heads: Sequence[TaskHead]) -> Heads:
        plain = {head.name for head in heads if not head.product_of}
        problems = [
            f"task {head.name!r} is a product of {factor!r} → factors are tasks that are no products themselves → "
            "name one of those"
            for head in heads
            for factor in head.product_of
            if factor not in plain
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return super().__new__(cls, heads)

    def columns(self, head: TaskHead) -> list[int]:
        """The logits a task's probability is made of."""
        names = [other.name for other in self]
        return [names.index(name) for name in head.product_of or (head.name,)]


def _log_probabilities(logits_SJ: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log p and log(1 − p) of p = Π σ(z_j), [S] each. 1 − p = Σ_j (1 − σ(z_j)) Π_{i<j} σ(z_i), a sum of positive
    terms, so nothing cancels and the gradient is finite for every finite logit."""
    log_yes_SJ, log_no_SJ = F.logsigmoid(logits_SJ), F.logsigmoid(-logits_SJ)
    through_SJ = log_yes_SJ.cumsum(dim=1)
    return through_SJ[:, -1], torch.logsumexp(through_SJ - log_yes_SJ + log_no_SJ, dim=1)


def ranking_loss(
    logits_SK: torch.Tensor,
    labels_SK: torch.Tensor,
    weights_SK: torch.Tensor,
    normalizers_K: torch.Tensor,
    heads: Heads,
    offsets_SK: torch.Tensor | None = None,
) -> torch.Tensor:
    """Σ_k loss_weight_k · Σ_s w_sk · BCE_sk ÷ normalizer_k, a scalar (float32, or float64 for float64 logits).

    normalizers_K: Σ w of the whole global batch; a rank of many passes that ÷ world size, so that averaged gradients
    are those of one rank. A task of normalizer 0 is left out. Where the weight is 0 neither label nor logit is read
    (not even a NaN), and the gradient is exactly 0.

    offsets_SK: added to the logit of each task's probability (a product's too) before the entropy: −ln r where the data
    hold a share r of the negatives, so that the logits themselves are those of all data (King and Zeng 2001).
    """
    logits_SK = logits_SK if logits_SK.dtype == torch.float64 else logits_SK.float()
    total = logits_SK.new_zeros(())
    for k, head in enumerate(heads):
        weight_S, label_S = weights_SK[:, k].to(logits_SK.dtype), labels_SK[:, k].to(logits_SK.dtype)
        counted_S = (weight_S > 0) & (normalizers_K[k] > 0)
        scored_SJ = logits_SK[:, heads.columns(head)].where(counted_S.unsqueeze(1), 0)
        log_yes_S, log_no_S = _log_probabilities(scored_SJ)
        if offsets_SK is not None:
            odds_S = log_yes_S - log_no_S + offsets_SK[:, k].to(logits_SK.dtype).where(counted_S, 0)
            log_yes_S, log_no_S = F.logsigmoid(odds_S), F.logsigmoid(-odds_S)
        label_S = label_S.where(counted_S, 0)
        entropy_S = -(label_S * log_yes_S + (1 - label_S) * log_no_S)
        scale = head.loss_weight / normalizers_K[k].to(logits_SK.dtype).where(normalizers_K[k] > 0, 1)
        total = total + scale * (weight_S * entropy_S).where(counted_S, 0).sum()
    return total


def probabilities(logits_SK: torch.Tensor, heads: Heads) -> torch.Tensor:
    """[S, K] of the tasks' probabilities, products included, in the logits' dtype (float32 for half-width logits)."""
    logits_SK = logits_SK if logits_SK.dtype == torch.float64 else logits_SK.float()
    return torch.stack([_log_probabilities(logits_SK[:, heads.columns(head)])[0].exp() for head in heads], dim=1)
