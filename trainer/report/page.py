"""The page itself: figures and tables of runs as one HTML file that needs nothing else.

What runs hold is untrusted: Jinja2 escapes every word of it, numbers and names for the plots stand in a JSON block
without a `<`, and the page's Content-Security-Policy names by their hashes the only two scripts that may run: ours, and
plotly.js, which is packed. It forbids every connection.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any

import jinja2

from trainer.report.events import Event, events_of
from trainer.report.figures import Panel, Thinned, axes
from trainer.report.formats import moment
from trainer.report.learning import learning_panels
from trainer.report.more_figures import collapse_panels, table_panels
from trainer.report.other_figures import goodput_panels, other_panels, slice_panels
from trainer.report.read import Run
from trainer.report.settings import differences, not_default
from trainer.report.summary import results, sliced, summary
from trainer.report.table_rows import health_table, plan_table

MOST_EVENTS_LISTED = 400


def page(runs: Sequence[Run]) -> str:
    """The whole file, of at least one run."""
    thin = Thinned(runs)
    others, notes = other_panels(thin)
    panels = [*learning_panels(thin), *goodput_panels(thin), *others, *slice_panels(thin)]
    panels += [*table_panels(thin), *collapse_panels(thin)]
    found = [events_of(number, run) for number, run in enumerate(runs)]
    events = [event for of_run, _ in found for event in of_run]
    if thin.thinned:
        notes.append(
            f"Long curves are cut to about {thin.most} points: of each stretch its lowest and its highest value"
        )
    notes += [f"{runs[number].name}: {cut} usual events are not shown" for number, (_, cut) in enumerate(found) if cut]
    script, plotly = _text("report.js"), _plotly()
    return (
        _environment()
        .get_template("report.html")
        .render(
            runs=runs,
            made=moment(time.time()),
            sections=_sections(panels),
            summary=summary(runs),
            results=results(runs),
            sliced=sliced(runs),
            plans=_of_runs(runs, plan_table),
            healths=_of_runs(runs, health_table),
            differences=differences(runs) if len(runs) > 1 else None,
            settings=not_default(runs[0]) if len(runs) == 1 else None,
            events=events,
            listed=_listed(events),
            notes=notes,
            data=_data(runs, panels, events),
            style=_text("report.css"),
            script=script,
            plotly=base64.b64encode(gzip.compress(plotly.encode(), 6, mtime=0)).decode(),
            hashes=[_hash(script), _hash(plotly)],
        )
    )


def _sections(panels: Sequence[Panel]) -> dict[str, list[tuple[int, Panel]]]:
    found: dict[str, list[tuple[int, Panel]]] = {}
    for number, panel in enumerate(panels):
        found.setdefault(panel.section, []).append((number, panel))
    return found


def _of_runs(runs: Sequence[Run], table: Any) -> list[tuple[Run, Any]]:
    tables = [(run, table(run)) for run in runs]
    return [(run, of) for run, of in tables if of.rows]


def _listed(events: Sequence[Event]) -> list[Event]:
    """For the table: what is not usual first of all, then the newest of the rest; in order."""
    if len(events) <= MOST_EVENTS_LISTED:
        return list(events)
    unusual = [event for event in events if not event.usual][-MOST_EVENTS_LISTED:]
    room = MOST_EVENTS_LISTED - len(unusual)
    usual = [event for event in events if event.usual][-room:] if room else []
    return sorted([*unusual, *usual], key=lambda event: (event.run, event.step, event.at))


def _data(runs: Sequence[Run], panels: Sequence[Panel], events: Sequence[Event]) -> dict[str, Any]:
    """What the page's script draws. Curves and events name their moments by their places in the run's axes, which hold
    those that are drawn."""
    needed: list[set[int]] = [set() for _ in runs]
    for event in events:
        needed[event.run].add(event.at)
    for panel in panels:
        if panel.x == "run":
            for curve in panel.curves:
                needed[curve.run].update(curve.at)
    moments = [sorted(of_run) for of_run in needed]
    places = [{at: place for place, at in enumerate(of_run)} for of_run in moments]
    drawn = []
    for panel in panels:
        of_panel = asdict(panel)
        if panel.x == "run":
            for curve in of_panel["curves"]:
                place = places[curve["run"]]
                curve["at"] = [place[at] for at in curve["at"]]
        drawn.append(of_panel)
    return {
        "runs": [{"name": run.name, **axes(run, of_run)} for run, of_run in zip(runs, moments, strict=True)],
        "panels": drawn,
        "events": [{**asdict(event), "at": places[event.run][event.at], "usual": event.usual} for event in events],
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def _text(name: str) -> str:
    return resources.files("trainer.report").joinpath("page", name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 - only where a page is made

    script: str = get_plotlyjs()
    return script


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
