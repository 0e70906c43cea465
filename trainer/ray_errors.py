"""What Ray wraps around an error of ours, taken off again."""

from __future__ import annotations

from collections.abc import Mapping

from embeddings.errors import IdMapError, PlanError
from pipelines.errors import DataError, SchemaError
from trainer.errors import LostRankError, UserError
from trainer.stalls import Report

OURS = (UserError, SchemaError, DataError, PlanError, IdMapError)


def original_error(error: BaseException) -> BaseException:
    """The error of ours inside a RayTaskError, TrainingFailedError or chain of causes; else `error` itself.

    Where several ranks failed, one of ours wins over what its loss caused on the others.
    """
    seen: set[int] = set()
    waiting = [error]
    lost: BaseException | None = None
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, LostRankError):  # what the end of another rank looks like
            lost = lost or each
        elif isinstance(each, OURS):
            return each
        failures = getattr(each, "worker_failures", None) or {}
        inside = [*failures.values(), getattr(each, "controller_failure", None), getattr(each, "cause", None)]
        waiting += [e for e in [*inside, each.__cause__, each.__context__] if isinstance(e, BaseException)]
    return lost or error


def raised_by_a_rank(error: BaseException) -> BaseException | None:
    """The first rank's own error, of those that nobody foresaw. Its traceback is in the words of `error`."""
    failures = getattr(error, "worker_failures", None) or {}
    raised = (failure for _, failure in sorted(failures.items()) if not type(failure).__module__.startswith("ray."))
    return next(raised, None)


def is_preemption(error: BaseException) -> bool:
    """Whether the cluster took a host back: what a rank died of, or what Ray waited for."""
    caused = error.__cause__ or error
    failures = (getattr(caused, "worker_failures", None) or {}).values()
    dead = (getattr(failure, "health_check_failure", failure) for failure in failures)
    return hasattr(caused, "preemption_info") or any(getattr(each, "preempted", False) for each in dead)


def lost_workers(error: BaseException, reports: Mapping[int, Report]) -> LostRankError | None:
    """The one line for a training that ended because worker processes are gone, and no rank had an error of its own.

    reports: where each rank last was.
    """
    from ray.exceptions import RayActorError  # noqa: PLC0415 - Ray is there, or nobody would ask

    failures = getattr(error, "worker_failures", None) or {}
    if isinstance(original_error(error), OURS):
        return None
    gone = [rank for rank, failure in sorted(failures.items()) if _has(failure, RayActorError)]
    if not gone:
        return None
    told = (f"{_where(rank, reports)} is gone: its process ended without a word" for rank in gone)
    return LostRankError("; ".join(told))


def _where(rank: int, reports: Mapping[int, Report]) -> str:
    report = reports.get(rank)
    return f"{report.name}, last seen at step {report.step} ({report.phase})," if report else f"rank {rank}"


def _has(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether it, or what it wraps, is of a kind."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        each = waiting.pop()
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, kind):
            return True
        inside = (getattr(each, name, None) for name in ("cause", "health_check_failure", "__cause__", "__context__"))
        waiting += inside
    return False
