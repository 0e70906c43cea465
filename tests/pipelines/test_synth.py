"""The synthetic log: the same for ever, shaped like a log, with the signal where it is said to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from pipelines.config import Synth
from pipelines.errors import DataError
from pipelines.synth import SynthReport, write_log
from pipelines.synth_world import CATEGORIES, UNOBSERVED_PURCHASES

SETTINGS = Synth(events=60_000, users=1_000, items=800, days=3, first_day="2026-02-27", seed=5)
ALL = "from read_parquet('{}/*/*.parquet', hive_partitioning=true, hive_types_autocast=false)"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SynthReport]:
    out = tmp_path_factory.mktemp("synth") / "log"
    return out, write_log(SETTINGS, out)


def test_same_seed_same_bytes_other_seed_other_log(written: tuple[Path, SynthReport], tmp_path: Path) -> None:
    out, _ = written
    write_log(SETTINGS, tmp_path / "again")
    write_log(SETTINGS.model_copy(update={"seed": 6}), tmp_path / "other")
    files = sorted(path.relative_to(out) for path in out.rglob("*.parquet"))
    assert [str(file) for file in files] == [f"dt=2026-{day}/part-0.parquet" for day in ("02-27", "02-28", "03-01")]
    for file in files:
        assert (out / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
        assert (out / file).read_bytes() != (tmp_path / "other" / file).read_bytes()


def test_the_log_is_shaped_like_one(written: tuple[Path, SynthReport]) -> None:
    log = duckdb.sql(ALL.format(written[0]))
    assert log.filter("cast(time at time zone 'UTC' as date)::varchar != dt").limit(1).fetchall() == []
    requests = "select request_id, count(*) k, count(distinct user_id) u, count(distinct time) t from log group by 1"
    assert duckdb.sql(f"select distinct k, u, t from ({requests})").fetchall() == [(4, 1, 1)]
    counts = "select item_id, count(*) n, row_number() over (order by n desc) place from log group by 1"
    ((head, tail),) = duckdb.sql(
        f"select sum(n) filter (place <= 80), sum(n) filter (place > 400) from ({counts})"
    ).fetchall()
    assert head > 2 * tail  # Zipf: a tenth of the items outweighs the lower half
    ((ages, static),) = duckdb.sql(
        "select count(*) filter (age is null), max(n) from log, "
        "(select count(distinct (country, device, coalesce(age, 0))) n from log group by user_id)"
    ).fetchall()
    assert ages > 0
    assert static == 1


def test_purchases_are_observed_after_clicks_only_and_often_not_even_then(written: tuple[Path, SynthReport]) -> None:
    log = duckdb.sql(ALL.format(written[0]))
    assert log.filter("click = 0 and purchase is not null").limit(1).fetchall() == []
    ((unobserved,),) = log.filter("click = 1").aggregate("avg((purchase is null)::int)").fetchall()
    assert unobserved == pytest.approx(UNOBSERVED_PURCHASES, abs=0.02)


def test_the_order_of_clicks_decides_not_their_set(written: tuple[Path, SynthReport]) -> None:
    """A category that often follows the last click does so far less where its parent is the click before the last."""
    log = duckdb.sql(ALL.format(written[0])).order("request_id, position")
    clicked: dict[int, list[int]] = {}  # user: categories of clicks, in order
    shown: dict[tuple[int, int, int], list[int]] = {}  # (category, last click's, the one's before): clicks
    pending: list[tuple[int, int]] = []
    previous = -1
    for request, user, category, click in log.project("request_id, user_id, category, click").fetchall():
        if request != previous:
            for owner, what in pending:
                clicked.setdefault(owner, []).append(what)
            pending, previous = [], request
        if len(clicked.get(user, [])) >= 2:
            shown.setdefault((category, clicked[user][-1], clicked[user][-2]), []).append(click)
        if click:
            pending.append((user, category))

    def rate(wanted: Callable[[int, int, int], bool]) -> float:
        clicks = [click for key, values in shown.items() if wanted(*key) for click in values]
        assert len(clicks) > 200
        return sum(clicks) / len(clicks)

    base = rate(lambda category, last, before: True)
    lifts = []
    for parent in range(CATEGORIES):
        by_child = [
            rate(lambda c, last, _, child=child, p=parent: (c, last) == (child, p)) for child in range(CATEGORIES)
        ]
        child = by_child.index(max(by_child))
        assert by_child[child] > base + 0.1
        swapped = rate(lambda c, last, before, k=child, p=parent: c == k and before == p and last != p)
        lifts.append(by_child[child] - swapped)
    assert sum(lifts) / CATEGORIES > 0.25


def test_the_report_tells_the_ceiling(written: tuple[Path, SynthReport]) -> None:
    _, report = written
    assert report.events == 60_000
    assert 0.2 < report.click_rate < 0.3
    assert 0.5 < report.fields_auc < report.bayes_auc - 0.03
    assert report.bayes_auc < 0.9
    assert 0.7 < report.bayes_ne < 0.95
    assert any("AUC" in line for line in report.lines())


def test_bad_settings_and_a_full_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="first_day 'soon'"):
        write_log(Synth(first_day="soon"), tmp_path / "log")
    assert not (tmp_path / "log").exists()
    (tmp_path / "kept").touch()
    with pytest.raises(DataError, match="not empty"):
        write_log(SETTINGS, tmp_path)
