"""Which of a user's events later rows still need: what a slice hands to the next one, and a day to the days to come.

Every list of a row is made of the newest events that pass a filter, so a user's tail is, for each list, as many of the
newest that pass as it may hold. Rows made from tail + later events are those made from all events.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.batch import Int64
from pipelines.prepare_events import NEVER, Events
from pipelines.prepare_job import Job
from pipelines.prepare_rows import known_times, passes

Mask = npt.NDArray[np.bool_]


def needed_later(job: Job, events: Events, scope_E: Mask, bound: int) -> Mask:
    """[E] events of the scope, a front part of each user's, that rows of events from `bound` (microseconds) on need."""
    settings, keep_E = job.settings, np.zeros(len(scope_E), bool)
    every_E = np.ones(len(scope_E), bool)
    if job.schema.supervision == "candidates":
        keep_E |= _newest(events, every_E & scope_E, settings.min_history)
    for name, history in job.schema.histories.items():
        passes_E = passes(job, events, name) & scope_E
        if name == job.schema.supervised_history:
            keep_E |= _newest(events, passes_E, max(settings.context_events, settings.min_history))
        elif name in settings.history_filter and history.action_time:
            known_E = known_times(job, events, name)
            unknown_E = passes_E & (known_E >= bound)
            keep_E |= unknown_E & (known_E < NEVER)
            keep_E |= _newest(events, passes_E & ~unknown_E, history.max_length, known_E)
        else:
            keep_E |= _newest(events, passes_E, history.max_length)
    return keep_E


def _newest(events: Events, passes_E: Mask, count: int, by_E: Int64 | None = None) -> Mask:
    """[E] the last `count` of each user's passing events, in their order or by `by_E`."""
    event_F = np.flatnonzero(passes_E)
    user_F = events.user_start_E[event_F]
    if by_E is not None:
        order_F = np.lexsort((by_E[event_F], user_F))
        event_F, user_F = event_F[order_F], user_F[order_F]
    end_F = np.searchsorted(user_F, user_F, side="right")
    keep_E = np.zeros(len(passes_E), bool)
    keep_E[event_F[end_F - np.arange(len(event_F)) <= count]] = True
    return keep_E
