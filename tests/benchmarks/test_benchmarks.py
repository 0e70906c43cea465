"""Each benchmark runs to its end on this machine and closes with the line that others read."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.slow_network import why_not

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "train_step": {
        "over_plain_pytorch",
        "over_plain_pytorch_from_parquet",
        "over_plain_pytorch_2_ranks",
        "over_plain_pytorch_2_ranks_from_parquet",
        "over_handwritten_torchrec",
        "over_handwritten_torchrec_long",
        "over_handwritten_torchrec_fp32",
    },
    "plan": {"serial_over_parallel", "sixteen_threads_over_parallel", "plan_seconds", "peak_mb"},
    "recording": {"over_unrecorded"},
    "recovery": {"recovery_over_thirty_seconds"},
    "display": {"step_with_over_without", "share_of_a_core"},
    "embeddings": {
        "over_nn_embedding_sparse",
        "over_nn_embedding_dense",
        "bandwidth_share",
        "unique_saves",
        "unique_saves_bytes",
        "per_field_share",
        "per_field_share_stock",
    },
    "prepare": {
        "time_4_over_1",
        "time_16_over_4",
        "cpu_4_over_1",
        "cpu_16_over_4",
        "memory_16_over_1",
        "memory_over_budget",
        "rebuild_over_added_day",
    },
    "ingest": {
        key + suffix
        for suffix in ("", "_wide")
        for key in (
            "floor_share",
            "floor_share_threads",
            "one_thread_share",
            "over_ray_stock",
            "over_ray_stock_threads",
            "over_torch_dataloader",
        )
    },
    "dedup": {"storage", "ingest", "step"},
    "checkpoint": {
        "stall_share",
        "stall_share_at_10_minutes",
        "stall_async_over_sync",
        "wall_async_over_none",
        "delta_bytes_share",
        "save_peak_over_table",
        "load_peak_over_table",
        "save_mb_per_second",
        "load_mb_per_second",
    },
    "health": {"health_cost_share"},
    "step_split": {"split_cost_share"},
    "guards": {"guards_share", "slices_share"},
    "telemetry": {"telemetry_share"},
    "id_maps": {"managed_over_vocabulary", "vocabulary_over_dict", "managed_seconds_per_million"},
    "tower": {
        "candidates_over_plain",
        "candidates_over_plain_bf16",
        "single_candidate_over_plain",
        "single_candidate_over_plain_bf16",
        "history_over_plain_per_example",
        "history_over_plain_per_example_bf16",
        "memory_over_plain",
        "bytes_per_token",
        "matmul_share",
        "matmul_share_single",
        "matmul_share_history",
        "sliding_growth_exponent",
        "sliding_memory_exponent",
        "cone_growth_exponent",
        "cone_memory_exponent",
        "tower_growth_exponent",
        "tower_memory_exponent",
    },
    "many_fields": {"per_field_share", "per_field_share_stock"},
    "field_part": {f"field_part_plain_over_ours_{fields}" for fields in (20, 100, 500, 2000)},
    "scaling": {
        "efficiency_of_limit",
        "efficiency_of_limit_pinned",
        "efficiency_of_limit_weak",
        "speed_up_2_ranks",
        "speed_up_2_ranks_weak",
    },
}


@pytest.mark.timeout(170)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("train_step", marks=pytest.mark.slow),
        "plan",
        pytest.param("embeddings", marks=pytest.mark.slow),
        pytest.param("recording", marks=pytest.mark.slow),
        pytest.param("recovery", marks=pytest.mark.slow),
        pytest.param("prepare", marks=pytest.mark.slow),
        pytest.param("ingest", marks=pytest.mark.slow),
        pytest.param("dedup", marks=pytest.mark.slow),
        pytest.param("checkpoint", marks=pytest.mark.slow),
        pytest.param("health", marks=pytest.mark.slow),
        pytest.param("step_split", marks=pytest.mark.slow),
        pytest.param("guards", marks=pytest.mark.slow),
        pytest.param("telemetry", marks=pytest.mark.slow),
        pytest.param("id_maps", marks=pytest.mark.slow),
        pytest.param("tower", marks=pytest.mark.slow),
        pytest.param("many_fields", marks=pytest.mark.slow),
        pytest.param("field_part", marks=pytest.mark.slow),
        pytest.param("scaling", marks=pytest.mark.slow),
    ],
)
def test_a_benchmark_closes_with_its_ratios_and_the_machine(name: str) -> None:
    if name == "dense_sync" and (reason := why_not()):
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}", "--tiny"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=160,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    last = json.loads(done.stdout.splitlines()[-1])
    assert last.keys() == {"benchmark", "ratios", "machine"}
    assert last["benchmark"] == name
    assert last["ratios"].keys() == KEYS[name]
    assert all(math.isfinite(value) and value > 0 for value in last["ratios"].values())
    assert last["machine"]["cores"] >= 1
    assert "torch" in last["machine"]["versions"]
