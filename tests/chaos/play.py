"""A sequence: drawn from its seed, played against one run, judged at its end."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos.bucket import Bucket
from tests.chaos.faults import Fault
from tests.chaos.faults_bucket import Bucket500, Bucket503, BucketHangsUp, BucketSlow
from tests.chaos.faults_files import (
    DataCutShort,
    DataDeleted,
    FilesLimited,
    NewestDamaged,
    StoreFull,
    StoreGone,
    StoreReadOnly,
)
from tests.chaos.faults_processes import (
    AllKilled,
    ClockJumped,
    Frozen,
    KilledWhileSaving,
    Paused,
    Terminated,
    WorkerKilled,
)
from tests.chaos.judge import End, end_of, judge
from tests.chaos.ranks import Ranks, StuckError, started
from tests.chaos.scene import STEPS, Scene, Watch, can_mount, staged

KINDS: tuple[type[Fault], ...] = (
    WorkerKilled, AllKilled, KilledWhileSaving, Terminated, Frozen, Paused, ClockJumped, NewestDamaged, StoreFull,
    FilesLimited, StoreReadOnly, StoreGone, DataCutShort, DataDeleted, Bucket500, Bucket503, BucketHangsUp, BucketSlow,
)  # fmt: skip
CHEAP: tuple[type[Fault], ...] = (AllKilled, KilledWhileSaving, Terminated, NewestDamaged, DataDeleted)
RUN_SECONDS = 120.0


@dataclass(frozen=True)
class Plan:
    """What a seed says. last_workers: of the start that comes to the end. in_bucket: where its checkpoints are."""

    seed: int
    faults: tuple[Fault, ...]
    last_workers: int
    in_bucket: bool = False

    @property
    def to_the_bit(self) -> bool:
        """Whether the number of workers is the same all the time."""
        return {fault.workers for fault in self.faults} == {self.last_workers}


@dataclass
class Met:
    """A fault as it went. came: False where the run ended before its moment. recover_seconds: from it until a step was
    trained anew, None where the run did not end of it."""

    name: str
    details: str
    workers: int
    came: bool = False
    recover_seconds: float | None = None
    codes: tuple[int, ...] = ()
    errors: tuple[str, ...] = ()


@dataclass
class Outcome:
    """Of a sequence: one line of results.jsonl. problems: what was lost, repeated or said wrongly."""

    seed: int
    workers: list[int]
    to_the_bit: bool
    met: list[Met] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """{"seed", "outcome": "survived" or "failed", "faults", …}."""
        outcome = "failed" if self.problems else "survived"
        return {"seed": self.seed, "outcome": outcome} | asdict(self) | {"seconds": round(self.seconds, 2)}


def draw(seed: int, kinds: Sequence[type[Fault]] = KINDS, most_workers: int = 3, most_faults: int = 4) -> Plan:
    """Always the same of a seed. Half of the sequences keep their number of workers; a sixth have their checkpoints in
    a bucket, if the kinds have faults of one."""
    random_ = random.Random(f"chaos {seed}")
    fixed = 0 if random_.random() < 0.5 else random_.randint(1, most_workers)
    in_bucket = random_.random() < 1 / 6 and any(kind.needs == "bucket" for kind in kinds)
    fitting = [kind for kind in kinds if kind.needs in (("", "bucket") if in_bucket else ("", "folder", "mount"))]
    faults = []
    for _ in range(random_.randint(1, most_faults)):
        workers = fixed or random_.randint(1, most_workers)
        kind = random_.choice([kind for kind in fitting if kind.least_workers <= workers])
        faults.append(kind(random.Random(random_.random()), workers))
    return Plan(seed, tuple(faults), fixed or random_.randint(1, most_workers), in_bucket)


def play(plan: Plan, folder: Path, reference: Callable[[int], End], bucket: Callable[[], Bucket]) -> Outcome:
    """In a folder that is made for it, and removed again where the run survived. reference: of a run with so many
    workers that was never hurt. bucket: made when it is asked for."""
    began = time.monotonic()
    outcome = Outcome(plan.seed, [fault.workers for fault in plan.faults] + [plan.last_workers], plan.to_the_bit)
    shutil.rmtree(folder, ignore_errors=True)
    with staged(folder, bucket() if plan.in_bucket else None) as scene:
        try:
            since = _hurt_all(plan.faults, scene, outcome)
            with started(folder, plan.last_workers, name="last") as ranks:
                _recovered(scene, ranks, outcome, since)
                left = ranks.ended(RUN_SECONDS)
            if set(left.codes) != {0}:
                outcome.problems.append(f"the last start ended with {left.codes}: {left.errors[:3] or ranks.tail()}")
            else:
                outcome.problems += judge(end_of(folder / "run"), reference(plan.last_workers), plan.to_the_bit)
        except (StuckError, OSError) as error:
            outcome.problems.append(f"{type(error).__name__}: {error}")
    outcome.seconds = time.monotonic() - began
    if not outcome.problems:
        shutil.rmtree(folder)
    return outcome


def run_unhurt(folder: Path, workers: int) -> End:
    """A run that is left alone; one that is there from before is taken."""
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        with staged(folder), started(folder, workers) as ranks:
            left = ranks.ended(RUN_SECONDS)
        assert set(left.codes) == {0}, f"a run that nobody hurt ended with {left.codes}: {left.errors} {left.said}"
        (folder / "complete").touch()
    return end_of(folder / "run")


def _hurt_all(faults: Sequence[Fault], scene: Scene, outcome: Outcome) -> float | None:
    """Start after start. Returns when the last fault came that ended the run, None where none waits for recovery."""
    since: float | None = None
    for number, fault in enumerate(faults, 1):
        met = Met(fault.name, str(fault), fault.workers)
        if fault.needs == "mount" and not can_mount():
            continue
        outcome.met.append(met)
        due = min(scene.saved_step() + fault.after, STEPS - 1)
        name, watch = f"start-{number}", Watch(scene)
        with started(scene.folder, fault.workers, *fault.arguments, name=name, jump=fault.jump) as ranks:
            _recovered(scene, ranks, outcome, since)
            since = None
            met.came = ranks.until(partial(fault.has_come, scene, watch, due))
            hurt = time.monotonic()
            if met.came:
                fault.hurt(scene, ranks)
            if met.came and not fault.ends_the_run and number < len(faults):
                # It goes on; so that the next fault finds it on its way, it is killed two steps later.
                ranks.until(partial(_is_beyond, watch, watch.step() + 2))
                hurt = time.monotonic()
                ranks.send(signal.SIGKILL)
            left = fault.left(scene, ranks) if met.came else ranks.ended(RUN_SECONDS)
        met.codes, met.errors = left.codes, tuple(left.errors)
        if met.came:
            outcome.problems += [f"{fault.name} ({fault}): {line}" for line in fault.wrong(scene, left)]
            fault.mend(scene)
            since = hurt if any(left.codes) or isinstance(fault, Terminated) else since
        elif set(left.codes) != {0}:
            outcome.problems.append(f"before {fault.name} came: {left.codes}: {left.errors[:3]}")
    return since


def _is_beyond(watch: Watch, step: int) -> bool:
    return watch.step() >= step


def _recovered(scene: Scene, ranks: Ranks, outcome: Outcome, since: float | None) -> None:
    """Waits for the first new step, if the run had ended of a fault at `since`."""
    if since is None:
        return
    watch = Watch(scene)
    if ranks.until(lambda: watch.step() > 0):
        ended = [met for met in outcome.met if met.came]
        ended[-1].recover_seconds = round(time.monotonic() - since, 2)
