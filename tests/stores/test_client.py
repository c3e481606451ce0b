"""How the file systems of stores are opened, and what is said where a library is missing."""

import sys

import fsspec
import pytest

from lora_inspect.errors import LoraInspectError
from lora_inspect.stores.client import file_system, forget_file_systems
from lora_inspect.stores.patience import timing_out


@pytest.fixture(autouse=True)
def none_is_open():
    forget_file_systems()
    yield
    forget_file_systems()


@pytest.mark.parametrize(("address", "protocol"), [("https://h/a", "https"), ("s3://b/k", "s3"), ("hf://o/r/a", "hf")])
def test_each_scheme_has_its_file_system(address, protocol):
    opened = file_system(address)
    assert protocol in opened.protocol
    assert file_system(address) is opened


@pytest.mark.parametrize(("seconds", "silence"), [(10, 15), (60, 15), (400, 100)])
def test_a_longer_timeout_gives_each_try_of_s3fs_longer(seconds, silence):
    with timing_out(seconds):
        assert file_system("s3://b/k").config_kwargs["read_timeout"] == silence


def test_the_read_timeout_of_fsspecs_configuration_counts(monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 7, "max_pool_connections": 3}})
    assert file_system("s3://b/k").config_kwargs == {"read_timeout": 7, "max_pool_connections": 3}


@pytest.mark.parametrize(
    ("address", "missing"), [("https://h/a?t=SECRET", "aiohttp"), ("s3://b/k", "s3fs"), ("hf://o/r/a", "fsspec")]
)
def test_a_missing_library_is_a_sentence_with_the_command(address, missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(LoraInspectError, match=missing) as refused:
        file_system(address)
    assert str(refused.value).endswith("run `pip install 'lora-inspect[remote]'`.")
    assert "SECRET" not in str(refused.value)
