"""Transient errors of a store are waited out and counted; all others are said at once.

The stores' own clients retry first (the S3 client: three attempts); what is seen and counted here is what they gave up
on.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tenacity import RetryCallState

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

READ_RETRIES = 5
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 20.0

# A network file system says EIO or ESTALE while its server is away; a broken disk also says EIO, and then the tries
# cost some seconds before the error is said.
_ERRNOS = frozenset(
    {
        errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.EPIPE, errno.ECONNRESET,
        errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.EHOSTUNREACH,
    }
)  # fmt: skip
# How Arrow's S3 and GCS clients name what passes. Only their own lines are looked at: a broken Parquet page is an
# OSError too, without any of these words.
_CLIENTS = ("AWS Error", "google::cloud::Status", "HTTP status")
_WORDS = (
    "NETWORK_CONNECTION", "REQUEST_TIMEOUT", "SLOW_DOWN", "THROTTLING", "INTERNAL_FAILURE", "SERVICE_UNAVAILABLE",
    "CLIENT_SIGNING_FAILURE", "status 408", "status 429", "status 500", "status 502", "status 503", "status 504",
    "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL:", "curlCode",
)  # fmt: skip


def is_transient(error: BaseException) -> bool:
    """Whether asking again may help: timeouts, connections refused or lost, throttling and 5xx of a store, EIO and
    ESTALE.

    Never: a file that is not there, access denied, a file that is no Parquet, a page that cannot be decoded.
    """
    if isinstance(error, (FileNotFoundError, PermissionError)) or not isinstance(error, OSError):
        return False
    if isinstance(error, (ConnectionError, TimeoutError)) or error.errno in _ERRNOS:
        return True
    text = str(error)
    return any(client in text for client in _CLIENTS) and any(word in text for word in _WORDS)


class RetryCount:
    """How often something was asked again. count: so far; may be read at any time."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        """One more."""
        with self._lock:
            self.count += 1


OUTSIDE_WINDOWS = RetryCount()
"""Of this process: listings and footers, all that no `counting_retries` was open for."""

_OF_THREAD = threading.local()


@contextmanager
def counting_retries() -> Iterator[RetryCount]:
    """Counts the retries of this thread while it is open. Not nested."""
    counter = _OF_THREAD.counter = RetryCount()
    try:
        yield counter
    finally:
        del _OF_THREAD.counter


def retrying(call: Callable[[], Answer], what: str, retries: int) -> Answer:
    """The call's answer; after a transient error it is made again, at most `retries` times, each after a random wait
    below a bound that doubles. what: named in the log. Raises the call's last error."""
    try:
        return call()
    except OSError as error:
        if not retries or not is_transient(error):
            raise
        failed = [error]
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential  # noqa: PLC0415

    def attempt() -> Answer:
        if failed:  # the call above was the first
            raise failed.pop()
        return call()

    return Retrying(
        retry=retry_if_exception(is_transient),
        wait=wait_random_exponential(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS),
        stop=stop_after_attempt(retries + 1),
        before_sleep=lambda state: _note(state, what, retries),
        reraise=True,
    )(attempt)


def _note(state: RetryCallState, what: str, retries: int) -> None:
    getattr(_OF_THREAD, "counter", OUTSIDE_WINDOWS).add()
    error = state.outcome.exception() if state.outcome else None
    why = next(iter(str(error).splitlines()), "") or repr(error)
    log.warning("reading %s failed: %s; retry %d of at most %d", what, why, state.attempt_number, retries)
