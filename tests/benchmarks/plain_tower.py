"""The tower a PyTorch user would write: one padded row per candidate through nn.TransformerEncoder.

The baseline of tower.py, in the fastest plain forms found. Every row is [fields, candidate, history …]; the candidate's
output is scored. Sizes: B padded rows · M fields · T longest history · L = M + 1 + T · D width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.block import SwiGLU
from tests.benchmarks.plain_pytorch import Variant
from tests.benchmarks.tower_rows import EVENT_FIELDS, Padded, Shape

FORMS = {
    "fp32": Variant(),
    "fp32, products": Variant(products=True),
    "bf16 autocast": Variant(autocast=True),
    "bf16 module": Variant(module=torch.bfloat16),
    "bf16 module, products": Variant(module=torch.bfloat16, products=True),
}


def ffn_of_same_size(shape: Shape) -> int:
    """Hidden width that gives a layer of nn.TransformerEncoder as many weights as a block of ours: its two matrices for
    our three and the gate's."""
    ours = shape.dim**2 + sum(p.numel() for p in SwiGLU(shape.dim, shape.model().hidden_dim).parameters())
    return ours // (2 * shape.dim)


class PlainTower(nn.Module):
    """forward(Padded) → logits [B], float32."""

    def __init__(self, shape: Shape, ffn: int) -> None:
        super().__init__()
        width = shape.width
        self.fields = nn.ModuleList(nn.Linear(width, shape.dim) for _ in range(shape.fields))
        self.event = nn.Linear(width * EVENT_FIELDS, shape.dim)
        self.action = nn.Linear(width, shape.dim)
        self.place = nn.Parameter(torch.zeros(shape.fields + 1 + shape.longest, shape.dim))
        layer = nn.TransformerEncoderLayer(shape.dim, shape.heads, ffn, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, shape.layers, nn.LayerNorm(shape.dim), enable_nested_tensor=False)
        self.head = nn.Linear(shape.dim, 1)

    def forward(self, batch: Padded) -> torch.Tensor:
        fields = [layer(batch.fields_BMW[:, i]) for i, layer in enumerate(self.fields)]
        tokens_BMD = torch.stack([*fields, self.event(batch.candidate_BW)], dim=1)
        past_BTD = self.event(batch.event_BTW) + self.action(batch.action_BTW)
        x_BLD = torch.cat([tokens_BMD, past_BTD], dim=1)
        x_BLD = x_BLD + self.place[: x_BLD.shape[1]]
        padding_BL = F.pad(batch.padding_BT, (tokens_BMD.shape[1], 0), value=False)
        out_BLD = self.encoder(x_BLD, src_key_padding_mask=padding_BL)
        logits_B: torch.Tensor = self.head(out_BLD[:, tokens_BMD.shape[1] - 1]).squeeze(-1).float()
        return logits_B


class PlainForward:
    """`forward()` → logits of `batch`, in the form's way."""

    def __init__(self, tower: PlainTower, batch: Padded, form: Variant) -> None:
        self.tower, self.batch = tower, batch
        self._precision: Callable[[], AbstractContextManager[object]] = (
            partial(torch.autocast, "cpu", torch.bfloat16) if form.autocast else nullcontext
        )
        self._attention: Callable[[], AbstractContextManager[object]] = (
            partial(sdpa_kernel, SDPBackend.MATH) if form.products else nullcontext
        )

    def forward(self) -> torch.Tensor:
        with self._attention(), self._precision():
            logits_B: torch.Tensor = self.tower(self.batch)
        return logits_B
