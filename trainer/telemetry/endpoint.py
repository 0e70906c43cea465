"""The HTTP side of the exporter: serves a registry, and knows when somebody last read it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

STOP_SECONDS = 0.25  # how soon a wish to stop is heard

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Endpoint:
    """Listens from construction on. address: host:port as bound. Raises OSError where it cannot."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self._change = threading.Condition()
        self._newest: float | None = None  # when the newest scrape that was answered in full began
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        kind = type("Server", (ThreadingWSGIServer,), {"address_family": family})
        app: App = make_wsgi_app(registry)
        self._server: WSGIServer = make_server(host, port, self._watched(app), kind, _Silent)
        self._thread = threading.Thread(target=self._server.serve_forever, name="prometheus", daemon=True)
        self._thread.start()
        self.port: int = self._server.server_port

    @property
    def was_scraped(self) -> bool:
        """Whether anybody ever read it."""
        return self._newest is not None

    def wait_for_scrape(self, timeout: float, stop: Callable[[], bool]) -> bool:
        """Until a scrape that begins from now on is answered, `stop` says so, or the time is over: whether there was
        one."""
        since = time.monotonic()
        with self._change:
            while not (done := self._scraped_since(since)) and not stop():
                left = since + timeout - time.monotonic()
                if left <= 0:
                    break
                self._change.wait(min(left, STOP_SECONDS))
            return done

    def close(self) -> None:
        """The port is free when this returns."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _scraped_since(self, when: float) -> bool:
        return self._newest is not None and self._newest >= when

    def _watched(self, app: App) -> App:
        def watched(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            began = time.monotonic()
            return _Answer(app(environ, start_response), lambda: self._answered(began))

        return watched

    def _answered(self, began: float) -> None:
        with self._change:
            self._newest = max(began, self._newest or began)
            self._change.notify_all()


class _Answer:
    """The server calls `close` when the body is sent."""

    def __init__(self, body: Iterable[bytes], sent: Callable[[], None]) -> None:
        self._body, self.close = body, sent

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A scrape is not worth a line."""
