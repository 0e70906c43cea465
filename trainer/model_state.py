"""What of a model a checkpoint holds, by name: weights, both optimizers' states, id maps.

tables/TABLE/weight, tables/TABLE/STATE    see embeddings.held_tables
dense/NAME                                 every other parameter and buffer
dense_optimizer/NAME/KEY                   AdamW's
dense_in_flight/NAME                       gradients that the next dense step is taken on, where one is in flight
id_maps/TABLE/KEY                          see embeddings.idmap
"""

from __future__ import annotations

from embeddings.held import Held, whole
from embeddings.held_tables import held_dense, held_tables
from trainer.assembly import Assembly

ID_MAPS = "id_maps/"
IN_FLIGHT = "dense_in_flight/"


def model_tensors(assembly: Assembly, step: int | None = None, *, to_save: bool = False) -> dict[str, Held]:
    """All of it, without communication. Weights and optimizer states are the model's own memory, id maps are copies: as
    of `step` (ids are mapped ahead of being trained), None = as they are. to_save: where groups of ranks hold a copy of
    the tables each, only the first one's."""
    tables = held_tables(assembly.model, assembly.specs)
    tables = assembly.copies.to_save(tables) if to_save else tables
    tensors = {f"tables/{name}": held for name, held in tables.items()}
    tensors |= {f"dense/{name}": held for name, held in held_dense(assembly.model, assembly.specs).items()}
    tensors |= {f"dense_optimizer/{name}": whole(value) for name, value in assembly.optimizer.state_tensors().items()}
    in_flight = assembly.sync.in_flight_tensors()
    tensors |= {f"{IN_FLIGHT}{name}": whole(value) for name, value in in_flight.items()}
    return tensors | {f"{ID_MAPS}{name}": held for name, held in assembly.mapper.state(step).items()}


def load_rest(assembly: Assembly, tensors: dict[str, Held]) -> None:
    """After a load into `model_tensors`: what was a copy goes back where it belongs."""
    assembly.mapper.load_state({n.removeprefix(ID_MAPS): t for n, t in tensors.items() if n.startswith(ID_MAPS)})
