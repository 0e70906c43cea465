"""The tower that begins with another's: parameters by name and shape; where fields, histories or tasks were added,
dropped or widened, those stretches of a parameter that both have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from embeddings.held import Held
from trainer.checkpoint.reading import SavedTensors
from trainer.config_sections import Init
from trainer.init_account import FRESH, OFF, Account
from trainer.model_description import Axes, ModelDescription

Parts = tuple[tuple[str, int], ...]
Pairs = tuple[tuple[int, int, int], ...]
DENSE, MOMENTS, IN_FLIGHT = "dense/", "dense_optimizer/", "dense_in_flight/"


@dataclass(frozen=True)
class Stretches:
    """What of a parameter is taken over. pairs: (first entry of `axis` as saved, as it is now, how many). across: the
    same of a matrix's other axis, where that has stretches too."""

    axis: int
    pairs: Pairs
    across: Pairs | None = None

    def copy(self, saved: torch.Tensor, now: torch.Tensor) -> None:
        """Into `now`, which is otherwise left alone."""
        for before, after, count in self.pairs:
            from_, to = saved.narrow(self.axis, before, count), now.narrow(self.axis, after, count)
            if self.across is None:
                to.copy_(from_)
            for b, a, n in self.across or ():
                to.narrow(1 - self.axis, a, n).copy_(from_.narrow(1 - self.axis, b, n))


class TowerCarrier:
    """Of one checkpoint. Not collective: every rank reads all of it."""

    def __init__(self, saved: SavedTensors, tensors: Mapping[str, Held], init: Init, account: Account) -> None:
        self._saved, self._tensors, self._init, self._account = saved, tensors, init, account

    def carry(self, before: ModelDescription, now: ModelDescription) -> None:
        """All parameters, buffers, moments and gradients in flight."""
        taken: set[str] = set()
        moments: dict[str, list[str]] = {}
        for name in self._tensors:
            if name.startswith(MOMENTS):
                moments.setdefault(name.removeprefix(MOMENTS).rpartition("/")[0], []).append(name)
        for name in [name.removeprefix(DENSE) for name in self._tensors if name.startswith(DENSE)]:
            source, stretches, reason = self._source(name, before.axes, now.axes)
            taken.add(source)
            if reason:
                self._account.note(f"tower {_named(name, now.axes)}: {reason}: initialised")
            self._carry(DENSE + source, DENSE + name, stretches, reason, "tower", self._init.tower)
            if IN_FLIGHT + name in self._tensors:
                self._carry(IN_FLIGHT + source, IN_FLIGHT + name, stretches, reason, "in flight", True)
            for moment in moments.get(name, ()):
                key = moment.rsplit("/", 1)[-1]
                self._carry(
                    f"{MOMENTS}{source}/{key}",
                    moment,
                    stretches,
                    reason,
                    "tower's optimizer",
                    self._init.tower_optimizer,
                )
        dropped = sorted(
            name.removeprefix(DENSE)
            for name in self._saved.tensors
            if name.startswith(DENSE) and name[len(DENSE) :] not in taken
        )
        for name in dropped:
            self._account.note(f"tower {_named(name, before.axes)}: dropped")

    def _source(
        self, name: str, before: Mapping[str, Axes], now: Mapping[str, Axes]
    ) -> tuple[str, Stretches | None, str]:
        """(saved parameter, what of it is taken: None = all, why nothing is taken)."""
        axes = now.get(name)
        source = name if axes is None or not axes.family else _numbered(axes, before)
        record = self._saved.tensors.get(DENSE + source)
        size = list(self._tensors[DENSE + name].size)
        if record is None:
            return source, None, "new"
        if (axes is None) != (source not in before):
            return source, None, "the checkpoint does not say which fields it is of"
        if axes is None or axes.axis < 0 or (axes.parts, axes.across) == (before[source].parts, before[source].across):
            same = list(record.size) == size
            return source, None, "" if same else f"it was {list(record.size)} and is {size}"
        old = before[source]
        across = _common(old.across, axes.across) if old.across and axes.across else None
        rest = [list(s[: axes.axis]) + list(s[axes.axis + 1 :]) for s in (record.size, size)]
        stretches = Stretches(axes.axis, _common(old.parts, axes.parts), across)
        alike = bool(across) if old.across or axes.across else rest[0] == rest[1]
        if not alike or not stretches.pairs:
            return source, None, f"it was {list(record.size)} and is {size}"
        changes = [_words(*of) for of in ((old.parts, axes.parts), (old.across, axes.across)) if of[0] != of[1]]
        self._account.note(f"tower {name}: {'; '.join(dict.fromkeys(changes))}")
        return source, stretches, ""

    def _carry(self, source: str, name: str, stretches: Stretches | None, reason: str, part: str, wanted: bool) -> None:
        held = self._tensors[name]
        if not wanted:
            self._account.left(part, OFF, 1)
        elif reason or source not in self._saved.tensors:
            self._account.left(part, FRESH, 1)
        else:
            values = self._saved.read(source)
            for chunk in held.chunks:
                if stretches is None or not values.dim():
                    chunk.tensor.copy_(values)
                else:
                    stretches.copy(values, chunk.tensor)
            self._account.carried(part, 1)


def _named(name: str, axes: Mapping[str, Axes]) -> str:
    """With the fields that a numbered parameter is of."""
    of = axes.get(name)
    return f"{name} ({', '.join(part for part, _ in of.parts)})" if of is not None and of.family else name


def _numbered(axes: Axes, before: Mapping[str, Axes]) -> str:
    """The saved parameter of the same fields, else the one that has most of them; "" where none has any."""
    family = {name: of for name, of in before.items() if of.family == axes.family}
    same = next((name for name, of in family.items() if of.parts == axes.parts), "")
    if same:
        return same
    shared = {name: sum(count for _, _, count in _common(of.parts, axes.parts)) for name, of in family.items()}
    best = max(shared, key=lambda name: shared[name], default="")
    return best if best and shared[best] else ""


def _common(before: Parts, now: Parts) -> Pairs:
    """Stretches of what both are of, as far as the shorter goes."""
    starts = _starts(before)
    return tuple(
        (starts[part][0], start, min(starts[part][1], width))
        for part, (start, width) in _starts(now).items()
        if part in starts
    )


def _starts(parts: Parts) -> dict[str, tuple[int, int]]:
    """{part: (its first entry, how many)}."""
    found, start = {}, 0
    for part, width in parts:
        found[part] = (start, width)
        start += width
    return found


def _words(before: Parts, now: Parts) -> str:
    old, new = dict(before), dict(now)
    words = [f"{part} initialised" for part in new if part not in old]
    words += [f"{part} {old[part]} → {new[part]} wide" for part in new if part in old and old[part] != new[part]]
    words += [f"{part} dropped" for part in old if part not in new]
    return ", ".join(words) or "in another order"
