"""Lists of ids to the ranks that own them, and one answer for each id back: one round for all tables together."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from pipelines.batch import Int64


class Exchange:
    """Variable-size all-to-all of int64 arrays on CPU. The group is a gloo one (or has gloo for CPU tensors), or None
    for one process.

    Every rank of the group makes the same calls in the same order, from one thread.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self.rank = dist.get_rank(group) if group is not None else 0
        self.world_size = dist.get_world_size(group) if group is not None else 1

    def lists(self, parts: list[list[Int64]]) -> list[list[Int64]]:
        """parts[destination][k] → received[source][k]: the same number of lists k between every two ranks."""
        if self.world_size == 1:
            return parts
        lengths = np.array([[len(part) for part in to_rank] for to_rank in parts], np.int64)
        received_lengths = self._fixed(lengths)
        received = self._variable(
            np.concatenate([part for to_rank in parts for part in to_rank]), lengths.sum(1), received_lengths.sum(1)
        )
        pieces = iter(np.split(received, np.cumsum(received_lengths.ravel())[:-1]))
        return [[next(pieces) for _ in row] for row in received_lengths]

    def answers(self, answers: list[list[Int64]], asked: list[list[Int64]]) -> list[list[Int64]]:
        """answers[source][k], one for each id that `lists` received → the same shape as `asked`, what this rank had
        sent.
        """
        if self.world_size == 1:
            return answers
        asked_lengths = np.array([[len(part) for part in to_rank] for to_rank in asked], np.int64)
        answered = np.array([sum(len(part) for part in to_rank) for to_rank in answers], np.int64)
        received = self._variable(
            np.concatenate([part for to_rank in answers for part in to_rank]), answered, asked_lengths.sum(1)
        )
        pieces = iter(np.split(received, np.cumsum(asked_lengths.ravel())[:-1]))
        return [[next(pieces) for _ in row] for row in asked_lengths]

    def _fixed(self, values: Int64) -> Int64:
        received = torch.empty_like(torch.from_numpy(values))
        dist.all_to_all_single(received, torch.from_numpy(values), group=self._group)
        result: Int64 = received.numpy()
        return result

    def _variable(self, values: Int64, sent: Int64, received: Int64) -> Int64:
        output = torch.empty(int(received.sum()), dtype=torch.int64)
        dist.all_to_all_single(output, torch.from_numpy(values), received.tolist(), sent.tolist(), group=self._group)
        result: Int64 = output.numpy()
        return result
