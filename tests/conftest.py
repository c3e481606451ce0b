"""What all tests share: the fixtures' folder, a writer of any header at all, and the command line in process."""

import gc
import json
import logging
import math
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Tests run in parallel, one process a core: threads on top of that only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a shell starts in the background ignores it, and so would all that tests start to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# Shifts the seeds of every generator: a bound that holds for the seeds in the tests alone is no bound.
if SEED_SHIFT := int(os.environ.get("TEST_SEED_SHIFT", "0")):
    import torch

    def shifted(seed: int) -> int:
        """Another seed, of those below 2^64 that a generator takes."""
        return (seed + SEED_SHIFT) % 2**64

    class ShiftedGenerator(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(shifted(seed))

    unshifted = torch.manual_seed
    torch.Generator = ShiftedGenerator
    torch.manual_seed = lambda seed: unshifted(shifted(seed))

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "fixtures"
# tests/strategies.py and fixtures/make_synthetic.py are imported by name.
sys.path += [str(ROOT / "tests"), str(FIXTURES)]


def unawaited(descriptor: int) -> None:
    """Stands in for `os.fsync`: no test pulls the plug, and waiting for the disk would take a fifth of their time."""
    os.fstat(descriptor)


os.fsync = unawaited

# Products whose last bits show the number of rows, for all tests of the run.
if os.environ.get("PRODUCTS") == "rows":
    from row_dependent_products import RowDependentProducts, rest_apart

    PRODUCTS = RowDependentProducts(rest_apart)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what CI leaves out before pytest selects by marks."""
    from grids import mark_exhaustive

    mark_exhaustive(items)


def pytest_collection_finish() -> None:
    """Has the collector of garbage leave out what stays for the whole run: to look through it again took a tenth."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 20)


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        assert self.status == 0, self.stderr
        return json.loads(self.stdout)

    @property
    def refusal(self) -> str:
        """The one sentence with which the command refused."""
        assert self.status == 1, self
        return self._sentence()

    @property
    def failure(self) -> str:
        """The one sentence of a command that could not work."""
        assert self.status == 3, self
        return self._sentence()

    def _sentence(self) -> str:
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        assert lines[0].startswith("Error: "), self.stderr
        assert lines[0].endswith("."), self.stderr
        assert "Traceback" not in self.stdout + self.stderr
        return lines[0].removeprefix("Error: ")


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return FIXTURES


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`run("info", path, …)`: the command line in this process, without ever letting an exception out."""
    from lora_inspect.cli import main

    def run_command(*arguments: str | os.PathLike[str]) -> Outcome:
        endings = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))]
        before = {number: signal.getsignal(number) for number in endings}
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                main([os.fspath(argument) for argument in arguments])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        printed = capsys.readouterr()
        status = ended.value.code
        return Outcome(status if isinstance(status, int) else int(status is not None), printed.out, printed.err)

    return run_command


class CaughtLogs(logging.Handler):
    """Keeps the records that reach the root: the part of pytest's fixture of that name that is used here."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.message = record.getMessage()
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.message for record in self.records]

    @property
    def text(self) -> str:
        return "\n".join(f"{record.levelname} {record.message}" for record in self.records)

    def clear(self) -> None:
        self.records.clear()

    def set_level(self, level: int | str) -> None:
        """Until the test ends."""
        logging.root.setLevel(level)

    @contextmanager
    def at_level(self, level: int | str) -> Iterator[None]:
        before = logging.root.level
        logging.root.setLevel(level)
        try:
            yield
        finally:
            logging.root.setLevel(before)


@pytest.fixture
def caplog() -> Iterator[CaughtLogs]:
    """Logs of this test. pytest's own plugin, which pyproject.toml leaves out, has a handler added to each of the
    ninety loggers of torch six times a test, which took a tenth of the run.
    """
    caught, before = CaughtLogs(), logging.root.level
    logging.root.addHandler(caught)
    try:
        yield caught
    finally:
        logging.root.removeHandler(caught)
        logging.root.setLevel(before)


@pytest.fixture
def run_process(tmp_path: Path) -> Callable[..., Outcome]:
    """`run_process("-m", "lora_inspect", …)`: a Python of its own that knows this checkout, in `tmp_path`."""

    def run_python(*arguments: str | os.PathLike[str], **environment: str) -> Outcome:
        ended = subprocess.run(
            [sys.executable, *map(os.fspath, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )
        return Outcome(ended.returncode, ended.stdout, ended.stderr)

    return run_python


@pytest.fixture
def write_safetensors(tmp_path: Path) -> Callable[..., Path]:
    """`write_safetensors(tensors, metadata)` writes a file in `tmp_path`; `header` replaces what stands in its header.

    A tensor is (dtype, shape, bytes), or (dtype, shape, number): as many of that number as the shape holds.
    """
    from make_synthetic import element, encode

    def content_of(dtype: str, shape: tuple[int, ...], data: Any) -> bytes:
        return data if isinstance(data, bytes) else element(dtype, data) * math.prod(shape)

    def write(
        tensors: Mapping[str, tuple[str, tuple[int, ...], Any]],
        metadata: Mapping[str, Any] | None = None,
        name: str = "file.safetensors",
        header: bytes | None = None,
    ) -> Path:
        stored = {key: (dtype, shape, content_of(dtype, shape, data)) for key, (dtype, shape, data) in tensors.items()}
        content = encode(stored, metadata)
        if header is not None:
            body = b"".join(data for _, _, data in stored.values())
            content = struct.pack("<Q", len(header)) + header + body
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def read(write_safetensors: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """`read(tensors, metadata, config, **settings)`: the adapter of such a file, with a config beside it if given.

    Without tensors it is that of a folder with the config alone.
    """
    from lora_inspect.files.checkpoint import open_checkpoint
    from lora_inspect.reading.adapter import read_adapter
    from lora_inspect.reading.model.settings import Settings

    def read_tensors(
        tensors: Any = None, metadata: Any = None, config: Any = None, name: str = "file.safetensors", **settings: Any
    ) -> Any:
        path = tmp_path if tensors is None else write_safetensors(tensors, metadata, name)
        if config is not None:
            (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        return read_adapter(open_checkpoint(str(path)), Settings(**settings))

    return read_tensors
