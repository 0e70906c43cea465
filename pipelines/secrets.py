"""Keys that stand in a URI: found, so that they are refused where files and processes would keep them, and taken out of
what is said.

Secrets come from the environment or from files that the store's client reads; a URI is written into config.toml, logs,
consumed/ and checkpoints, and its command line is seen by everybody on the machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

HIDDEN = "…"
# user:password@ behind "://"; a port, and a path behind it that holds an "@", are none.
_PASSWORD = re.compile(r"(?<=://)[^/?#@\s:]*:(?!\d+(?:/|$))[^?#@\s]+@")
_OPTION = re.compile(
    r"(?<=[?&])([^=&?#\s]*(?:secret|token|passw|signature|credential|access_?key|account_?key|api_?key)|sig|key)"
    r"=([^&#\s'\"]+)",
    re.IGNORECASE,
)
RULE = "keys are in no run file, command line or manifest: both are kept, and seen"
REMEDY = "give them to the store's client, by its environment variables or files (docs/storage.md)"


def secret_in(text: str) -> str:
    """What of a URI is secret, by its kind and never by its value; "" = nothing."""
    if "://" not in text:
        return ""
    if _PASSWORD.search(text):
        return "a password"
    option = _OPTION.search(text)
    return f"the option '{option[1]}'" if option else ""


def without_secrets(text: str) -> str:
    """Any text, the keys of URIs in it hidden."""
    if "://" not in text:
        return text
    return _OPTION.sub(rf"\1={HIDDEN}", _PASSWORD.sub(f"{HIDDEN}@", text))


def secrets_in(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, what of it is secret) of all strings of a nested value; of keys as well, under their table's
    name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if found := secret_in(str(key)):
                yield name, found
            else:
                yield from secrets_in(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from secrets_in(inner, name)
    elif isinstance(value, str) and (found := secret_in(value)):
        yield name, found
