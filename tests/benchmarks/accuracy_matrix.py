"""Which runs there are, in the order of their importance, as a function of what is done already. Part "first" is what
some hours of one core pay for; it is made of runs of the other parts. Part "table" would take more than a day.

Tuning is a search by coordinates: the next trial depends on the results of those before, and the final runs of a ranker
on all of its trials. So `next_runs` names what can be done now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from tests.benchmarks.accuracy_results import Results
from tests.benchmarks.accuracy_settings import (
    ABLATIONS,
    KNOBS,
    RANKERS,
    RATES,
    Settings,
    settings_hash,
    settings_of,
)

PARTS = ("first", "last30", "three", "ablations", "live", "time", "table")
SEEDS = (1, 2, 3)
LIVE_SEEDS = (1, 2)
RANKERS_FIRST = ("tokenformer", "din", "dcnv2", "transformer")
THREE_LONG = ("transformer", "tokenformer")  # the others take half an hour and more an epoch of long rows
FIRST_ABLATIONS = ("parts", "fields", "patterns")
FIRST_ROWS = ("NLIR off", "BFTS off (4F)", "both off", "no static field, both off", "4S")
EVAL_EVERY = 23  # steps; an epoch has 240 to 380


@dataclass(frozen=True)
class Run:
    """One training. test: the test split is scored as well, at the end. compare: seed of the run, else the same, whose
    predictions these are held against once both are there. Two runs of one key are one run."""

    part: str
    name: str
    ranker: str
    seed: int
    settings: Settings
    test: bool = False
    compare: int = 0

    @property
    def hash(self) -> str:
        return settings_hash(self.settings)

    @property
    def key(self) -> tuple[str, int]:
        return self.hash, self.seed


def done(run: Run, results: Results) -> bool:
    """A run with a test score stands for the one without."""
    found = results.get(*run.key)
    return found is not None and (not run.test or found["test"] is not None)


def trials(ranker: str, results: Results) -> tuple[list[Run], Run | None]:
    """Those of a ranker as far as they are known, and the best of them once all are done. One seed, no test score."""
    best = _trial(ranker, "base", settings_of(ranker))
    found = [best]
    if not done(best, results):
        return found, None
    for knob, others in KNOBS.items():
        beside = [_trial(ranker, f"{knob} {value}", _with(ranker, best.settings, knob, value)) for value in others]
        found += beside
        if not all(done(run, results) for run in beside):
            return found, None
        best = max([best, *beside], key=lambda run: results.held_out_auc(*run.key))
    return found, best


def _trial(ranker: str, name: str, settings: Settings) -> Run:
    return Run("table", f"{ranker}, trial: {name}", ranker, 1, settings)


def _with(ranker: str, settings: Settings, knob: str, value: Any) -> dict[str, Any]:
    """The settings of a trial, with one knob set otherwise."""
    over, rows = over_base(settings), settings["rows"]
    if knob == "rows":
        rows = value
    elif isinstance(value, str):
        over[knob] = float(f"{settings[knob] * float(value.removeprefix('× ')):.6g}")
    else:
        over[knob] = value
    return settings_of(ranker, rows, over)


def tuned(ranker: str, results: Results) -> dict[str, Any] | None:
    """The settings that a ranker's final runs have; None while it is being tuned."""
    best = trials(ranker, results)[1]
    return None if best is None else dict(best.settings)


def over_base(settings: Settings) -> dict[str, Any]:
    """The knobs of these settings, to be laid over other rows."""
    return {name: settings[name] for name in KNOBS if name != "rows"}


def final_runs(ranker: str, results: Results) -> list[Run]:
    settings = tuned(ranker, results)
    return [] if settings is None else [Run("table", ranker, ranker, seed, settings, test=True) for seed in SEEDS]


def last30_runs(ranker: str) -> list[Run]:
    """The history that the published models had, one epoch, with the settings that tuning begins with."""
    settings = settings_of(ranker, "last30")
    return [Run("last30", f"{ranker}, last 30", ranker, seed, settings, test=True) for seed in SEEDS]


def request_runs(ranker: str) -> list[Run]:
    """Over the last 30 as HyFormer has it: a row for each rating, with one candidate and all of its last 30."""
    settings = settings_of(ranker, "last30_requests")
    return [Run("last30", f"{ranker}, last 30 by request", ranker, seed, settings, test=True) for seed in SEEDS]


def rate_runs(ranker: str) -> list[Run]:
    """The same at other learning rates, for the validation split alone."""
    return [
        Run("last30", f"{ranker}, last 30, rate {rate:g}", ranker, 1, settings_of(ranker, "last30", {"optim.lr": rate}))
        for rate in RATES
    ]


def three_runs(ranker: str, rows: str) -> list[Run]:
    """Three epochs instead of one, everything else as it was."""
    settings = settings_of(ranker, rows, {"data.epochs": 3})
    return [Run("three", f"{ranker}, {rows}, three epochs", ranker, seed, settings, test=True) for seed in SEEDS]


def live_runs(ranker: str) -> list[Run]:
    """One pass in time order with the settings that tuning begins with: nobody tunes on the future."""
    settings = settings_of(ranker, "last30_days")
    return [
        Run("live", ranker, ranker, seed, settings, compare=other)
        for seed, other in zip(LIVE_SEEDS, LIVE_SEEDS[::-1], strict=True)
    ]


def time_run(ranker: str) -> Run:
    """The last 30 again, scored on the test split under way."""
    every = {"data.eval_segments": "3-test", "train.eval_every": EVAL_EVERY}
    return Run("time", ranker, ranker, 1, settings_of(ranker, "last30") | every)


def base_runs() -> list[Run]:
    """What ablations are held against: one epoch of long rows, untuned."""
    settings = settings_of("tokenformer")
    return [Run("ablations", "tokenformer", "tokenformer", seed, settings, test=True) for seed in SEEDS]


def ablation_runs(table: str) -> dict[str, list[Run]]:
    """{row: a run for each seed}."""
    found = {}
    for row, over in ABLATIONS[table].items():
        settings = settings_of("tokenformer") | over
        kind = settings["model.kind"]
        found[row] = [Run("ablations", row, kind, seed, settings, test=True) for seed in SEEDS]
    return found


def all_runs(results: Results, only: str = "") -> Iterator[Run]:
    """Everything that is known by now, the most important first."""
    parts: dict[str, Callable[[], Iterable[Run]]] = {
        "first": _first,
        "last30": _last30,
        "three": _three,
        "ablations": _ablations,
        "live": lambda: chain.from_iterable(map(live_runs, RANKERS)),
        "time": lambda: map(time_run, RANKERS),
        "table": lambda: _table(results),
    }
    for part in PARTS if not only else (only,):
        yield from parts[part]()


def _first() -> Iterator[Run]:
    """What tells most, for some hours of one core."""
    last30 = [last30_runs(ranker) for ranker in RANKERS]
    ablated = {row: runs for table in FIRST_ABLATIONS for row, runs in ablation_runs(table).items()}
    yield from (runs[0] for runs in last30)
    yield from (runs[0] for runs in (base_runs(), *(ablated[row] for row in FIRST_ROWS)))
    yield from (request_runs(ranker)[0] for ranker in ("tokenformer", "din", "dcnv2"))
    yield from (last30_runs(ranker)[1] for ranker in RANKERS_FIRST if ranker in RANKERS)
    yield from chain.from_iterable(live_runs(ranker) for ranker in RANKERS_FIRST if ranker in RANKERS)
    yield request_runs("tokenformer")[1]
    yield three_runs("transformer", "long")[0]
    yield from (runs[1] for runs in last30)
    yield from (runs[2] for runs in last30)
    yield from (runs[0] for runs in ablated.values())
    yield from (three_runs(ranker, "last30")[0] for ranker in RANKERS_FIRST if ranker in RANKERS)


def _last30() -> Iterator[Run]:
    yield from _by_seed([last30_runs(ranker) for ranker in RANKERS])
    yield from _by_seed([request_runs(ranker) for ranker in RANKERS])
    yield from chain.from_iterable(map(rate_runs, RANKERS))


def _three() -> Iterator[Run]:
    yield from _by_seed([three_runs(ranker, "last30") for ranker in RANKERS])
    yield from _by_seed([three_runs(ranker, "long") for ranker in THREE_LONG])


def _ablations() -> Iterator[Run]:
    groups = [base_runs(), *(runs for table in FIRST_ABLATIONS for runs in ablation_runs(table).values())]
    yield from _by_seed(groups)
    others = [table for table in ABLATIONS if table not in FIRST_ABLATIONS]
    yield from _by_seed([runs for table in others for runs in ablation_runs(table).values()])


def _table(results: Results) -> Iterator[Run]:
    """Long rows. A first run of every ranker, then TokenFormer to its end, then the others one by one, seed by seed at
    last."""
    yield from (trials(ranker, results)[0][0] for ranker in RANKERS)
    for ranker in RANKERS:
        yield from trials(ranker, results)[0]
        yield from final_runs(ranker, results)[:1]
    yield from _by_seed([final_runs(ranker, results) for ranker in RANKERS])


def _by_seed(groups: Sequence[list[Run]]) -> Iterator[Run]:
    for place in range(len(SEEDS)):
        yield from (runs[place] for runs in groups if len(runs) > place)


def next_runs(results: Results, only: str = "") -> list[Run]:
    """What is not done and can be begun now, in order, each once. A run that another part wants scored on the test
    split is scored at once."""
    wanted: dict[tuple[str, int], Run] = {}
    for run in all_runs(results, only):
        if done(run, results):
            continue
        known = wanted.get(run.key)
        wanted[run.key] = run if known is None else replace(known, test=known.test or run.test)
    return list(wanted.values())
