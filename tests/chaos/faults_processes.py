"""Processes that are killed, told to leave, stopped; a clock that jumps."""

from __future__ import annotations

import signal
import time

from tests.chaos.faults import LEAVING_SECONDS, Fault
from tests.chaos.ranks import CLOCK_JUMPS, Left, Ranks
from tests.chaos.scene import Scene, Watch


class WorkerKilled(Fault):
    """SIGKILL of one: the others have to notice, name it, and end."""

    name = "SIGKILL of one worker"
    least_workers = 2

    def draw(self) -> None:
        self.rank, self.delay = self.random.randrange(self.workers), self.random.uniform(0, 0.05)

    def __str__(self) -> str:
        return f"rank {self.rank}, {self.after} steps on"

    def hurt(self, scene: Scene, ranks: Ranks) -> None:
        time.sleep(self.delay)  # anywhere in a step
        ranks.send(signal.SIGKILL, [self.rank])

    def wrong(self, scene: Scene, left: Left) -> list[str]:
        lost = [code for rank, code in enumerate(left.codes) if rank != self.rank and code < 0]
        return super().wrong(scene, left) + ([f"other ranks died of signals: {left.codes}"] if lost else [])


class AllKilled(Fault):
    """SIGKILL of all at once, as a host that is lost."""

    name = "SIGKILL of all workers"

    def draw(self) -> None:
        self.delay = self.random.uniform(0, 0.05)

    def hurt(self, scene: Scene, ranks: Ranks) -> None:
        time.sleep(self.delay)
        ranks.send(signal.SIGKILL)


class KilledWhileSaving(Fault):
    """SIGKILL, of one or all, while a checkpoint is half written, or just after its COMMIT."""

    name = "SIGKILL during a checkpoint's save"
    needs = "folder"  # a bucket cannot be looked at so often

    def draw(self) -> None:
        self.everyone = self.workers == 1 or self.random.random() < 0.5
        self.rank = self.random.randrange(self.workers)
        self.is_after = self.random.random() < 0.3
        self.delay = self.random.choice([0.0, self.random.uniform(0, 0.01)])

    def __str__(self) -> str:
        who = "all" if self.everyone else f"rank {self.rank}"
        return f"{who}, {'after a COMMIT' if self.is_after else 'half written'}, {self.after} steps on"

    def has_come(self, scene: Scene, watch: Watch, step: int) -> bool:
        return watch.has_saved(step) if self.is_after else watch.is_saving(step)

    def hurt(self, scene: Scene, ranks: Ranks) -> None:
        time.sleep(self.delay)
        ranks.send(signal.SIGKILL, None if self.everyone else [self.rank])


class Terminated(Fault):
    """SIGTERM: a checkpoint is saved, and the ranks leave together, in order. One rank's word is enough."""

    name = "SIGTERM with grace"

    def draw(self) -> None:
        self.everyone = self.random.random() < 0.5
        self.rank = self.random.randrange(self.workers)

    def __str__(self) -> str:
        return f"{'all' if self.everyone else f'rank {self.rank}'}, {self.after} steps on"

    def has_come(self, scene: Scene, watch: Watch, step: int) -> bool:
        self.told = watch.step()
        return self.told >= step

    def hurt(self, scene: Scene, ranks: Ranks) -> None:
        ranks.send(signal.SIGTERM, None if self.everyone else [self.rank])

    def wrong(self, scene: Scene, left: Left) -> list[str]:
        found = super().wrong(scene, left)
        if set(left.codes) != {0}:
            found.append(f"it did not leave in order: {left.codes}: {left.errors[:2]}")
        elif scene.saved_step() < self.told:
            found.append(f"left with a checkpoint of step {scene.saved_step()}, and had trained {self.told}")
        return found


class Frozen(Fault):
    """SIGSTOP of one for ever: the watchdog names it, the others end; then it is killed."""

    name = "SIGSTOP of one worker, found by the watchdog"
    least_workers = 2
    arguments = ("--launch.watchdog-seconds", "1", "--launch.timeout-seconds", "5")

    def draw(self) -> None:
        self.rank = self.random.randrange(self.workers)

    def __str__(self) -> str:
        return f"rank {self.rank}, {self.after} steps on"

    def hurt(self, scene: Scene, ranks: Ranks) -> None:
        ranks.send(signal.SIGSTOP, [self.rank])

    def left(self, scene: Scene, ranks: Ranks) -> Left:
        return ranks.ended(LEAVING_SECONDS, without=self.rank)

    def wrong(self, scene: Scene, left: Left) -> list[str]:
        found = super().wrong(scene, left)
        others = [code for rank, code in enumerate(left.codes) if rank != self.rank]
        if any(others) and not any(f"rank {self.rank} (host" in said for said in left.said):
            found.append(f"nobody named rank {self.rank}: {left.errors[:2]}")
        return found


class Paused(Fault):
    """SIGSTOP and, before anybody gives up, SIGCONT: the run goes on."""

    name = "SIGSTOP for a moment"
    ends_the_run = False

    def draw(self) -> None:
        self.rank, self.seconds = self.random.randrange(self.workers), self.random.uniform(0.2, 1.5)

    def __str__(self) -> str:
        return f"rank {self.rank} for {self.seconds:.1f} s, {self.after} steps on"

    def hurt(self, scene: Scene, ranks: Ranks) -> None:
        ranks.send(signal.SIGSTOP, [self.rank])
        time.sleep(self.seconds)
        ranks.send(signal.SIGCONT, [self.rank])


class ClockJumped(Fault):
    """The wall clock of some or all ranks, as Python sees it, goes forward or back by an hour or by a year."""

    name = "clock jump"
    ends_the_run = False

    def draw(self) -> None:
        self.jump = self.random.choice([-1, 1]) * self.random.choice([3600.0, 365.25 * 86400])
        self.everyone = self.random.random() < 0.5
        self.rank = self.random.randrange(self.workers)

    def __str__(self) -> str:
        who = "all" if self.everyone else f"rank {self.rank}"
        return f"{who} by {self.jump / 3600:+,.0f} h, {self.after} steps on"

    def hurt(self, scene: Scene, ranks: Ranks) -> None:
        ranks.send(CLOCK_JUMPS, None if self.everyone else [self.rank])
