"""Does a naive joint model lower the effective rank of the sequence tokens, and does TokenFormer restore it?

    python -m tests.benchmarks.collapse --zip ml-1m.zip [--out runs/collapse] [--steps 456] [--seeds 1 2 3]

Five arms through the public trainer, on MovieLens-1M (where --zip is given) and on the synthetic log:

    sequence only   kind transformer, no static field        joint      the same with the static fields
    nlir, bfts      joint with one of TokenFormer's parts    tokenformer  with both

Each arm and seed is a run of its own under --out. One that has its evaluation is not repeated, so the script goes on
where it was stopped; --steps and --rows belong to --out. Effective ranks and attention: docs/collapse.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from tests.benchmarks.harness import finish, prepare_process, show, table
from trainer.config import Config, dump_config, load_config

CONFIGS = Path(__file__).resolve().parents[2] / "trainer/configs"
ARMS: dict[str, dict[str, Any]] = {
    "sequence only": {"kind": "transformer"},
    "joint": {"kind": "transformer"},
    "nlir": {"kind": "tokenformer", "full_layers": 4, "gate": True},
    "bfts": {"kind": "tokenformer", "full_layers": 2, "gate": False},
    "tokenformer": {"kind": "tokenformer", "full_layers": 2, "gate": True},
}
LONG = {"dim": 64, "num_layers": 4, "num_heads": 4, "windows": (32, 16)}
SHORT = {"dim": 64, "num_layers": 4, "num_heads": 4, "windows": (8, 4)}  # histories of the synthetic log are short


def arm_config(base: Config, arm: str, shape: Mapping[str, Any], args: argparse.Namespace, seed: int) -> Config:
    """The run file of one run."""
    schema, tables = base.schema, base.embeddings.tables
    if arm == "sequence only":
        hidden = {
            name: column.model_copy(update={"role": "key"})
            for name, column in schema.static().items()
            if column.role in ("user", "context")
        }
        tables = {name: table for name, table in tables.items() if name not in hidden}
        schema = schema.model_copy(update={"columns": {**schema.columns, **hidden}})
    train = {"seed": seed, "max_steps": args.steps, "collapse_rows": args.rows, "log_every": 50}
    return replace(
        base,
        schema=schema,
        embeddings=base.embeddings.model_copy(update={"tables": tables}),
        model=base.model.model_copy(update={**shape, **ARMS[arm]}),
        train=base.train.model_copy(update=train),
        checkpoint=base.checkpoint.model_copy(update={"every_minutes": 2.0, "keep": 1}),
        telemetry=base.telemetry.model_copy(update={"prometheus": False, "tensorboard": False}),
        launch=base.launch.model_copy(update={"workers": 1, "threads": 1, "backend": "inline"}),
    )


def evaluation(run: Path) -> dict[str, Any] | None:
    """Of a run that has ended."""
    metrics = run / "metrics.jsonl"
    if not metrics.is_file():
        return None
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return next((line for line in reversed(lines) if line["kind"] == "eval"), None)


def trained(config: Config, run: Path) -> dict[str, Any]:
    """The run's evaluation, from its files or by training it to its end."""
    found = evaluation(run)
    if found is None:
        run_file = run.with_suffix(".toml")
        run_file.parent.mkdir(parents=True, exist_ok=True)
        run_file.write_text(dump_config(config), encoding="utf-8")
        command = [sys.executable, "-m", "trainer", "train", "--config", str(run_file), "--run-dir", str(run)]
        subprocess.run([*command, "--resume", "auto"], check=True, stdout=subprocess.DEVNULL)
        found = evaluation(run)
    assert found is not None, f"{run} has no evaluation"
    return found


def report(name: str, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Means over the seeds; of the top layer also the extremes."""
    rows = []
    for arm, evaluations in found.items():
        looks = [e["collapse"] for e in evaluations]
        ranks = list(zip(*(look["effective_rank"]["sequence"] for look in looks), strict=True))
        fields = list(zip(*(look["attention"]["sequence"]["field"] for look in looks), strict=True))
        even = looks[0]["even_attention"]["sequence"]["field"]
        scores = [next(iter(e["tasks"].values()))["auc"] for e in evaluations]
        rows.append(
            [
                arm,
                " ".join(f"{mean(layer):.1f}" for layer in ranks),
                f"{min(ranks[-1]):.1f}–{max(ranks[-1]):.1f}",
                " ".join(f"{100 * mean(layer):.1f}" for layer in fields),
                " ".join(f"{100 * value:.1f}" for value in even),
                f"{mean(scores):.4f}",
                str(len(evaluations)),
            ]
        )
    header = ["arm", "effective rank of sequence tokens, layers 0–4", "top layer", "attention on fields, %", "if even"]
    print(name, flush=True)
    table([*header, "AUC", "seeds"], rows)


def ratios(name: str, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """Top layer, means over seeds, over the sequence-only model's."""
    top = {arm: mean(e["collapse"]["effective_rank"]["sequence"][-1] for e in es) for arm, es in found.items()}
    return {f"{name}_{arm}_rank": value / top["sequence only"] for arm, value in top.items() if arm != "sequence only"}


def main() -> None:
    prepare_process()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zip", help="ml-1m.zip")
    parser.add_argument("--out", type=Path, default=Path("runs/collapse"))
    parser.add_argument("--steps", type=int, default=0, help="0 = the whole data")
    parser.add_argument("--rows", type=int, default=64, help="of the evaluation, looked at")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", choices=["movielens", "synthetic"])
    args = parser.parse_args()
    show("collapse", {"steps": args.steps or "all", "rows": args.rows, "seeds": args.seeds})
    closing: dict[str, float] = {}
    for name, shape in (("synthetic", SHORT), ("movielens", LONG)):
        if args.only not in (None, name) or (name == "movielens" and not args.zip):
            continue
        base = prepared(name, args)
        found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
        for seed in args.seeds:  # all arms of a seed before the next one
            for arm in ARMS:
                run = args.out / name / f"{arm.replace(' ', '_')}-{seed}"
                found[arm].append(trained(arm_config(base, arm, shape, args, seed), run))
                print(f"{name}: {arm}, seed {seed} done", flush=True)
        report(name, found)
        closing |= ratios(name, found)
    finish("collapse", closing, 1)


def prepared(name: str, args: argparse.Namespace) -> Config:
    """The run file of a data set, whose rows are there afterwards."""
    places = [f"--data.rows={args.out / name}-rows", f"--data.prepare.log={args.out / name}-log"]
    file = "movielens.toml" if name == "movielens" else "quick.toml"
    config = load_config(CONFIGS / file, places)
    log, rows = args.out / f"{name}-log", args.out / f"{name}-rows"
    if not rows.exists():
        args.out.mkdir(parents=True, exist_ok=True)
        resolved = args.out / f"{name}.toml"
        resolved.write_text(dump_config(config), encoding="utf-8")
        verbs = [["data", "prepare", "--config", str(resolved), "--out", str(rows)]]
        if name == "movielens":
            verbs = [["data", "movielens", "--zip", args.zip, "--out", str(log)], *verbs]
        else:
            verbs = [["data", "synth", "--config", str(resolved), "--out", str(log)], *verbs]
        for verb in verbs:
            subprocess.run([sys.executable, "-m", "trainer", *verb], check=True, stdout=subprocess.DEVNULL)
    return config


if __name__ == "__main__":
    main()
