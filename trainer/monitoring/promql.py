"""Reading PromQL just far enough to know which metrics it asks for."""

from __future__ import annotations

import re

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_NOT_A_METRIC = re.compile(
    r'"(?:\\.|[^"\\])*"'  # strings
    r"|\{[^}]*\}"  # matchers
    r"|\[[^\]]*\]"  # ranges
    r"|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"  # label lists
)


def metrics_in(expr: str) -> frozenset[str]:
    """Names of the metrics and recorded series that an expression reads: `a`, `a:b:c`, `up`; no function, no label."""
    bare = _NOT_A_METRIC.sub(" ", expr)
    names = {match[0] for match in _NAME.finditer(bare) if not bare[match.end() :].lstrip().startswith("(")}
    return frozenset(name for name in names if "_" in name or ":" in name or name == "up")
