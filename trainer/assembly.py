"""From a config to the sharded, trainable recommender: author unsharded on meta, plan, shard, materialise,
initialise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv, ShardingPlan

from embeddings.device_rules import check_device
from embeddings.idmap import IdMapper
from embeddings.init import initialise
from embeddings.optim import fuse_optimizer
from embeddings.plan import make_plan
from embeddings.plan_load import assumed_ids
from embeddings.reset import RowResetter
from embeddings.sharders import sharders
from embeddings.specs import TableSpec, table_specs
from embeddings.tables import Tables, key_order, table_groups
from embeddings.touched import TouchedRows, watch_rows
from model.compute import set_compute
from model.embedding_dropout import EmbeddingDropout
from model.loss import Heads, TaskHead
from trainer.compute_choice import compute_of
from trainer.config import Config
from trainer.copies import Copies
from trainer.dense_optim import DenseOptimizer
from trainer.dense_sync import DenseSync
from trainer.field_blocks import FieldBlocks, field_blocks
from trainer.gate import GradientGate
from trainer.layout import Layout, make_layout
from trainer.make_ranker import make_ranker
from trainer.recommender import Assemble, Recommender, Scorer
from trainer.runtime import Runtime
from trainer.step_split import StepClock


@dataclass
class Assembly:
    """Everything a step needs, joined. `model` is what is called; `module` is the Recommender inside it."""

    model: DistributedModelParallel
    optimizer: DenseOptimizer
    mapper: IdMapper
    resetter: RowResetter
    gate: GradientGate
    sync: DenseSync
    specs: dict[str, TableSpec]
    layout: Layout
    blocks: FieldBlocks
    plan: ShardingPlan
    touched: TouchedRows
    copies: Copies
    clock: StepClock

    @property
    def module(self) -> Recommender:
        """The recommender, its tables sharded."""
        module: Recommender = self.model.module
        return module


def task_heads(config: Config) -> Heads:
    """Tasks in schema order, with their loss weights and products."""
    return Heads([TaskHead(name, task.loss_weight, task.product_of) for name, task in config.schema.tasks.items()])


def build_dense(config: Config, layout: Layout) -> nn.Module:
    """The ranker, the same on every rank and for every world size: a function of the seed. Raises ConfigError."""
    torch.manual_seed(config.train.seed)
    return make_ranker(layout.spec, config.model)


def assemble(config: Config, runtime: Runtime) -> Assembly:
    """Collective. Raises PlanError when the tables do not fit or cannot be on this device."""
    specs = table_specs(config.schema, config.embeddings)
    check_device(specs, config.embeddings, runtime.device.type)
    layout = make_layout(config.schema, specs)
    clock = StepClock(runtime.device)
    gate = GradientGate(runtime.gate, clock)
    tables = Tables(specs, device="meta")
    fuse_optimizer(tables, specs)
    ranker = build_dense(config, layout).to(runtime.device)
    if config.model.in_blocks:
        set_compute(ranker, compute_of(config.train))
    dropout = EmbeddingDropout(layout.spec, config.model.embedding_dropout)
    scorer = Scorer(ranker, task_heads(config), gate, config.train.seed, runtime.rank, dropout)
    recommender = Recommender(tables, Assemble(layout, gate), scorer)
    plan = make_plan(
        recommender,
        specs,
        runtime.world_size,
        runtime.local_world_size,
        runtime.device.type,
        process_group=runtime.control,
        config=config.embeddings,
        ids=assumed_ids(config.schema, specs, config.data.global_batch, runtime.world_size),
    )
    sync = DenseSync(
        runtime.dense,
        config.train.bucket_mb,
        config.train.first_bucket_mb,
        wire=getattr(torch, config.train.dense_wire),
        accumulate=config.train.accumulate,
    )
    model = DistributedModelParallel(
        recommender,
        env=ShardingEnv.from_process_group(runtime.tables),
        device=runtime.device,
        plan=plan,
        sharders=sharders(config.embeddings.forward_codec, config.embeddings.backward_codec, runtime.device.type),
        data_parallel_wrapper=sync,
    )
    initialise(model, specs, config.train.seed)
    gate.dense_gradients, gate.parameters, gate.tables = sync.flat_gradients, sync.parameters, table_groups(specs)
    touched = watch_rows(model, specs)
    return Assembly(
        model=model,
        optimizer=DenseOptimizer(sync.parameters, sync, gate, config.optim, config.train, clock),
        mapper=IdMapper(specs, runtime.control, key_order(tables)),
        resetter=RowResetter(model, specs, config.train.seed, touched.changing),
        gate=gate,
        sync=sync,
        specs=specs,
        layout=layout,
        blocks=field_blocks(config.schema, specs, layout, config.model.tokens),
        plan=plan,
        touched=touched,
        copies=Copies(model, specs, touched, runtime, config.embeddings.replica_sync_steps),
        clock=clock,
    )
