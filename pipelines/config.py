"""`[data]` of a run file: where request rows are, which of them, in which order, and how they were made."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.retries import READ_RETRIES
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

    log:            folder or glob of Parquet event logs, or a manifest that lists them (path, rows, segment).
    filter:         SQL condition over the log's columns; events for which it is not true are left out and counted.
    derive:         {new column: SQL expression over the log's columns and the derived ones above it}, for use wherever
                    a column of the log is named.
    history_filter: {history: column of the log that must be true or non-zero for an event to enter it}; absent = every
                    event.
    tie_keys:       columns that order events of one user and timestamp (`ties = "order"`), as the protocol states.
    request:        log column naming the request whose events are one row's candidates; "" = (user, time).
    min_history:    supervised events need at least this many earlier events (ReLLa: 5); others stay as history.
    context_events: `history` supervision: at most this many context events (C) before the supervised ones.
    supervised_events: at most this many supervised events (S) a row.
    split:          "time": segments are days of the event time (UTC). "fractions": after a global sort by (time, user,
                    tie_keys) the supervised events are cut into segments 1-train, 2-valid, 3-test. "users": whole
                    users are dealt to these, by a hash. "manifest": an event's segment is that of its file.
    fractions:      shares of those three; two are 1-train and 2-test.
    split_seed:     of the hash that "users" deals by.
    partitions:     files a segment, each with a range of the hash of the user; 0 = by the events of a segment. Fixed
                    when the output is born.
    row_group_rows: rows a Parquet row group.
    memory_mb:      memory of all tasks together, beside what an idle process takes (about 200 MB each); a task has an
                    equal share of it.
    event_id:       columns of the log that name an event: events of one user and time that are equal in them are
                    duplicates, and the last of the log (by file name, then row) is kept. () = none are looked for.
    attribution:    {label column: time after the event until it is final, as "90m", "12h", "3d"}: until as_of ≥ event
                    time + this, the label is null.
    as_of:          time up to which labels are known, ISO 8601, UTC where it names no zone; "" = that of the newest
                    event. Option `--as-of` of the command.
    keep_states:    the users' tails are kept after each of the newest so many segments: from them later segments are
                    added, and recent ones refreshed, without the log before them. 0 = the days of the longest window
                    of `attribution`, and 3.
    """

    log: str
    filter: str = ""
    derive: dict[str, str] = Field(default_factory=dict)
    history_filter: dict[str, str] = Field(default_factory=dict)
    tie_keys: tuple[str, ...] = ()
    request: str = ""
    min_history: int = Field(default=0, ge=0)
    context_events: int = Field(default=200, ge=0)
    supervised_events: int = Field(default=100, gt=0)
    split: Literal["time", "fractions", "users", "manifest"] = "time"
    fractions: tuple[float, ...] = (0.8, 0.1, 0.1)
    split_seed: int = Field(default=0, ge=0)
    partitions: int = Field(default=0, ge=0)
    row_group_rows: int = Field(default=1024, gt=0)
    memory_mb: int = Field(default=2048, gt=0)
    event_id: tuple[str, ...] = ()
    attribution: dict[str, str] = Field(default_factory=dict)
    as_of: str = ""
    keep_states: int = Field(default=0, ge=0)


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


class GateColumn(Frozen):
    """`[data.gate.columns.NAME]`: of one column, instead of the gate's own. What is left out stays as the gate has it.

    max_psi, max_null_increase, max_sentinel_increase, max_value_increase, max_unknown_increase, max_length_drop,
    max_coverage_drop: as in [data.gate]; inf turns a rule off.
    min_coverage: share of the segment's rows that must have the column, whatever earlier segments had.
    """

    max_psi: float | None = Field(default=None, ge=0)
    max_null_increase: float | None = Field(default=None, ge=0)
    max_sentinel_increase: float | None = Field(default=None, ge=0)
    max_value_increase: float | None = Field(default=None, ge=0)
    max_unknown_increase: float | None = Field(default=None, ge=0)
    max_length_drop: float | None = Field(default=None, ge=0)
    max_coverage_drop: float | None = Field(default=None, ge=0)
    min_coverage: float = Field(default=0.0, ge=0, le=1)


class Gate(Frozen):
    """`[data.gate]`: each segment is held against those before it, before anything is trained. Its presence turns it
    on. inf turns a rule off. Where figures are of a sample, a rule trips only beyond the sampling error (3 standard
    errors).

    on_fail:    "fail": the run ends before its first step, exit code 3. "skip": the segment is left out. "warn": it is
                trained, and said.
    previous:   segments it is held against. Evaluation segments are among them; excluded and skipped ones are not.
    sample_rows: rows looked at of each segment, in row groups spread over its files; 0 = all.
    min_rows_share: rows, as a share of the smallest of the previous segments. max_rows_share: of the largest.
    max_label_rate_change: of a task's label rate, relative: beyond the lowest and the highest of the previous segments.
    max_psi:    population stability index of a column's values against the most similar of the previous segments. Not
                for times, nor ids of more than 32 values.
    max_null_increase: of the share of nulls, of NaN, or of null lists, above 1.5 times the highest before. Labels are
                exempt: they come late.
    max_sentinel_increase: the same of the share of a value that often stands for nothing (-1, 0, "", "null", …).
    max_value_increase: the same of any one value.
    max_unknown_increase: of the share of distinct ids that the previous segments do not have, above the highest that
                one of these has of its own.
    max_length_drop: of the mean length of lists, relative, below the lowest before.
    max_coverage_drop: of the share of rows whose file has the column (the others get its `default`), below the
                segment before.
    columns:    rules for single columns.
    """

    on_fail: Literal["fail", "skip", "warn"] = "fail"
    previous: int = Field(default=7, gt=0)
    sample_rows: int = Field(default=100_000, ge=0)
    min_rows_share: float = Field(default=0.3, ge=0)
    max_rows_share: float = Field(default=4.0, ge=0)
    max_label_rate_change: float = Field(default=0.4, ge=0)
    max_psi: float = Field(default=0.5, ge=0)
    max_null_increase: float = Field(default=0.03, ge=0)
    max_sentinel_increase: float = Field(default=0.02, ge=0)
    max_value_increase: float = Field(default=0.15, ge=0)
    max_unknown_increase: float = Field(default=0.25, ge=0)
    max_length_drop: float = Field(default=0.5, ge=0)
    max_coverage_drop: float = Field(default=0.1, ge=0)
    columns: dict[str, GateColumn] = Field(default_factory=dict)


class Data(Frozen):
    """`[data]`.

    rows:          folder, file or glob of request rows. Hive folders (dt=2026-11-20, or segment=train) directly below
                   are segments, in name order; otherwise the whole path is one segment. Or a manifest (path, rows,
                   segment) of such files.
    segments:      "A..B" (inclusive, by segment value, either end may be empty) or one value; "" = all but the
                   evaluation's.
    eval_segments: same, for evaluation; "" = the last segment when there are two or more and `segments` does not name
                   it, else none.
    exclude:       names or patterns ("2026-11-1?") of segments that are not there for this run: neither trained nor
                   evaluated, and no reference of the gate.
    order:         "time": segments in order, shuffled only inside a window; "shuffle": row groups and windows permuted
                   by seed.
    epochs:        times the segments are gone through.
    global_batch:  request rows per step over all ranks.
    window_batches: global batches a window.
    sample:        share of requests kept, by a hash of the request id; the rest keep their place with weight 0.
    downsampling:  how to undo that the log holds only a share of what happened.
    executor:      "ray", "threads", or "auto": ray where a Ray runs.
    windows_ahead: windows that an executor of threads reads before the trainer asks.
    memory_mb:     MiB a node that windows in flight under Ray may take: read, and not yet given to the trainer.
    read_retries:  a read that meets a transient error of the store (a timeout, a lost connection, throttling) is tried
                   again so often, with growing waits.
    gate:          what a segment must be like to be trained; absent = anything.
    on_bad_row:    a row that the schema does not allow, or that cannot be read: "fail" names its file, row, column and
                   value; "quarantine" gives it weight 0 and writes it down, with the reason, in the run's quarantine/.
    max_bad_share: beyond this share of bad rows the run fails; of the rows read since it began or resumed, from the
                   10,000th on and at the end of each segment.
    prepare:       how `data prepare` makes the rows from an event log; `train` does it where the rows are absent.
    synth:         how `data synth` makes the log; `train` does it where rows and log are absent.
    """

    rows: str
    segments: str = ""
    eval_segments: str = ""
    exclude: tuple[str, ...] = ()
    order: Literal["time", "shuffle"] = "time"
    epochs: int = Field(default=1, gt=0)
    global_batch: int = Field(default=256, gt=0)
    window_batches: int = Field(default=8, gt=0)
    sample: float = Field(default=1.0, gt=0, le=1)
    executor: Literal["auto", "ray", "threads"] = "auto"
    windows_ahead: int = Field(default=4, gt=0)
    memory_mb: int = Field(default=512, gt=0)
    read_retries: int = Field(default=READ_RETRIES, ge=0)
    downsampling: Downsampling | None = None
    gate: Gate | None = None
    on_bad_row: Literal["fail", "quarantine"] = "fail"
    max_bad_share: float = Field(default=0.01, ge=0, le=1)
    prepare: Prepare | None = None
    synth: Synth | None = None
