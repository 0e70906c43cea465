"""Sequential collapse, seen on the first rows of an evaluation: docs/collapse.md.

A hook looks at what the scorer is given, so the prediction itself is as it was; only the sample's rows are computed a
second time, plainly. What is kept are sums in float64, which ranks add up.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn

from model.collapse import Spectrum, moments, spectrum
from model.inputs import RankerInput
from model.observe import can_observe, observe
from model.observed import KEYS, select_rows
from pipelines.batch import TRAINED
from trainer.device_batch import RequestBatch
from trainer.recommender import Scorer
from trainer.runtime import Runtime

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collapse:
    """Lists hold one entry a layer. rows: looked at. dim: of a token.

    spectra {kind of token}: the embedding output, then every layer. attention, even {kind of query: {kind of key}}:
    every layer, mean share of its attention, and what an even look at all it may see would give; empty where the
    ranker's attention is not looked at. None: there is no such token there.
    """

    rows: int
    dim: int
    spectra: dict[str, list[Spectrum]]
    attention: dict[str, dict[str, list[float | None]]]
    even: dict[str, dict[str, list[float | None]]]

    def to_json(self) -> dict[str, Any]:
        """For metrics.jsonl: four digits."""
        ranks = {
            name: {kind: [_short(getattr(s, name)) for s in layers] for kind, layers in self.spectra.items()}
            for name in ("tokens", "effective_rank", "participation")
        }
        values = {kind: [[_short(p) for p in s.spectrum] for s in layers] for kind, layers in self.spectra.items()}
        shares = {
            name: {
                query: {key: [_short(v) for v in layers] for key, layers in keys.items()} for query, keys in of.items()
            }
            for name, of in (("attention", self.attention), ("even_attention", self.even))
        }
        return {"rows": self.rows, "dim": self.dim, **ranks, "spectrum": values, **shares}


class CollapseSample:
    """Of one evaluation. Collective: every rank makes the same calls, and sees its part of the same global batches.

    rows: the first so many of the evaluation's order, that is the order of (file, row) from the first segment on. Which
    they are depends on neither ranks nor ranker nor batch size. Of these, quarantined ones are not looked at.
    """

    def __init__(self, rows: int, runtime: Runtime) -> None:
        self._left, self._runtime = rows, runtime
        self._rows = 0
        self._sums: dict[tuple[str, ...], torch.Tensor] = defaultdict(lambda: torch.zeros(1, dtype=torch.float64))

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """While its evaluation runs."""
        scorer = next(module for module in model.modules() if isinstance(module, Scorer))
        if not can_observe(scorer.ranker):
            if self._runtime.is_first:
                kind = type(scorer.ranker).__name__
                log.info("collapse: %s has no layers of tokens → there is nothing to look at", kind)
            yield
            return
        handle = scorer.register_forward_pre_hook(self._look)
        try:
            yield
        finally:
            handle.remove()

    def figures(self) -> Collapse | None:
        """Of all ranks, on every rank; None where nothing was seen."""
        sums = self._summed()
        if not sums:
            return None
        spectra: dict[str, list[Spectrum]] = defaultdict(list)
        shares: dict[str, dict[str, dict[str, list[float | None]]]] = {"attention": {}, "even": {}}
        dim = 0
        for (what, kind, _), of in sorted(sums.items(), key=lambda item: (item[0][0], item[0][1], int(item[0][2]))):
            if what == "tokens":
                spectra[kind].append(spectrum(of))
                dim = round(((4 * of.shape[0] - 3) ** 0.5 - 1) / 2)
            elif what in shares:
                keys = shares[what].setdefault(kind, {key: [] for key in KEYS})
                for place, key in enumerate(KEYS, start=1):
                    keys[key].append(float(of[place] / of[0]) if float(of[0]) else None)
        return Collapse(int(sums["rows", "", "0"][0]), dim, dict(spectra), shares["attention"], shares["even"])

    def _look(self, scorer: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs, batch = arguments
        assert isinstance(scorer, Scorer)
        assert isinstance(inputs, RankerInput)
        assert isinstance(batch, RequestBatch)
        if self._left <= 0:
            return
        kept = self._kept(batch)
        self._left -= batch.info.rows
        if not kept.any():
            return
        self._add(("rows", "", "0"), torch.tensor([float(kept.sum())]))
        chosen = select_rows(inputs, torch.from_numpy(kept).to(inputs.time_R.device))
        for level, layer in enumerate(observe(scorer.ranker, chosen)):
            for kind, x_nD in layer.tokens.items():
                self._add(("tokens", kind, str(level)), moments(x_nD))
            for what, shares in (("attention", layer.attention), ("even", layer.even)):
                for kind, shares_nK in shares.items():
                    sums_K = shares_nK.double().sum(dim=0)
                    self._add((what, kind, str(level)), torch.cat([sums_K.sum(0, keepdim=True), sums_K]))

    def _add(self, key: tuple[str, ...], sums: torch.Tensor) -> None:
        self._sums[key] = self._sums[key] + sums.cpu()

    def _kept(self, batch: RequestBatch) -> npt.NDArray[np.bool_]:
        """Which of this rank's rows are in the sample. Ranks agree about the batch in which it ends."""
        host = batch.host
        own = np.zeros_like(host.status, dtype=bool) if host.filler else host.status == TRAINED
        if batch.info.rows <= self._left:
            return own
        places = [[(int(f), int(r)) for f, r in zip(host.file, host.row, strict=True)] if not host.filler else []]
        if self._runtime.world_size > 1:
            places = _gathered(places[0], self._runtime)
        last = sorted(place for part in places for place in part)[self._left - 1]
        inside = np.array([(int(f), int(r)) <= last for f, r in zip(host.file, host.row, strict=True)], dtype=bool)
        kept: npt.NDArray[np.bool_] = own & inside
        return kept

    def _summed(self) -> dict[tuple[str, ...], torch.Tensor]:
        """A rank that held no row of the sample has no sums: what there is, ranks tell each other first."""
        if self._runtime.world_size == 1:
            return dict(self._sums)
        own = [(key, sums.shape[0]) for key, sums in self._sums.items()]
        sizes = {key: size for part in _gathered(own, self._runtime) for key, size in part}
        if not sizes:
            return {}
        flat = torch.cat([self._sums[key].expand(sizes[key]) for key in sorted(sizes)])
        dist.all_reduce(flat, group=self._runtime.control)
        return dict(zip(sorted(sizes), torch.split(flat, [sizes[key] for key in sorted(sizes)]), strict=True))


def _gathered(own: list[Any], runtime: Runtime) -> list[list[Any]]:
    """Every rank's list, in rank order."""
    parts: list[list[Any]] = [[] for _ in range(runtime.world_size)]
    dist.all_gather_object(parts, own, group=runtime.control)
    return parts


def _short(value: float | int | None) -> float | int | None:
    return float(f"{value:.4g}") if isinstance(value, float) else value
