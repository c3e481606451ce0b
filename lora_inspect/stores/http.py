"""Files of web servers, read by ranges: one request, its redirects, and the version of the file.

The session is that of fsspec, with its settings, the proxies of the environment and the logins of ~/.netrc.
"""

import asyncio
import re
import ssl
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
import yarl

from lora_inspect.errors import LoraInspectError
from lora_inspect.stores.address import HTTP, HTTPS, scheme_of, whole
from lora_inspect.stores.client import Answer, Sink, bare_tag, file_system
from lora_inspect.stores.patience import heard, timeout
from lora_inspect.stores.store_failures import (
    Silent,
    Transient,
    leads_nowhere,
    less_safe,
    of_status,
    refused,
    sent_a_page,
    unknown_host,
    untrusted,
    whole_files_only,
)

_CHUNK = 1 << 20
_REDIRECTS, _MOST_REDIRECTS = (301, 302, 303, 307, 308), 10
# Whoever asks ends what takes too long.
_TIMEOUT = aiohttp.ClientTimeout(total=None)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_PAGE = "text/html"
_EMPTY = re.compile(r"bytes \*/(\d+)")
# Addresses as those who sign them write them: to spell one otherwise would break what is signed.
_PLAIN = re.compile(r"[!-~]+")
# Where servers have led for what is asked of them, so that each next range is one request and not two.
_led_to: dict[str, str] = {}

Identify = Callable[[int, Mapping[str, str]], Answer]


class _Moved(Exception):
    """The address that a server led to before does not serve any more."""


async def get(sink: Sink) -> None:
    """Request the bytes of a sink once. Raises Transient where a retry may help, else LoraInspectError."""
    await get_from(sink, whole(sink.address), {}, _as_headers_say)


async def get_from(sink: Sink, url: str, headers: Mapping[str, str], identify: Identify) -> None:
    """The same of any `url`, which is sent `headers` that no other server is; `identify` says which file it is."""
    try:
        if url in _led_to:
            try:
                return await _ask(sink, _led_to[url], {}, identify, is_led=True)
            except _Moved:
                _led_to.pop(url, None)
        await _ask(sink, url, headers, identify)
    except LoraInspectError:
        raise
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        raise _meaning(sink.address, error) from None
    except ValueError:
        raise refused(sink.address, 400) from None


async def _ask(sink: Sink, url: str, headers: Mapping[str, str], identify: Identify, is_led: bool = False) -> None:
    session = await file_system(f"{HTTPS}://").set_session()
    first, sent = url, {"Accept-Encoding": "identity", "Range": f"bytes={sink.position}-{sink.stop - 1}", **headers}
    for _ in range(_MOST_REDIRECTS):
        async with session.get(_unchanged_url(url), headers=sent, allow_redirects=False, timeout=_TIMEOUT) as response:
            heard()
            if response.status not in _REDIRECTS:
                if is_led and response.status in (400, 401, 403, 404, 410):
                    raise _Moved
                sink.begin(_answer(sink, response, identify))
                if url != first:
                    _led_to[first] = url
                async for data in response.content.iter_chunked(_CHUNK):
                    sink.put(data)
                    if not sink.left:
                        return
                return
            target = urljoin(url, response.headers.get("Location", ""))
        if url.startswith(f"{HTTPS}:") and not target.startswith(f"{HTTPS}:"):
            raise less_safe(sink.address)
        if scheme_of(target) not in (HTTPS, HTTP):
            raise leads_nowhere(sink.address)
        if _origin(target) != _origin(url):
            sent = {name: value for name, value in sent.items() if name not in headers}
        url = target
    raise leads_nowhere(sink.address)


def _answer(sink: Sink, response: aiohttp.ClientResponse, identify: Identify) -> Answer:
    """Return the version of the file whose requested bytes the server sends; raise every other answer."""
    status, headers = response.status, response.headers
    if status in (200, 206) and response.content_type == _PAGE:
        raise sent_a_page(sink.address)
    if status == 206:
        sent = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if sent is None or headers.get("Content-Encoding", "identity") != "identity":
            raise whole_files_only(sink.address)
        start, stop, size = map(int, sent.groups())
        if start != sink.position or stop >= size:
            raise Transient("the server sent the wrong bytes")
        return identify(size, headers)
    if status == 200:
        # A small file comes whole from any server.
        length = response.content_length
        if length is None or sink.position or length > sink.stop or "Content-Encoding" in headers:
            raise whole_files_only(sink.address)
        return identify(length, headers)
    empty = _EMPTY.fullmatch(headers.get("Content-Range", "")) if status == 416 else None
    if empty:
        return identify(int(empty[1]), headers)
    raise of_status(sink.address, status, _seconds_to_wait(headers))


def _as_headers_say(size: int, headers: Mapping[str, str]) -> Answer:
    try:
        modified = parsedate_to_datetime(headers.get("Last-Modified", "")).timestamp()
    except (ValueError, TypeError, OverflowError):
        modified = 0
    return Answer(size, int(modified) * 10**9, bare_tag(headers.get("ETag", "")))


def _seconds_to_wait(headers: Mapping[str, str]) -> float | None:
    """The seconds of Retry-After, which are a number or a date."""
    said = headers.get("Retry-After", "").strip()
    if said.isdecimal() and said.isascii():
        return int(said[:300])  # Python reads no number of any length
    try:
        return max(parsedate_to_datetime(said).timestamp() - time.time(), 0)
    except (ValueError, TypeError, OverflowError):
        return None


def _meaning(address: str, error: Exception) -> Exception:
    """Return the error for a failed connection, without the library's words about the request."""
    inner: Any = getattr(error, "os_error", None) or error
    if isinstance(error, aiohttp.InvalidURL):
        return refused(address, 400)
    if isinstance(error, aiohttp.ClientSSLError) or isinstance(inner, ssl.SSLError):
        return untrusted(address)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return unknown_host(address, error.host)
    if isinstance(error, asyncio.TimeoutError):
        return Silent(timeout())
    if isinstance(error, aiohttp.ClientConnectorError):
        return Transient("there is no connection to the server")
    return Transient("the connection broke")


def _unchanged_url(url: str) -> yarl.URL:
    return yarl.URL(url, encoded=_PLAIN.fullmatch(url) is not None)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2]
