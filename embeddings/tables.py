"""All embedding tables behind one module. Authored unsharded (on meta), sharded from outside by
DistributedModelParallel.

Inside, one EmbeddingCollection per (width, mapping) group: TorchRec wants one width in a collection. Frozen tables have
collections of their own, whose rows are detached: nothing goes back to them.

    batch.kjts ──▶ Tables ──▶ {group: rows [ΣU, width]}
      {"w16_hash":       KJT keys (user, item), lengths [2] = unique ids of each}
      {"w16_vocabulary": KJT keys (city,),      lengths [1]}

Rows of a group stay one tensor, table after table in the order of the KJT's keys: nothing here costs a step anything
for every table.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torchrec import EmbeddingCollection, EmbeddingConfig, JaggedTensor, KeyedJaggedTensor
from torchrec.distributed.types import LazyAwaitable
from torchrec.types import DataType

from embeddings.joined_rows import JoinsRows
from embeddings.specs import TableSpec
from pipelines.batch import Int64

DATA_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16, "bf16": DataType.BF16}
FROZEN = "_frozen"  # ends the names of groups whose tables are


def table_groups(specs: dict[str, TableSpec]) -> dict[str, list[str]]:
    """{group: its tables}: one group per (width, mapping, frozen), named like "w16_hash" and "w16_hash_frozen"; tables
    in the order of the group's KJT keys.
    """
    groups: dict[str, list[str]] = {}
    for spec in specs.values():
        groups.setdefault(f"w{spec.width}_{spec.mapping}{FROZEN * spec.frozen}", []).append(spec.name)
    return groups


def module_name(table: str) -> str:
    """A table's name inside TorchRec: it is a key of an nn.ModuleDict, where "." and the names of its methods
    ("items") are taken.
    """
    return table.replace("%", "%25").replace(".", "%2E") + "_table"


def group_kjts(groups: dict[str, list[str]], rows: dict[str, Int64]) -> dict[str, KeyedJaggedTensor]:
    """Tables' input: groups {group: its tables}, rows {table: int64 [U], each row once} → {group: KJT keyed by table,
    stride 1, keys in the groups' order}.
    """
    kjts = {}
    for group, tables in groups.items():
        found = [rows[table] for table in tables]
        counts = [len(r) for r in found]
        kjts[group] = KeyedJaggedTensor(
            keys=tables,
            values=torch.from_numpy(np.concatenate(found)),
            lengths=torch.tensor(counts, dtype=torch.int32),
            stride=1,
            length_per_key=counts,
        )
    return kjts


@torch.fx.wrap  # a leaf: the trace does not grow with the number of tables
def joined(looked_up: LazyAwaitable[torch.Tensor] | dict[str, JaggedTensor], kjt: KeyedJaggedTensor) -> torch.Tensor:
    """Rows [ΣU, width] in the order of `kjt`'s keys: what a collection, sharded or not, has looked up."""
    if isinstance(looked_up, LazyAwaitable):
        rows: torch.Tensor = LazyAwaitable._wait_async(looked_up)
        return rows
    return torch.cat([looked_up[key].values() for key in kjt.keys()])  # noqa: SIM118 - no dict


def rows_by_table(rows: dict[str, torch.Tensor], kjts: dict[str, KeyedJaggedTensor]) -> dict[str, torch.Tensor]:
    """What `Tables` returns, table by table: {table: rows [U, width]}, views."""
    return {
        table: found
        for group, kjt in kjts.items()
        for table, found in zip(kjt.keys(), rows[group].split_with_sizes(kjt.length_per_key()), strict=True)
    }


class Tables(nn.Module):
    """Looks up every table once a batch.

    Called as a child of the module given to DistributedModelParallel, with a dict attribute of the batch
    (`self.tables(batch.kjts)`),
    it is pipelined by TrainPipelineSparseDist: torch.fx unrolls the loops over groups, which are fixed here.
    """

    def __init__(self, specs: dict[str, TableSpec], device: torch.device | str = "meta") -> None:
        super().__init__()
        self.groups = table_groups(specs)
        self.collections = nn.ModuleDict(
            {
                group: EmbeddingCollection([_embedding_config(specs[table]) for table in tables], torch.device(device))
                for group, tables in self.groups.items()
            }
        )

    def forward(self, kjts: dict[str, KeyedJaggedTensor]) -> dict[str, torch.Tensor]:
        """kjts: {group: stride-1 KJT keyed by table, each row once} → {group: rows float32 [ΣU, width]}, in the KJT's
        order.
        """
        looked_up = {group: collection(kjts[group]) for group, collection in self.collections.items()}
        rows = {group: joined(found, kjts[group]) for group, found in looked_up.items()}
        return {group: found.detach() if group.endswith(FROZEN) else found for group, found in rows.items()}


def key_order(tables: Tables) -> dict[str, list[str]]:
    """{group: its tables in the order in which the sharded collection moves no row twice}: for `group_kjts`."""
    return {
        group: collection.output_order() if isinstance(collection, JoinsRows) else tables.groups[group]
        for group, collection in tables.collections.items()
    }


def _embedding_config(spec: TableSpec) -> EmbeddingConfig:
    return EmbeddingConfig(
        name=module_name(spec.name),
        num_embeddings=spec.rows,
        embedding_dim=spec.width,
        feature_names=[spec.name],
        data_type=DATA_TYPES[spec.dtype],
        # embeddings.init gives rows their values, once they are where they will live.
        init_fn=nn.init.zeros_,
    )
