"""A Prometheus endpoint of this rank, with the declared metrics and nothing else."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from embeddings.health import TableFigures
from trainer.config_sections import Telemetry
from trainer.errors import ConfigError
from trainer.telemetry.declared import METRICS, SCORES, TABLE_FIGURES, Metric
from trainer.telemetry.records import EvalRecord, TrainRecord, finite
from trainer.telemetry.tables import highest

log = logging.getLogger(__name__)

AnyMetric = TypeVar("AnyMetric", Counter, Gauge)


class Prometheus:
    """Listens on host : port + rank from construction on. url: of the endpoint.

    Raises ConfigError: the port is taken, or the host is not one of this machine's.
    """

    def __init__(self, config: Telemetry, rank: int, tasks: Sequence[str]) -> None:
        self._registry = CollectorRegistry()
        self._counters = {m.name: _make(Counter, m, self._registry) for m in METRICS if m.kind == "counter"}
        self._gauges = {m.name: _make(Gauge, m, self._registry) for m in METRICS if m.kind == "gauge"}
        self._totals: dict[str, float] = {}
        self._is_first = rank == 0
        self._tables: dict[str, set[str]] = {}  # {figure: tables that have a series}
        self._linger = config.linger_seconds
        self._closed = threading.Event()
        port = config.port + rank if config.port else 0
        try:
            if port > 65535:
                raise OSError(0, "ports end at 65535")
            self._server, self._thread = start_http_server(port, config.host, self._registry)
        except OSError as error:
            raise ConfigError(
                f"telemetry.port {config.port}: rank {rank} cannot listen on {config.host}:{port} ({error.strerror}) → "
                "every rank needs port + rank for itself → --telemetry.port 0 takes any free one, "
                "--telemetry.prometheus false does without"
            ) from error
        host = f"[{config.host}]" if ":" in config.host else config.host
        self.url = f"http://{host}:{self._server.server_port}/metrics"
        self._set("info", 1, str(rank))
        for task in tasks:  # every series is there from the first scrape on
            for name in SCORES:
                self._set(f"train_{name}", None, task)

    def train(self, record: TrainRecord) -> None:
        """The newest values."""
        self._raise_to("steps_total", record.step)
        self._raise_to("examples_total", record.examples)
        self._raise_to("rows_total", record.rows)
        self._raise_to("quarantined_rows_total", record.quarantined_rows)
        self._raise_to("bad_steps_total", record.bad_steps)
        self._raise_to("read_retries_total", record.read_retries)
        self._set("loss", record.loss)
        self._set("examples_per_second", record.examples_per_second)
        self._set("rows_per_second", record.rows_per_second)
        self._set("flops_per_second", record.flops_per_second)
        self._set("mfu", record.mfu)
        self._set("step_seconds", record.step_seconds)
        self._set("data_wait_seconds", record.data_wait_seconds)
        for part, seconds in record.step_split.items():
            self._set("step_part_seconds", seconds, part)
        self._set("dense_grad_norm", record.grad_norm)
        self._set("learning_rate", record.learning_rate)
        self._set("data_through_timestamp_seconds", record.data_through / 1e6 if record.data_through else None)
        self._set("left_seconds", record.seconds_left)
        for task, values in record.tasks.items():
            for name in SCORES:
                self._set(f"train_{name}", getattr(values, name), task)

        if record.tables and self._is_first:  # figures of all ranks: once a job is enough
            self._set_tables(record.tables)

    def eval(self, record: EvalRecord) -> None:
        """The newest values of that split."""
        for task, values in record.tasks.items():
            for name in (*SCORES, "loss"):
                self._set(f"eval_{name}", getattr(values, name), record.split, task)
            if task in record.gauc:
                self._set("eval_gauc", record.gauc[task].value, record.split, task)
        if record.collapse is not None:
            for kind, spectra in record.collapse.spectra.items():
                for layer, found in enumerate(spectra):
                    self._set("effective_rank", found.effective_rank, kind, str(layer))
            for kind, keys in record.collapse.attention.items():
                for layer, share in enumerate(keys["field"], start=1):
                    self._set("attention_on_fields", share, kind, str(layer))

    def checkpoint(self, step: int, size: int, seconds: float, stall_seconds: float = 0.0) -> None:
        """The newest one."""
        self._counters["checkpoints_total"].inc()
        self._set("checkpoint_timestamp_seconds", time.time())
        self._set("checkpoint_step", step)
        self._set("checkpoint_save_seconds", seconds)
        self._set("checkpoint_stall_seconds", stall_seconds)
        self._set("checkpoint_bytes", size)

    def event(self, name: str) -> None:
        """One more."""
        self._counters["events_total"].labels(name).inc()

    def close(self) -> None:
        """Stays for linger_seconds, so that the final values are scraped; then the port is free."""
        if self._closed.is_set():
            return
        if self._linger:
            log.info("the metrics stay at %s for %g s", self.url, self._linger)
            self._closed.wait(self._linger)
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _set_tables(self, tables: Mapping[str, TableFigures]) -> None:
        """Of each figure the tables where it is highest: 500 tables would be 5,000 series."""
        for figure in TABLE_FIGURES:
            shown = highest(tables, figure)
            for table in self._tables.get(figure, set()) - shown.keys():
                self._gauges[f"table_{figure}"].remove(table)
            self._tables[figure] = set(shown)
            for table, value in shown.items():
                self._set(f"table_{figure}", value, table)

    def _set(self, name: str, value: float | None, *labels: str) -> None:
        """A value that is not known is NaN, Prometheus' own word for it."""
        gauge = self._gauges[name]
        known = finite(value)
        (gauge.labels(*labels) if labels else gauge).set(float("nan") if known is None else known)

    def _raise_to(self, name: str, total: float) -> None:
        """Counters of the model's life begin where a checkpoint left them, and never fall."""
        self._counters[name].inc(max(0.0, total - self._totals.get(name, 0.0)))
        self._totals[name] = max(total, self._totals.get(name, 0.0))


def _make(kind: type[AnyMetric], metric: Metric, registry: CollectorRegistry) -> AnyMetric:
    help_text = f"{metric.help} ({metric.unit})" if metric.unit else metric.help
    return kind(metric.full_name, help_text, metric.labels, registry=registry)
