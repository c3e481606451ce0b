"""Files of S3 and of stores that speak its language, read by ranges and listed with the client of s3fs.

An address may end in `?versionId=…`, and is then that version.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from lora_inspect.stores.address import VERSION, join
from lora_inspect.stores.answers import Answer, Found, Sink
from lora_inspect.stores.client import file_system
from lora_inspect.stores.store_failures import (
    Missing,
    Transient,
    missing,
    of_status,
    whole_files_only,
    without_credentials,
)

_CHUNK = 1 << 20
_PASSING = ("SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "InternalError", "ServiceUnavailable")


async def get(sink: Sink) -> None:
    """Asks once for what a sink waits for. Transient where it may come later, LoraInspectError where it will not."""
    sent = await _call(
        sink.address, "get_object", Range=f"bytes={sink.position}-{sink.stop - 1}", **object_at(sink.address)
    )
    size = sent.get("ContentRange", "").rpartition("/")[2]
    if not size.isdecimal():
        raise whole_files_only(sink.address)
    sink.begin(_answer(int(size), sent))
    try:
        body = sent["Body"]
        async with body:
            while sink.left and (data := await body.read(_CHUNK)):
                sink.put(data)
    except Exception as error:  # botocore and aiohttp have many; _meaning passes on what is not theirs
        raise _meaning(sink.address, error) from None


async def look(address: str) -> Found | None:
    """What lies there: the object, or a folder where others have its name and a slash before theirs; else None."""
    named = object_at(address)
    if named["Key"] and not named["Key"].endswith("/"):
        try:
            head = await _call(address, "head_object", **named)
        except Missing:
            pass
        else:
            return Found(address, _answer(head["ContentLength"], head))
    async for _ in _pages(address, MaxKeys=1):
        return Found(address.rstrip("/"))
    return None


async def below(address: str, deep: bool) -> list[Found]:
    """What lies in a folder, its subfolders among it, or with `deep` all objects below it."""
    found = []
    async for page in _pages(address, **({} if deep else {"Delimiter": "/"})):
        start = len(page["Prefix"])
        for one in page.get("Contents", ()):
            name = one["Key"][start:]
            if name and not name.endswith("/"):  # what consoles make for a folder that is empty
                found.append(Found(join(address, name), _answer(one["Size"], one)))
        found += [Found(join(address, one["Prefix"][start:-1])) for one in page.get("CommonPrefixes", ())]
    return found


async def _pages(address: str, **options: Any) -> AsyncIterator[Mapping[str, Any]]:
    """The pages of a listing, of which there is none without any object."""
    named = object_at(address)
    prefix = named["Key"].rstrip("/")
    asked = {"Bucket": named["Bucket"], "Prefix": prefix and f"{prefix}/", **options}
    while True:
        page = await _call(address, "list_objects_v2", **asked)
        if page.get("Contents") or page.get("CommonPrefixes"):
            yield {"Prefix": asked["Prefix"], **page}
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


async def _call(address: str, method: str, **options: Any) -> Any:
    try:
        return await file_system(address)._call_s3(method, **options)
    except Exception as error:  # botocore and aiohttp have many; _meaning passes on what is not theirs
        raise _meaning(address, error) from None


def object_at(address: str) -> dict[str, str]:
    """How a request names what lies at an address: by bucket and key, and by its version where it has one."""
    path, _, version = address.partition("://")[2].partition(VERSION)
    # Buckets may have names with slashes.
    bucket, key, _ = file_system(address).split_path(path)
    return {"Bucket": bucket, "Key": key, **({"VersionId": version} if version else {})}


def _answer(size: int, told: Mapping[str, Any]) -> Answer:
    modified: datetime | None = told.get("LastModified")
    return Answer(size, int(modified.timestamp()) * 10**9 if modified else 0, told.get("ETag", ""))


def _meaning(address: str, error: Exception) -> Exception:
    """What a failure means; s3fs has made an OSError of that of the client, which stands behind it."""
    said = error if isinstance(error, (ClientError, BotoCoreError)) else error.__cause__ or error
    if isinstance(said, NoCredentialsError):
        return without_credentials(address)
    if isinstance(said, ClientError):
        code = said.response.get("Error", {}).get("Code", "")
        status = said.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0
        if code in ("NoSuchKey", "NoSuchBucket", "NoSuchVersion"):
            return missing(address)
        if code in _PASSING:
            return Transient(f"the store says {code}")
        return of_status(address, int(code) if code.isdecimal() else status)
    if isinstance(said, (asyncio.TimeoutError, OSError, BotoCoreError)) or type(said).__module__.startswith("aiohttp"):
        return Transient("the connection broke")
    return error
