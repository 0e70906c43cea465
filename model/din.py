"""DIN, the deep interest network (arXiv 1706.06978): a history is read through the target's eyes.

    a(h, t) = MLP [e_h, e_t, e_h − e_t, e_h ⊙ e_t]       a number for each event and target (Fig. 2, right)
    v_t     = Σ_h a(h, t) e_h                            no softmax: how much there is to see counts (Eq. 3)
    logits  = head MLP [fields; v_t; e_t]

e_h is an event with its action, where that is known at the target. Pairs (event, target) are packed: in `history`
supervision a row of T events has T²/2 of them. They are worked through in blocks, and each is worked out anew in the
backward pass, so that memory is that of one block.

The activation is PReLU. The paper's Dice standardises by the batch's own mean and variance: a row's logits would
depend on the rows beside it, on how many ranks share a batch, and on fillers.

Shape suffixes: R rows · M events, row after row and oldest first · S supervised positions · q those of one block · P
their pairs · D width · H first hidden width of the attention · K tasks.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from model.config import Model
from model.examples import Examples, ExampleTokens, as_logits
from model.inputs import InputSpec, RankerInput
from model.mlp import MLP, fan_in_linear
from model.timeline import exclusive_cumsum, rows_of


class TargetAttention(nn.Module):
    """Examples → v [S, D], in the module's dtype."""

    def __init__(self, dim: int, hidden: tuple[int, ...], pairs_at_once: int) -> None:
        super().__init__()
        self.pairs_at_once = pairs_at_once
        self.first = fan_in_linear(4 * dim, hidden[0])
        self.activation = nn.PReLU(hidden[0])
        self.rest = MLP(hidden[0], hidden[1:], nn.PReLU)
        self.weight = fan_in_linear(self.rest.out, 1)
        nn.init.trunc_normal_(self.weight.weight, std=0.02)

    def forward(self, examples: Examples) -> torch.Tensor:
        blocks = self._blocks(examples.behind_S)
        anew = len(blocks) > 1 and torch.is_grad_enabled()
        parts = []
        for block, pairs in blocks:
            if anew:
                part = checkpoint(self._block, examples, block, pairs, use_reentrant=False, preserve_rng_state=False)
            else:
                part = self._block(examples, block, pairs)
            parts.append(part)
        return torch.cat(parts)

    def _blocks(self, behind_S: torch.Tensor) -> list[tuple[slice, int]]:
        """Neighbouring positions and how many pairs they make: about `pairs_at_once`, and never more than that and one
        position's. One block at least, so that every parameter has a gradient. One wait for the device."""
        block_S = exclusive_cumsum(behind_S) // self.pairs_at_once
        positions = torch.unique_consecutive(block_S, return_counts=True)[1]
        last = positions.cumsum(0) - 1
        ends = behind_S.cumsum(0).index_select(0, last)
        sizes, ends_of_pairs = torch.stack([positions, ends]).tolist()
        if not sizes:
            return [(slice(0, 0), 0)]
        borders = [0, *accumulate(sizes)]
        pairs = [end - begin for begin, end in pairwise([0, *ends_of_pairs])]
        return [(slice(a, b), count) for (a, b), count in zip(pairwise(borders), pairs, strict=True)]

    def _block(self, examples: Examples, block: slice, pairs: int) -> torch.Tensor:
        """[q, D]."""
        target_qD, behind_q = examples.target_SD[block], examples.behind_S[block]
        query_P = rows_of(behind_q, pairs)
        begin_q = examples.first_S[block] - exclusive_cumsum(behind_q)
        event_P = begin_q.index_select(0, query_P) + torch.arange(pairs, device=query_P.device)
        past_PD = examples.event_MD.index_select(0, event_P)
        if examples.action_MD is not None:
            clock_P = examples.clock_S[block].index_select(0, query_P)
            known_P = examples.action_clock_M.index_select(0, event_P) < clock_P
            past_PD = past_PD + examples.action_MD.index_select(0, event_P).where(known_P.unsqueeze(1), 0)
        weighted_PD = self._weight(past_PD, target_qD, query_P) * past_PD
        # Summed in float32 at least: there may be thousands.
        wide = torch.promote_types(weighted_PD.dtype, torch.float32)
        sums_qD = torch.zeros(target_qD.shape, dtype=wide, device=target_qD.device)
        return sums_qD.index_add(0, query_P, weighted_PD.to(wide)).to(target_qD.dtype)

    def _weight(self, past_PD: torch.Tensor, target_qD: torch.Tensor, query_P: torch.Tensor) -> torch.Tensor:
        """[P, 1]. The first layer is linear in each of its four inputs, so e_h − e_t needs no product of its own, and
        what is of the target alone is worked out once a target."""
        past_HD, target_HD, difference_HD, product_HD = self.first.weight.chunk(4, dim=1)
        of_target_qH = F.linear(target_qD, target_HD - difference_HD, self.first.bias)
        hidden_PH = (
            F.linear(past_PD, past_HD + difference_HD)
            + F.linear(past_PD * target_qD.index_select(0, query_P), product_HD)
            + of_target_qH.index_select(0, query_P)
        )
        weight_P1: torch.Tensor = self.weight(self.rest(self.activation(hidden_PH)))
        return weight_P1


class DIN(nn.Module):
    """forward(RankerInput) → logits [S, K]."""

    def __init__(self, spec: InputSpec, config: Model) -> None:
        super().__init__()
        own = config.din
        self.tokens = ExampleTokens(spec, config)
        self.attention = TargetAttention(config.dim, own.attention_hidden, own.pairs_at_once)
        self.mlp = MLP(self.tokens.field_width + 2 * config.dim, own.hidden, nn.PReLU, config.dropout)
        self.head = fan_in_linear(self.mlp.out, len(spec.tasks))
        nn.init.trunc_normal_(self.head.weight, std=0.02)

    def forward(self, batch: RankerInput) -> torch.Tensor:
        examples: Examples = self.tokens(batch)
        interest_SD = self.attention(examples)
        field_SX = examples.field_RX.index_select(0, examples.row_S)
        hidden_SX = self.mlp(torch.cat([field_SX, interest_SD, examples.target_SD], dim=1))
        return as_logits(self.head(hidden_SX))


def build_din(spec: InputSpec, config: Model) -> DIN:
    return DIN(spec, config.model_copy(update={"kind": "din"}))
