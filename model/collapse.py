"""Sequential Collapse in numbers (arXiv 2604.13737): how many directions the tokens of a layer use.

The estimator, for the vectors x_1 … x_n of one kind of token after one layer:

    C  = 1/n Σ x xᵀ − μ μᵀ,  μ = 1/n Σ x         centred; float64
    σ_i = √λ_i(C)                                singular values of the centred [n, D] matrix, over √n
    p_i = σ_i / Σσ
    effective rank = exp(−Σ p_i ln p_i)          entropy effective rank (Roy & Vetterli 2007): 1 … D
    participation  = (Σλ)² / Σλ²                 the same of variances, which the largest dominate: 1 … D

The paper shows an effective rank without saying how it is estimated; entropy over singular values is a choice. n, Σ x
and Σ x xᵀ are all that is kept, and they add up: over batches, and over ranks.

Shape suffixes: n vectors · D their width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SHOWN = 16  # singular values


@dataclass(frozen=True)
class Spectrum:
    """tokens: n. spectrum: the largest p_i, at most SHOWN of them. None and empty where all vectors are the same, or
    there is none."""

    tokens: int
    effective_rank: float | None
    participation: float | None
    spectrum: tuple[float, ...]


def moments(x_nD: torch.Tensor) -> torch.Tensor:
    """[n, Σ x, Σ x xᵀ], flat float64 [1 + D + D²]: those of a union are the sum of those of its parts."""
    x_nD = x_nD.double()
    count = x_nD.new_full((1,), x_nD.shape[0])
    return torch.cat([count, x_nD.sum(dim=0), (x_nD.T @ x_nD).flatten()])


def spectrum(sums: torch.Tensor) -> Spectrum:
    """Of the moments of any number of parts."""
    dim = round(((4 * sums.shape[0] - 3) ** 0.5 - 1) / 2)
    count = int(sums[0])
    if not count:
        return Spectrum(0, None, None, ())
    mean_D, second_DD = sums[1 : 1 + dim] / count, sums[1 + dim :].view(dim, dim) / count
    variances_D = torch.linalg.eigvalsh(second_DD - torch.outer(mean_D, mean_D)).flip(0)
    # What is left of vectors that are all the same is the rounding of their squares.
    noise = dim * torch.finfo(torch.float64).eps * float(second_DD.trace())
    variances_D = variances_D.where(variances_D > noise, 0.0)
    values_D = variances_D.sqrt()
    if not float(values_D.sum()):
        return Spectrum(count, None, None, ())
    shares_D = values_D / values_D.sum()
    entropy = -float(torch.special.xlogy(shares_D, shares_D).sum())
    participation = float(variances_D.sum() ** 2 / variances_D.square().sum())
    return Spectrum(count, float(torch.tensor(entropy).exp()), participation, tuple(shares_D[:SHOWN].tolist()))
