"""An S3 server of its own process (moto), and a proxy before it that counts requests and can drop them."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pyarrow as pa
from pyarrow import fs

OPTIONS = "scheme=http&region=us-east-1&allow_bucket_creation=true"


@contextmanager
def s3_server() -> Iterator[str]:
    """Yields host:port. Credentials are any; the environment must have some."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5):
                break
            assert time.monotonic() < deadline
            assert server.poll() is None
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def upload(folder: Path, bucket: str, address: str) -> str:
    """All files below the folder; returns the URI of the bucket's root, options and all."""
    store, _ = fs.FileSystem.from_uri(f"s3://{bucket}/x?endpoint_override={address}&{OPTIONS}")
    store.create_dir(bucket)
    fs.copy_files(str(folder), bucket, source_filesystem=fs.LocalFileSystem(), destination_filesystem=store)
    return f"s3://{bucket}?endpoint_override={address}&{OPTIONS}"


class Proxy:
    """TCP to `address`. requests: lines such as "GET /bucket/key". drop: so many of the next GETs of a key end in a
    closed connection, each before a byte of the answer."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[str] = []
        self.drop = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server, suppress(OSError):
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            while content := client.recv(65536):
                if self._note(content):
                    return
                server.sendall(content)

    def _note(self, content: bytes) -> bool:
        """Whether the connection ends here."""
        match = re.match(rb"(GET|HEAD|PUT|POST) (\S+) HTTP", content)
        if match is None:
            return False
        line = f"{match[1].decode()} {match[2].decode()}"
        with self._lock:
            self.requests.append(line)
            if self.drop and line.startswith("GET") and ".parquet" in line:
                self.drop -= 1
                return True
        return False


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while content := source.recv(65536):
            target.sendall(content)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def write_object(uri: str, content: bytes) -> None:
    """One object at a URI."""
    from pipelines.storage import resolve

    store, inner = resolve(uri)
    with store.open_output_stream(inner) as out:
        out.write(pa.py_buffer(content))
