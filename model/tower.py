"""The stack all stream rankers share: tokens → packed stream → blocks, each over the tokens its cone needs → one
logit per task.

Shape suffixes: P, N tokens as in stream.py · A tokens a layer takes in · S supervised positions · K tasks · D model
width.
"""

from __future__ import annotations

import torch
from torch import nn

from model.attention import make_layouts
from model.block import NORM_EPS, Block
from model.config import Model
from model.head import task_head
from model.inputs import InputSpec, RankerInput
from model.padded import one_row_per_candidate
from model.rope import rotation
from model.stream import Stream, build_stream
from model.take import take_once
from model.timeline import Timeline, chosen, merge
from model.tokens import StreamTokens


def merges_actions(spec: InputSpec, config: Model) -> bool:
    if config.action_tokens == "auto":
        return spec.supervision == "candidates"
    return config.action_tokens == "merged"


class StreamTower(nn.Module):
    """`config.layer_windows` and `config.gated` tell the rankers apart. A final RMSNorm stands before the head, as
    pre-norm stacks have it.

    A row's logits depend on that row alone, and in `candidates` supervision, unless candidates_see is "all", not on
    the other candidates. Every parameter takes part in every batch, so that each has a gradient (of zeros, if nothing
    reads it) for a gradient all-reduce.
    """

    def __init__(self, spec: InputSpec, config: Model) -> None:
        super().__init__()
        self.spec = spec
        self.config = config
        self.tokens = StreamTokens(
            spec, config.tokens, config.dim, time_gaps=config.time_gaps, merge_actions=merges_actions(spec, config)
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.head = task_head(config.dim, len(spec.tasks))

    def forward(self, batch: RankerInput) -> torch.Tensor:
        """Logits [S, K], float32 (float64 for a float64 module), in the order of the candidates or of the supervised
        history's events."""
        if self.spec.supervision == "candidates" and not self.config.savings.request_rows:
            batch = one_row_per_candidate(batch)
        with torch.no_grad():
            timeline, stream = place_tokens(self.spec, self.config, self.tokens, batch)
            stream, taken_A, top_Q, layouts = make_layouts(
                stream, self.config.layer_windows, backend=self.config.attention, savings=self.config.savings
            )
        source_A = chosen(stream.source_N, taken_A)
        tokens_PD = self.tokens(batch, timeline)
        # Where rows are padded, a token stands in for padding many times.
        x_AD = take_once(tokens_PD, source_A) if self.config.savings.packed else tokens_PD.index_select(0, source_A)
        rotation_A = chosen(self._rotation(stream, x_AD.dtype), taken_A)
        for block, layout in zip(self.blocks, layouts, strict=True):
            rotation_Q = chosen(rotation_A, layout.queries_A)
            x_AD = block(x_AD, layout, rotation_A, rotation_Q)
            rotation_A = rotation_Q
        logits_AK = self.head(self.final_norm(x_AD))
        places_S = places_in(top_Q, stream)
        logits_SK: torch.Tensor = logits_AK.index_select(0, places_S)
        return logits_SK if logits_SK.dtype == torch.float64 else logits_SK.float()

    def _rotation(self, stream: Stream, dtype: torch.dtype) -> torch.Tensor:
        return rotation(stream.position_N, self.config.dim // self.config.num_heads, self.config.rope_base, dtype)


def place_tokens(spec: InputSpec, config: Model, tokens: StreamTokens, batch: RankerInput) -> tuple[Timeline, Stream]:
    """The batch's events in time, and its tokens' places in the packed stream."""
    events = tokens.events
    histories = [batch.histories[history.name] for history in events.histories]
    timeline = merge(histories, events.with_action_token, batch)
    if spec.supervision == "candidates":
        num_supervised = next(iter(batch.candidates.values())).shape[0]
    else:
        num_supervised = histories[0].time_E.shape[0]
    stream = build_stream(
        spec,
        len(tokens.fields.groups),
        timeline,
        batch.candidate_lengths_R,
        batch.clock_R,
        num_supervised=num_supervised,
        bidirectional_fields=config.field_attention == "bidirectional",
        isolated_candidates=config.candidates_see == "history",
    )
    return timeline, stream


def places_in(top_Q: torch.Tensor | None, stream: Stream) -> torch.Tensor:
    """[S] where the supervised tokens stand among those that the top layer puts out (index into N, ascending; None for
    all)."""
    return stream.supervised_S if top_Q is None else torch.searchsorted(top_Q, stream.supervised_S)
