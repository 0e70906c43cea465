"""Where a model stands since its birth: the loop's few counters, and their way into and out of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic import JsonValue

from pipelines.batch import Position
from trainer.checkpoint.folder import Location, name_of
from trainer.checkpoint.state import CheckpointState
from trainer.config import Config
from trainer.recommender import Outputs

IN_FLIGHT = "in_flight_examples"


@dataclass(frozen=True)
class TrainState:
    """step: optimizer steps done, bad ones included. examples: supervised positions with a label. quarantined_rows: of
    `rows`, those that were bad. data_through: newest event time trained on, microseconds. position: of the last global
    batch trained; None before the first. lineage: checkpoints gone on from: names of this run's own, and RUN/NAME where
    a run began with another's model."""

    step: int = 0
    examples: int = 0
    rows: int = 0
    quarantined_rows: int = 0
    data_through: int = 0
    position: Position | None = None
    lineage: tuple[str, ...] = ()

    def after(self, outputs: Outputs) -> TrainState:
        """With one more step done."""
        info = outputs.info
        return replace(
            self,
            step=info.step,
            examples=self.examples + info.total_examples,
            rows=self.rows + info.rows,
            quarantined_rows=self.quarantined_rows + info.quarantined,
            data_through=max(self.data_through, info.data_through),
            position=info.position,
        )

    def to_checkpoint(
        self,
        config: Config,
        world_size: int,
        bad_steps: int,
        metrics: JsonValue,
        model: JsonValue,
        in_flight: int | None = None,
        guards: JsonValue = None,
    ) -> CheckpointState:
        """What is saved beside the tensors. model: a description of it (see model_description). in_flight: of the dense
        update that is saved with it, to be taken by the next step: examples when it was computed. guards: their
        state."""
        return CheckpointState(
            step=self.step,
            examples=self.examples,
            rows=self.rows,
            position=self.position,
            data_schema=config.schema,
            seed=config.train.seed,
            world_size=world_size,
            bad_steps=bad_steps,
            resumed_from=self.lineage,
            extra={
                "data_through": self.data_through,
                "quarantined_rows": self.quarantined_rows,
                "metrics": metrics,
                "model": model,
                "guards": guards,
                **({} if in_flight is None else {IN_FLIGHT: in_flight}),
            },
        )

    @staticmethod
    def from_checkpoint(saved: CheckpointState, path: Location) -> TrainState:
        """Where the run that saved it stood."""
        through, quarantined = saved.extra["data_through"], saved.extra.get("quarantined_rows", 0)
        assert isinstance(through, int)
        assert isinstance(quarantined, int)
        return TrainState(
            step=saved.step,
            examples=saved.examples,
            rows=saved.rows,
            quarantined_rows=quarantined,
            data_through=through,
            position=saved.position,
            lineage=(*saved.resumed_from, name_of(path)),
        )


def in_flight_examples(saved: CheckpointState) -> int | None:
    """Of the dense update that a checkpoint holds in flight; None where it holds none."""
    found = saved.extra.get(IN_FLIGHT)
    assert found is None or isinstance(found, int)
    return found
