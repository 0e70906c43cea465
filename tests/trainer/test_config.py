"""The run file: defaults < file < command line; every problem at once, one line each; a dump is a valid run file."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w

from trainer.config import dump_config, load_config
from trainer.errors import ConfigError

QUICK = Path(__file__).parents[2] / "trainer" / "configs" / "quick.toml"


@pytest.fixture
def edited(tmp_path):
    """Writes quick.toml with changes {"section.key": value} (None removes it); returns its path."""

    def write(changes: dict[str, object]) -> Path:
        raw = tomllib.loads(QUICK.read_text(encoding="utf-8"))
        for key, value in changes.items():
            *path, last = key.split(".")
            table = raw
            for part in path:
                table = table.setdefault(part, {})
            if value is None:
                table.pop(last)
            else:
                table[last] = value
        target = tmp_path / "run.toml"
        target.write_text(tomli_w.dumps(raw), encoding="utf-8")
        return target

    return write


def problems_of(path: Path, overrides: list[str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert caught.value.exit_code == 2
    assert all("\n" not in line and line.count("→") == 2 for line in caught.value.problems), caught.value.problems
    return caught.value.problems


def test_command_line_beats_file_beats_default(edited):
    path = edited({"model.dim": 48, "train.log_every": None})
    config = load_config(path, ["--model.dim", "64", "--optim.warmup-examples=5"])
    assert (config.model.dim, config.train.log_every, config.optim.warmup_examples) == (64, 20, 5)
    assert load_config(path).model.dim == 48


@pytest.mark.parametrize(
    ("overrides", "read", "expected"),
    [
        (["--data.segments", "2026-11-13..2026-11-14"], lambda c: c.data.segments, "2026-11-13..2026-11-14"),
        (["--data.segments", "2026-11-13"], lambda c: c.data.segments, "2026-11-13"),
        (["--data.segments", "3"], lambda c: c.data.segments, "3"),
        (["--data.segments=''"], lambda c: c.data.segments, ""),
        (["--data.sample", "0.01"], lambda c: c.data.sample, 0.01),
        (["--model.windows", "[8, 4]"], lambda c: c.model.windows, (8, 4)),
        (["--model.gate", "false"], lambda c: c.model.gate, False),
        (["--embeddings.tables.item_id.rows", "1000"], lambda c: c.embeddings.tables["item_id"].rows, 1000),
        (
            ["--embeddings.tables.country.sharding=table_wise"],
            lambda c: c.embeddings.tables["country"].sharding,
            "table_wise",
        ),
        (["--data.prepare.min-history", "3"], lambda c: c.data.prepare.min_history, 3),
        (
            ["--model.tokens.groups.who", '["country", "device"]'],
            lambda c: c.model.tokens.groups["who"],
            ("country", "device"),
        ),
        (["--data.rows", "s3://bucket/rows?x=1"], lambda c: c.data.rows, "s3://bucket/rows?x=1"),
    ],
)
def test_override_values(overrides, read, expected):
    assert read(load_config(QUICK, overrides)) == expected


def test_all_problems_at_once(edited):
    path = edited(
        {"model.num_layer": 3, "optim.lr": "fast", "train.log_every": 0, "data.order": "random", "extra.x": 1}
    )
    lines = problems_of(path, ["--model.dropout", "2"])
    found = "\n".join(lines)
    assert len(lines) == 6
    assert "unknown key 'model.num_layer'" in found
    assert "did you mean 'num_layers'?" in found
    assert "optim.lr = 'fast' → must be a number → correct it in run.toml" in found
    assert "train.log_every = 0 → must be greater than 0" in found
    assert "data.order = 'random' → must be 'time' or 'shuffle'" in found
    assert "unknown key 'extra'" in found
    assert "model.dropout = 2 → must be less than 1 → correct it in the command line (--model.dropout)" in found


def test_strict_types(edited):
    found = "\n".join(problems_of(edited({"model.dim": 32.5, "model.gate": 1, "train.seed": "1", "model.windows": 4})))
    for line in ("model.dim = 32.5 → must be a whole number", "model.gate = 1 → must be true or false"):
        assert line in found
    assert "train.seed = '1' → must be a whole number" in found
    assert "model.windows = 4 → must be an array" in found


def test_one_line_for_a_value_of_several_types(edited):
    lines = problems_of(edited({"schema.columns.country.default": [1]}))
    assert len(lines) == 1
    assert lines[0].startswith("schema.columns.country.default = [1] → ")


def test_unknown_key_of_a_table_inside_a_section(edited):
    lines = problems_of(edited({"embeddings.tables.item_id.row": 5, "schema.columns.country.knd": "id"}))
    assert len(lines) == 2
    assert "unknown key 'schema.columns.country.knd'" in lines[0]
    assert "did you mean 'kind'?" in lines[0]
    assert "unknown key 'embeddings.tables.item_id.row'" in lines[1]
    assert "did you mean 'rows'?" in lines[1]


def test_missing_rows_and_sections(edited):
    assert problems_of(edited({"data.rows": None}))[0].startswith("'data.rows' is not given in run.toml")


def test_contradictions_between_sections_come_together(edited):
    path = edited(
        {
            "model.tokens": {"groups": {"who": ["country", "nobody"], "again": ["country"]}},
            "embeddings.tables.nothing": {"rows": 10},
            "optim.decay_examples": 10,
            "data.global_batch": 1,
        }
    )
    found = "\n".join(problems_of(path, ["--launch.workers", "2"]))
    for part in (
        "'nobody'",
        "'country' is in the token groups",
        "embeddings.tables.nothing",
        "decay_examples",
        "global_batch = 1",
    ):
        assert part in found


def test_a_sections_own_check_gives_a_line_a_problem(edited):
    lines = problems_of(
        edited({"model.dim": 36, "model.windows": [0], "data.global_batch": 1}), ["--launch.workers", "2"]
    )
    assert [line.split(" → ")[0] for line in lines] == [
        "[model] dim 36 with num_heads 4",
        "[model] windows holds 0",
        "data.global_batch = 1 with launch.workers = 2",
    ]


def test_schema_problems_are_config_problems(edited):
    found = "\n".join(problems_of(edited({"schema.tasks.click.label": "klick", "schema.user": "nobody"})))
    assert "klick" in found
    assert "nobody" in found


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--model.gate"], "'--model.gate' has no value"),
        (["--resum", "auto"], "unknown argument '--resum'"),
        (["leftover"], "unknown argument 'leftover'"),
        (["--modl.dim", "3"], "unknown argument '--modl.dim'"),
        (["--model.dims", "3"], "did you mean 'dim'?"),
        (["--model.dim.x", "3"], "'--model.dim.x' goes below a value"),
        (["--model.windows", "8,4"], "must be an array"),
    ],
)
def test_bad_overrides(overrides, expected):
    assert expected in "\n".join(problems_of(QUICK, overrides))


def test_files_that_are_no_run_files(tmp_path):
    assert "is not a file" in problems_of(tmp_path / "absent.toml")[0]
    broken = tmp_path / "broken.toml"
    broken.write_text("[data\n")
    assert "is not TOML" in problems_of(broken)[0]
    broken.write_bytes(b"\xff\xfe")
    assert "cannot be read" in problems_of(broken)[0]


@pytest.mark.parametrize("path", sorted(QUICK.parent.glob("*.toml")), ids=lambda path: path.stem)
def test_dump_is_a_run_file_of_the_same_config(tmp_path, path):
    config = load_config(path, ["--model.num-layers", "3"])
    again = tmp_path / "config.toml"
    again.write_text(dump_config(config), encoding="utf-8")
    assert load_config(again) == config
    assert dump_config(load_config(again)) == dump_config(config)


@pytest.mark.parametrize("wrapped", [True, False])
def test_schema_in_its_own_file(edited, tmp_path, wrapped):
    whole = load_config(QUICK)
    schema = tomllib.loads(QUICK.read_text(encoding="utf-8"))["schema"]
    (tmp_path / "schema.toml").write_text(tomli_w.dumps({"schema": schema} if wrapped else schema), encoding="utf-8")
    path = edited({"schema": {"file": "schema.toml"}})
    assert load_config(path) == whole
    assert load_config(path, ["--schema.tasks.purchase.loss-weight", "2"]).schema.tasks["purchase"].loss_weight == 2
    (tmp_path / "schema.toml").unlink()
    assert "schema file" in problems_of(path)[0]


def test_loading_a_config_needs_no_torch():
    load = f"from trainer.config import load_config; load_config({str(QUICK)!r})"
    code = f"import sys; {load}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=QUICK.parents[2]
    )
    assert done.stdout.strip() == "False"
