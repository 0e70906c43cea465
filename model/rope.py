"""Rotary position embedding (arXiv 2104.09864), on packed tokens with positions of their own.

Pair i of a head is (x_{2i}, x_{2i+1}), read as one complex number and turned by one multiplication: on CPU several
times faster than the same in sines and cosines, whose slices are short.

Shape suffixes: N tokens · H heads · h head width · p = h / 2 pairs.
"""

from __future__ import annotations

import torch


def rotation(position_N: torch.Tensor, head_dim: int, base: float, dtype: torch.dtype) -> torch.Tensor:
    """exp(i · position · base^(−2p / h)), complex [N, 1, p]: complex128 for float64, complex64 else. The angles are
    worked out in float64, so that far positions keep their phase."""
    pairs_p = torch.arange(0, head_dim, 2, dtype=torch.float64, device=position_N.device)
    angle_Np = position_N.double().unsqueeze(1) * base ** (-pairs_p / head_dim)
    turned_Np = torch.polar(torch.ones_like(angle_Np), angle_Np)
    return turned_Np.to(torch.complex128 if dtype == torch.float64 else torch.complex64).unsqueeze(1)


def rotate(x_NHh: torch.Tensor, by_N1p: torch.Tensor) -> torch.Tensor:
    """In x's dtype; half-width ones are turned in float32."""
    pairs_NHp = torch.view_as_complex(x_NHh.to(_wide(by_N1p)).unflatten(-1, (-1, 2)))  # type: ignore[no-untyped-call]
    return torch.view_as_real(pairs_NHp * by_N1p).flatten(-2).to(x_NHh.dtype)


def rotate_(x_NHh: torch.Tensor, by_N1p: torch.Tensor) -> torch.Tensor:
    """`rotate` of a tensor that nobody else reads, which it may overwrite and which may be a part of wider rows. For
    autograd functions: not differentiable."""
    wide_NHh = x_NHh.to(_wide(by_N1p), memory_format=torch.contiguous_format)
    torch.view_as_complex(wide_NHh.unflatten(-1, (-1, 2))).mul_(by_N1p)  # type: ignore[no-untyped-call]
    return wide_NHh.to(x_NHh.dtype)


def _wide(by_N1p: torch.Tensor) -> torch.dtype:
    return torch.float64 if by_N1p.dtype == torch.complex128 else torch.float32
