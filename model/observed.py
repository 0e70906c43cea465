"""What is looked at in a ranker's layers, and the rows it is looked at of.

Kinds of token: `sequence` the behaviours' state tokens, `action` action tokens where they are separate, `field`,
`candidate`. A query's attention is shared out over KEYS: `history` is behaviours and their actions but for the query
itself, `candidate` the other candidates.

Shape suffixes: R rows · N tokens of the packed stream · E events · n tokens of a kind · K KEYS · D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from model.inputs import RankerInput
from model.rows import rows_at
from model.stream import Stream
from model.timeline import Timeline

FIELD, SEP, STATE, ACTION, CANDIDATE = range(5)  # of tokens of a stream
KEYS = ("field", "sep", "history", "candidate", "self")


@dataclass(frozen=True)
class Layer:
    """What a layer puts out; layer 0 is the embedding output. Every layer of a ranker has the same kinds in every
    batch, also when there is no such token in it.

    tokens {kind: [n, D]}. attention {kind of query: float [n, K]}: shares of its attention, mean over heads, summing to
    1. even: the same if it looked at all that it may see alike. Both empty at layer 0, and where attention is no
    softmax or is not looked at.
    """

    tokens: dict[str, torch.Tensor]
    attention: dict[str, torch.Tensor] = field(default_factory=dict)
    even: dict[str, torch.Tensor] = field(default_factory=dict)


def stream_kinds(batch: RankerInput, timeline: Timeline, stream: Stream, *, has_candidates: bool) -> torch.Tensor:
    """int64 [N]: FIELD … CANDIDATE, from the order of stream.py's pieces."""
    rows, states, actions = stream.num_rows, timeline.row_E.shape[0], int(timeline.has_action_E.sum())
    counts = [(FIELD, rows * stream.num_fields), (SEP, rows), (STATE, states), (ACTION, actions)]
    if has_candidates:
        counts += [(SEP, rows), (CANDIDATE, int(batch.candidate_lengths_R.sum()))]
    kind, count = torch.tensor(counts, device=stream.source_N.device).unbind(1)
    return kind.repeat_interleave(count).index_select(0, stream.source_N)


def tokens_of_kinds(
    x_ND: torch.Tensor, kind_N: torch.Tensor, stream: Stream, *, acts: bool, has_candidates: bool
) -> dict[str, torch.Tensor]:
    """Layer.tokens of a stream. acts: whether it has action tokens."""
    wanted = {"sequence": STATE} | ({"action": ACTION} if acts else {})
    wanted |= ({"field": FIELD} if stream.num_fields else {}) | ({"candidate": CANDIDATE} if has_candidates else {})
    return {name: x_ND[kind_N == kind] for name, kind in wanted.items()}


def select_rows(batch: RankerInput, kept_R: torch.Tensor) -> RankerInput:
    """The rows where bool `kept_R`, in their order."""
    row_X = kept_R.nonzero().squeeze(1)
    kept_C = kept_R.repeat_interleave(batch.candidate_lengths_R)
    candidates = {name: value[kept_C] for name, value in batch.candidates.items()}
    return rows_at(batch, row_X, candidates, batch.candidate_lengths_R.index_select(0, row_X))
