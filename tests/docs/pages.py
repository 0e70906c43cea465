"""The pages and what is in them: blocks, links, headings, commands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Dated reports tell what was run then; they are not instructions.
REPORTS = ("docs/benchmarks/", "docs/tuning.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """page: its path from the root. language: behind the opening fence."""

    page: str
    language: str
    text: str


def pages() -> dict[str, str]:
    """{path from the root: text} of every page of ours."""
    found = sorted([*ROOT.glob("*.md"), *(p for d in ("docs", "docker", "deploy") for p in (ROOT / d).rglob("*.md"))])
    return {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in found}


def instructions() -> dict[str, str]:
    """The pages that tell their reader what to do."""
    return {page: text for page, text in pages().items() if not page.startswith(REPORTS)}


def blocks(language: str, *only: str) -> list[Block]:
    """Fenced blocks of a language, in the order of the pages named, or of all instructions."""
    texts = instructions()
    return [
        Block(page, found[1], found[2])
        for page in only or texts
        for found in BLOCK.finditer(texts[page])
        if found[1] == language
    ]


def links(text: str) -> list[str]:
    """Targets of links outside of code."""
    return LINK.findall(re.sub(r"`[^`\n]*`", "", BLOCK.sub("", text)))


def anchors(text: str) -> set[str]:
    """What `#…` may name in a page, as GitHub makes it from headings."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every `tokenformer …` in code, on one line each."""
    found = []
    for page, text in instructions().items():
        code = [match[2] for match in BLOCK.finditer(text)] + re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
        found += [(page, line) for piece in code for line in re.findall(r"\btokenformer [a-z].*", piece)]
    return found
