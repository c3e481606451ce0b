"""What tests of stores share: a server of a folder, no pauses between tries, and nothing that an earlier test knew."""

import logging
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from hubs import answer_as_hub
from range_servers import RangeServer, serving
from store_sessions import close_file_systems

from lora_inspect.caching import Remembered
from lora_inspect.stores import address, http, requests
from lora_inspect.stores import hub as hub_of_stores
from lora_inspect.stores.client import file_system, forget_file_systems


class Bucket:
    """A bucket by its name, and how things come into it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def url(self, key: str = "") -> str:
        return f"s3://{self.name}/{key}".rstrip("/")

    def put(self, key: str, content: bytes) -> str:
        file_system("s3://").call_s3("put_object", Bucket=self.name, Key=key, Body=content)
        return self.url(key)

    def put_folder(self, folder: Path, key: str) -> str:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{key}/{path.relative_to(folder).as_posix()}".lstrip("/"), path.read_bytes())
        return self.url(key)


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_of_files", {})
    monkeypatch.setattr(address, "_of_folders", {})
    monkeypatch.setattr(http, "_led_to", {})


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, in which nobody waits."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(requests, "asyncio", SimpleNamespace(**{**vars(requests.asyncio), "sleep": sleep}))
    return waited


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that the server serves."""
    served = tmp_path / "served"
    served.mkdir()
    return served


@pytest.fixture
def server(folder: Path) -> Iterator[RangeServer]:
    with serving(folder) as started:
        yield started
    close_file_systems()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A store that speaks the language of S3, in this process."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    started = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    yield f"http://{host}:{port}"
    started.stop()


@pytest.fixture
def s3_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """`s3_settings(endpoint)`: what the environment says of a store, and nothing that this machine knows."""

    def use(endpoint: str) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "hidden-key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        forget_file_systems()

    return use


_buckets = count(1)


@pytest.fixture
def bucket(s3_server: str, s3_settings: Callable[[str], None]) -> Iterator[Bucket]:
    """A new bucket."""
    s3_settings(s3_server)
    name = f"bucket-{next(_buckets)}"
    file_system("s3://").call_s3("create_bucket", Bucket=name)
    yield Bucket(name)
    close_file_systems()


@pytest.fixture
def hub(server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> RangeServer:
    """The endpoint of a hub with one repository, owner/name, that has the files of the folder at one commit."""
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_hidden")
    monkeypatch.setattr(hub_of_stores, "_READ", Remembered(8))
    server.misdo = lambda handler, asked: answer_as_hub(server, handler, asked)
    return server
