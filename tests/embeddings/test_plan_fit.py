"""What does not fit is told table by table, and each remedy that is named does what it says."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from embeddings.errors import PlanDoesNotFitError
from embeddings.plan_choice import Cluster
from embeddings.plan_fit import Limits, check_fit
from embeddings.specs import TableSpec
from tests.embeddings.specs import spec
from tests.embeddings.test_plan import MIB, SPECS, report_of


def refusal(limit: int, device: str = "cpu", host: int = 0, specs: dict[str, TableSpec] = SPECS) -> list[str]:
    """The lines about 2 ranks that do not fit."""
    planned = report_of(2, device=device, memory=limit, specs=specs)
    with pytest.raises(PlanDoesNotFitError) as caught:
        check_fit(planned, Limits(limit, host), Cluster(2, 2, device, limit))
    return caught.value.problems


def test_what_fits_passes_and_what_does_not_says_which_and_by_how_much() -> None:
    check_fit(report_of(2, memory=50 * MIB), Limits(50 * MIB), Cluster(2, 2, "cpu", 50 * MIB))
    (line,) = refusal(20 * MIB)
    excess = (max(report_of(2, memory=20 * MIB).bytes) - 20 * MIB) / MIB
    assert f"{excess:.1f} MiB too much" in line
    assert "rank 0 (and 1 more rank(s))" in line
    assert "big 32.4 MiB" in line
    assert "at least 4 ranks that share the tables, enough" in line
    assert "dtype = 'fp16' for" in line
    assert "uvm" not in line, "there is no such kernel on CPU"


def test_the_remedies_are_true() -> None:
    """Each one that claims to be enough is, and the rows it allows are the most that fit, within a thousandth."""
    limit = 20 * MIB
    (line,) = refusal(limit, device="cuda")
    (rows,) = re.findall(r"big rows = (\d+)", line)
    for count, fits in ((int(rows), True), (int(int(rows) * 1.004), False)):
        specs = SPECS | {"big": replace(SPECS["big"], rows=count)}
        assert (max(report_of(2, memory=limit, specs=specs).bytes) <= limit) is fits
    assert re.search(
        r"kernel = 'fused_uvm_caching' for big frees \d+\.\d MiB a rank, for 32\.4 MiB of the host's, en", line
    )
    uvm = SPECS | {"big": replace(SPECS["big"], kernel="fused_uvm_caching")}
    assert report_of(2, device="cuda", memory=limit, specs=uvm).load.device.max() <= limit
    fp16 = re.search(r"dtype = 'fp16' for (.*?) frees (\d+\.\d) MiB a rank, (enough|not enough alone)", line)
    assert fp16 is not None
    halved = {n: replace(s, dtype="fp16") if n in fp16[1] or fp16[1] == "all tables" else s for n, s in SPECS.items()}
    after = max(report_of(2, memory=limit, specs=halved).bytes)
    before = max(report_of(2, memory=limit).bytes)
    assert (before - after) / MIB == pytest.approx(float(fp16[2]), abs=0.06)
    assert (after <= limit) is (fp16[3] == "enough")


def test_a_pinned_table_may_be_spread() -> None:
    pinned = {"a": replace(spec("a", 10**6, 16, "table_wise"), optimizer="adagrad"), "b": spec("b", 100, 16, "auto")}
    (line,) = refusal(100 * MIB, specs=pinned)
    assert "sharding = 'row_wise' for a frees 61.0 MiB a rank, enough" in line
    assert "optimizer = 'rowwise_adagrad' for a frees 57.2 MiB a rank, enough" in line
    assert line.index("enough;") < line.index("fewer rows"), "the direct ones first"


def test_the_host_has_its_own_limit() -> None:
    hosted = SPECS | {"big": replace(SPECS["big"], kernel="fused_uvm")}
    (line,) = refusal(60 * MIB, device="cuda", host=10 * MIB, specs=hosted)
    assert "32.4 MiB of 10.0 MiB on the host" in line
    assert "kernel = 'fused' for big frees 32.4 MiB a rank, enough" in line


def test_what_no_number_of_ranks_mends_is_said() -> None:
    only = {"a": replace(spec("a", 10**6, 16, "table_wise"), ranks=(0,))}
    (line,) = refusal(10 * MIB, specs=only)
    assert "more ranks do not help" in line
