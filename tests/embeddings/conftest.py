"""What the tests of this room see of 2 and of 3 gloo ranks: one spawn each, as starting processes costs the most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import run_ranks
from tests.embeddings.id_stream import map_on_ranks
from tests.embeddings.resets import reset_on_ranks
from tests.embeddings.toy import touched_on_ranks, train_on_ranks


def _everything(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    return {
        "mapped": map_on_ranks(rank, world_size, folder),
        "trained": train_on_ranks(rank, world_size),
        "touched": touched_on_ranks(rank, world_size),
        "reset": reset_on_ranks(rank, world_size),
    }


@pytest.fixture(scope="session")
def id_maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ranks save their id maps."""
    return tmp_path_factory.mktemp("id_maps")


@pytest.fixture(scope="session")
def on_ranks(id_maps: Path) -> dict[int, list[dict[str, Any]]]:
    """{world size: each rank's results}. Three ranks load what two saved."""
    return {world_size: run_ranks(_everything, world_size, str(id_maps), timeout=150) for world_size in (2, 3)}
