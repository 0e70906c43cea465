"""Writes what the code already says: run-file.md, metrics.md, the runbook's alerts, and from the same tables the rules,
their tests and the dashboards in deploy/.

Usage: python docs/generate.py (make docs). tests/docs holds the files against what this would write.
"""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

DOCS = Path(__file__).resolve().parent
RUNBOOK = DOCS / "runbook.md"
K8S = DOCS.parent / "deploy" / "k8s"
sys.path.insert(0, str(DOCS.parent))

from trainer.config import SECTIONS, load_config  # noqa: E402
from trainer.monitoring.files import files, runbook  # noqa: E402
from trainer.submit.kuberay_job import as_yaml, ray_job  # noqa: E402
from trainer.telemetry.declared import DASHBOARDS, METRICS  # noqa: E402

HEAD = """# The run file

<!-- Written by docs/generate.py from the classes that read the run file: change their docstrings, then `make docs`. -->

One TOML file says everything about a run. Sections: {sections}.

- Defaults < file < command line: `--model.num-layers 6` sets `num_layers` of `[model]`; `--data.sample=0.01` works too.
  A value is TOML; a bare word is a string.
- Types are strict and unknown keys are refused. All problems are reported at once, one line each.
- Paths are relative to the working directory; `schema.file` is relative to the run file.
- The run directory's `config.toml` is the run file with every default written out. It is itself a valid `--config`.
- `[schema]` may be a file of its own: `file = "schema.toml"`. Keys beside `file` are laid over what the file says.

Examples: [quick.toml](../trainer/configs/quick.toml), [synthetic.toml](../trainer/configs/synthetic.toml),
[movielens.toml](../trainer/configs/movielens.toml). Words: [glossary](glossary.md).
"""


def run_file_page() -> str:
    """docs/run-file.md, whole."""
    sections = ", ".join(f"[`[{name}]`](#{name})" for name in SECTIONS)
    parts = [HEAD.format(sections=sections)]
    for name, section in SECTIONS.items():
        parts += [part for path, model in _tables(name, section) for part in [_section(path, model)]]
    return "\n".join(parts)


METRICS_HEAD = """# Metrics

<!-- Written by docs/generate.py from trainer/telemetry/declared.py: change it there, then `make docs`. -->

Everything that a rank's endpoint tells [Prometheus](run-directory.md#prometheus). Base units; a value that is not known
is NaN. *Whose*: `rank` is told by every rank of itself, `job` by rank 0 of all ranks. *Panel* and *alert* say where it
is looked at. An endpoint has at most 300 series; what has no room is counted in `tokenformer_series_left_out`, and
tables give way to everything else.
"""


def metrics_page() -> str:
    """docs/metrics.md, whole: the declared metrics, one a row, by dashboard."""
    parts = [METRICS_HEAD]
    for dashboard in DASHBOARDS:
        rows = [
            f"| `{m.full_name}` | {m.kind} | {m.unit} | {', '.join(f'`{label}`' for label in m.labels)} | {m.scope} | "
            f"{m.panel.split(' / ')[1]} | {m.alert} | {m.help} |"
            for m in METRICS
            if m.dashboard == dashboard
        ]
        head = [
            "| name | kind | unit | labels | whose | panel | alert | meaning |",
            "|---|---|---|---|---|---|---|---|",
        ]
        parts.append("\n".join([f"## {dashboard}", "", *head, *rows, ""]))
    return "\n".join(parts)


def fill(page: str, mark: str, text: str) -> str:
    """`page` with what stands between `<!-- mark -->` and `<!-- /mark -->` replaced."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"no {begin.strip()} … {end} in the page")
    return f"{before}{begin}{text}\n{end}{after}"


def pages() -> dict[Path, str]:
    """{file: what it should hold}."""
    return {
        DOCS / "run-file.md": run_file_page(),
        DOCS / "metrics.md": metrics_page(),
        RUNBOOK: fill(RUNBOOK.read_text(encoding="utf-8"), "alerts", runbook()),
        **files(DOCS.parent),
        K8S / "base" / "rayjob.yaml": kubernetes_job(),
    }


def kubernetes_job() -> str:
    """deploy/k8s/base/rayjob.yaml: what `submit --to kuberay` would make of the run file beside it."""
    config = load_config(K8S / "base" / "run.toml")
    text = as_yaml(ray_job(config, "tokenformer-example", "/runs/example"))
    return f"# Written by docs/generate.py from trainer/submit/kuberay_job.py: change that, then `make docs`.\n{text}"


def descriptions(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """A section's docstring as (what stands before the keys, {key: its text}).

    A key's text starts at `key:` or `key, key:` and ends where the next one starts.
    """
    text = " ".join((model.__doc__ or "").split())
    names = "|".join(sorted(model.model_fields, key=len, reverse=True))
    starts = list(re.finditer(rf"(?:(?<=^)|(?<=[.;)] ))((?:{names})(?:, (?:{names}))*): ", text))
    found = {}
    for start, after in zip(starts, [*starts[1:], None], strict=False):
        for key in start[1].split(", "):
            found[key] = _sentence(text[start.end() : after.start() if after else None])
    intro = text[: starts[0].start()] if starts else text
    return re.sub(r"^`\[[^`]*\]`[.:;]?\s*", "", intro).strip(), found


def _sentence(text: str) -> str:
    text = text.strip().rstrip(".;")
    return f"{text}." if text else ""


def _tables(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """A section and the tables inside it, as they are written in TOML."""
    yield path, model
    for name, field in model.model_fields.items():
        inner, many = _inner(field.annotation)
        if inner is not None:
            yield from _tables(f"{path}.{name}.NAME" if many else f"{path}.{name}", inner)


def _inner(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section class behind a field's type, and whether there is one a name."""
    if get_origin(annotation) is dict:
        return _inner(get_args(annotation)[1])[0], True
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None), False


def _section(path: str, model: type[BaseModel]) -> str:
    intro, texts = descriptions(model)
    heading = "#" * (2 + min(path.count("."), 1))
    lines = [f"{heading} {path}" if "." not in path else f"{heading} `[{path}]`", ""]
    lines += [intro[:1].upper() + intro[1:], ""] if intro else []
    rows = []
    for name, field in model.model_fields.items():
        if _inner(field.annotation)[0] is None:
            rows.append(f"| `{name}` | {_type(field)} | {_default(field)} | {texts.get(name, '')} |")
        elif name in texts:
            rows.append(f"| `{name}` | table | | {texts[name]} |")
    return "\n".join([*lines, "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _type(field: FieldInfo) -> str:
    return _type_text(field.annotation) + _bounds(field)


def _type_text(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type_text(get_args(annotation)[0])
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_text(option) for option in arguments if option is not type(None))
    if origin is tuple:
        kinds = [kind for kind in arguments if kind is not Ellipsis]
        return f"list of {'' if Ellipsis in arguments else f'{len(kinds)} '}{_type_text(kinds[0])}s"
    if origin is dict:
        return f"table of {_type_text(arguments[1]).removesuffix('s')}s"
    return {str: "string", int: "integer", float: "number", bool: "boolean"}[annotation]


def _bounds(field: FieldInfo) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    found = [
        f"{sign} {getattr(bound, key):g}"
        for bound in field.metadata
        for key, sign in signs.items()
        if hasattr(bound, key)
    ]
    return f" {', '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default_factory() if field.default_factory else field.default  # type: ignore[call-arg]
    if value is None or value is PydanticUndefined:
        return ""
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


if __name__ == "__main__":
    for page, content in pages().items():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(content, encoding="utf-8")
        print(f"wrote {page.relative_to(DOCS.parent)}")
