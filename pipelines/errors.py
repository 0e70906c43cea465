"""What a user of this room can do wrong. The command turns these into one line and an exit code."""


class SchemaError(Exception):
    """The schema contradicts itself or the files: value → rule → remedy. `problems` holds every one found (exit code
    2)."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(Exception):
    """The data are not what the schema or the plan says: value → rule → remedy. `problems` holds every one found (exit
    code 3)."""

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else problems
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["DataError"], tuple[list[str]]]:  # survives a Ray task boundary with its list
        return (DataError, (self.problems,))
