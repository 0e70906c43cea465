"""All embedding tables behind one module. Authored unsharded (on meta), sharded from outside by
DistributedModelParallel.

Inside, one EmbeddingCollection per (width, mapping) group: TorchRec wants one width in a collection.

    batch.kjts ──▶ Tables ──▶ {table: rows [U, width]}
      {"w16_hash":       KJT keys (user, item), lengths [2] = unique ids of each}
      {"w16_vocabulary": KJT keys (city,),      lengths [1]}
"""

from __future__ import annotations

import torch
from torch import nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from embeddings.specs import TableSpec


def table_groups(specs: dict[str, TableSpec]) -> dict[str, list[str]]:
    """{group: its tables}: one group per (width, mapping), named like "w16_hash"; tables in the order of the group's
    KJT keys.
    """
    groups: dict[str, list[str]] = {}
    for spec in specs.values():
        groups.setdefault(f"w{spec.width}_{spec.mapping}", []).append(spec.name)
    return groups


def module_name(table: str) -> str:
    """A table's name inside TorchRec: it is a key of an nn.ModuleDict, where "." and the names of its methods
    ("items") are taken.
    """
    return table.replace("%", "%25").replace(".", "%2E") + "_table"


def group_kjts(specs: dict[str, TableSpec], rows: dict[str, torch.Tensor]) -> dict[str, KeyedJaggedTensor]:
    """Tables' input: rows {table: int64 [U], each row once} → {group: KJT keyed by table, stride 1}."""
    return {
        group: KeyedJaggedTensor(
            keys=tables,
            values=torch.cat([rows[table] for table in tables]),
            lengths=torch.tensor([len(rows[table]) for table in tables], dtype=torch.int32),
            stride=1,
        )
        for group, tables in table_groups(specs).items()
    }


class Tables(nn.Module):
    """Looks up every table once a batch.

    Called as a child of the module given to DistributedModelParallel, with a dict attribute of the batch
    (`self.tables(batch.kjts)`),
    it is pipelined by TrainPipelineSparseDist: torch.fx unrolls the two loops, whose bounds are fixed here.
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
        """kjts: {group: stride-1 KJT keyed by table, each row once} → {table: rows float32 [U, width]}, in the KJT's
        order.
        """
        rows: dict[str, torch.Tensor] = {}
        for group, collection in self.collections.items():
            looked_up = collection(kjts[group])
            for table in self.groups[group]:
                rows[table] = looked_up[table].values()
        return rows


def _embedding_config(spec: TableSpec) -> EmbeddingConfig:
    return EmbeddingConfig(
        name=module_name(spec.name),
        num_embeddings=spec.rows,
        embedding_dim=spec.width,
        feature_names=[spec.name],
        # embeddings.init gives rows their values, once they are where they will live.
        init_fn=nn.init.zeros_,
    )
