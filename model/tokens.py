"""From looked-up fields to token vectors: static fields, behaviours, actions and candidates (arXiv 2604.13737, Eq. 7).

There are no token-type embeddings and no additive positions. Shape suffixes: R request rows · M field tokens · E
events of all histories, history after history · C candidates · P all tokens, kind by kind, as in stream.py · G gap
features · W widths · X width of a token's inputs · D model width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from model.config import Tokens
from model.inputs import FieldSpec, InputSpec, RankerInput
from model.timeline import Timeline, log_days, ordered_histories, rows_of


def group_fields(names: list[str], config: Tokens) -> list[tuple[str, ...]]:
    """The fields of each field token. Stated groups come first, as given; the others follow one by one, or, where
    that would make more than `max_field_tokens` in all, as even runs of neighbours."""
    stated = [tuple(group) for group in config.groups.values()]
    taken = {name for group in stated for name in group}
    rest = [name for name in names if name not in taken]
    count = min(len(rest), max(1, config.max_field_tokens - len(stated)))
    borders = [len(rest) * i // count for i in range(count + 1)] if count else []
    return stated + [tuple(rest[a:b]) for a, b in pairwise(borders)]


def _projection(width: int, dim: int) -> nn.Linear:
    linear = nn.Linear(width, dim)
    nn.init.trunc_normal_(linear.weight, std=width**-0.5)
    nn.init.zeros_(linear.bias)
    return linear


def _learned_vectors(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


# Inputs of equal width up to this one are projected in one batched product: its weights are stacked anew in every step,
# which costs more than a call of each only where they are wide (docs/benchmarks/many_fields.md).
STACKED_WIDTH = 64


class FieldTokens(nn.Module):
    """One token a field group: a linear layer of its own over the group's embeddings and dense values, concatenated →
    [R, M, D].

    Fields come one by one or in blocks (model.inputs.RankerInput): with blocks a step calls torch as often for
    thousands of fields as for some dozens. A token of several blocks takes them as they come, its weights' columns put
    into the same order, which costs the same for any number of rows.
    """

    def __init__(self, fields: tuple[FieldSpec, ...], config: Tokens, dim: int) -> None:
        super().__init__()
        widths = {field.name: field.width for field in fields}
        self.groups = group_fields(list(widths), config)
        self.dim = dim
        self._widths = widths
        self._sources: tuple[tuple[tuple[str, ...], ...], list[list[tuple[str, ...]]]] = ((), [[] for _ in self.groups])
        self.projections = nn.ModuleList(_projection(sum(widths[name] for name in group), dim) for group in self.groups)

    def forward(self, batch: RankerInput, dtype: torch.dtype) -> torch.Tensor:
        if not self.groups:
            return batch.time_R.new_empty((batch.time_R.shape[0], 0, self.dim), dtype=dtype)
        blocks = self._blocks_of_tokens(batch)
        projections = cast(list[nn.Linear], list(self.projections))
        inputs_M = [self._inputs(batch, *each, dtype) for each in zip(self.groups, blocks, strict=True)]
        weights_M = [
            self._weight(projection.weight, group, own)
            for projection, group, own in zip(projections, self.groups, blocks, strict=True)
        ]
        biases_M: list[torch.Tensor] = [projection.bias for projection in projections]
        widths = {inputs_RX.shape[1] for inputs_RX in inputs_M}
        if len(inputs_M) > 1 and len(widths) == 1 and max(widths) <= STACKED_WIDTH:
            weights_MXD = torch.stack(weights_M).transpose(1, 2)
            tokens_MRD = torch.baddbmm(torch.stack(biases_M).unsqueeze(1), torch.stack(inputs_M), weights_MXD)
            return tokens_MRD.transpose(0, 1)
        return torch.stack([F.linear(*each) for each in zip(inputs_M, weights_M, biases_M, strict=True)], dim=1)

    def _blocks_of_tokens(self, batch: RankerInput) -> list[list[tuple[str, ...]]]:
        """The blocks of each token. Found anew only where a batch has other blocks than the one before it."""
        given = tuple(batch.blocks)
        if given != self._sources[0]:
            token_of = {name: number for number, group in enumerate(self.groups) for name in group}
            found: list[list[tuple[str, ...]]] = [[] for _ in self.groups]
            for block in given:
                numbers = {token_of[name] for name in block}
                if len(numbers) != 1:
                    raise ValueError(f"block {block} → its fields are of one field token → cut it by `group_fields`")
                found[numbers.pop()].append(block)
            self._sources = (given, found)
        return self._sources[1]

    def _inputs(
        self, batch: RankerInput, group: tuple[str, ...], blocks: list[tuple[str, ...]], dtype: torch.dtype
    ) -> torch.Tensor:
        """[R, X]: the token's blocks, then its other fields."""
        parts = [batch.blocks[block].to(dtype) for block in blocks]
        parts += [batch.static[name].to(dtype) for name in _others(group, blocks)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _weight(self, weight_DX: torch.Tensor, group: tuple[str, ...], blocks: list[tuple[str, ...]]) -> torch.Tensor:
        """[D, X] with its columns in the order of `_inputs`."""
        order = [name for block in blocks for name in block] + _others(group, blocks)
        if order == list(group):
            return weight_DX
        columns = dict(
            zip(group, weight_DX.split_with_sizes([self._widths[name] for name in group], dim=1), strict=True)
        )
        return torch.cat([columns[name] for name in order], dim=1)


def _others(group: tuple[str, ...], blocks: list[tuple[str, ...]]) -> list[str]:
    """Fields of a token that are in none of its blocks."""
    if not blocks:
        return list(group)
    in_blocks = {name for block in blocks for name in block}
    return [name for name in group if name not in in_blocks]


class EventTokens(nn.Module):
    """Behaviours and candidates by one projection, actions by another.

    Inputs of the projection: the spec's event fields in their order, zeros where a history lacks one, then log time
    gaps: to the previous event of the row, and with `candidates` supervision also to the request. A candidate stands
    at the request.
    """

    def __init__(self, spec: InputSpec, dim: int, *, time_gaps: bool, merge_actions: bool) -> None:
        super().__init__()
        self.histories = ordered_histories(spec)
        self.fields, self.action_fields = spec.event, spec.action
        self.candidate_fields = spec.candidate
        self.num_gaps = (2 if spec.supervision == "candidates" else 1) if time_gaps else 0
        self.merge_actions = merge_actions
        self.projection = _projection(sum(field.width for field in spec.event) + self.num_gaps, dim)
        self.names = _learned_vectors(len(self.histories), dim) if len(self.histories) > 1 else None
        has_actions = any(history.action for history in self.histories)
        self.action_projection = _projection(sum(field.width for field in spec.action), dim) if has_actions else None

    @property
    def with_action_token(self) -> list[bool]:
        """Per history, in the order of timeline.ordered_histories."""
        return [bool(history.action) and not self.merge_actions for history in self.histories]

    def candidates(self, batch: RankerInput, timeline: Timeline) -> torch.Tensor:
        """[C, D]."""
        dtype = self.projection.weight.dtype
        total = next(iter(batch.candidates.values())).shape[0]
        row_C = rows_of(batch.candidate_lengths_R, total)
        gap_CG = None
        if self.num_gaps:
            gap_C = log_days(timeline.newest_gap_R.index_select(0, row_C), dtype)
            gap_CG = torch.stack([gap_C, torch.zeros_like(gap_C)], dim=1)
        inputs_CW = self._concatenated(self.fields, self.candidate_fields, batch.candidates, total, gap_CG)
        tokens_CD: torch.Tensor = self.projection(inputs_CW)
        return tokens_CD

    def events(self, batch: RankerInput, timeline: Timeline) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """States of each history [E of it, D], and the action tokens of those histories that have them."""
        gap_EG = self._event_gaps(batch, timeline)
        states, actions, first = [], [], 0
        for place, history in enumerate(self.histories):
            given = batch.histories[history.name]
            part = slice(first, first + given.time_E.shape[0])
            first = part.stop
            gaps = None if gap_EG is None else gap_EG[part]
            state_ED = self.projection(
                self._concatenated(self.fields, history.event, given.event, given.time_E.shape[0], gaps)
            )
            if self.names is not None:
                state_ED = state_ED + self.names[place]
            if self.action_projection is not None and history.action:
                inputs_EW = self._concatenated(
                    self.action_fields, history.action, given.action, given.time_E.shape[0], None
                )
                action_ED = self.action_projection(inputs_EW)
                if self.merge_actions:
                    known_E = given.action_clock_E < batch.clock_R.index_select(0, timeline.row_E[part])
                    state_ED = state_ED + action_ED * known_E.unsqueeze(1)
                else:
                    actions.append(action_ED)
            states.append(state_ED)
        return states, actions

    def _event_gaps(self, batch: RankerInput, timeline: Timeline) -> torch.Tensor | None:
        if not self.num_gaps:
            return None
        gaps = [timeline.gap_E]
        if self.num_gaps == 2:
            gaps.append(batch.time_R.index_select(0, timeline.row_E) - timeline.time_E)
        return torch.stack([log_days(gap_E, self.projection.weight.dtype) for gap_E in gaps], dim=1)

    def _concatenated(
        self,
        fields: tuple[FieldSpec, ...],
        present: tuple[str, ...],
        values: dict[str, torch.Tensor],
        total: int,
        gap_EG: torch.Tensor | None,
    ) -> torch.Tensor:
        weight = self.projection.weight
        parts = [
            values[field.name].to(weight.dtype) if field.name in present else weight.new_zeros(total, field.width)
            for field in fields
        ]
        return torch.cat(parts if gap_EG is None else [*parts, gap_EG], dim=1)


class RequestTokens(nn.Module):
    """What the rankers that lay their tokens out in a way of their own begin with: `fields` and `events`, under the
    names they have in a StreamTokens."""

    def __init__(self, spec: InputSpec, config: Tokens, dim: int, *, time_gaps: bool, merge_actions: bool) -> None:
        super().__init__()
        self.fields = FieldTokens(spec.static, config, dim)
        self.events = EventTokens(spec, dim, time_gaps=time_gaps, merge_actions=merge_actions)


class StreamTokens(nn.Module):
    """All token vectors of a batch, in the order of stream.py's P."""

    def __init__(self, spec: InputSpec, config: Tokens, dim: int, *, time_gaps: bool, merge_actions: bool) -> None:
        super().__init__()
        self.has_candidates = spec.supervision == "candidates"
        self.fields = FieldTokens(spec.static, config, dim)
        self.events = EventTokens(spec, dim, time_gaps=time_gaps, merge_actions=merge_actions)
        self.sep = _learned_vectors(dim)

    def forward(self, batch: RankerInput, timeline: Timeline) -> torch.Tensor:
        sep_RD = self.sep.expand(batch.time_R.shape[0], -1)
        states, actions = self.events.events(batch, timeline)
        pieces = [self.fields(batch, self.sep.dtype).flatten(0, 1), sep_RD, *states, *actions]
        if self.has_candidates:
            pieces += [sep_RD, self.events.candidates(batch, timeline)]
        return torch.cat(pieces)
