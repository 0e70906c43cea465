"""For every alert, series that make it fire and series beside which it keeps still; promtool runs them.

Values are in promtool's notation, a sample a minute: `1+2x30` is 1, 3, … for 30 more minutes, `_` is none.
"""

from __future__ import annotations

from dataclasses import dataclass

RUN = 'run="ads"'


@dataclass(frozen=True)
class Case:
    """series: {series: values}. at: when it is looked at. fires: (labels beside the severity, summary) of each alert
    expected then; () = none."""

    what: str
    series: dict[str, str]
    at: str
    fires: tuple[tuple[dict[str, str], str], ...] = ()


def nan(minutes: int) -> str:
    """Promtool has no `NaNx5`."""
    return " ".join(["NaN"] * minutes)


def _of(name: str, *more: str) -> str:
    return f"tokenformer_{name}{{{', '.join((RUN, *more))}}}"


def _ads(summary: str, **labels: str) -> tuple[tuple[dict[str, str], str], ...]:
    return (({"run": "ads", **labels}, summary),)


STEPS, LOSS, SPEED = _of("steps_total", 'rank="0"'), _of("loss"), _of("examples_per_second")
AUC, CALIBRATION = _of("train_auc", 'task="click"'), _of("train_calibration", 'task="click"')
WAIT, STEP = _of("data_wait_seconds", 'rank="1"'), _of("step_seconds")
BAD, QUARANTINED, ROWS = _of("bad_steps_total"), _of("quarantined_rows_total"), _of("rows_total")
LAG, AGE = _of("data_lag_seconds"), _of("checkpoint_age_seconds")
SLOWEST, MEDIAN = _of("slowest_rank_step_seconds", 'slowest="3"', 'host="b7"'), _of("median_rank_step_seconds")
FILL = _of("table_fill", 'table="item_id"')
EVICTIONS = _of("table_evictions", 'table="item_id"')
FREE, DISK = _of("disk_free_bytes"), _of("disk_bytes")
UP = [f'up{{job="tokenformer", {RUN}, rank="{rank}"}}' for rank in range(2)]
INFO = [_of("info", f'rank="{rank}"') for rank in range(2)]

CASES: dict[str, tuple[Case, ...]] = {
    "TokenformerNoProgress": (
        Case(
            "stands still after half an hour",
            {STEPS: "0+60x30 1800x60"},
            "50m",
            _ads("ads has made no step for 15 minutes"),
        ),
        Case("trains", {STEPS: "0+60x90"}, "50m"),
        Case("has only begun, and looks for its data", {STEPS: "0x60"}, "12m"),
        Case("resumed from a checkpoint of some steps ago", {STEPS: "0+60x30 1700+60x60"}, "50m"),
        Case("has ended, its endpoint with it", {STEPS: "0+60x30 stale"}, "50m"),
    ),
    "TokenformerThroughputFell": (
        Case(
            "half as fast as before",
            {SPEED: "1000x70 500x60"},
            "100m",
            _ads("ads trains at 500 examples/s, less than 70 % of its own last 6 hours"),
        ),
        Case("a little slower", {SPEED: "1000x70 800x60"}, "100m"),
        Case("one slow log", {SPEED: "1000x70 100x4 1000x60"}, "80m"),
        Case("the first minutes, not logged yet", {SPEED: "0x5 1000+0x10 300x30"}, "40m"),
    ),
    "TokenformerDataWaitHigh": (
        Case(
            "one rank waits",
            {WAIT: "0.4x60", STEP: "1x60"},
            "30m",
            _ads("ads waits for data 40% of its time"),
        ),
        Case("a little", {WAIT: "0.1x60", STEP: "1x60"}, "30m"),
        Case("only at the start", {WAIT: "0.9x3 0.01x60", STEP: "1x60"}, "30m"),
    ),
    "TokenformerRankMissing": (
        Case(
            "one of two does not answer",
            {UP[0]: "1x20", UP[1]: "1x5 0x15", INFO[0]: "1x20", INFO[1]: "1x5 stale", _of("world_size"): "2x20"},
            "10m",
            _ads("1 rank(s) of ads do not answer"),
        ),
        Case(
            "all are gone",
            {UP[0]: "1x5 0x15", UP[1]: "1x5 0x15", INFO[0]: "1x5 stale", _of("world_size"): "2x5 stale"},
            "10m",
            _ads("2 rank(s) of ads do not answer"),
        ),
        Case(
            "one was never found",
            {UP[0]: "1x20", INFO[0]: "1x20", _of("world_size"): "2x20"},
            "10m",
            _ads("1 rank(s) of ads do not answer"),
        ),
        Case(
            "all answer",
            {UP[0]: "1x20", UP[1]: "1x20", INFO[0]: "1x20", INFO[1]: "1x20", _of("world_size"): "2x20"},
            "10m",
        ),
        Case("ended: its targets are gone", {UP[0]: "1x5 stale", UP[1]: "1x5 stale", INFO[0]: "1x5 stale"}, "10m"),
        Case("another job's target is down", {'up{job="ray", run="ads"}': "0x20"}, "10m"),
    ),
    "TokenformerRankSlow": (
        Case(
            "one rank takes twice as long",
            {SLOWEST: "2x40", MEDIAN: "1x40"},
            "30m",
            _ads("The slowest rank of ads computes 2.0 times as long as the median one"),
        ),
        Case("within a tenth", {SLOWEST: "1.1x40", MEDIAN: "1x40"}, "30m"),
        Case("nothing is known yet", {SLOWEST: nan(40), MEDIAN: "0x40"}, "30m"),
    ),
    "TokenformerLossNotFinite": (
        Case(
            "some steps are skipped",
            {BAD: "0x20 0+6x40", STEPS: "0+60x60", LOSS: "0.4x60"},
            "50m",
            _ads("ads skips steps: loss or gradient is NaN or infinite"),
        ),
        Case(
            "all steps since the last log are",
            {BAD: "0x60", STEPS: "0+60x60", LOSS: f"0.4x20 {nan(40)}"},
            "50m",
            _ads("ads skips steps: loss or gradient is NaN or infinite"),
        ),
        Case("one step in ten thousand", {BAD: "0x30 1x30", STEPS: "0+700x60", LOSS: "0.4x60"}, "35m"),
        Case("not logged yet", {BAD: "0x60", STEPS: "0x60", LOSS: nan(60)}, "50m"),
    ),
    "TokenformerLossJumped": (
        Case(
            "doubles",
            {LOSS: "0.4x60 0.8x20"},
            "70m",
            _ads("The loss of ads is 0.800, more than 1.5 times the median of its last hour"),
        ),
        Case("falls, as it should", {LOSS: "0.7-0.005x80"}, "70m"),
        Case("a noisy log", {LOSS: "0.4x60 0.8 0.4x20"}, "61m"),
        Case("the first minutes", {LOSS: "0x5 0.3x10 0.7x10"}, "25m"),
    ),
    "TokenformerAucFell": (
        Case(
            "five points below",
            {AUC: "0.75x90 0.7x60"},
            "140m",
            _ads("AUC of click in ads is 0.700, more than 0.02 below its own last day", task="click"),
        ),
        Case("one point below", {AUC: "0.75x90 0.74x60"}, "140m"),
        Case("still rising", {AUC: "0.5+0.001x200"}, "120m"),
        Case("windows of one class", {AUC: f"0.75x90 {nan(60)}"}, "140m"),
    ),
    "TokenformerCalibrationDrifted": (
        Case(
            "predicts too much",
            {CALIBRATION: "1x30 1.3x60"},
            "80m",
            _ads("click in ads: predicted over observed positives is 1.30", task="click"),
        ),
        Case(
            "predicts too little",
            {CALIBRATION: "1x30 0.8x60"},
            "80m",
            _ads("click in ads: predicted over observed positives is 0.80", task="click"),
        ),
        Case("within five percent", {CALIBRATION: "1.05x90"}, "80m"),
        Case("the first minutes", {CALIBRATION: f"{nan(2)} 3x5 1x60"}, "20m"),
    ),
    "TokenformerTrainedThroughLagging": (
        Case(
            "two days behind",
            {LAG: "172800x90"},
            "60m",
            _ads("ads has trained through data that is 2d 0h 0m 0s old"),
        ),
        Case("a day behind, as segments of a day make it", {LAG: "100000x90"}, "60m"),
        Case("trains on last year", {LAG: "31536000x90"}, "60m"),
    ),
    "TokenformerQuarantineGrowing": (
        Case(
            "one row in a hundred",
            {QUARANTINED: "0+1x120", ROWS: "0+100x120"},
            "90m",
            _ads("ads sets 1% of its rows aside"),
        ),
        Case("one in a hundred thousand", {QUARANTINED: "0+1x120", ROWS: "0+100000x120"}, "90m"),
        Case(
            "resumed: counters begin where the checkpoint left them", {QUARANTINED: "0 9x99", ROWS: "0 90000x99"}, "30m"
        ),
    ),
    "TokenformerCheckpointTooOld": (
        Case(
            "none for two hours",
            {AGE: "0+60x120"},
            "90m",
            _ads("The newest checkpoint of ads is 1h 30m 0s old"),
        ),
        Case("every ten minutes", {AGE: "0+60x10 0+60x10 0+60x10 0+60x10 0+60x10 0+60x10 0+60x10 0+60x10"}, "80m"),
        Case("the process has ended", {AGE: "0+60x120 stale"}, "125m"),
    ),
    "TokenformerTableNearlyFull": (
        Case(
            "ninety-five of a hundred rows",
            {FILL: "0.95x60"},
            "30m",
            _ads("Table item_id of ads is 95% full", table="item_id"),
        ),
        Case("half full", {FILL: "0.5x60"}, "30m"),
        Case("full and evicting, as a managed table is", {FILL: "1x60", EVICTIONS: "900x60"}, "30m"),
    ),
    "TokenformerDiskNearlyFull": (
        Case("five percent left", {FREE: "5e10x30", DISK: "1e12x30"}, "20m", _ads("5% of the disk of ads is free")),
        Case("half of it", {FREE: "5e11x30", DISK: "1e12x30"}, "20m"),
        Case("not known", {FREE: nan(30), DISK: f"{nan(30)}"}, "20m"),
    ),
}
