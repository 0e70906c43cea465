"""What runs: our version, the commit where the source is a git checkout, and the versions it stands on."""

from __future__ import annotations

import platform
from pathlib import Path

from trainer import machine

ROOT = Path(__file__).resolve().parents[2]


def build_labels() -> dict[str, str]:
    """By the labels of `build_info`; "" for what is not there."""
    return {
        "version": machine.version("tokenformer") or "",
        "commit": commit(),
        "torch": machine.version("torch") or "",
        "torchrec": machine.version("torchrec") or "",
        "ray": machine.version("ray") or "",
        "python": platform.python_version(),
    }


def commit(root: Path = ROOT) -> str:
    """Of the checkout that this source is, 12 digits; "" where it is none. Git's files are read, git is not run."""
    git = root / ".git"
    try:
        if git.is_file():  # a worktree: "gitdir: PATH"
            git = (root / git.read_text(encoding="utf-8").partition(":")[2].strip()).resolve()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head[:12]
        name = head.removeprefix("ref: ")
        shared = git / "commondir"
        home = (git / shared.read_text(encoding="utf-8").strip()).resolve() if shared.is_file() else git
        if (home / name).is_file():
            return (home / name).read_text(encoding="utf-8").strip()[:12]
        packed = (home / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((line.split()[0][:12] for line in packed if line.endswith(f" {name}")), "")
    except OSError:
        return ""
