"""One declared metric: what the endpoint, the dashboards, the alerts and docs/metrics.md are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge"]
Scope = Literal["rank", "job"]
DASHBOARDS = ("Training", "Data", "Tables", "System")


@dataclass(frozen=True)
class Metric:
    """name: without the prefix. panel: "Dashboard / Panel". labels: in the order in which their values come. scope:
    "rank": every rank tells its own; "job": rank 0 tells what is true of all. field: of TrainRecord, told at every log:
    a number, or with one label {label's value: number}; "" where the value comes from elsewhere. alert: the one that
    looks at it, "" for none.
    """

    name: str
    help: str
    panel: str
    field: str = ""
    labels: tuple[str, ...] = ()
    scope: Scope = "job"
    alert: str = ""

    @property
    def full_name(self) -> str:
        """As exposed."""
        return f"tokenformer_{self.name}"

    @property
    def kind(self) -> Kind:
        """By its name."""
        return "counter" if self.name.endswith("_total") else "gauge"

    @property
    def unit(self) -> str:
        """By its name; "" for a plain number or a ratio."""
        return next((u for u in ("seconds", "bytes") if self.name.removesuffix("_total").endswith(f"_{u}")), "")

    @property
    def dashboard(self) -> str:
        """One of DASHBOARDS."""
        return self.panel.split(" / ")[0]
