"""TokenFormer, the recommender tower of arXiv 2604.13737 ("Unify the Multi-Field and Sequential Recommendation
Worlds", April 2026). It is not the language model of the same name, arXiv 2410.23168.

What makes it more than a Transformer over fields and behaviours:
- BFTS (Eq. 15): `full_layers` full causal layers, then sliding ones with shrinking windows, in which fields are out
of sight.
- NLIR (Eq. 16–18): a per-dimension sigmoid gate on the attention's output.

Where the paper leaves a point open, `model.config.Model` has a switch and names the default.
"""

from __future__ import annotations

from model.config import Model
from model.inputs import InputSpec
from model.tower import StreamTower


class TokenFormer(StreamTower):
    """`config.kind` must be "tokenformer"."""


def build_tokenformer(spec: InputSpec, config: Model) -> TokenFormer:
    return TokenFormer(spec, config.model_copy(update={"kind": "tokenformer"}))
