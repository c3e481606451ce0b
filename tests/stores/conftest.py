"""What tests of stores share: a server of a folder, no pauses between tries, and nothing that an earlier test knew."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from range_servers import RangeServer, serving

from lora_inspect.stores import address, http
from lora_inspect.stores.file_systems import forget_file_systems


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

    from lora_inspect.stores import requests

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
    forget_file_systems()
