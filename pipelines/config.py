"""`[data]` of a run file: where request rows are, which of them, in which order, and how they were made."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.schema import Frozen


class Synth(Frozen):
    """`[data.synth]`: the seeded synthetic event log that `data synth` writes, and `train` when it is absent.

    events: one shown item each, four a request. users, items: at most; those that are never drawn do not appear.
    days: from first_day on. first_day: UTC date. seed: same settings, same log.
    """

    events: int = Field(default=200_000, gt=0)
    users: int = Field(default=4_000, gt=0)
    items: int = Field(default=5_000, gt=0)
    days: int = Field(default=8, gt=0)
    first_day: str = "2026-11-13"
    seed: int = 7


class Prepare(Frozen):
    """`[data.prepare]`: from an event log to request rows (the columns' `source` names the log's columns).

    log:            folder or glob of Parquet event logs.
    history_filter: {history: column of the log that must be true or non-zero for an event to enter it}; absent = every
                    event.
    tie_keys:       columns that order events of one user and timestamp (`ties = "order"`), as the protocol states.
    request:        log column naming the request whose events are one row's candidates; "" = (user, time).
    min_history:    supervised events need at least this many earlier events (ReLLa: 5); others stay as history.
    context_events: `history` supervision: at most this many context events (C) before the supervised ones.
    supervised_events: at most this many supervised events (S) a row.
    split:          "time": segments are days of the event time (UTC). "fractions": after a global sort by (time, user,
                    tie_keys) the supervised events are cut into segments 1-train, 2-valid, 3-test.
    fractions:      shares of those three.
    partitions:     hash partitions of users; 0 = by the size of the log.
    row_group_rows: rows a Parquet row group.
    """

    log: str
    history_filter: dict[str, str] = Field(default_factory=dict)
    tie_keys: tuple[str, ...] = ()
    request: str = ""
    min_history: int = Field(default=0, ge=0)
    context_events: int = Field(default=200, ge=0)
    supervised_events: int = Field(default=100, gt=0)
    split: Literal["time", "fractions"] = "time"
    fractions: tuple[float, ...] = (0.8, 0.1, 0.1)
    partitions: int = Field(default=0, ge=0)
    row_group_rows: int = Field(default=1024, gt=0)


class Downsampling(Frozen):
    """`[data.downsampling]`: the log holds a share of what happened. Scores and metrics are of all that happened.

    rate_column:    column of role weight, static or beside the labels: the probability with which each example was
                    kept.
    negative_rates: {label column: the share of its 0s that was kept}; 1s and nulls were all kept.
    sample:         the log is whole, and training leaves negatives out at negative_rates, by a hash of the request id
                    and the place in the request; evaluation reads all. They keep their place with weight 0.
    correct:        "weight": an example weighs 1 ÷ its rate in the loss. "offset": −ln(rate) is added to the logit in
                    the loss instead (negative_rates only), so that no example is heavy.
    """

    rate_column: str = ""
    negative_rates: dict[str, float] = Field(default_factory=dict)
    sample: bool = False
    correct: Literal["weight", "offset"] = "weight"


class Data(Frozen):
    """`[data]`.

    rows:          folder, file or glob of request rows. Hive folders (dt=2026-11-20, or segment=train) directly below
                   are segments, in name order; otherwise the whole path is one segment.
    segments:      "A..B" (inclusive, by segment value, either end may be empty) or one value; "" = all but the
                   evaluation's.
    eval_segments: same, for evaluation; "" = the last segment when there are two or more and `segments` does not name
                   it, else none.
    order:         "time": segments in order, shuffled only inside a window; "shuffle": row groups and windows permuted
                   by seed.
    epochs:        times the segments are gone through.
    global_batch:  request rows per step over all ranks.
    window_batches: global batches a window.
    sample:        share of requests kept, by a hash of the request id; the rest keep their place with weight 0.
    downsampling:  how to undo that the log holds only a share of what happened.
    executor:      "ray", "threads", or "auto": ray where a Ray runs.
    windows_ahead: windows in flight before the trainer asks.
    prepare:       how `data prepare` makes the rows from an event log; `train` does it where the rows are absent.
    synth:         how `data synth` makes the log; `train` does it where rows and log are absent.
    """

    rows: str
    segments: str = ""
    eval_segments: str = ""
    order: Literal["time", "shuffle"] = "time"
    epochs: int = Field(default=1, gt=0)
    global_batch: int = Field(default=256, gt=0)
    window_batches: int = Field(default=8, gt=0)
    sample: float = Field(default=1.0, gt=0, le=1)
    executor: Literal["auto", "ray", "threads"] = "auto"
    windows_ahead: int = Field(default=4, gt=0)
    downsampling: Downsampling | None = None
    prepare: Prepare | None = None
    synth: Synth | None = None
