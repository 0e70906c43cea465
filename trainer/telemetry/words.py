"""Numbers as people read them: on the terminal, in a table, in a display. Imports nothing: the command says its last
words without torch."""

from __future__ import annotations

import math

UNKNOWN = "–"


def number(value: float | None, decimals: int = 3) -> str:
    """.412, 1.01, –: no leading zero, a dash for what is not defined."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    text = f"{value:.{decimals}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def rate(per_second: float) -> str:
    """950, 1.9 k, 23 k, 1.2 M."""
    for unit, suffix in ((1e6, " M"), (1e3, " k")):
        if per_second >= unit * 0.9995:
            scaled = per_second / unit
            return f"{scaled:.1f}{suffix}" if scaled < 9.95 else f"{scaled:.0f}{suffix}"
    return f"{per_second:.0f}"


def duration(seconds: float) -> str:
    """40 s, 4 min, 3 h 10 min, 2 d 4 h."""
    if seconds < 59.5:
        return f"{max(0.0, seconds):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def size(of_bytes: float) -> str:
    """950 MB, 1.2 GB, 43 GB: powers of ten."""
    for unit, suffix in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if of_bytes >= unit * 0.9995:
            scaled = of_bytes / unit
            return f"{scaled:.1f} {suffix}" if scaled < 9.95 and unit > 1e6 else f"{scaled:.0f} {suffix}"
    return f"{of_bytes / 1e3:.0f} kB"


def count(number_of: float) -> str:
    """2 048, 1 234 567."""
    return f"{number_of:,.0f}".replace(",", " ")
