"""doctor: fine where the locks are installed, and a line for what does not go together."""

from __future__ import annotations

import pytest

from trainer.doctor import Findings, examine, lock_step_problems

GOOD = {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu": None, "fbgemm-gpu-cpu": "1.8.0"}


def test_this_environment_is_fine():
    findings = examine()
    assert findings.problems == []
    facts = dict(findings.facts)
    assert "gloo" in facts["backends"]
    assert int(facts["cores"]) >= 1
    assert findings.lines()[-1].startswith("fine")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({}, None),
        ({"torch": "2.14.0", "torchrec": "1.9.1", "fbgemm-gpu-cpu": "1.9.0"}, None),
        ({"torch": "2.14.0"}, "lock-step"),
        ({"fbgemm-gpu-cpu": "1.7.0"}, "lock-step"),
        ({"fbgemm-gpu": "1.8.0"}, "both installed"),
        ({"torchrec": None}, "torchrec not installed"),
        ({"fbgemm-gpu-cpu": None}, "fbgemm not installed"),
    ],
)
def test_versions_in_lock_step(change, part):
    problems = lock_step_problems({**GOOD, **change})
    assert len(problems) == (part is not None)
    if part:
        assert part in problems[0]


def test_problems_are_said():
    findings = Findings(facts=[("python", "3.11")], slower=["slow"], problems=["bad → rule → remedy"])
    assert findings.lines() == ["python  3.11", "slower here: slow", "problem: bad → rule → remedy"]
