"""Which runs there are, in the order of their importance, as a function of what is done already.

Tuning is a search by coordinates: the next trial depends on the results of those before, and the final runs of a ranker
on all of its trials. So `next_runs` names what can be done now.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from tests.benchmarks.accuracy_results import Results
from tests.benchmarks.accuracy_settings import ABLATIONS, KNOBS, RANKERS, Settings, settings_hash, settings_of

PARTS = ("table", "live", "time", "ablations")
SEEDS = (1, 2, 3)
LIVE_SEEDS = (1, 2)
EVAL_EVERY = 23  # steps; an epoch has 350 to 460


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


def last30_runs(results: Results) -> list[Run]:
    """TokenFormer's final settings, over the last 30 of the history."""
    settings = tuned("tokenformer", results)
    if settings is None:
        return []
    short = settings_of("tokenformer", "last30", over_base(settings))
    return [Run("table", "tokenformer, last 30", "tokenformer", seed, short, test=True) for seed in SEEDS]


def live_runs(ranker: str) -> list[Run]:
    """One pass in time order with the settings that tuning begins with: nobody tunes on the future."""
    settings = settings_of(ranker, "days")
    return [
        Run("live", ranker, ranker, seed, settings, compare=other)
        for seed, other in zip(LIVE_SEEDS, LIVE_SEEDS[::-1], strict=True)
    ]


def time_runs(ranker: str, results: Results) -> list[Run]:
    """The final settings, scored on the test split under way."""
    settings = tuned(ranker, results)
    if settings is None:
        return []
    every = {"data.eval_segments": "3-test", "train.eval_every": EVAL_EVERY}
    return [Run("time", ranker, ranker, 1, settings | every)]


def ablation_runs(table: str, results: Results) -> dict[str, list[Run]]:
    """{row: a run for each seed}."""
    settings = tuned("tokenformer", results)
    if settings is None:
        return {}
    return {
        row: [Run("ablations", row, "tokenformer", seed, settings | over, test=True) for seed in SEEDS]
        for row, over in ABLATIONS[table].items()
    }


def all_runs(results: Results, only: str = "") -> Iterator[Run]:
    """Everything that is known by now, the most important first."""
    parts = {
        "table": lambda: _table(results),
        "live": lambda: chain.from_iterable(live_runs(ranker) for ranker in RANKERS),
        "time": lambda: chain.from_iterable(
            [*trials(ranker, results)[0], *time_runs(ranker, results)] for ranker in RANKERS
        ),
        "ablations": lambda: _ablations(results),
    }
    for part in PARTS if not only else (only,):
        yield from parts[part]()


def _table(results: Results) -> Iterator[Run]:
    """A first run of every ranker, then TokenFormer to its end, then the others one by one, seed by seed at last."""
    yield from (trials(ranker, results)[0][0] for ranker in RANKERS)
    for ranker in RANKERS:
        yield from trials(ranker, results)[0]
        yield from final_runs(ranker, results)[:1]
    yield from _by_seed([final_runs(ranker, results) for ranker in RANKERS] + [last30_runs(results)])


def _ablations(results: Results) -> Iterator[Run]:
    yield from trials("tokenformer", results)[0]
    yield from final_runs("tokenformer", results)
    yield from _by_seed([runs for table in ("parts", "patterns") for runs in ablation_runs(table, results).values()])
    yield from _by_seed([runs for table in ("windows", "switches") for runs in ablation_runs(table, results).values()])


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
