"""What holds for every tracked file: no machine's paths, no registry's hosts, no unpickling; layers; run files plan."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.config import load_config
from trainer.plan_verb import plan_lines

ROOT = Path(__file__).parents[2]
RUN_FILES = sorted((ROOT / "trainer" / "configs").glob("*.toml"))
# Written in pieces, so that this file may be searched too.
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:wo" r"rk|o" r"pt|ro" r"ot|ho" r"me/\w+)/[\w.]")
REGISTRY_HOSTS = re.compile(r"pyp" r"i\.org|pythonho" r"sted|download\.pyt" r"orch|artif" r"actory|index-u" r"rl")
UNPICKLING = re.compile(
    r"\b(?:pickle|cloudpickle|dill|joblib)\.loads?\(|\bUnpickler\b|\btorch\.load\(|allow_pickle=True"
)


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def lines_matching(pattern: re.Pattern[str], files: list[Path]) -> list[str]:
    found = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # pictures
            continue
        found += [f"{path.name}:{n}: {line}" for n, line in enumerate(text.splitlines(), 1) if pattern.search(line)]
    return found


def test_the_patterns_find_what_they_are_for():
    bad = [
        "/".join(parts)
        for parts in (("see ", "work", "x"), ("in ", "root", ".cache"), ("https:", "", "pypi.{}", "simple"))
    ]
    bad = [line.format("org") for line in bad]
    assert all(MACHINE_PATHS.search(line) or REGISTRY_HOSTS.search(line) for line in bad)
    assert not MACHINE_PATHS.search("a share of work/rest, /usr/bin/env")
    assert UNPICKLING.search("x = pickle.load(f)")


def test_no_machine_paths_and_no_registry_hosts():
    files = tracked()
    assert len(files) > 50
    assert lines_matching(MACHINE_PATHS, files) == []
    assert lines_matching(REGISTRY_HOSTS, files) == []


def test_nothing_unpickles_files():
    packages = [path for path in tracked() if path.suffix == ".py" and path.parts[len(ROOT.parts)] != "tests"]
    for name in ("payload.py", "frames.py"):  # what one run's processes hand each other in memory; no file
        packages.remove(ROOT / "pipelines" / name)
    unsafe = [line for line in lines_matching(UNPICKLING, packages) if "weights_only=True" not in line]
    assert unsafe == []


def test_files_stay_readable_at_one_sitting():
    longest = {
        path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in tracked() if path.suffix == ".py"
    }
    assert {name: lines for name, lines in longest.items() if lines > 400} == {}


def test_layers_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(lint)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_both_locks_pin_everything_and_differ_in_fbgemm_only():
    locks = {}
    for name in ("cpu", "gpu"):
        text = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8")
        locks[name] = {line for line in text.splitlines() if line and not line.startswith("#")}
        assert all(re.fullmatch(r"[\w.-]+==(\d+!)?[\w.]+", pin) for pin in locks[name])  # no local tags, no addresses
    assert {re.sub("[-_]", "-", pin) for pin in locks["cpu"] ^ locks["gpu"]} == {
        "fbgemm-gpu-cpu==1.8.0",
        "fbgemm-gpu==1.8.0",
    }


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_every_run_file_loads_and_plans(path):
    config = load_config(path)
    for world_size in (1, 3):
        lines = plan_lines(config, world_size)
        assert f"rank {world_size - 1}" in "\n".join(lines)


def test_there_is_a_smallest_run_file_that_makes_its_data():
    quick = load_config(ROOT / "trainer" / "configs" / "quick.toml")
    assert quick.data.synth is not None
    assert quick.data.prepare is not None
    events = [load_config(path).data.synth for path in RUN_FILES]
    assert quick.data.synth.events == min(synth.events for synth in events if synth)
