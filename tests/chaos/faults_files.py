"""Files and file systems that fail: the checkpoints' store, the data, the disk."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal

from tests.chaos.faults import Fault
from tests.chaos.ranks import Left, Ranks
from tests.chaos.scene import Scene, Watch, remount

PAGE = 4096


class NewestDamaged(Fault):
    """All are killed, and the newest of several checkpoints turns out to be damaged: the one before it is taken."""

    name = "corrupt newest checkpoint"
    needs = "folder"
    ways = (
        "a byte flipped",
        "a file cut short",
        "a file removed",
        "COMMIT removed",
        "COMMIT cut short",
        "state emptied",
    )

    def draw(self) -> None:
        self.way = self.random.choice(self.ways)
        self.share = self.random.random()

    def __str__(self) -> str:
        return f"{self.way}, {self.after} steps on"

    def has_come(self, scene: Scene, watch: Watch, step: int) -> bool:
        return watch.step() >= step and scene.saved() >= 2 + scene.damaged

    def hurt(self, scene: Scene, ranks: Ranks) -> None:
        ranks.send(signal.SIGKILL)

    def mend(self, scene: Scene) -> None:
        """Rather the contrary."""
        scene.damaged += 1
        newest = scene.store / f"step_{scene.saved_step():08d}"
        tensors = sorted(newest.glob("*.safetensors"))
        commit, file = newest / "COMMIT", tensors[int(self.share * len(tensors))]
        content = bytearray(file.read_bytes())
        at = int(self.share * len(content))
        match self.way:
            case "a byte flipped":
                content[at] ^= 1
                file.write_bytes(content)
            case "a file cut short":
                file.write_bytes(content[:at])
            case "a file removed":
                file.unlink()
            case "COMMIT removed":
                commit.unlink()
            case "COMMIT cut short":
                commit.write_bytes(commit.read_bytes()[: int(self.share * commit.stat().st_size)])
            case _:
                (newest / "state.json").write_bytes(b"")


class StoreFull(Fault):
    """The checkpoints' file system has no room, or room for a part of one: a line says so; then there is room again."""

    name = "disk full while checkpointing"
    needs = "mount"

    def draw(self) -> None:
        self.pages_left = self.random.choice([0, self.random.randint(1, 60)])

    def __str__(self) -> str:
        return f"{self.pages_left * PAGE >> 10} KiB left, {self.after} steps on"

    def hurt(self, scene: Scene, ranks: Ranks) -> None:
        with (scene.disk / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(PAGE))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            file.truncate(max(0, file.tell() - self.pages_left * PAGE))

    def mend(self, scene: Scene) -> None:
        (scene.disk / "filler").unlink()


class FilesLimited(Fault):
    """No file of one rank, or of any, may grow beyond some KiB (RLIMIT_FSIZE): every write may fail in its middle, of
    the run directory's files too."""

    name = "every file of a rank stops growing (EFBIG)"

    def draw(self) -> None:
        self.limit = self.random.randint(0, 40_000)
        self.everyone = self.random.random() < 0.5
        self.rank = self.random.randrange(self.workers)

    def __str__(self) -> str:
        return f"{'all' if self.everyone else f'rank {self.rank}'}, at {self.limit} bytes, {self.after} steps on"

    def hurt(self, scene: Scene, ranks: Ranks) -> None:
        for rank, pid in enumerate(ranks.pids):
            if self.everyone or rank == self.rank:
                try:
                    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (self.limit, hard))
                except ProcessLookupError:
                    continue

    def wrong(self, scene: Scene, left: Left) -> list[str]:
        # The process can no longer write down what it says either: a line may be missing, its exit code may not.
        return [f"{mark!r} was said" for mark in left.unforeseen]


class StoreReadOnly(Fault):
    """The checkpoints' file system is read-only from now on, as Linux makes one with errors."""

    name = "read-only checkpoint store"
    needs = "mount"

    def hurt(self, scene: Scene, ranks: Ranks) -> None:
        remount(scene.disk, "ro")

    def mend(self, scene: Scene) -> None:
        remount(scene.disk, "rw")


class StoreGone(Fault):
    """The checkpoints' folder vanishes, and is back before the next start. What was written in its place is gone
    then, as below a file system that is mounted again."""

    name = "vanishing checkpoint store"
    needs = "folder"

    def hurt(self, scene: Scene, ranks: Ranks) -> None:
        scene.store.rename(scene.disk / "away")

    def mend(self, scene: Scene) -> None:
        if scene.store.exists():
            shutil.rmtree(scene.store)
        (scene.disk / "away").rename(scene.store)


class DataFileSpoilt(Fault):
    """A data file is cut short, or removed, under way: a line says which; once it is restored the run goes on."""

    def draw(self) -> None:
        self.share = self.random.random()

    def hurt(self, scene: Scene, ranks: Ranks) -> None:
        files = scene.files()
        self.file = files[int(self.share * len(files))]
        self.kept = scene.folder / "kept.parquet"
        shutil.copy2(self.file, self.kept)
        self.spoil()

    def spoil(self) -> None:
        raise NotImplementedError

    def wrong(self, scene: Scene, left: Left) -> list[str]:
        found = super().wrong(scene, left)
        # A run that had read all of it, or had it open, comes to its end.
        if any(left.codes) and not any(self.file.name in line for line in left.errors):
            found.append(f"{self.file.name} is not named: {left.errors[:3]}")
        return found

    def mend(self, scene: Scene) -> None:
        os.replace(self.kept, self.file)


class DataCutShort(DataFileSpoilt):
    name = "data file truncated under way"

    def spoil(self) -> None:
        os.truncate(self.file, int(self.random.random() * self.file.stat().st_size))


class DataDeleted(DataFileSpoilt):
    name = "data file deleted under way"

    def spoil(self) -> None:
        self.file.unlink()
