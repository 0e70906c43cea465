"""Evaluation on held-out rows: exact metrics per task from the predictions of all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from trainer.device_batch import RequestBatch
from trainer.runtime import Runtime


@dataclass(frozen=True)
class Predictions:
    """Supervised positions with a weight, of all ranks on rank 0 (else empty): per task arrays of one length each.

    {task: {"probability", "label", "weight": float32, "user", "request": int64}}
    """

    tasks: dict[str, dict[str, np.ndarray[Any, Any]]]
    rows: int


def predict(
    model: nn.Module,
    batches: Iterator[RequestBatch],
    tasks: tuple[str, ...],
    supervised_history: str,
    runtime: Runtime,
) -> Predictions:
    """Forward only, model as it is; collective. The model must be detached from its training pipeline.

    supervised_history: its name in `history` supervision, "" in `candidates` supervision.
    """
    parts: dict[str, list[dict[str, np.ndarray[Any, Any]]]] = {task: [] for task in tasks}
    rows = 0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                _, outputs = model(batch.to(runtime.device))
                rows += batch.info.rows
                host = batch.host
                assert host is not None, "evaluation batches keep their host arrays"
                lengths = host.history_lengths[supervised_history] if supervised_history else host.candidate_lengths
                users, requests = np.repeat(host.user, lengths), np.repeat(host.request, lengths)
                for k, task in enumerate(tasks):
                    weight = outputs.weights_SK[:, k].cpu().numpy()
                    kept = np.flatnonzero(weight)
                    parts[task].append(
                        {
                            "probability": outputs.probabilities_SK[:, k].float().cpu().numpy()[kept],
                            "label": outputs.labels_SK[:, k].cpu().numpy()[kept],
                            "weight": weight[kept],
                            "user": users[kept],
                            "request": requests[kept],
                        }
                    )
    finally:
        model.train(was_training)
    own = {task: _concatenate(found) for task, found in parts.items()}
    if runtime.world_size == 1:
        return Predictions(own, rows)
    return Predictions({task: _gather(arrays, runtime) for task, arrays in own.items()}, rows)


def _concatenate(parts: list[dict[str, np.ndarray[Any, Any]]]) -> dict[str, np.ndarray[Any, Any]]:
    types = {
        "probability": np.float32,
        "label": np.float32,
        "weight": np.float32,
        "user": np.int64,
        "request": np.int64,
    }
    return {k: np.concatenate([p[k] for p in parts]) if parts else np.empty(0, t) for k, t in types.items()}


def _gather(arrays: dict[str, np.ndarray[Any, Any]], runtime: Runtime) -> dict[str, np.ndarray[Any, Any]]:
    """All ranks' arrays on rank 0, in rank order; padded to one length for the exchange."""
    counts = torch.zeros(runtime.world_size, dtype=torch.int64)
    own = torch.tensor([len(arrays["label"])])
    dist.all_gather_into_tensor(counts, own, group=runtime.control)
    longest = int(counts.max())
    gathered = {}
    for name, array in arrays.items():
        padded = torch.from_numpy(np.pad(array, (0, longest - len(array))))
        parts = [torch.empty_like(padded) for _ in counts] if runtime.is_first else None
        dist.gather(padded, parts, group_dst=0, group=runtime.control)
        kept = [p[:n].numpy() for p, n in zip(parts, counts.tolist(), strict=True)] if parts else [array[:0]]
        gathered[name] = np.concatenate(kept)
    return gathered
