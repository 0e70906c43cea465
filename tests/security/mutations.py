"""How inputs are spoiled: bytes of any file, and values of anything that JSON or TOML can hold."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

Path_ = tuple[str | int, ...]

TEXTS = (
    "", " ", "..", "../../../etc/passwd", "/etc/passwd", "a/b", "\x00", "\x1b[31mred\x1b[0m", "line\nline", "é→·",
    "\u202e", "$(id)", "`id`", "; id", "{{7*7}}", "%s%n", "{0}", "*", "?", "[", "]", "(" * 300, "x" * 3000, "nan",
    "inf", "-1", "s3://", "://", "s3://user:password@bucket/x?token=t", "nosuch://host/x", "file:///etc", "2026-11-20",
    "..2026", "true", "__class__", "__init__.__globals__", "\ud7ff", "\ufffe",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, -(2**63), 0.0, -0.0, 0.5, 1e-300, 1e300, -1e300,
    1.5, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
# JSON can say them, Arrow and torch cannot hold them.
BEYOND_INT64 = (2**63, 2**64, -(2**70), 10**40)

scalars = st.one_of(
    st.sampled_from(TEXTS),
    st.sampled_from(NUMBERS),
    st.booleans(),
    st.text(max_size=8),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.sampled_from(TEXTS), st.text(max_size=4)), inner)
    ),
    max_leaves=6,
)


def places(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Of everything inside a nested value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield (*at, key)
        yield from places(below, (*at, key))


@st.composite
def spoiled(draw: st.DrawFn, value: Any, most: int = 3, odd: st.SearchStrategy[Any] = values) -> Any:
    """A nested value after one to `most` changes: a value replaced, removed, said under another name, or another's."""
    result = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        found = list(places(result))
        if not found:
            return draw(odd)
        *above, key = draw(st.sampled_from(found))
        holder = result
        for part in above:
            holder = holder[part]
        what = draw(st.sampled_from(("replace", "replace", "replace", "remove", "rename", "swap", "add")))
        if what == "replace":
            holder[key] = draw(odd)
        elif what == "remove":
            del holder[key]
        elif what == "swap":
            *elsewhere, last = draw(st.sampled_from(found))
            other = result
            for part in elsewhere:
                other = other[part]
            if not _holds(other[last], holder):
                holder[key] = copy.deepcopy(other[last])
        elif isinstance(holder, dict):
            name = draw(st.one_of(st.sampled_from(TEXTS), st.text(max_size=6)))
            holder[name] = holder.pop(key) if what == "rename" else draw(odd)
        else:
            holder.append(copy.deepcopy(holder[key]))
    return result


def _holds(value: Any, wanted: Any) -> bool:
    """Whether an object is somewhere inside another: a value is not put into itself."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is wanted or any(_holds(below, wanted) for below in inner)


@st.composite
def spoiled_bytes(draw: st.DrawFn, content: bytes, tail: int = 0) -> bytes:
    """After one to four changes. tail: half of them are among the last so many bytes."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        size = len(result)
        if not size:
            break
        low = max(0, size - tail) if tail and draw(st.booleans()) else 0
        at = draw(st.integers(low, size - 1))
        what = draw(st.sampled_from(("flip", "set", "cut", "insert", "remove", "repeat")))
        length = draw(st.integers(1, 16))
        if what == "flip":
            result[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "set":
            result[at] = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)))
        elif what == "cut":
            del result[at:]
        elif what == "insert":
            result[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif what == "remove":
            del result[at : at + length]
        else:
            result[at:at] = result[at : at + length]
    return bytes(result)
