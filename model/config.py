"""`[model]` of a run file."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Frozen(BaseModel):
    """Typed, frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Tokens(Frozen):
    """`[model.tokens]`: static fields into tokens.

    groups: {token name: its fields}, kept as given; the other fields are grouped by max_field_tokens.
    max_field_tokens: up to so many fields get one token each; more are put into groups of consecutive fields, as even
                      as can be.
    """

    groups: dict[str, tuple[str, ...]] = {}
    max_field_tokens: int = Field(default=32, gt=0)


class DCNv2(Frozen):
    """`[model.dcnv2]`: of kind "dcnv2" (arXiv 2008.13535), which reads dim, dropout, time_gaps and tokens of `[model]`;
    the other keys there have no effect on it.

    cross_layers: how many crosses.
    rank:         of each cross matrix, as a product of two; 0 = a full matrix.
    hidden:       widths of the deep network beside them, bottom up; empty = none, the inputs as they are.
    """

    cross_layers: int = Field(default=3, gt=0)
    rank: int = Field(default=0, ge=0)
    hidden: tuple[int, ...] = (256, 128)


class DIN(Frozen):
    """`[model.din]`: of kind "din" (arXiv 1706.06978), which reads dim, dropout, time_gaps and tokens of `[model]`; the
    other keys there have no effect on it.

    attention_hidden: hidden widths of the network that weighs an event for a target; one at least.
    hidden:           of the network on top, bottom up.
    pairs_at_once:    of (event, target) to a block of the attention: what bounds its memory.
    """

    attention_hidden: tuple[int, ...] = Field(default=(80, 40), min_length=1)
    hidden: tuple[int, ...] = (200, 80)
    pairs_at_once: int = Field(default=32_768, gt=0)


class HSTU(Frozen):
    """`[model.hstu]`: of kind "hstu" (arXiv 2402.17152). full_layers, windows, ffn_dim, rope_base and the gate's keys
    of `[model]` have no effect on it.

    positions:    relative positions with a learned bias of their own; all that are farther share the last one.
    time_buckets: of the logarithm of the time between two tokens, e^0.301 wide each; the longest share the last one.
    divisor:      what attention is divided by; 0 = the most tokens that a row's fields and histories make.
    """

    positions: int = Field(default=512, gt=0)
    time_buckets: int = Field(default=64, gt=0)
    divisor: int = Field(default=0, ge=0)


class OneTrans(Frozen):
    """`[model.onetrans]`: of kind "onetrans" (arXiv 2510.26104). full_layers, windows, field_attention, candidates_see
    and the gate's keys of `[model]` have no effect on it.

    kept: the pyramid, with `candidates` supervision: how many of a row's newest behaviour tokens layers 1, 2, … put
          out, the last number repeating; the top layer puts out none. Empty: falling in even steps from the longest
          row's number to none at the top, as in the paper. A large number, e.g. [100000]: no pyramid. With `history`
          supervision every layer keeps all of them.
    """

    kept: tuple[int, ...] = ()


class HyFormer(Frozen):
    """`[model.hyformer]`: of kind "hyformer" (arXiv 2601.12681). full_layers, windows, field_attention, candidates_see,
    action_tokens (actions are merged) and the gate's keys of `[model]` have no effect on it.

    encoder: of a history in each layer: "full" a Transformer layer, "recent" its newest part looks at all of it
             (LONGER), "swiglu" no attention.
    queries: of each history. recent: events of a history that encoder "recent" carries on.
    """

    encoder: Literal["full", "recent", "swiglu"] = "full"
    queries: int = Field(default=2, gt=0)
    recent: int = Field(default=32, gt=0)


class Savings(Frozen):
    """`[model.savings]`: of kinds "tokenformer" and "transformer". What the definition lets a step leave out, exact and
    on by default; off to see what each is worth. A fourth, many supervised positions in one pass, is the schema's
    choice (supervision = "history").

    cone:         a layer computes only the tokens that a logit reads through the layers above it.
    packed:       projections, gate, FFN and norms run on the batch's tokens alone; off: on rows padded to the longest.
    request_rows: candidates of a request share its fields and history; off: each is a row with a copy of them. No
                  effect on `history` supervision; with candidates_see "all" it cannot be off.
    """

    cone: bool = True
    packed: bool = True
    request_rows: bool = True


class Model(Frozen):
    """`[model]`. Defaults are the paper's (arXiv 2604.13737) where it states them; [open] points are switches.

    kind:           "tokenformer"; the plain causal "transformer" from the same parts, the baseline; or one of its
                    rivals (docs/rankers.md), which say there which of these keys they read.
    dim:            width of a token. num_layers, num_heads: of the tower; dim / num_heads is even, as RoPE needs.
    full_layers:    layers with full causal attention, from the bottom; the rest slide.
    windows:        of the sliding layers, in order; the last one repeats.
    ffn_dim:        hidden width of the SwiGLU, and of what stands for it in other kinds; 0 = 4 · dim rounded up to a
                    multiple of 64.
    dropout:        probability, in training only. rope_base: of RoPE's angles.
    embedding_dropout: the same for each number of the embeddings that come in, of static fields, events, actions and
                    candidates, of any kind of ranker; dense fields and vectors stay whole.
    gate:           NLIR on or off. gate_input: "normed" or "raw" X. gate_place: "after" or "before" the output
                    projection. gate_bias: of W_g.
    field_attention: F–F attention "causal" or "bidirectional".
    candidates_see: "history": candidates do not see each other; "all": plain causal, at true positions.
    action_tokens:  "separate": an action token after each state token (HSTU style); "merged": the action is part of
                    the event's token (`candidates` supervision only); "auto": merged for `candidates`, separate for
                    `history` supervision.
    time_gaps:      adds log time gaps (to the previous event, to the request) to the event tokens.
    attention:      by what it is worked out, all exact: "auto" (announced with its reason), "products" (matrix products
                    and a softmax), "sdpa" (torch's scaled_dot_product_attention), "reference" (slow, for tests).
    """

    kind: Literal["tokenformer", "transformer", "dcnv2", "din", "hstu", "onetrans", "hyformer"] = "tokenformer"
    dim: int = Field(default=64, gt=0)
    num_layers: int = Field(default=4, gt=0)
    num_heads: int = Field(default=4, gt=0)
    full_layers: int = Field(default=2, ge=0)
    windows: tuple[int, ...] = (32, 16)
    ffn_dim: int = Field(default=0, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    rope_base: float = Field(default=10_000.0, gt=0)
    embedding_dropout: float = Field(default=0.0, ge=0, lt=1)
    gate: bool = True
    gate_input: Literal["normed", "raw"] = "normed"
    gate_place: Literal["after", "before"] = "after"
    gate_bias: bool = False
    field_attention: Literal["causal", "bidirectional"] = "causal"
    candidates_see: Literal["history", "all"] = "history"
    action_tokens: Literal["auto", "separate", "merged"] = "auto"
    time_gaps: bool = True
    tokens: Tokens = Tokens()
    dcnv2: DCNv2 = DCNv2()
    din: DIN = DIN()
    hstu: HSTU = HSTU()
    onetrans: OneTrans = OneTrans()
    hyformer: HyFormer = HyFormer()
    attention: Literal["auto", "products", "sdpa", "reference"] = "auto"
    savings: Savings = Savings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """All problems at once, one line each."""
        problems = []
        if not self.by_example and (self.dim % self.num_heads or (self.dim // self.num_heads) % 2):
            problems.append(
                f"dim {self.dim} with num_heads {self.num_heads} → RoPE needs dim / num_heads to be an even number "
                f"→ set dim to a multiple of {2 * self.num_heads}"
            )
        if self.kind == "tokenformer" and self.full_layers > self.num_layers:
            problems.append(
                f"full_layers {self.full_layers} → at most num_layers, which is {self.num_layers} → "
                "lower it or add layers"
            )
        if self.kind == "tokenformer" and self.full_layers < self.num_layers and not self.windows:
            problems.append(
                "windows is empty → sliding layers need a window each (the last repeats) → e.g. windows = [32, 16]"
            )
        problems += [
            f"onetrans.kept holds {kept} → at least 0 → give a number of tokens"
            for kept in self.onetrans.kept
            if kept < 0
        ]
        problems += [
            f"windows holds {window} → at least 1 → give a width in tokens" for window in self.windows if window < 1
        ]
        layers = {
            "dcnv2.hidden": self.dcnv2.hidden,
            "din.hidden": self.din.hidden,
            "din.attention_hidden": self.din.attention_hidden,
        }
        problems += [
            f"{name} holds {width} → at least 1 → give the width of a layer"
            for name, widths in layers.items()
            for width in widths
            if width < 1
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def layer_windows(self) -> tuple[int | None, ...]:
        """One entry a layer, bottom up: None for full causal attention, or the sliding window w_l in tokens (BFTS,
        Eq. 15)."""
        if self.kind == "transformer":
            return (None,) * self.num_layers
        sliding = self.num_layers - self.full_layers
        widths = self.windows[:sliding] + self.windows[-1:] * max(0, sliding - len(self.windows))
        return (None,) * self.full_layers + widths

    @property
    def by_example(self) -> bool:
        """Every supervised position is an example of its own (model/examples.py): no heads, no action tokens."""
        return self.kind in ("dcnv2", "din")

    @property
    def in_blocks(self) -> bool:
        """All of its layers are model/block.py's, which can be computed in other ways (model/compute.py)."""
        return self.kind in ("tokenformer", "transformer")

    @property
    def gated(self) -> bool:
        return self.gate and self.kind == "tokenformer"

    @property
    def hidden_dim(self) -> int:
        """Of the SwiGLU, and of what stands for it in other kinds."""
        return self.ffn_dim or -(-4 * self.dim // 64) * 64
