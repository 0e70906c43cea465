"""What Ray wraps around an error of ours, taken off again."""

from __future__ import annotations

from embeddings.errors import PlanError
from pipelines.errors import DataError, SchemaError
from trainer.errors import UserError

OURS = (UserError, SchemaError, DataError, PlanError)


def original_error(error: BaseException) -> BaseException:
    """The error of ours inside a RayTaskError, TrainingFailedError or chain of causes; else `error` itself.

    Where several ranks failed, one of ours wins over what its loss caused on the others.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, OURS):
            return each
        failures = getattr(each, "worker_failures", None) or {}
        inside = [*failures.values(), getattr(each, "controller_failure", None), getattr(each, "cause", None)]
        waiting += [e for e in [*inside, each.__cause__, each.__context__] if isinstance(e, BaseException)]
    return error
