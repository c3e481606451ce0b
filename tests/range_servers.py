"""A web server with ranges on this machine, which counts what it is asked and does wrong what it is told to."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Asked:
    """One request: its path with the query, the range, its headers, and how many bytes of a file were sent for it."""

    path: str
    start: int
    stop: int
    headers: dict[str, str]
    sent: int = 0


@dataclass
class RangeServer:
    """Serves the files of a folder. `misdo` is asked before each answer and may give another one, or None for none.

    It is called with the handler and the request, and answers True where it has answered itself.
    """

    folder: Path
    address: str = ""
    asked: list[Asked] = field(default_factory=list)
    misdo: Callable[["Handler", Asked], bool] | None = None
    etags: bool = True
    spelled: Callable[[str], str] = '"{}"'.format
    lock: Any = field(default_factory=threading.Lock)
    at_once: int = 0
    most_at_once: int = 0

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"

    @property
    def bytes(self) -> int:
        return sum(one.sent for one in self.asked)


def etag_of(file: Path) -> str:
    """What the server's ETag of a file has between its quotes."""
    status = file.stat()
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        served: RangeServer = self.server.served
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(found[1]), int(found[2])) if found else (0, -1)
        asked = Asked(self.path, first, last + 1, dict(self.headers))
        with served.lock:
            served.asked.append(asked)
            served.at_once += 1
            served.most_at_once = max(served.most_at_once, served.at_once)
        try:
            if not (served.misdo and served.misdo(self, asked)):
                self.serve(asked)
        finally:
            with served.lock:
                served.at_once -= 1

    def serve(self, asked: Asked, truncated: int | None = None, shifted: int = 0) -> None:
        """Sends the range as it should be, or ends after `truncated` bytes, or says that it is another one."""
        file = self.server.served.folder / self.path.partition("?")[0].lstrip("/")
        if not file.is_file():
            self.answer(404)
            return
        size = file.stat().st_size
        stop = min(asked.stop, size)
        if self.command == "HEAD":
            self.answer(200, {"Content-Length": str(size), **self.identity(file)})
            return
        if asked.start >= size:
            self.answer(416, {"Content-Range": f"bytes */{size}", **self.identity(file)})
            return
        with file.open("rb") as opened:
            opened.seek(asked.start)
            data = opened.read(stop - asked.start)
        said = f"bytes {asked.start + shifted}-{stop - 1 + shifted}/{size}"
        self.send_response(206)
        for name, value in {"Content-Range": said, "Content-Length": str(len(data)), **self.identity(file)}.items():
            self.send_header(name, value)
        self.end_headers()
        data = data[:truncated]
        asked.sent = len(data)
        self.wfile.write(data)
        if truncated is not None:
            self.close_connection = True

    def identity(self, file: Path) -> dict[str, str]:
        status = file.stat()
        modified = self.date_time_string(int(status.st_mtime))
        tag = {"ETag": self.server.served.spelled(etag_of(file))} if self.server.served.etags else {}
        return {"Last-Modified": modified, **tag}

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        """Sends any answer."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def begin(self, asked: Asked) -> None:
        """Sends all of an answer but its bytes, which a test sends by `send`."""
        file = self.server.served.folder / asked.path.partition("?")[0].lstrip("/")
        size = file.stat().st_size
        stop = min(asked.stop, size)
        self.send_response(206)
        said = f"bytes {asked.start}-{stop - 1}/{size}"
        told = {"Content-Range": said, "Content-Length": str(stop - asked.start), **self.identity(file)}
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, data: bytes) -> None:
        """Sends bytes at once."""
        self.wfile.write(data)
        self.wfile.flush()

    def reset(self) -> None:
        """Ends the connection without an answer."""
        import socket
        import struct

        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.wfile = _Nowhere()
        self.connection.close()


class _Nowhere:
    """What a closed connection is written to."""

    closed = False

    def write(self, data: bytes) -> int:
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """What leaves early is no error of the server."""


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    """The server of a folder, as long as the block lasts."""
    served = RangeServer(folder)
    server = _Server(("127.0.0.1", 0), Handler)
    server.served = served  # type: ignore[attr-defined]
    served.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
