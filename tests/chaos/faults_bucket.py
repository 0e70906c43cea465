"""An object store that answers with errors, late, or not at all."""

from __future__ import annotations

from tests.chaos.bucket import Trouble
from tests.chaos.faults import Fault
from tests.chaos.ranks import Ranks
from tests.chaos.scene import Scene


class _BucketFault(Fault):
    """Some requests of the ranks meet it; how many says whether retries are enough."""

    needs = "bucket"

    def draw(self) -> None:
        self.requests = self.random.choice([1, 2, self.random.randint(3, 60)])

    def trouble(self) -> Trouble:
        """What they meet."""
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self.requests} requests, {self.after} steps on"

    def hurt(self, scene: Scene, ranks: Ranks) -> None:
        scene.require_bucket().proxy.trouble = self.trouble()

    def mend(self, scene: Scene) -> None:
        scene.require_bucket().proxy.trouble = Trouble()


class Bucket500(_BucketFault):
    name = "store answers 500"

    def trouble(self) -> Trouble:
        return Trouble(self.requests, "500")


class Bucket503(_BucketFault):
    name = "store answers 503"

    def trouble(self) -> Trouble:
        return Trouble(self.requests, "503")


class BucketHangsUp(_BucketFault):
    name = "store hangs up"

    def trouble(self) -> Trouble:
        return Trouble(self.requests, "hang up")


class BucketSlow(_BucketFault):
    """The run waits for its checkpoints, and goes on."""

    name = "store answers late"
    ends_the_run = False

    def draw(self) -> None:
        super().draw()
        self.seconds = self.random.uniform(0.05, 0.5)

    def __str__(self) -> str:
        return f"{self.requests} requests by {self.seconds:.2f} s, {self.after} steps on"

    def trouble(self) -> Trouble:
        return Trouble(self.requests, self.seconds)
