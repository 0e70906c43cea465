"""A log comes with a schema to start from: the shipped run file's own."""

from __future__ import annotations

import tomllib
from pathlib import Path

from click.testing import CliRunner

from trainer.cli_data import data
from trainer.config import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "trainer" / "configs"


def test_data_synth_writes_a_schema_beside_the_log(tmp_path: Path) -> None:
    run_file = tmp_path / "small.toml"
    run_file.write_text((CONFIGS / "quick.toml").read_text())
    result = CliRunner().invoke(data, ["synth", "--config", str(run_file), "--out", str(tmp_path / "log")])
    assert result.exit_code == 0, result.output
    assert "20,000 events" in result.output
    run = tomllib.loads(run_file.read_text())
    mine = tmp_path / "mine.toml"
    mine.write_text('[schema]\nfile = "log/schema.toml"\n[data]\nrows = "rows"\n')
    assert load_config(mine).schema == load_config(CONFIGS / "synthetic.toml").schema
    assert set(run["schema"]["columns"]) == set(load_config(mine).schema.columns)
