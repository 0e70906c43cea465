"""Run files, spoiled: their values, keys and bytes, through load_config and back."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import tomli_w
from hypothesis import strategies as st

from tests.security.mutations import spoiled, spoiled_bytes
from tests.security.watched import outcome
from trainer.config import dump_config, load_config

CONFIGS = Path(__file__).parents[2] / "trainer" / "configs"


def prepare(folder: Path) -> None:
    """Nothing is made beforehand."""


def cases() -> st.SearchStrategy[bytes]:
    """Contents of run files."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(CONFIGS.glob("*.toml"))]
    of_values = [spoiled(tomllib.loads(text)).map(_toml) for text in texts]
    of_bytes = [spoiled_bytes(text.encode()) for text in texts]
    return st.one_of(*of_values, *of_bytes)


def check(case: bytes, folder: Path, codes: Counter[int] | None = None) -> None:
    """A run file that loads is written out as one that loads, to the same text."""
    root = folder / "case"
    root.mkdir(exist_ok=True)
    run_file, again = root / "run.toml", root / "again.toml"
    run_file.write_bytes(case)

    def there_and_back() -> None:
        text = dump_config(load_config(run_file))
        again.write_text(text, encoding="utf-8")
        assert dump_config(load_config(again)) == text

    outcome(there_and_back, root, codes)


def _toml(value: Any) -> bytes:
    """What is no table at the top cannot be said in TOML: bytes that are none."""
    try:
        return tomli_w.dumps(value).encode("utf-8", "surrogatepass")
    except (TypeError, AttributeError, ValueError):
        return repr(value).encode("utf-8", "surrogatepass")
