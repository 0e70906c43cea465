"""HyFormer (arXiv 2601.12681v2, ByteDance): histories kept apart, each read by queries of its own, which meet the
fields in a token mixer, layer after layer.

    Query generation, first layer only:  GI = concat(F_1 … F_M, meanpool(seq)),  Q = [FFN_1(GI) … FFN_N(GI)]
    then in every layer                  sequence encoding and query decoding    hyformer_encoders.py
                                         query boosting of [Q~, F_1 … F_M]       query_boosting.py

The candidate is the last of the fields F: each candidate has its own queries and tokens, while the encoders, which see
no candidate, run once a request. Deeper layers go on with the boosted queries.

Not stated, and chosen here: pre-norm; a residual on decoding; boosted F rows carry on; every history has its own
weights; FFN_i is one hidden layer of width D with GELU; no mask in the encoders; RoPE by place in the history, the
queries one further; the head reads the mean of all tokens after a last norm. Time gaps are to the previous event of the
same history. Actions are merged into their events where known at the request.

Shape suffixes: R rows · E events of one history · C candidates · M field tokens · N queries of a history · T tokens of
a candidate (all queries, fields, the candidate) · G what a request gives to GI · F hidden width · D width · S, K as in
inputs.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from model.attention import paddings
from model.block import NORM_EPS
from model.config import Model
from model.head import task_head
from model.hyformer_encoders import HistoryLayer, HistoryPlaces
from model.inputs import InputSpec, RankerInput
from model.query_boosting import QueryBoosting
from model.rope import rotation
from model.row_attention import layout_over_rows
from model.stream import by_length
from model.timeline import Timeline, chosen, merge, ordered_histories, rows_of
from model.tokens import RequestTokens, group_fields


def boosted_tokens(spec: InputSpec, config: Model) -> int:
    """T: queries of all histories, field tokens, the candidate."""
    fields = group_fields([field.name for field in spec.static], config.tokens)
    return len(spec.histories) * config.hyformer.queries + len(fields) + 1


def history_key(name: str) -> str:
    """A history's name as part of a parameter's."""
    return f"of_{name.replace('.', '_dot_')}"


@dataclass(frozen=True)
class Places:
    """Rows in the order of work, longest histories last: rows_R is the batch's row of each. source_C: which of the C
    candidates, in that order; row_C: their rows in it. order_hE: of each history the events in that order; row_hE:
    their rows. histories: for attention."""

    rows_R: torch.Tensor
    source_C: torch.Tensor
    row_C: torch.Tensor
    order_hE: list[torch.Tensor]
    row_hE: list[torch.Tensor]
    histories: list[HistoryPlaces]


class QueryGeneration(nn.Module):
    """Q = [FFN_1(GI) … FFN_N(GI)] of one history. What the fields and the history give to the hidden layer is worked
    out once a request, what the candidate gives once a candidate: one linear layer over GI, cut in two."""

    def __init__(self, num_fields: int, config: Model) -> None:
        super().__init__()
        self.queries, dim = config.hyformer.queries, config.dim
        width = (num_fields + 2) * dim
        self.request = nn.Linear(width - dim, self.queries * dim)
        self.candidate = nn.Linear(dim, self.queries * dim, bias=False)
        for linear in (self.request, self.candidate):
            nn.init.trunc_normal_(linear.weight, std=width**-0.5)
        nn.init.zeros_(self.request.bias)
        self.out_NDD = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.queries, dim, dim), std=dim**-0.5))
        self.out_bias_N1D = nn.Parameter(torch.zeros(self.queries, 1, dim))

    def forward(self, of_request_RG: torch.Tensor, candidate_CD: torch.Tensor, row_C: torch.Tensor) -> torch.Tensor:
        """→ [C, N, D]."""
        hidden_CF = self.request(of_request_RG).index_select(0, row_C) + self.candidate(candidate_CD)
        hidden_NCD = F.gelu(hidden_CF).view(hidden_CF.shape[0], self.queries, self.out_NDD.shape[1]).transpose(0, 1)
        return torch.baddbmm(self.out_bias_N1D, hidden_NCD, self.out_NDD).transpose(0, 1)


class HyFormerLayer(nn.Module):
    def __init__(self, spec: InputSpec, config: Model) -> None:
        super().__init__()
        names = [history_key(history.name) for history in ordered_histories(spec)]
        self.histories = nn.ModuleDict({name: HistoryLayer(config) for name in names})
        self.boosting = QueryBoosting(config, boosted_tokens(spec, config))

    def forward(
        self,
        encoded: list[torch.Tensor],
        embedded: list[torch.Tensor],
        x_CTD: torch.Tensor,
        places: list[HistoryPlaces],
        queries: int,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """encoded: H_{l−1} of each history; x_CTD: [Q, F]. → H_l, boosted tokens."""
        count, tokens, next_encoded = x_CTD.shape[0], [], []
        for number, (layer, place) in enumerate(zip(self.histories.values(), places, strict=True)):
            asking_CND = x_CTD[:, number * queries : (number + 1) * queries]
            h_AD, decoded_QD = layer(encoded[number], embedded[number], asking_CND.flatten(0, 1), place)
            next_encoded.append(h_AD)
            tokens.append(decoded_QD.view(count, queries, decoded_QD.shape[1]))
        tokens.append(x_CTD[:, len(places) * queries :])
        return next_encoded, self.boosting(torch.cat(tokens, dim=1))


class HyFormer(nn.Module):
    """Keys of `[model]` it does not read: see model.config.Model. `candidates` supervision only."""

    def __init__(self, spec: InputSpec, config: Model) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        self.tokens = RequestTokens(spec, config.tokens, config.dim, time_gaps=config.time_gaps, merge_actions=True)
        num_fields = len(self.tokens.fields.groups)
        self.generation = nn.ModuleDict(
            {history_key(history.name): QueryGeneration(num_fields, config) for history in ordered_histories(spec)}
        )
        self.layers = nn.ModuleList(HyFormerLayer(spec, config) for _ in range(config.num_layers))
        self.final_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.head = task_head(config.dim, len(spec.tasks))

    def forward(self, batch: RankerInput) -> torch.Tensor:
        """Logits [C, K], float32 (float64 for a float64 module), in the order of the candidates."""
        with torch.no_grad():
            timeline = self._timeline(batch)
            places = self._places(batch)
        states, _ = self.tokens.events.events(batch, timeline)
        embedded = [states_ED.index_select(0, order) for states_ED, order in zip(states, places.order_hE, strict=True)]
        fields_RMD = self.tokens.fields(batch, self.head.weight.dtype).index_select(0, places.rows_R)
        candidate_CD = self.tokens.events.candidates(batch, timeline).index_select(0, places.source_C)
        x_CTD = self._first_tokens(fields_RMD, candidate_CD, embedded, places)
        encoded = [chosen(x, place.recent_A) for x, place in zip(embedded, places.histories, strict=True)]
        for layer in self.layers:
            encoded, x_CTD = layer(encoded, embedded, x_CTD, places.histories, self.config.hyformer.queries)
        logits_CK = self.head(self.final_norm(x_CTD).mean(dim=1))
        logits_SK: torch.Tensor = logits_CK.index_select(0, places.source_C.argsort())
        return logits_SK if logits_SK.dtype == torch.float64 else logits_SK.float()

    def _first_tokens(
        self,
        fields_RMD: torch.Tensor,
        candidate_CD: torch.Tensor,
        embedded: list[torch.Tensor],
        places: Places,
    ) -> torch.Tensor:
        """[C, T, D]: generated queries of each history, fields, the candidate."""
        tokens = []
        for x_ED, row_E, generate in zip(embedded, places.row_hE, self.generation.values(), strict=True):
            pooled_RD = _mean_of_rows(x_ED, row_E, fields_RMD.shape[0])
            of_request_RG = torch.cat([fields_RMD.flatten(1), pooled_RD], dim=1)
            tokens.append(generate(of_request_RG, candidate_CD, places.row_C))
        fields_CMD = fields_RMD.index_select(0, places.row_C)
        return torch.cat([*tokens, fields_CMD, candidate_CD.unsqueeze(1)], dim=1)

    def _timeline(self, batch: RankerInput) -> Timeline:
        """Of all histories, but gaps are to the previous event of the same one."""
        histories = [batch.histories[history.name] for history in self.tokens.events.histories]
        merged = merge(histories, [False] * len(histories), batch)
        gaps = [merge([history], [False], batch).gap_E for history in histories]
        return dataclasses.replace(merged, gap_E=torch.cat([merged.gap_E[:0], *gaps]))

    def _places(self, batch: RankerInput) -> Places:
        histories = [batch.histories[history.name] for history in self.tokens.events.histories]
        lengths_R = torch.stack([torch.zeros_like(batch.clock_R), *[h.lengths_R for h in histories]]).sum(dim=0)
        rows_R, place_R = by_length(lengths_R)
        num_candidates = next(iter(batch.candidates.values())).shape[0]
        row_C = place_R.index_select(0, rows_of(batch.candidate_lengths_R, num_candidates))
        source_C = row_C.argsort(stable=True)
        row_C = row_C.index_select(0, source_C)
        order_hE, row_hE, history_places = [], [], []
        for history in histories:
            row_E = place_R.index_select(0, rows_of(history.lengths_R, history.time_E.shape[0]))
            order_E = row_E.argsort(stable=True)
            order_hE.append(order_E)
            row_hE.append(row_E.index_select(0, order_E))
            history_places.append(self._of_history(row_hE[-1], history.lengths_R.index_select(0, rows_R), row_C))
        return Places(rows_R, source_C, row_C, order_hE, row_hE, history_places)

    def _of_history(self, row_E: torch.Tensor, lengths_R: torch.Tensor, row_C: torch.Tensor) -> HistoryPlaces:
        config, num_rows = self.config, lengths_R.shape[0]
        ends_R = lengths_R.cumsum(0)
        left_E = ends_R.index_select(0, row_E) - torch.arange(row_E.shape[0], device=row_E.device)  # 1 for the newest
        position_E = lengths_R.index_select(0, row_E) - left_E + 1
        recent = (left_E <= config.hyformer.recent).nonzero().squeeze(1)
        recent_A = recent if config.hyformer.encoder == "recent" else None
        row_A = chosen(row_E, recent_A)
        row_Q = row_C.repeat_interleave(config.hyformer.queries)
        encodes = config.hyformer.encoder != "swiglu"

        def turns(position: torch.Tensor) -> torch.Tensor:
            return rotation(position, config.dim // config.num_heads, config.rope_base, self.head.weight.dtype)

        return HistoryPlaces(
            recent_A=recent_A,
            encode=layout_over_rows(row_A, row_E, num_rows) if encodes else None,
            decode=layout_over_rows(row_Q, row_A, num_rows),
            turns_A=turns(position_E),
            turns_Q=turns(lengths_R.index_select(0, row_Q) + 1),
        )


def _mean_of_rows(x_ED: torch.Tensor, row_E: torch.Tensor, num_rows: int) -> torch.Tensor:
    """[R, D], zeros where a row has none. Sums of padded rows, whose order is fixed on every device."""
    sums_RD = torch.cat([padding.pad(x_ED).sum(dim=1) for padding in paddings(row_E, num_rows)])
    counts_R = row_E.new_zeros(num_rows).scatter_add_(0, row_E, torch.ones_like(row_E))
    return sums_RD / counts_R.clamp(min=1).to(sums_RD.dtype).unsqueeze(1)


def build_hyformer(spec: InputSpec, config: Model) -> HyFormer:
    return HyFormer(spec, config)
