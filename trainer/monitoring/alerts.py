"""Every alert there is, in one table. deploy/prometheus/rules, their tests and the runbook are made from it.

Alerts read recorded series (recording.py) where several ranks tell the same, or where the past is needed: those hold
no NaN. Ratios of two counters, not rates of one: a resumed run's counters go on from its checkpoint, which Prometheus
takes for a reset and counts as growth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.monitoring.promql import metrics_in
from trainer.monitoring.recording import RECORDINGS

Severity = Literal["critical", "warning"]


@dataclass(frozen=True)
class Alert:
    """name: as Prometheus shows it. expr: PromQL; what is left are the runs that it is about. wait: how long it must
    hold, as Prometheus writes times. severity: critical = somebody should look now; warning = this working day.
    summary: one line, with Prometheus' templates. meaning: what is known when it fires. first: what to do first.
    """

    name: str
    expr: str
    wait: str
    severity: Severity
    summary: str
    meaning: str
    first: str

    @property
    def metrics(self) -> frozenset[str]:
        """Names of the metrics it reads, itself or through recorded series."""
        recorded = {rule.name: rule.metrics for rule in RECORDINGS}
        return frozenset().union(*(recorded.get(name, frozenset({name})) for name in metrics_in(self.expr)))

    @property
    def anchor(self) -> str:
        """Of its heading in the runbook."""
        return self.name.lower()


PROGRESS = (
    Alert(
        name="TokenformerNoProgress",
        expr="max by (run) (increase(tokenformer_steps_total[15m])) == 0 "
        "and on (run) max by (run) (tokenformer_steps_total offset 15m)",
        wait="1m",
        severity="critical",
        summary="{{ $labels.run }} has made no step for 15 minutes",
        meaning="The process answers, but its steps stand still. It waits for data, for another rank or for a store, "
        "or an evaluation or a checkpoint takes very long.",
        first="Read the last lines of `train.log`: ranks that have not moved for `launch.watchdog_seconds` are named "
        "there with what they were doing. [A run that stands still](stuck.md) goes on from there.",
    ),
    Alert(
        name="TokenformerThroughputFell",
        expr="avg_over_time(run:tokenformer_examples_per_second:max[10m]) "
        "< 0.7 * avg_over_time(run:tokenformer_examples_per_second:max[6h] offset 10m) "
        "and on (run) run:tokenformer_examples_per_second:max offset 1h",
        wait="10m",
        severity="warning",
        summary="{{ $labels.run }} trains at {{ $value | humanize }} examples/s, less than 70 % of its own last 6 "
        "hours",
        meaning="Speeds leave evaluation and checkpoints out, so it is the step itself that became slower: data, a "
        "neighbour on the machine, a slow rank, or rows that are longer than before.",
        first="Compare *Step time* on the Training dashboard before and after: the part that grew says where to look. "
        "`data_wait` → [Data wait](#tokenformerdatawaithigh), `exposed_communication` → [a slow "
        "rank](#tokenformerrankslow); [the split explained](step-time.md).",
    ),
    Alert(
        name="TokenformerDataWaitHigh",
        expr="avg_over_time(run:tokenformer_data_wait:ratio[10m]) > 0.2",
        wait="10m",
        severity="warning",
        summary="{{ $labels.run }} waits for data {{ $value | humanizePercentage }} of its time",
        meaning="Batches are read slower than they are trained: workers, paid for, stand idle.",
        first="Look at *Queues* on the Data dashboard. Always 0: more readers or CPUs for them, or a "
        "nearer store. Retries as well: the store. Not 0: one rank's reader is slow.",
    ),
    Alert(
        name="TokenformerRankMissing",
        expr='count by (run) (up{job="tokenformer"} == 0) '
        "or (max by (run) (tokenformer_world_size) - count by (run) (tokenformer_info) > 0)",
        wait="2m",
        severity="critical",
        summary="{{ $value }} rank(s) of {{ $labels.run }} do not answer",
        meaning="The process is gone, its host is, or the network between it and Prometheus. If all are gone the run "
        "died: one that ends takes its `prometheus_targets.json` away.",
        first="Look at the end of `train.log`. Dead: start it again with `--resume auto`. If it is not to go on, "
        "delete its `prometheus_targets.json`, and the alert ends.",
    ),
    Alert(
        name="TokenformerRankSlow",
        expr="avg_over_time(run:tokenformer_slowest_rank:ratio[10m]) > 1.3",
        wait="10m",
        severity="warning",
        summary='The slowest rank of {{ $labels.run }} computes {{ printf "%.1f" $value }} times as long as the median '
        "one",
        meaning="Every step lasts as long as its slowest rank, so all the others wait for that one.",
        first="*Slowest rank* on the System dashboard names rank and host. The same one all the time: the host (heat, "
        "a neighbour, a bad card); take it out and resume. Changing ones: uneven work, see [the plan](plan.md).",
    ),
)

LEARNING = (
    Alert(
        name="TokenformerLossNotFinite",
        expr="run:tokenformer_bad_steps:ratio15m > 0.01 "
        "or (max by (run) (tokenformer_loss) != max by (run) (tokenformer_loss) "
        "and on (run) max by (run) (tokenformer_steps_total) > 0)",
        wait="1m",
        severity="critical",
        summary="{{ $labels.run }} skips steps: loss or gradient is NaN or infinite",
        meaning="More than 1 % of the steps of 15 minutes were skipped, or all since the last log. Weights are as they "
        "were before each of them, and nothing is learnt from their data.",
        first="`bad_steps` in `metrics.jsonl` says when it began. Look at the data of that time (`tokenformer data "
        "profile`), then at the learning rate; go back to a checkpoint from before if the loss had jumped first.",
    ),
    Alert(
        name="TokenformerLossJumped",
        expr="avg_over_time(run:tokenformer_loss:max[3m]) "
        "> 1.5 * quantile_over_time(0.5, run:tokenformer_loss:max[1h] offset 5m) "
        "and on (run) run:tokenformer_loss:max offset 30m",
        wait="2m",
        severity="critical",
        summary='The loss of {{ $labels.run }} is {{ printf "%.3f" $value }}, more than 1.5 times the median of its '
        "last hour",
        meaning="Labels or features changed from one moment to the next, or the optimizer has lost its way.",
        first="Look at calibration at that time. Moved too: the labels' rate changed, compare the segments with "
        "`tokenformer data compare`. Norms grew first: the optimizer; go back to the checkpoint before, with a lower "
        "learning rate.",
    ),
    Alert(
        name="TokenformerAucFell",
        expr="avg_over_time(run_task:tokenformer_train_auc:max[30m]) "
        "< avg_over_time(run_task:tokenformer_train_auc:max[1d] offset 30m) - 0.02 "
        "and on (run, task) run_task:tokenformer_train_auc:max offset 1h",
        wait="15m",
        severity="warning",
        summary='AUC of {{ $labels.task }} in {{ $labels.run }} is {{ printf "%.3f" $value }}, more than 0.02 below '
        "its own last day",
        meaning="Taken before each update, so it is what users of the model would see: predictions order today's "
        "candidates worse than before.",
        first="Compare the newest segment with the one before (`tokenformer data compare`): a feature that went "
        "missing shows as coverage or as *Unknown ids* on the Tables dashboard. Do not publish new checkpoints "
        "until it is known.",
    ),
    Alert(
        name="TokenformerCalibrationDrifted",
        expr="avg_over_time(run_task:tokenformer_train_calibration:max[30m]) > 1.1 "
        "and on (run, task) run_task:tokenformer_train_calibration:max offset 30m "
        "or avg_over_time(run_task:tokenformer_train_calibration:max[30m]) < 0.9 "
        "and on (run, task) run_task:tokenformer_train_calibration:max offset 30m",
        wait="15m",
        severity="warning",
        summary='{{ $labels.task }} in {{ $labels.run }}: predicted over observed positives is {{ printf "%.2f" '
        "$value }}",
        meaning="The rate of positives moved faster than the model follows, or labels come late and stand as 0 until "
        "then. Whoever uses the probabilities, as an auction does, is off by that factor.",
        first="Compare label rates of the newest segments with `tokenformer data compare`. Lower than ever: wait for "
        "late labels. A new level: the model follows by itself; a higher learning rate follows faster.",
    ),
)

DATA = (
    Alert(
        name="TokenformerTrainedThroughLagging",
        expr="max by (run) (tokenformer_data_lag_seconds) > 129600 < 2592000",
        wait="30m",
        severity="warning",
        summary="{{ $labels.run }} has trained through data that is {{ $value | humanizeDuration }} old",
        meaning="The newest event trained on is more than 36 hours old: segments come late, or training is slower than "
        "they come. Above 30 days a run is taken to train on history, and the alert keeps still.",
        first="Is the newest segment there? If not, look at what writes it. If it is, compare *Throughput* with the "
        "rows of a day: [day after day](day-after-day.md).",
    ),
    Alert(
        name="TokenformerQuarantineGrowing",
        expr="run:tokenformer_quarantined_rows:ratio1h > 0.001",
        wait="5m",
        severity="warning",
        summary="{{ $labels.run }} sets {{ $value | humanizePercentage }} of its rows aside",
        meaning="More than one row in a thousand is bad: something upstream changed. Training goes on without them "
        "until `data.max_bad_share` is reached, then it stops.",
        first="[Data quality](data-quality.md) shows where the rows and their reasons are.",
    ),
)

STATE = (
    Alert(
        name="TokenformerCheckpointTooOld",
        expr="max by (run) (tokenformer_checkpoint_age_seconds) > 3600",
        wait="5m",
        severity="critical",
        summary="The newest checkpoint of {{ $labels.run }} is {{ $value | humanizeDuration }} old",
        meaning="So much work is lost if the run dies now. Checkpoints fail, or take longer than the time between "
        "them.",
        first="Look for `checkpoint` in `train.log`; is there room where they go (*Disk*)? Where hours between two are "
        "meant (`checkpoint.every_minutes`), raise the threshold of this alert.",
    ),
    Alert(
        name="TokenformerTableNearlyFull",
        expr="max by (run, table) (tokenformer_table_fill) > 0.9 "
        "unless on (run, table) max by (run, table) (max_over_time(tokenformer_table_evictions[1h])) > 0",
        wait="10m",
        severity="warning",
        summary="Table {{ $labels.table }} of {{ $labels.run }} is {{ $value | humanizePercentage }} full",
        meaning="Rows run out. In a `vocabulary` table new ids then have the unknown row; a `managed` table begins to "
        "evict (one that already does is full by design, and this alert keeps still).",
        first="*Unknown ids*, *Admissions and evictions* on the Tables dashboard tell how much it hurts. More rows "
        "need a new table: [tables](tables.md) and [ids](ids.md).",
    ),
    Alert(
        name="TokenformerDiskNearlyFull",
        expr="min by (run) (tokenformer_disk_free_bytes) / (max by (run) (tokenformer_disk_bytes) > 0) < 0.1",
        wait="5m",
        severity="critical",
        summary="{{ $value | humanizePercentage }} of the disk of {{ $labels.run }} is free",
        meaning="A checkpoint that does not fit is not committed; the last one stays. Logs stop as well.",
        first="Free some: old runs, old checkpoints (`checkpoint.keep`). What does not end by itself: object store for "
        "the run directory.",
    ),
)

ALERTS = (*PROGRESS, *LEARNING, *DATA, *STATE)
