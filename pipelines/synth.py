"""A seeded event log with a planted signal: a ranker learns fields, and the order of a history within a minute.

Users make requests in sessions; each request shows items drawn from a Zipf–Mandelbrot law and logs one event per item.
The true click probability is known (synth_world.py), so the best log loss and AUC any model can reach are reported.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import Synth
from pipelines.errors import DataError
from pipelines.folders import fresh_folder
from pipelines.synth_world import COUNTRIES, DEVICES, PER_REQUEST, Float, World, make_world, request_times, simulate


@dataclass(frozen=True)
class SynthReport:
    """What was written. `bayes_*`: click scored with its true probabilities; no model does better in expectation.

    fields_auc: the same without the history's part of the truth: what a model blind to the history can hope for.
    """

    events: int
    requests: int
    users: int
    days: tuple[str, ...]
    click_rate: float
    purchase_rate: float
    purchase_observed: float
    bayes_log_loss: float
    bayes_ne: float
    bayes_auc: float
    fields_auc: float
    seconds: float

    def lines(self) -> list[str]:
        """For a person."""
        return [
            f"{self.events:,} events in {self.requests:,} requests of {self.users:,} users, "
            f"{self.days[0]}..{self.days[-1]} ({self.seconds:.1f} s)",
            f"click rate {self.click_rate:.4f} · purchase rate {self.purchase_rate:.4f}, observed for "
            f"{self.purchase_observed:.1%} of events",
            f"ceiling for click: log loss {self.bayes_log_loss:.4f} · NE {self.bayes_ne:.4f} · "
            f"AUC {self.bayes_auc:.4f} (fields alone {self.fields_auc:.4f})",
        ]


def write_log(config: Synth, out: Path) -> SynthReport:
    """Writes `out/dt=YYYY-MM-DD/part-0.parquet`, in time order; the same config gives the same bytes.

    Raises DataError where `out` is not empty or first_day is no date.
    """
    started = time.perf_counter()
    try:
        first_day = int(datetime.strptime(config.first_day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError as error:
        raise DataError(f"data.synth.first_day {config.first_day!r} → a day as YYYY-MM-DD → correct it") from error
    rng = np.random.default_rng(config.seed)
    world = make_world(config, rng)
    user_Q, time_Q, round_Q = request_times(config, rng)
    with fresh_folder(out) as folder:
        columns = simulate(world, user_Q, time_Q, round_Q, rng)
        days = _write_days(_table(world, columns, first_day), folder)
    return _report(columns, days, time.perf_counter() - started)


def _table(world: World, columns: dict[str, npt.NDArray[Any]], first_day: int) -> pa.Table:
    """One row an event, in time order; a request's events follow each other by position."""
    order = np.argsort(columns["time"], kind="stable")
    user_E = np.repeat(columns["user"][order], PER_REQUEST)
    item_E = columns["item"][order].ravel()
    age_E, purchase_E = world.user_age[user_E], columns["purchase"][order].ravel()
    micros_E = np.repeat(columns["time"][order] + first_day, PER_REQUEST) * 1_000_000
    names = {"country": (COUNTRIES, world.user_country[user_E]), "device": (DEVICES, world.user_device[user_E])}
    text = {name: pa.array(words).take(pa.array(codes)) for name, (words, codes) in names.items()}
    author_words = pa.array([f"author-{number:04d}" for number in range(int(world.item_author.max()) + 1)])
    return pa.table(
        {
            "user_id": pa.array(user_E + 1),
            **text,
            "age": pa.array(age_E, pa.int32(), mask=age_E == 0),
            "hour": pa.array(np.repeat(columns["hour"][order], PER_REQUEST), pa.int8()),
            "request_id": pa.array(np.repeat(np.arange(len(order)), PER_REQUEST)),
            "time": pa.array(micros_E, pa.timestamp("us", tz="UTC")),
            "position": pa.array(np.tile(np.arange(PER_REQUEST), len(order)), pa.int8()),
            "item_id": pa.array(item_E + 1),
            "category": pa.array(world.item_category[item_E], pa.int16()),
            "author": author_words.take(pa.array(world.item_author[item_E])),
            "click": pa.array(columns["click"][order].ravel().astype(np.int8)),
            "purchase": pa.array(purchase_E, pa.int8(), mask=purchase_E < 0),
        }
    )


def _write_days(table: pa.Table, folder: Path) -> tuple[str, ...]:
    day_E = table["time"].to_numpy().astype("datetime64[D]")
    days, starts = np.unique(day_E, return_index=True)
    for day, first, end in zip(days, starts, [*starts[1:], len(day_E)], strict=True):
        part = folder / f"dt={day}" / "part-0.parquet"
        part.parent.mkdir()
        pq.write_table(table.slice(first, end - first), part, compression="zstd", row_group_size=65_536)
    return tuple(str(day) for day in days)


def _report(columns: dict[str, npt.NDArray[Any]], days: tuple[str, ...], seconds: float) -> SynthReport:
    click_E, probability_E = columns["click"].ravel(), columns["probability"].ravel()
    purchase_E = columns["purchase"].ravel()
    observed_E = purchase_E >= 0
    log_loss = -float(np.mean(np.where(click_E, np.log(probability_E), np.log1p(-probability_E))))
    base = float(click_E.mean())
    entropy = -(base * np.log(base) + (1 - base) * np.log1p(-base)) if 0 < base < 1 else np.nan
    return SynthReport(
        events=len(click_E),
        requests=len(columns["user"]),
        users=len(np.unique(columns["user"])),
        days=days,
        click_rate=base,
        purchase_rate=float(purchase_E[observed_E].mean()) if observed_E.any() else float("nan"),
        purchase_observed=float(observed_E.mean()),
        bayes_log_loss=log_loss,
        bayes_ne=log_loss / float(entropy),
        bayes_auc=_auc(probability_E, click_E),
        fields_auc=_auc(columns["fields_logit"].ravel(), click_E),
        seconds=seconds,
    )


def _auc(score_E: Float, label_E: npt.NDArray[np.bool_]) -> float:
    """Share of (positive, negative) pairs in the right order, ties half (Mann–Whitney)."""
    _, inverse, counts = np.unique(score_E, return_inverse=True, return_counts=True)
    rank_E = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = int(label_E.sum())
    negatives = len(label_E) - positives
    if not positives or not negatives:
        return float("nan")
    return float((rank_E[label_E].sum() - positives * (positives + 1) / 2) / (positives * negatives))
