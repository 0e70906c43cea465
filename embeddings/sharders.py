"""How tables are sharded: TorchRec's way, with four differences. Row-wise shards may end where the plan says, at bucket
borders. Rows of a collection come as one tensor (embeddings.joined_rows). They travel by embeddings.codecs. On CPU they
are looked up and updated by embeddings.cpu_rows.

Stock row-wise sharding sends row r to rank r // ⌈rows / world_size⌉, whatever the plan's shards are. A vocabulary's
shards are whole
buckets: blocks of ⌈buckets / world_size⌉ · rows_per_bucket rows, which differ when world_size does not divide buckets
         (64 buckets on 3
ranks: 22, 22, 20). TorchRec knows uneven blocks only for its virtual tables. Here the block is read off the plan's
       first shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingCollection, KeyedJaggedTensor
from torchrec.distributed.embedding import (
    EmbeddingCollectionContext,
    EmbeddingCollectionSharder,
    ShardedEmbeddingCollection,
)
from torchrec.distributed.embedding_sharding import EmbeddingSharding, EmbeddingShardingInfo
from torchrec.distributed.embedding_types import KJTList
from torchrec.distributed.sharding.rw_sequence_sharding import RwSequenceEmbeddingDist, RwSequenceEmbeddingSharding
from torchrec.distributed.sharding.sequence_sharding import SequenceShardingContext
from torchrec.distributed.types import Awaitable, ModuleSharder, ParameterSharding, ShardingEnv, ShardingType

from embeddings.codecs import Registry, codec_registry, fitted
from embeddings.config import Codec
from embeddings.joined_rows import JoinedRows
from embeddings.permute import permuted

# FBGEMM's default on CUDA rounds half-precision weights up or down by chance, from a generator's state that no
# checkpoint has. CPU rounds to the nearest; so does CUDA here, and a run repeats.
FUSED_PARAMS = {"stochastic_rounding": False}


def sharders(
    forward_codec: Codec = "fp32", backward_codec: Codec = "fp32", device: str = "cpu"
) -> list[ModuleSharder[nn.Module]]:
    """What DistributedModelParallel and the planner are given. Codecs: see embeddings.codecs."""
    registry = codec_registry(forward_codec, backward_codec, device)
    return [BlockCollectionSharder(dict(FUSED_PARAMS), registry)]


class RowWiseOutput(RwSequenceEmbeddingDist):
    """Rows back in the order they were asked for. Upstream's index_select has a backward that adds into zeros, row by
    row; they are a permutation, and on one rank in order already (docs/benchmarks/embeddings.md)."""

    def __init__(self, pg: dist.ProcessGroup, *args: Any, **kwargs: Any) -> None:
        super().__init__(pg, *args, **kwargs)
        self._ranks = pg.size()

    def forward(
        self, local_embs: torch.Tensor, sharding_ctx: SequenceShardingContext | None = None
    ) -> Awaitable[torch.Tensor]:
        assert sharding_ctx is not None
        order = sharding_ctx.unbucketize_permute_tensor
        as_they_come = copy(sharding_ctx)
        as_they_come.unbucketize_permute_tensor = None
        waiting: Awaitable[torch.Tensor] = super().forward(local_embs, as_they_come)
        if order is not None and self._ranks > 1:
            waiting.callbacks.append(lambda rows: permuted(rows, order))
        return waiting


class BlockRowWiseSharding(RwSequenceEmbeddingSharding):
    """Row r goes to rank r // (rows of the plan's first shard)."""

    def create_output_dist(self, device: torch.device | None = None) -> RowWiseOutput:
        return RowWiseOutput(
            self._pg,
            self._get_num_features(),
            device if device is not None else self._device,
            qcomm_codecs_registry=self.qcomm_codecs_registry,
        )

    def _get_feature_hash_sizes(self) -> list[int]:
        # Used for nothing but the block size ⌈hash size / world size⌉, so this makes it the first shard's rows.
        return [
            table.global_metadata.shards_metadata[0].shard_sizes[0] * self._world_size
            for group in self._grouped_embedding_configs
            for table in group.embedding_tables
            for _ in table.feature_names
        ]


class BlockShardedCollection(ShardedEmbeddingCollection):
    """A sharded EmbeddingCollection whose row-wise tables follow the plan's blocks, and which hands out the rows of all
    its tables in one tensor, in the order of its input's keys (embeddings.joined_rows).

    before_lookups: called in a training forward with the input of every lookup (rows local to the shard), before rows
    are read, and long before the backward updates them.
    """

    before_lookups: Callable[[Iterable[KeyedJaggedTensor]], None] | None = None
    _keys: list[str] | None = None  # of the input, where rows do not come in their order

    def compute(self, ctx: EmbeddingCollectionContext, dist_input: KJTList) -> list[torch.Tensor]:
        """As upstream."""
        self._announce(dist_input)
        looked_up: list[torch.Tensor] = super().compute(ctx, dist_input)
        return looked_up

    def _announce(self, inputs: KJTList) -> None:
        if self.before_lookups is not None and self.training and torch.is_grad_enabled():
            self.before_lookups(inputs)

    @classmethod
    def create_embedding_sharding(
        cls,
        sharding_type: str,
        sharding_infos: list[EmbeddingShardingInfo],
        env: ShardingEnv,
        *args: Any,
        qcomm_codecs_registry: Registry | None = None,
        **kwargs: Any,
    ) -> EmbeddingSharding:
        kwargs["qcomm_codecs_registry"] = fitted(qcomm_codecs_registry, sharding_infos)
        if sharding_type == ShardingType.ROW_WISE.value:
            return BlockRowWiseSharding(sharding_infos, env, *args, **kwargs)
        return super().create_embedding_sharding(sharding_type, sharding_infos, env, *args, **kwargs)

    def output_order(self) -> list[str]:
        """Its tables' features as their rows come: an input with its keys in this order is the cheapest."""
        return list(dict.fromkeys(name for names in self._embedding_names_per_sharding for name in names))

    def _create_input_dist(self, input_feature_names: list[str], ctx: Any = None) -> None:
        super()._create_input_dist(input_feature_names, ctx)
        self._keys = None if input_feature_names == self.output_order() else list(input_feature_names)

    def output_dist(self, ctx: EmbeddingCollectionContext, output: list[torch.Tensor]) -> Any:
        return JoinedRows(super().output_dist(ctx, output), self._features_to_permute_indices, self._keys)

    def compute_and_output_dist(self, ctx: EmbeddingCollectionContext, input: KJTList) -> Any:
        self._announce(input)  # upstream does not call `compute` here
        return JoinedRows(super().compute_and_output_dist(ctx, input), self._features_to_permute_indices, self._keys)


class BlockCollectionSharder(EmbeddingCollectionSharder):
    def shard(
        self,
        module: EmbeddingCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> BlockShardedCollection:
        sharded = BlockShardedCollection(
            module,
            params,
            env,
            self.fused_params,
            device,
            qcomm_codecs_registry=self.qcomm_codecs_registry,
            module_fqn=module_fqn,
        )
        if device is not None and device.type == "cpu":
            # Compiled code is loaded where it is needed only.
            from embeddings.cpu_rows import use_cpu_rows  # noqa: PLC0415

            for lookup in sharded._lookups:
                use_cpu_rows(lookup)
        return sharded

    @property
    def sharded_module_type(self) -> type[BlockShardedCollection]:
        return BlockShardedCollection
