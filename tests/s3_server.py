"""moto's S3 server in this process, which counts what it is asked and has trouble where a test wants it."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

KEY, SECRET = "AKIAOFATEST", "asecretthatnobodymaysee"
SETTINGS = {
    "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}  # fmt: skip
# What a server answers: the code of S3, by the status.
CODES = {500: "InternalError", 503: "SlowDown", 403: "AccessDenied", 507: "QuotaExceeded"}
RESET, LOST = "reset", "lost"
Trouble = Callable[["Asked"], "int | str | None"]


class Asked:
    """A request: what it does with which object."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self.method, self.path, self.query = environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"]
        self.copies = "HTTP_X_AMZ_COPY_SOURCE" in environ
        self.copied_if = environ.get("HTTP_X_AMZ_COPY_SOURCE_IF_MATCH", "")

    @property
    def verb(self) -> str:
        """What S3 calls it, as far as tests need."""
        fields = {field.partition("=")[0] for field in self.query.split("&")}
        if self.method == "PUT":
            return ("copy part" if self.copies else "part") if "partNumber" in fields else "put"
        if self.method == "POST":
            return "create" if "uploads" in fields else "complete"
        if self.method == "DELETE":
            return "abort" if "uploadId" in fields else "delete"
        if self.method == "HEAD":
            return "head"
        asked_for = {"uploads": "uploads", "uploadId": "parts", "list-type": "list"}
        return next((verb for field, verb in asked_for.items() if field in fields), "get")


class Quiet(WSGIRequestHandler):
    """Says nothing of what it is asked."""

    protocol_version = "HTTP/1.1"

    def log(self, *_: Any) -> None:
        """Nothing."""


class S3Server:
    """The server with one bucket. `trouble` is asked before each request: a status, RESET, LOST or None for none.

    Without `conditions` it ignores If-None-Match, as rclone's server does.
    """

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self.conditions = True
        self.asked: list[Asked] = []
        self.trouble: Trouble = lambda asked: None
        self._app = DomainDispatcherApplication(create_backend_app)
        self._at_work = 0
        self._done = threading.Condition()
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=Quiet)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def settings(self) -> dict[str, str]:
        """The environment in which the store is this server."""
        return {**SETTINGS, "AWS_ENDPOINT_URL": self.url}

    def verbs(self) -> list[str]:
        """What it was asked, in order."""
        return [asked.verb for asked in self.asked]

    def objects(self) -> dict[str, bytes]:
        """All objects with their content."""
        listed = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {one["Key"]: self.client.get_object(Bucket=self.bucket, Key=one["Key"])["Body"].read() for one in listed}

    def unfinished(self) -> list[str]:
        """The keys of uploads that have no end, once all is done that was asked for."""
        with self._done:
            assert self._done.wait_for(lambda: not self._at_work, timeout=60)
        return [one["Key"] for one in self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])]

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Any:
        with self._done:
            self._at_work += 1
        try:
            return self._answer(environ, start_response)
        finally:
            with self._done:
                self._at_work -= 1
                self._done.notify_all()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        asked = Asked(environ)
        self.asked.append(asked)
        trouble = self.trouble(asked)
        if not self.conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if trouble is None:
            return self._app(environ, start_response)
        if isinstance(trouble, int):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{trouble} Trouble", [("Content-Type", "application/xml")])
            said = f"<Error><Code>{CODES[trouble]}</Code><Message>as {KEY} asked</Message></Error>"
            return [b"" if asked.method == "HEAD" else said.encode()]
        if trouble == LOST:
            list(self._app(environ, lambda *_: None))
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError

    @contextmanager
    def running(self) -> Iterator["S3Server"]:
        """The server at work, with an empty bucket."""
        self._thread.start()
        try:
            options = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
            self.client = boto3.client("s3", endpoint_url=self.url, **options)
            self.client.create_bucket(Bucket=self.bucket)
            self.asked.clear()
            yield self
            self.client.close()
        finally:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


def listing(files: list[Path], spelled: Callable[[str], str], tag_of: Callable[[Path], str]) -> bytes:
    """What a store answers that is asked for the objects of a bucket, with their ETags as it spells them."""
    entries = "".join(
        f"<Contents><Key>{file.name}</Key><Size>{file.stat().st_size}</Size><ETag>{escape(spelled(tag_of(file)))}</ETag>"
        f"<LastModified>{datetime.fromtimestamp(int(file.stat().st_mtime), timezone.utc):%Y-%m-%dT%H:%M:%S.000Z}"
        "</LastModified></Contents>"
        for file in files
    )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()


def once(verb: str, trouble: int | str, number: int = 1) -> Trouble:
    """Trouble with the so-manieth request of a kind, and none with the others."""
    seen = 0

    def of(asked: Asked) -> int | str | None:
        nonlocal seen
        seen += asked.verb == verb
        return trouble if asked.verb == verb and seen == number else None

    return of


def always(verb: str, trouble: int | str) -> Trouble:
    """Trouble with all requests of a kind."""
    return lambda asked: trouble if asked.verb == verb else None
