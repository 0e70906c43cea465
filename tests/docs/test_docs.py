"""The docs hold: links resolve, verbs and keys exist, generated pages are current, and commands do what they say."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.docs.pages import ROOT, anchors, blocks, commands, links, pages
from trainer.cli import cli
from trainer.config import SECTIONS, load_config

sys.path.insert(0, str(ROOT / "docs"))
import generate
import real_run

# Pages whose `sh` blocks are run, in this order, in one folder.
RUN = ("README.md", "docs/your-logs.md", "docs/run-directory.md", "docs/data-quality.md")
# Commands in `console` blocks start with one of these: what is not run here, and why.
NOT_RUN = {
    "make": "builds the environment, or takes minutes; CI runs `make check` and `make test`",
    "tokenformer train --config trainer/configs/synthetic.toml": "the main job takes minutes; docs/real_run.py runs it",
    "torchrun": "tests/integration does this",
    "tokenformer data movielens": "needs the archive; tests/pipelines/test_movielens.py",
    "tokenformer train --config trainer/configs/movielens.toml": "takes minutes; docs/real_run.py runs it",
    "tokenformer evaluate --run runs/run --data": "twice the same verb is too slow",
    "tokenformer compare": "two runs, and twice an evaluation; tests/trainer/test_compare.py",
    "tokenformer evaluate --run runs/run --collapse": "tests/trainer/test_collapse.py",
    "tokenformer data prepare --config run.toml": "needs somebody's log; tests/pipelines/test_prepare_change.py",
    "tokenformer plan": "plans a cluster; tests/trainer/test_plan_verb.py",
    "tokenformer train --config run.toml --plan": "needs that cluster; tests/trainer/test_copies.py",
    "python -c": "needs somebody's flat file, or bad rows",
    "tokenformer train --config my/run.toml --run-dir runs/2026": "one day of many; tests/trainer/test_days.py",
    "tokenformer audit": "shows a run that was killed, and one whose record was cut; tests/trainer/test_audit.py",
    "tokenformer report": "needs a run, and several; tests/report, in a browser too",
    "tokenformer submit": "needs a cluster; tests/integration/test_slurm.py starts one",
    "kubectl": "needs a cluster; tests/submit holds what it would be given",
    "docker build": "needs a container engine; tests/monitoring/test_compose.py holds the file",
    "tokenformer checkpoint": "needs a run with several checkpoints; tests/trainer/test_checkpoint_verbs.py",
    "python -m tests.benchmarks.accuracy": "hours of runs; tests/benchmarks/test_accuracy.py",
    "python -m tests.benchmarks.collapse": "minutes of runs, one after another",
    "python -m tests.chaos": "minutes of runs; tests/chaos/test_chaos.py plays five sequences",
    "deploy/monitor/targets.sh": "goes on for ever; tests/monitoring/test_monitor.py",
    "docker compose": "needs a container engine; tests/monitoring/test_compose.py holds the file",
    "python score_from_export.py": "is the page's own code; tests/trainer/test_serving.py",
}
SHIM = """#!/bin/sh
exec "{python}" -P -c "from trainer.cli import main; main()" "$@"
"""


def verbs(command: click.Command = cli, path: str = "") -> dict[str, click.Command]:
    """{"data synth": command}: every command that does something."""
    if not isinstance(command, click.Group):
        return {path: command}
    return {
        verb: leaf
        for name, inner in command.commands.items()
        for verb, leaf in verbs(inner, f"{path} {name}".strip()).items()
    }


def test_links_resolve() -> None:
    texts = pages()
    assert len(texts) > 8
    broken = []
    for page, text in texts.items():
        for link in links(text):
            if "://" in link:
                continue
            target, _, anchor = link.partition("#")
            path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
            if not path.exists() or (anchor and anchor not in anchors(path.read_text(encoding="utf-8"))):
                broken.append(f"{page}: {link}")
    assert broken == []


def test_named_verbs_and_options_exist_and_every_verb_is_named() -> None:
    known, named, wrong = verbs(), set(), []
    for page, line in commands():
        words = line.split()[1:]
        verb = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        if verb not in known:
            if not isinstance(cli.commands.get(verb), click.Group):
                wrong.append(f"{page}: {line}")
            continue
        named.add(verb)
        options = {option for parameter in known[verb].params for option in parameter.opts} | {"--help"}
        for option in re.findall(r"(?<=[\s`])(--[a-z][\w.-]*)", line):
            section, _, key = option[2:].replace("-", "_").partition(".")
            is_key = key and section in SECTIONS and key.split(".")[0] in SECTIONS[section].model_fields
            if option not in options and not is_key:
                wrong.append(f"{page}: {option} in {line}")
    assert wrong == []
    in_readme = {line for page, line in commands() if page == "README.md"}
    assert {verb for verb in known if not any(f"tokenformer {verb}" in line for line in in_readme)} == set()
    assert named == set(known)


def test_generated_pages_are_current() -> None:
    stale = [str(path) for path, text in generate.pages().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run `make docs`"


def test_every_key_of_the_run_file_is_described() -> None:
    silent = []
    for name, section in SECTIONS.items():
        for path, model in generate._tables(name, section):
            _, texts = generate.descriptions(model)
            tables = {key for key, spec in model.model_fields.items() if generate._inner(spec.annotation)[0]}
            silent += [f"{path}.{key}" for key in model.model_fields.keys() - tables if not texts.get(key)]
    assert silent == []


def test_a_section_s_docstring_is_read_key_by_key() -> None:
    class Section(generate.BaseModel):
        """`[section]`: what it is.

        one: of two
             lines; 0 = off. two, three: together.
        """

        one: int = 0
        two: int = 0
        three: int = 0

    assert generate.descriptions(Section) == (
        "what it is.",
        {"one": "of two lines; 0 = off.", "two": "together.", "three": "together."},
    )


def test_commands_that_are_not_run_say_why() -> None:
    shown = [line[2:] for block in blocks("console") for line in block.text.splitlines() if line.startswith("$ ")]
    assert shown
    assert [line for line in shown if not line.startswith(tuple(NOT_RUN))] == []
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in shown)] == []
    elsewhere = [block.page for block in blocks("sh") if block.page not in RUN]
    assert elsewhere == [], "blocks of commands are `sh` where they are run, `console` elsewhere"


@pytest.mark.timeout(900)  # a busy machine; about a minute on two idle cores
def test_the_commands_of_the_pages_do_what_they_say(tmp_path: Path) -> None:
    """As a new user would: in the order of the pages, from a folder that looks like the repository's."""
    shutil.copytree(ROOT / "trainer" / "configs", tmp_path / "trainer" / "configs")
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "tokenformer").write_text(SHIM.format(python=sys.executable))
    (binaries / "tokenformer").chmod(0o755)
    (tmp_path / "my").mkdir()
    run_files = [block for block in blocks("toml", *RUN) if block.text.startswith("# my/")]
    for block in run_files:
        (tmp_path / block.text.splitlines()[0].removeprefix("# ")).write_text(block.text)
    environment = os.environ | {
        "PATH": os.pathsep.join([str(binaries), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
    }
    said = ""
    for block in blocks("sh", *RUN):
        done = subprocess.run(
            ["sh", "-eu", "-c", block.text],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{block.page}:\n{block.text}\n{done.stdout}"
        said += done.stdout
    assert len(run_files) == 2
    for block in run_files:  # the schema that one of them names was drafted by now
        load_config(tmp_path / block.text.splitlines()[0].removeprefix("# "))
    for words in ("dry run: fine", "nothing was kept", "resume: from runs/run/checkpoints/step_00000020"):
        assert words in said
    assert not list((tmp_path / "runs").glob("*.dry-run"))
    assert (tmp_path / "runs" / "sample" / "metrics.jsonl").exists()


def test_what_a_real_run_shows_is_abridged_not_edited() -> None:
    lines = ["", "making data", *(f"step {n} · loss .5" for n in range(20, 420, 20)), "evaluation of x", " table", ""]
    shown = list(real_run.abridged("\n".join(lines)))
    assert shown[0] == "making data"
    assert shown[-2:] == ["evaluation of x", " table"]
    steps = [line for line in shown if line.startswith("step ")]
    assert len(steps) == 5
    assert (steps[0], steps[-1]) == ("step 20 · loss .5", "step 400 · loss .5")
    assert all(line in lines for line in shown if line != "…")
    few = ["a", "step 1 · x", "step 2 · x"]
    assert list(real_run.abridged("\n".join(few))) == few
    known = real_run.known_of("  ceiling for click: log loss 0.4337 · NE 0.7895 · AUC 0.8029 (fields alone 0.7307)")
    assert known is not None
    assert (known.task, known.ceiling["auc"], known.blind) == ("click", 0.8029, {"auc": 0.7307})


def test_names_of_the_design_page_exist() -> None:
    """`module.name` below the heading of a room is something that room's module has."""
    missing, found = [], 0
    for section in re.split(r"^## ", pages()["docs/design.md"], flags=re.MULTILINE):
        room = section.split("\n")[0]
        if not (ROOT / room / "__init__.py").is_file():
            continue
        for module, name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)\.([A-Za-z_]+)[`(]", section):
            found += 1
            if not hasattr(importlib.import_module(f"{room}.{module}"), name):
                missing.append(f"{room}/{module}: {name}")
    assert missing == []
    assert found > 40
