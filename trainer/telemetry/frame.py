"""The live display as text: what fits the width and height that the terminal has now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.text import Text

from trainer.lines import shortened
from trainer.telemetry.live_state import LiveState, Notice
from trainer.telemetry.updates import Scores
from trainer.telemetry.words import count, duration, number, rate, size

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
BARS = "▁▂▃▄▅▆▇█"
GAP = "   "
NARROWEST = 24
MOST_TASKS = 6
MOST_NOTICES = 3
LOG_LINES = 6  # of the terminal's height, for the log above
HIGH_WAIT = 0.2  # of a step


class Frame:
    """A rich renderable over a state: asked anew at every drawing. lengths: cells of each line as last drawn."""

    def __init__(self, state: LiveState, now: Callable[[], float] = time.monotonic) -> None:
        self._state, self._now = state, now
        self.lengths: list[int] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(NARROWEST, options.max_width - 1)  # a full line would wrap at once where a terminal is resized
        height = max(2, options.size.height - LOG_LINES)
        lines = frame_lines(self._state, self._now(), width, height, console)
        for line in lines:
            line.truncate(min(width, options.max_width), overflow="ellipsis")
        self.lengths = [line.cell_len for line in lines]
        yield from lines


def frame_lines(state: LiveState, now: float, width: int, height: int, console: Console) -> list[Text]:
    """At most `height` lines of at most about `width` cells, the most important ones first to stay."""
    lines = [_heading(state, now, width)]
    if state.begun is not None:
        lines.append(_bar(state, width, console))
        lines += flow(_progress(state, now), width)
        lines += flow(_figures(state, now), width)
        lines += _tasks(state, width)[: max(0, height - len(lines) - 1)]
    notices = state.newest_notices(min(MOST_NOTICES, height - len(lines)))
    lines += [_notice(notice, width) for notice in notices]
    return lines[:height]


def flow(parts: Iterable[Text], width: int, indent: int = 0) -> list[Text]:
    """Parts side by side, on as many lines as they need."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + len(GAP) + part.cell_len <= width:
            lines[-1].append(GAP).append_text(part)
        else:
            lines.append(Text(" " * (indent if lines else 0)).append_text(part))
    return lines


def _heading(state: LiveState, now: float, width: int) -> Text:
    """`── ⠹ evaluating · 12 s ──────── runs/quick ──`"""
    turn = SPINNER[int(now * 4) % len(SPINNER)]
    stands = state.stands(now)
    left = Text.assemble(("── ", "dim"), (f"{turn} ", "cyan"), (state.doing, "bold"))
    if stands:
        left.append(f" · {stands}", "yellow" if state.doing == "training" else "")
    right = Text(f" {state.title} ──" if state.title else "──", "dim")
    if left.cell_len + right.cell_len + 2 > width:
        right = Text("──", "dim")
    between = width - left.cell_len - right.cell_len - 1
    return left.append(" ").append("─" * max(0, between), "dim").append_text(right)


def _bar(state: LiveState, width: int, console: Console) -> Text:
    percent = f"{100 * state.share:3.0f} % "
    bar = ProgressBar(total=1.0, completed=state.share, width=width - len(percent))
    return Text(percent).append_text(Text.assemble(*((part.text, part.style or "") for part in console.render(bar))))


def _progress(state: LiveState, now: float) -> list[Text]:
    done, rows = state.rows
    last = state.last_step
    parts = [_labelled("step", f"{count(state.step)}{f' of {count(last)}' if last else ''}")]
    parts.append(_labelled("rows", f"{count(done)}{f' of about {count(rows)}' if last else ''}"))
    left = state.seconds_left(now)
    if left is not None:
        parts.append(Text.assemble((duration(left), "bold"), " left"))
    if state.trained is not None and state.trained.segment:
        parts.append(_labelled("segment", state.trained.segment))
        if state.trained.epoch:
            parts.append(_labelled("epoch", str(state.trained.epoch + 1)))
    return parts


def _figures(state: LiveState, now: float) -> list[Text]:
    """Of the newest log."""
    age = state.checkpoint_age(now)
    checkpoint = [_labelled("checkpoint", f"{duration(age)} ago" if age is not None else "none yet")]
    trained = state.trained
    if trained is None:
        return checkpoint
    loss = _labelled("loss", number(trained.loss))
    if curve := sparks(state.losses):
        loss.append(f" {curve}", "cyan")
    wait = _labelled("data wait", f"{100 * trained.wait_share:.0f} %")
    if trained.wait_share > HIGH_WAIT:
        wait.stylize("yellow")
    parts = [loss, _labelled("examples/s", rate(trained.examples_per_second)), wait]
    if trained.memory_bytes is not None:
        parts.append(_labelled("memory", size(trained.memory_bytes)))
    if trained.device_bytes is not None:
        parts.append(_labelled("GPU", size(trained.device_bytes)))
    parts += checkpoint
    if trained.bad_steps:
        parts.append(_labelled("bad steps", count(trained.bad_steps)))
        parts[-1].stylize("yellow")
    if trained.quarantined_rows:
        parts.append(_labelled("bad rows", count(trained.quarantined_rows)))
        parts[-1].stylize("yellow")
    return parts


def _tasks(state: LiveState, width: int) -> list[Text]:
    """A line or more a task: before each update, then of the newest evaluation."""
    found = state.trained.tasks if state.trained else {}
    scored = state.evaluated.tasks if state.evaluated else {}
    names = list(found or scored)
    indent = min(max(map(len, names), default=0), width // 3)
    lines: list[Text] = []
    for name in names[:MOST_TASKS]:
        parts = [Text(shortened(name, indent).ljust(indent), "bold")]
        parts += _scores(found[name], "dim") if name in found else []
        if name in scored and state.evaluated is not None:
            parts.append(Text(f"evaluated at step {count(state.evaluated.step)}", "dim"))
            parts += _scores(scored[name], "dim")
        lines += flow(parts, width, indent + len(GAP))
    if len(names) > MOST_TASKS:
        lines.append(Text(f"… and {len(names) - MOST_TASKS} more tasks, in metrics.jsonl", "dim"))
    return lines


def _scores(values: Scores, label: str) -> list[Text]:
    shown = [("AUC", values.auc, 3), ("NE", values.ne, 3)]
    shown += [("GAUC", values.gauc, 3)] if values.gauc is not None else [("cal", values.calibration, 2)]
    return [Text.assemble((name, label), " ", number(value, decimals)) for name, value, decimals in shown]


def _notice(notice: Notice, width: int) -> Text:
    times = f" ×{notice.count}" if notice.count > 1 else ""
    mark = "! " if notice.is_warning else "· "
    text = shortened(notice.text, max(NARROWEST, width - len(notice.clock) - len(mark) - len(times) - 1))
    return Text(f"{mark}{notice.clock} {text}{times}", "yellow" if notice.is_warning else "dim")


def _labelled(label: str, value: str) -> Text:
    return Text.assemble((label, "dim"), " ", (value, "bold"))


def sparks(values: Sequence[float]) -> str:
    """▇▅▃▂: the newest values between their least and their largest; nothing of fewer than two."""
    if len(values) < 2:
        return ""
    least, most = min(values), max(values)
    scale = (len(BARS) - 1) / (most - least) if most > least else 0.0
    return "".join(BARS[round((value - least) * scale)] for value in values)
