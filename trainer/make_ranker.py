"""The ranker of a run file, or in one line each why there is none. Not a check of the config: that needs no torch."""

from __future__ import annotations

from torch import nn

from model.config import Model
from model.inputs import InputSpec
from model.rankers import build_ranker, check_ranker
from trainer.errors import ConfigError


def make_ranker(spec: InputSpec, config: Model) -> nn.Module:
    """Raises ConfigError: input and `[model]` do not fit each other."""
    problems = check_ranker(spec, config)
    if problems:
        raise ConfigError([f"[model] {problem}" for problem in problems])
    return build_ranker(spec, config)
