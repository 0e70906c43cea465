"""The plain Transformer the paper compares with (arXiv 2604.13737): TokenFormer's stream, pre-norm, SwiGLU and RoPE,
but every layer full causal and no gate. The naive joint model of its Sequential Collapse finding.
"""

from __future__ import annotations

from model.config import Model
from model.inputs import InputSpec
from model.tower import StreamTower


class Transformer(StreamTower):
    """`full_layers`, `windows` and the gate's switches have no effect on it."""


def build_transformer(spec: InputSpec, config: Model) -> Transformer:
    return Transformer(spec, config.model_copy(update={"kind": "transformer"}))
