"""The one place where errors become lines and exit codes: 2 usage, config · 3 data · 4 plan · 5 checkpoint · 1 bug."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from pipelines.secrets import without_secrets

USAGE, UNFORESEEN, INTERRUPTED = 2, 1, 130
DISK_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def guarded(command: Callable[[], Any]) -> int:
    """Run a click command (not standalone) and return the process's exit code, its errors said on stderr."""
    try:
        command()
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.ClickException as error:
        return _usage(error)
    except (KeyboardInterrupt, click.Abort):
        return _say(["interrupted: nothing half-written was left"], INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe left: `tokenformer … | head`
        sys.stderr.close()
        return 0
    except Exception as error:
        return _report(error)
    return 0


def _report(error: Exception) -> int:
    from trainer.ray_errors import original_error  # noqa: PLC0415 - only where something went wrong

    original = original_error(error)
    if isinstance(original, OSError) and original.errno in DISK_ERRORS:
        return _say([f"{original} → files are written there → make room, or choose a place we can write"], USAGE)
    code = exit_code(original)
    if code is not None:
        return _say(getattr(original, "problems", None) or str(original).splitlines(), code)
    click.echo(without_secrets("".join(traceback.format_exception(original))), err=True, nl=False)
    return _say(
        [f"this is a bug: {type(original).__name__} was not foreseen → please report it with the lines above"], 1
    )


def exit_code(error: BaseException) -> int | None:
    """The contract's code of an error that its user can mend, or None for an unforeseen one."""
    from embeddings.errors import IdMapError, PlanDoesNotFitError, PlanError  # noqa: PLC0415
    from pipelines.errors import DataError, SchemaError  # noqa: PLC0415
    from trainer.errors import UserError  # noqa: PLC0415

    if isinstance(error, UserError):
        return error.exit_code
    by_type: list[tuple[type[BaseException], int]] = [
        (SchemaError, 2),
        (DataError, 3),
        (PlanDoesNotFitError, 4),
        (PlanError, 2),
        (IdMapError, 5),
    ]
    return next((code for kind, code in by_type if isinstance(error, kind)), None)


def _usage(error: click.ClickException) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):  # no verb given: the help is the answer
        click.echo(error.format_message(), err=True)
        return USAGE
    context = getattr(error, "ctx", None)
    verb = context.command_path if context else "tokenformer"
    return _say([f"{error.format_message()} → see {verb} --help"], USAGE)


def _say(lines: list[str], code: int) -> int:
    for line in lines:
        click.echo(f"error: {harmless(line)}", err=True)
    return code


def harmless(text: str) -> str:
    """One line for a terminal: keys of URIs hidden, and what would move the cursor, in a name that a file gave,
    written out."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in without_secrets(text)
    )
