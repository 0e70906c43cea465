"""What a user of this room can do wrong. The command turns these into one line each and an exit code."""

from __future__ import annotations


class PlanError(Exception):
    """`[embeddings]` contradicts itself or the schema: value → rule → remedy. `problems` holds every one found (exit
    code 2).
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type[PlanError], tuple[list[str]]]:  # crosses process boundaries with its list
        return (type(self), (self.problems,))


class PlanDoesNotFitError(PlanError):
    """The tables do not fit into the memory of the ranks: which, by how much, what would help (exit code 4)."""


class IdMapError(Exception):
    """A saved id map is not of this table, or is of a step that is no longer at hand (exit code 5)."""
