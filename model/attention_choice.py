"""By what attention is worked out, and why."""

from __future__ import annotations

from typing import Literal

import torch

Backend = Literal["auto", "products", "sdpa", "reference"]


def chosen_backend(wanted: Backend, device: torch.device) -> tuple[Literal["products", "sdpa", "reference"], str]:
    """The backend that runs, and the reason."""
    if wanted != "auto":
        return wanted, f'model.attention = "{wanted}"'
    if device.type == "cpu":
        return "products", "on CPU matrix products beat the fused kernel, whose backward pass is slow in bfloat16"
    return "sdpa", f"torch's fused kernels on {device.type}"
