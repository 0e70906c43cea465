"""kubectl as far as a test without a cluster has it: a program on the search path that writes down what it was asked
and answers what it was told to. What Kubernetes itself would say of it is not tested here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


class Kubectl:
    """The test's side. Answers are looked up by words that the command must hold, the newest first."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._answers: list[dict[str, Any]] = []
        program = folder / "kubectl"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{Path(__file__).resolve()}" "{folder}" "$@"\n')
        program.chmod(0o700)
        self.answer("")

    @property
    def path(self) -> str:
        return f"{self._folder}{os.pathsep}{os.environ['PATH']}"

    def answer(self, words: str, out: Any = "", err: str = "") -> None:
        """To commands that hold these words: standard output (JSON unless a string), or an error."""
        text = out if isinstance(out, str) else json.dumps(out)
        self._answers.insert(0, {"words": words.split(), "out": text, "err": err})
        (self._folder / "answers.json").write_text(json.dumps(self._answers))

    def asked(self) -> list[tuple[list[str], str]]:
        """[(arguments, standard input)] so far."""
        log = self._folder / "asked.jsonl"
        return [tuple(json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []


def main(folder: Path, arguments: list[str]) -> int:
    given = sys.stdin.read() if "-" in arguments else ""
    with (folder / "asked.jsonl").open("a") as log:
        log.write(json.dumps([arguments, given]) + "\n")
    for answer in json.loads((folder / "answers.json").read_text()):
        if set(answer["words"]) <= set(arguments):
            sys.stdout.write(answer["out"])
            sys.stderr.write(answer["err"])
            return 1 if answer["err"] else 0
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
