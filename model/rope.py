"""Rotary position embedding (arXiv 2104.09864), on packed tokens with positions of their own.

Shape suffixes: N tokens · H heads · h head width · p = h / 2 pairs; pair i is (x_i, x_{i+p}).
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Rotation(NamedTuple):
    """cos, sin: [N, 1, p]."""

    cos_N1p: torch.Tensor
    sin_N1p: torch.Tensor

    def select(self, index: torch.Tensor | None) -> Rotation:
        return (
            self
            if index is None
            else Rotation(self.cos_N1p.index_select(0, index), self.sin_N1p.index_select(0, index))
        )


def rotation(position_N: torch.Tensor, head_dim: int, base: float, dtype: torch.dtype) -> Rotation:
    """Angles position · base^(−2i / h), worked out in float64 so that far positions keep their phase in any dtype."""
    pairs_p = torch.arange(0, head_dim, 2, dtype=torch.float64, device=position_N.device)
    angle_Np = position_N.double().unsqueeze(1) * base ** (-pairs_p / head_dim)
    return Rotation(angle_Np.cos().to(dtype).unsqueeze(1), angle_Np.sin().to(dtype).unsqueeze(1))


def rotate(x_NHh: torch.Tensor, by: Rotation) -> torch.Tensor:
    left, right = x_NHh.chunk(2, dim=-1)
    return torch.cat([left * by.cos_N1p - right * by.sin_N1p, right * by.cos_N1p + left * by.sin_N1p], dim=-1)
