"""Packed tokens' heads gathered into batches for products, and back, in one copy each way.

A batch of products wants [b · H, w, h]: places of a row beside each other, head by head. Packed tokens are [N, H, h].
One `index_select` over rows of one head leads from one to the other, for all stretches of a layer at once.

Shape suffixes: N packed tokens · H heads · h head width · b rows (or blocks) · w places of a row · X = Σ b · H · w
gathered rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model.bands import Band


class Gather:
    """places: per batch, packed token of each place [b, w] int64, −1 where none is; every token at most once in all,
    unless `band` is what they were made by. total: N."""

    def __init__(self, places: Sequence[torch.Tensor], total: int, heads: int, band: Band | None = None) -> None:
        by_head = [place_bw.unsqueeze(1).expand(-1, heads, -1).flatten() for place_bw in places]
        token_X = by_head[0] if len(by_head) == 1 else torch.cat(by_head)
        head_H1 = torch.arange(heads, device=token_X.device).unsqueeze(1)
        of_head = [head_H1.expand(p.shape[0], -1, p.shape[1]).flatten() for p in places]
        self._head_X = of_head[0] if len(of_head) == 1 else torch.cat(of_head)
        self._token_X, self._total, self._heads, self._band = token_X.clamp(min=0), total, heads, band
        self._empty_X = (token_X < 0).nonzero().squeeze(1)
        self._rows: dict[int, torch.Tensor] = {}
        if band is None:
            own_X = (token_X * heads + self._head_X).where(token_X >= 0, total * heads)
            back = own_X.new_empty(total * heads + 1)
            back.scatter_(0, own_X, torch.arange(own_X.shape[0], device=own_X.device))
            self._back = back[:-1]

    def take(self, x_NHh: torch.Tensor, *, clear: bool = False) -> torch.Tensor:
        """[X, h]. clear: zeros where no token is, else what some token has."""
        rows, pitch = _rows_of_heads(x_NHh)
        if pitch not in self._rows:
            self._rows[pitch] = self._token_X * pitch + self._head_X
        taken_Xh = rows.index_select(0, self._rows[pitch])
        return taken_Xh.index_fill_(0, self._empty_X, 0) if clear and self._empty_X.shape[0] else taken_Xh

    def give(self, taken_Xh: torch.Tensor) -> torch.Tensor:
        """[N, H, h]: from each token's place; in a band, the sum over its places."""
        if self._band is None:
            return taken_Xh.index_select(0, self._back).view(self._total, self._heads, -1)
        by_block = taken_Xh.view(-1, self._heads, self._band.width, taken_Xh.shape[1]).transpose(1, 2)
        return self._band.add_up(by_block, self._total)


def _rows_of_heads(x_NHh: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The same numbers as rows of one head, and how many rows on the next token's first one is: more than H where the
    tokens are columns of something wider."""
    total, heads, width = x_NHh.shape
    if x_NHh.stride(1) != width or x_NHh.stride(2) != 1 or x_NHh.stride(0) % width:
        x_NHh = x_NHh.contiguous()
    pitch = x_NHh.stride(0) // width
    return x_NHh.as_strided(((total - 1) * pitch + heads, width), (width, 1)), pitch
