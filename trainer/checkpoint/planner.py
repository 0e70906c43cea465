"""DCP's planners, made strict: every tensor that is asked for is there, of its size, and read in full; bytes are never
read."""

from __future__ import annotations

import io
import math

from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import _create_chunk_list

from trainer.checkpoint.tensors import SPARSE_STATE
from trainer.errors import CheckpointError

MAX_LINES = 5


def save_planner() -> DefaultSavePlanner:
    """Names are flattened by us (tensors.flatten); a replicated tensor is written once, by whichever rank has least to
    write."""
    return DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)


class StrictLoadPlanner(DefaultLoadPlanner):
    """Reports everything that does not fit at once, before a tensor is touched. `checkpoint`: named in the messages."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.checkpoint = checkpoint

    def create_local_plan(self) -> LoadPlan:
        """Raises CheckpointError with a line per tensor that is missing, of another size or not covered by what was
        saved; another tower differs in hundreds, of which the first few are told."""
        assert self.metadata is not None
        problems = self._mismatches(self.metadata)
        if len(problems) > MAX_LINES:
            left_out = len(problems) - MAX_LINES + 1
            problems[MAX_LINES - 1 :] = [
                f"checkpoint {self.checkpoint}: {left_out} more tensors do not fit → the model must be the one "
                "that was saved → use the run's own config.toml"
            ]
        if problems:
            raise CheckpointError(problems)
        plan = super().create_local_plan()
        self._check_coverage(plan)
        return plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """DCP would unpickle here."""
        raise CheckpointError(
            f"checkpoint {self.checkpoint}: entry {read_item.dest_index.fqn!r} is not a tensor → only tensors are "
            "read, nothing is unpickled → "
            "use a checkpoint that `tokenformer train` wrote"
        )

    def _mismatches(self, metadata: Metadata) -> list[str]:
        problems = []
        for name, tensor in self.state_dict.items():
            saved = metadata.state_dict_metadata.get(name)
            if saved is None:
                problems.append(
                    f"checkpoint {self.checkpoint}: tensor {name} is missing → the model is not the one that "
                    "saved → "
                    "use the run's own config.toml"
                )
            elif isinstance(saved, TensorStorageMetadata) and tuple(saved.size) != tuple(tensor.size()):
                problems.append(self._other_size(name, tuple(saved.size), tuple(tensor.size())))
        return problems

    def _other_size(self, name: str, saved: tuple[int, ...], wanted: tuple[int, ...]) -> str:
        if (
            len(saved) == len(wanted) == 1
            and name.startswith(SPARSE_STATE)
            and (saved[0] % wanted[0]) * (wanted[0] % saved[0]) == 0
        ):
            # TorchRec keeps one row-wise state per column shard, laid end to end: it has no meaning under another split
            # of columns
            return (
                f"checkpoint {self.checkpoint}: row-wise optimizer state {name} holds {saved[0]} values, this plan "
                f"needs {wanted[0]} → "
                "column-wise sharding keeps one per column shard and cannot be resharded → resume with the sharding "
                "and the number "
                "of column shards it was saved with"
            )
        return (
            f"checkpoint {self.checkpoint}: tensor {name} is {list(saved)}, the model's is {list(wanted)} → "
            "sizes must agree → use the run's own config.toml"
        )

    def _check_coverage(self, plan: LoadPlan) -> None:
        """What the metadata file says was saved must fill every local chunk."""
        planned: dict[str, int] = {}
        for item in plan.items:
            if item.type == LoadItemType.TENSOR:
                name = item.dest_index.fqn
                planned[name] = planned.get(name, 0) + math.prod(item.lengths)
        for name, tensor in self.state_dict.items():
            wanted = sum(math.prod(chunk.sizes) for chunk in _create_chunk_list(tensor))
            if planned.get(name, 0) != wanted:
                raise CheckpointError(
                    f"checkpoint {self.checkpoint}: {planned.get(name, 0)} of {wanted} values of {name} were saved → "
                    "all are needed → "
                    "use an older checkpoint"
                )
