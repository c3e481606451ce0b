"""The file systems of fsspec by which stores are asked, each with the settings that the store's own programs read.

Credentials come from there alone: AWS_* and ~/.aws for s3, HF_TOKEN and `hf auth login` for hf, and what fsspec itself
is told in its configuration.
"""

import os
from collections.abc import Mapping
from typing import Any

from lora_inspect.errors import LoraInspectError
from lora_inspect.stores.address import HF, HTTP, HTTPS, S3, named, scheme_of

_NEEDS = {
    HTTPS: ("fsspec", "aiohttp"),
    HTTP: ("fsspec", "aiohttp"),
    S3: ("fsspec", "s3fs"),
    HF: ("fsspec", "aiohttp", "huggingface_hub"),
}
INSTALL = "pip install 'lora-inspect[remote]'"
# By scheme and process: a copy of a process has no thread that answers.
_opened: dict[tuple[str, int], Any] = {}


def file_system(address: str) -> Any:
    """The file system of an address's scheme, opened once; it remembers no listings.

    Raises LoraInspectError where a library that it needs is missing, with the command that brings it.
    """
    key = scheme_of(address), os.getpid()
    if key not in _opened:
        _opened[key] = _open(address)
    return _opened[key]


def forget_file_systems() -> None:
    """Opens each anew when it is asked for, as where the settings of a store have changed."""
    _opened.clear()


def _open(address: str) -> Any:
    scheme = scheme_of(address)
    try:
        for library in _NEEDS[scheme]:
            __import__(library)
    except ImportError as missing:
        raise LoraInspectError(
            f"{named(address)}: {scheme}:// is read with {' and '.join(_NEEDS[scheme])}, of which one cannot be "
            f"loaded ({missing}); run `{INSTALL}`."
        ) from None
    import fsspec

    options = {"client_kwargs": _client_settings(fsspec.config.conf)} if scheme in (HTTPS, HTTP) else {}
    return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **options)


def _client_settings(configured: Mapping[str, Any]) -> dict[str, Any]:
    """What the client of web servers is told: to heed proxies and logins of the machine, and then what fsspec is."""
    told = {"trust_env": True}
    for scheme in (HTTP, HTTPS):
        told |= configured.get(scheme, {}).get("client_kwargs", {})
    return told
