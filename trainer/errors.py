"""Errors of a run that its user can cause, and the exit code of each. 1 is for what nobody foresaw."""

from __future__ import annotations


class UserError(Exception):
    """One or more lines, each value → rule → remedy; no stack trace is shown."""

    exit_code = 1

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[UserError], tuple[list[str]]]:  # crosses process boundaries with its list
        return (type(self), (self.problems,))


class ConfigError(UserError):
    """Usage or config."""

    exit_code = 2


class RunDataError(UserError):
    """Data."""

    exit_code = 3


class CheckpointError(UserError):
    """Checkpoints and run directories to resume from."""

    exit_code = 5
