"""Numbers as people read them. Nothing here imports torch, which the page does not need."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

from trainer.telemetry.words import UNKNOWN, duration


def _known(value: object) -> float | None:
    """A finite number; a file may hold anything."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def number(value: object, digits: int = 4) -> str:
    """0.8714, 1.02, 2e-05, –."""
    if (known := _known(value)) is None:
        return UNKNOWN
    if known and abs(known) < 10**-digits:
        return f"{known:.{digits}g}"
    return f"{known:.{digits}f}".rstrip("0").rstrip(".")


def fixed(value: object, decimals: int = 4) -> str:
    """Of one column, so that the points stand below each other."""
    known = _known(value)
    return UNKNOWN if known is None else f"{known:.{decimals}f}"


def count(value: object) -> str:
    """14 749."""
    if (known := _known(value)) is None:
        return UNKNOWN
    return f"{known:,.0f}".replace(",", "\u202f")


def short(value: object, unit: str = "") -> str:
    """950, 1.9 k, 23 M, 1.2 G: with the unit behind it."""
    if (known := _known(value)) is None:
        return UNKNOWN
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(known) >= size * 0.9995:
            scaled = known / size
            return f"{scaled:.{1 if abs(scaled) < 99.95 else 0}f} {prefix}{unit}"
    text = f"{known:.3g}"
    return f"{text} {unit}" if unit else text


def size(value: object) -> str:
    """312.5 KiB."""
    if (known := _known(value)) is None:
        return UNKNOWN
    scaled, units = float(known), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(scaled) >= 1024 and len(units) > 1:
        scaled, units = scaled / 1024, units[1:]
    return f"{scaled:.0f} B" if units[0] == "B" else f"{scaled:.1f} {units[0]}"


def span(seconds: object) -> str:
    """0.4 s, 40 s, 4 min, 3 h 10 min, 2 d 4 h."""
    if (known := _known(seconds)) is None:
        return UNKNOWN
    if known < 59.5:
        return f"{known:.2g} s" if 0 < known < 9.5 else f"{known:.0f} s"
    return duration(known)


def share(value: object) -> str:
    """12 %, 0.4 %."""
    if (known := _known(value)) is None:
        return UNKNOWN
    percent = 100 * known
    return f"{percent:.1f} %" if 0 < abs(percent) < 9.95 else f"{percent:.0f} %"


def moment(seconds: object) -> str:
    """2026-11-20 13:05 UTC."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return UNKNOWN
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return UNKNOWN


def plain(value: Any, longest: int = 200) -> str:
    """Any value of a file on one line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= longest else f"{text[:longest]}…"
