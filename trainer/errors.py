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


class NonFiniteError(UserError):
    """A step was not finite, and the run file says that this ends the run. The model is saved as it was before it."""


class LostRankError(UserError):
    """A rank is gone or stands still, and with it the run. who: names it; how: what this rank saw of that."""

    def __init__(self, who: str, how: str = "") -> None:
        self.who, self.how = who, how
        super().__init__(
            f"{who}{f' ({how})' if how else ''} → all ranks take part in every step → its own last lines, and the "
            "system's log (killed for memory?), say why; `--resume auto` goes on from the newest complete checkpoint"
        )

    def __reduce__(self) -> tuple[type[LostRankError], tuple[str, str]]:  # type: ignore[override]
        return (type(self), (self.who, self.how))
