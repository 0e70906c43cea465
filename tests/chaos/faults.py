"""What a fault is, and how one is drawn."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass
from typing import ClassVar

from tests.chaos.ranks import Left, Ranks
from tests.chaos.scene import Scene, Watch

LEAVING_SECONDS = 60.0  # the longest that ranks may take to end after a fault


@dataclass
class Fault:
    """One of a kind, its details drawn when it is made. after: so many steps beyond the newest checkpoint it comes.

    name: of the kind, for the table. least_workers: it takes so many. needs: "mount": the store has to be on a file
    system of its own; "bucket": in an object store; "folder": in a folder; "" = any. arguments: of the command that it
    hurts. jump: see Ranks. ends_the_run: False where the run has to go on as if nothing had been.
    """

    random: random.Random
    workers: int
    name: ClassVar[str]
    least_workers: ClassVar[int] = 1
    needs: ClassVar[str] = ""
    arguments: ClassVar[tuple[str, ...]] = ()
    ends_the_run: ClassVar[bool] = True
    jump: float = 0.0

    def __post_init__(self) -> None:
        self.after = self.random.randint(1, 9)
        self.draw()

    def draw(self) -> None:
        """Its own details."""

    def __str__(self) -> str:
        """Its details in words."""
        return f"{self.after} steps on"

    def has_come(self, scene: Scene, watch: Watch, step: int) -> bool:
        """Whether its moment is now. step: at which it is due. Asked every millisecond."""
        return watch.step() >= step

    def hurt(self, scene: Scene, ranks: Ranks) -> None:
        """Now."""
        raise NotImplementedError

    def left(self, scene: Scene, ranks: Ranks) -> Left:
        """The ranks' end. Raises StuckError."""
        return ranks.ended(LEAVING_SECONDS)

    def wrong(self, scene: Scene, left: Left) -> list[str]:
        """What should not have been about that end, a line each."""
        found = [f"{mark!r} was said" for mark in left.unforeseen]
        if not self.ends_the_run and set(left.codes) not in ({0}, {-signal.SIGKILL}):
            found.append(f"the run ended with {left.codes}, and had to go on: {left.errors[:2]}")
        if any(code > 0 for code in left.codes) and not left.errors:
            found.append(f"exit codes {left.codes}, and no line that says why")
        return found

    def mend(self, scene: Scene) -> None:
        """The ranks have ended; before the next start. What an administrator would do."""
