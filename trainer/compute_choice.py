"""How the tower is computed: `[train]` dtype, compile and checkpoint_activations, settled once for all ranks, with the
reason."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.distributed as dist

from embeddings.specs import table_specs
from model.compute import Compute
from trainer.compute_probe import probe
from trainer.config import Config
from trainer.config_sections import Train
from trainer.errors import ConfigError
from trainer.layout import make_layout
from trainer.run_dir import RunDir
from trainer.runtime import Runtime

log = logging.getLogger(__name__)

_DTYPES: Mapping[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}
_WORTH_IT = 1.1  # times as fast; less is not worth the rounding


def compute_of(train: Train) -> Compute:
    """Of a settled config."""
    return Compute(_DTYPES[train.dtype], compiled=train.compile, checkpoint=train.checkpoint_activations)


def settle_compute(config: Config, runtime: Runtime, begun: RunDir | None = None) -> Config:
    """The config with a dtype in place of "auto", the same on every rank. begun: a run to go on with, whose choice
    stands. Collective. Raises ConfigError where what was asked for cannot be had here."""
    if config.train.compile:
        _check_compiler(runtime.device)
    chosen: list[tuple[str, str] | None] = [_choice(config, runtime, begun) if runtime.is_first else None]
    dist.broadcast_object_list(chosen, src=0, group=runtime.control)
    assert chosen[0] is not None
    dtype, why = chosen[0]
    if runtime.is_first:
        log.info("dtype %s: %s", dtype, why)
    return replace(config, train=config.train.model_copy(update={"dtype": dtype}))


def _choice(config: Config, runtime: Runtime, begun: RunDir | None) -> tuple[str, str]:
    """(dtype, reason)."""
    wanted = config.train.dtype
    if not config.model.in_blocks:
        return "float32", f"kind {config.model.kind} has no other" if wanted != "float32" else "the default"
    if wanted != "auto":
        return wanted, "train.dtype" if wanted != Train().dtype else "the default"
    before = begun.recorded_train().get("dtype") if begun is not None else None
    if before in _DTYPES:
        return str(before), "chosen when the run began"
    spec = make_layout(config.schema, table_specs(config.schema, config.embeddings)).spec
    seconds = {
        dtype: probe(spec, config.model, compute_of(config.train.model_copy(update={"dtype": dtype})), runtime.device)
        for dtype in _DTYPES
    }
    ratio = seconds["float32"] / seconds["bfloat16"]
    words = f"a short trial of the tower took {1e3 * seconds['float32']:.3g} ms in float32, "
    words += f"{1e3 * seconds['bfloat16']:.3g} ms in bfloat16"
    return ("bfloat16" if ratio >= _WORTH_IT else "float32"), words


def _check_compiler(device: torch.device) -> None:
    """Now and in one line, not as a stack trace out of the first step."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton  # noqa: PLC0415 - for those who compile

        if not has_triton():
            raise ConfigError(
                "train.compile = true → torch.compile on a GPU needs triton → install it, or drop the key"
            )
        return
    from torch._inductor import cpp_builder, exc  # noqa: PLC0415 - slow to import, for those who compile

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise ConfigError(
            "train.compile = true → torch.compile needs a C++ compiler, and none is found here → install g++ (or name "
            "one in CXX), or drop the key"
        ) from None
