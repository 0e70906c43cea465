"""Runs the main jobs and puts what they really showed into the docs: console lines, and the picture of the README.

    make docs-run                         the synthetic job: README.md, pictures/synthetic.png
    make docs-run ZIP=path/to/ml-1m.zip   that, and MovieLens-1M: movielens.md, pictures/movielens.png

Each runs in a folder of its own that is removed afterwards, with this Python. Nothing is edited but what stands between
the marks `<!-- real run: NAME -->` and `<!-- /real run: NAME -->`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from generate import DOCS, fill
from plot_run import Known, draw

ROOT = DOCS.parent
# Lines of which there are many, and how many of them are shown, spread evenly.
MANY = ((re.compile(r"step \d+ ·"), 5), (re.compile(r"  [^ ]+: [\d,]+ rows ·"), 3))


def main(archive: str) -> None:
    """Run, draw, fill in."""
    console, seconds = real_run("synthetic", ROOT / "README.md", [])
    print(f"synthetic: {seconds:.0f} s\n{console}")
    if archive:
        make_log = ["data", "movielens", "--zip", str(Path(archive).resolve()), "--out", "runs/movielens-data/log"]
        console, seconds = real_run("movielens", DOCS / "movielens.md", [make_log])
        print(f"movielens: {seconds:.0f} s\n{console}")


def real_run(name: str, page: Path, before: list[list[str]]) -> tuple[str, float]:
    """Train a shipped run file after the commands `before`; update the page's block and the picture. Returns the
    console text shown there, and the seconds of the train command."""
    with tempfile.TemporaryDirectory() as folder:
        for arguments in before:
            tokenformer(arguments, folder)
        started = time.perf_counter()
        text = tokenformer(["train", "--config", str(ROOT / "trainer" / "configs" / f"{name}.toml")], folder)
        seconds = time.perf_counter() - started
        picture = DOCS / "pictures" / f"{name}.png"
        picture.parent.mkdir(exist_ok=True)
        draw(Path(folder, "runs", name), picture, known_of(text))
        shown = "\n".join(abridged(text.replace(f"{os.path.realpath(folder)}/", "").replace(f"{folder}/", "")))
    where = os.path.relpath(picture, page.parent)
    block = (
        f"![Loss, NE and AUC over the steps of a run]({where})\n\n```console\n{shown}\n```\n\n"
        f"Took {seconds:.0f} s, preparing the rows included, on {machine()}."
    )
    page.write_text(fill(page.read_text(encoding="utf-8"), f"real run: {name}", block), encoding="utf-8")
    return shown, seconds


def tokenformer(arguments: list[str], folder: str) -> str:
    """What the command says, errors among it. Raises SystemExit where it fails."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "trainer", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\ntokenformer {' '.join(arguments)} ended with {done.returncode}")
    return done.stdout


def abridged(text: str) -> Iterator[str]:
    """The lines without most of those that are many of a kind, and without blank lines at the ends."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    hidden: set[int] = set()
    for pattern, shown in MANY:
        found = [number for number, line in enumerate(lines) if pattern.match(line)]
        if len(found) > shown:
            hidden |= set(found) - {found[round(place * (len(found) - 1) / (shown - 1))] for place in range(shown)}
    for number, line in enumerate(lines):
        if number not in hidden:
            yield line
        elif number - 1 not in hidden:
            yield "…"


def known_of(text: str) -> Known | None:
    """What the synthetic log says of itself: `ceiling for click: log loss … · NE … · AUC … (fields alone …)`."""
    found = re.search(
        r"ceiling for (\w+): log loss ([\d.]+) · NE ([\d.]+) · AUC ([\d.]+) \(fields alone ([\d.]+)\)", text
    )
    if found is None:
        return None
    loss, ne, auc, blind = map(float, found.groups()[1:])
    return Known(found[1], {"loss": loss, "ne": ne, "auc": auc}, {"auc": blind})


def machine() -> str:
    """One line about where it ran."""
    sys.path.insert(0, str(ROOT))
    from trainer.machine import cores, cpu_info, memory_bytes  # noqa: PLC0415 - by the path of this checkout

    return f"{cores()} cores ({cpu_info('model name')}), {memory_bytes() / 2**30:.0f} GiB, no GPU"


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
