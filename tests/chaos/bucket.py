"""An object store that can be made to fail: a real S3 server (moto), and before it a proxy that answers in its place,
keeps requests waiting, or hangs up."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pipelines.storage import resolve
from tests.pipelines.s3_server import OPTIONS, Proxy, s3_server

_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) \S+ HTTP")
_ANSWER = "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
_BODY = "<Error><Code>{code}</Code><Message>chaos</Message></Error>"
ANSWERS = {"500": ("500 Internal Server Error", "InternalError"), "503": ("503 Slow Down", "SlowDown")}


@dataclass
class Trouble:
    """What the next requests meet. left: so many of them. how: "500", "503", "hang up", or seconds to wait."""

    left: int = 0
    how: str | float = "503"


class FailingProxy(Proxy):
    """Proxy whose `trouble` is met by requests of every kind."""

    def __init__(self, address: str) -> None:
        self.trouble = Trouble()
        self._taking = threading.Lock()
        super().__init__(address)

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server, suppress(OSError):
            back = threading.Thread(target=self._back, args=(server, client), daemon=True)
            back.start()
            while content := client.recv(65536):
                if _REQUEST.match(content) and (how := self._take()) is not None:
                    if not isinstance(how, float):
                        self._refuse(client, how)
                        return
                    time.sleep(how)
                server.sendall(content)

    def _take(self) -> str | float | None:
        with self._taking:
            if self.trouble.left <= 0:
                return None
            self.trouble.left -= 1
            return self.trouble.how

    def _refuse(self, client: socket.socket, how: str) -> None:
        if how not in ANSWERS:
            return
        status, code = ANSWERS[how]
        body = _BODY.format(code=code)
        client.sendall((_ANSWER.format(status=status, size=len(body)) + body).encode())
        client.shutdown(socket.SHUT_WR)
        client.settimeout(1)
        while client.recv(65536):  # the rest of what it sends: closing on it would take the answer back
            pass

    @staticmethod
    def _back(server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while content := server.recv(65536):
                client.sendall(content)
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)


class Bucket:
    """Of all sequences. proxy: between every run and the server; what asks how it went goes past it."""

    def __init__(self, address: str, proxy: FailingProxy) -> None:
        self.proxy, self._address = proxy, address
        store, inner = resolve(self.uri("", past_proxy=True))
        store.create_dir(inner.rstrip("/"))

    def uri(self, name: str, past_proxy: bool = False) -> str:
        """Of a folder in it."""
        address = self._address if past_proxy else self.proxy.address
        return f"s3://any:secret@chaos/{name}?endpoint_override={address}&{OPTIONS}"


@contextmanager
def bucket() -> Iterator[Bucket]:
    """In a server of its own."""
    with s3_server() as address:
        proxy = FailingProxy(address)
        try:
            yield Bucket(address, proxy)
        finally:
            proxy.close()
