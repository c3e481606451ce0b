"""Files of S3 and of stores that speak its language, read by ranges with the client of s3fs.

An address may end in `?versionId=…`, and then means that version. Requests use the credentials, endpoint and retries of
s3fs's own settings. The file also lists the objects below an address, and unfinished uploads there.
"""

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from lora_inspect.errors import CouldNotWorkError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.progress import Progress, silent
from lora_inspect.stores.address import S3, VERSION, join
from lora_inspect.stores.client import Answer, Located, Sink, bare_tag, file_system
from lora_inspect.stores.patience import heard
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
    """Request the bytes of a sink once. Raises Transient where a retry may help, else LoraInspectError."""
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


async def look(address: str) -> Located | None:
    """Return the object at an address, a folder if objects begin with its name and a slash, or None."""
    named = object_at(address)
    if named["Key"] and not named["Key"].endswith("/"):
        try:
            head = await _call(address, "head_object", **named)
        except Missing:
            pass
        else:
            return Located(address, _answer(head["ContentLength"], head))
    async for _ in _pages(address, MaxKeys=1):
        return Located(address.rstrip("/"))
    return None


async def below(address: str, deep: bool) -> list[Located]:
    """List a folder: its objects and subfolders, or with `deep` all objects below it."""
    found = []
    async for page in _pages(address, **({} if deep else {"Delimiter": "/"})):
        start = len(page["Prefix"])
        for one in page.get("Contents", ()):
            name = one["Key"][start:]
            if name and not name.endswith("/"):  # what consoles make for a folder that is empty
                found.append(Located(join(address, name), _answer(one["Size"], one)))
        found += [Located(join(address, one["Prefix"][start:-1])) for one in page.get("CommonPrefixes", ())]
    return found


async def _pages(address: str, **options: Any) -> AsyncIterator[Mapping[str, Any]]:
    """Yield the pages of a listing; none if there is no object."""
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
        told = await file_system(address)._call_s3(method, **options)
        heard()
        return told
    except Exception as error:  # botocore and aiohttp have many; _meaning passes on what is not theirs
        raise _meaning(address, error) from None


def object_at(address: str) -> dict[str, str]:
    """Return the parameters of a request for an address: bucket, key and, if given, version."""
    path, _, version = address.partition("://")[2].partition(VERSION)
    # Buckets may have names with slashes.
    bucket, key, _ = file_system(address).split_path(path)
    return {"Bucket": bucket, "Key": key, **({"VersionId": version} if version else {})}


def _answer(size: int, told: Mapping[str, Any]) -> Answer:
    modified: datetime | None = told.get("LastModified")
    return Answer(size, int(modified.timestamp()) * 10**9 if modified else 0, bare_tag(told.get("ETag", "")))


def _meaning(address: str, error: Exception) -> Exception:
    """Return the error for a failure; s3fs hides the client's error behind an OSError."""
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


Reply = dict[str, Any]
_Result = TypeVar("_Result")

# How often one who waits is told how far it is, in seconds.
_EVERY = 0.1

_NO_NAME = "a bucket cannot have such a name; name another"
_ELSEWHERE = "the bucket is in another region; set AWS_DEFAULT_REGION to that region"
_UNREACHED = "lora-inspect cannot reach the store; check the network and its endpoint"
_EXPIRED = "the credentials have expired; log in again, as with `aws sso login`, or set new ones"
_UNKNOWN = "the store does not know the credentials; set others"
_WAYS_OUT = {
    "NoSuchBucket": "there is no such bucket; make it first, or name another",
    "InvalidBucketName": _NO_NAME,
    "ParamValidationError": _NO_NAME,
    "PermanentRedirect": _ELSEWHERE,
    "AuthorizationHeaderMalformed": _ELSEWHERE,
    "NoCredentialsError": "there are no credentials for it; set those of the store, as in AWS_PROFILE",
    "PartialCredentialsError": "the credentials are not complete; set those of the store, as in AWS_PROFILE",
    "ProfileNotFound": "the profile in AWS_PROFILE does not exist; name one of ~/.aws/config",
    "ExpiredToken": _EXPIRED,
    "UnauthorizedSSOTokenError": _EXPIRED,
    "SSOTokenLoadError": _EXPIRED,
    "TokenRetrievalError": _EXPIRED,
    "InvalidAccessKeyId": _UNKNOWN,
    "SignatureDoesNotMatch": _UNKNOWN,
    "RequestTimeTooSkewed": "the clock of this machine differs from that of the store; set it",
    "EndpointConnectionError": _UNREACHED,
    "ConnectTimeoutError": _UNREACHED,
    "QuotaExceeded": "the store has no more room; free some",
}
# What a store says where there is no object of a name.
NO_OBJECT = ("404", "NoSuchKey", "NotFound")
_DENIED = ("AccessDenied", "403", "Forbidden", "AllAccessDisabled")


class StoreRefused(CouldNotWorkError):
    """A refusal by the store. `answer` is the store's code, or the name of the failure."""

    def __init__(self, address: str, code: str, doing: str) -> None:
        self.answer = code
        if code in _DENIED:
            said = f"the store does not allow to {doing} ({code}); check the credentials and their rights"
        else:
            said = _WAYS_OUT.get(code) or f"the store failed to {doing} ({code}); run the command again"
        problem, _, fix = said.rpartition("; ")
        super().__init__(address, problem, fix)


class S3Store:
    """A connection to the S3 store that the settings name; raises LoraInspectError where a library is missing."""

    def __init__(self, address: str) -> None:
        self._store = file_system(address)

    async def ask(self, method: str, address: str, doing: str, **arguments: Any) -> Reply:
        """Send a request for the object or the prefix of an address; `doing` names the purpose.

        Raises StoreRefused where a retry cannot help.
        """
        try:
            return dict(await self._store._call_s3(method, **object_at(address), **arguments))
        except Exception as error:
            # What the libraries say may hold the key that the request was signed with.
            raise StoreRefused(address, _code_of(error), doing) from None

    def wait(
        self, work: Coroutine[Any, Any, _Result], done: Callable[[], int] = lambda: 0, progress: Progress = silent
    ) -> _Result:
        """The result of the work, which is cancelled and over where an exception comes to the one who waits.

        `progress` is told of the growth of `done()`.
        """
        stop = asyncio.Event()
        loop = self._store.loop
        future = asyncio.run_coroutine_threadsafe(_until(stop, work), loop)
        told = 0
        try:
            while not concurrent.futures.wait([future], _EVERY).done:
                told, before = done(), told
                progress(told - before)
        except BaseException:  # an interrupt as well: no request outlives the wait for it
            loop.call_soon_threadsafe(stop.set)
            concurrent.futures.wait([future])
            raise
        result = future.result()
        progress(done() - told)
        return result


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of the work, which is cancelled once it is to stop."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        task.cancel()
        await asyncio.wait({task})
    return task.result()


def _code_of(error: BaseException) -> str:
    """Return the store's code for an error, or its kind."""
    for cause in (error.__cause__, error):
        reply = getattr(cause, "response", None)
        if isinstance(reply, dict) and (code := reply.get("Error", {}).get("Code")):
            return str(code)
    return type(error).__name__


class Unfinished(NamedTuple):
    """An upload that was begun and neither completed nor aborted, and when that was."""

    address: str
    upload: str
    begun: str


def described(store: S3Store, address: str) -> Reply | None:
    """Return the store's description of an object, or None if it does not exist. Raises StoreRefused."""
    try:
        return store.wait(store.ask("head_object", address, "look at it"))
    except StoreRefused as refused:
        if refused.answer in NO_OBJECT:
            return None
        raise


def names_below(store: S3Store, folder: str) -> Iterator[str]:
    """The objects below an address by their names from there on, asked for as they are taken.

    The empty object that some programs have for a folder is none of them. Raises StoreRefused, as where
    there is no bucket.
    """
    prefix = object_at(folder)["Key"] + "/"
    position: dict[str, str] = {}
    while True:
        page = store.wait(store.ask("list_objects_v2", folder, "list what lies there", Prefix=prefix, **position))
        names = (str(entry["Key"])[len(prefix) :] for entry in page.get("Contents", ()))
        yield from filter(None, names)
        if not page.get("IsTruncated"):
            return
        position = {"ContinuationToken": page["NextContinuationToken"]}


def unfinished(store: S3Store, address: str) -> list[Unfinished]:
    """The uploads to an address and below it that were begun and not ended; raises Refused where that is hidden."""
    bucket, key = object_at(address)["Bucket"], object_at(address)["Key"]
    found: list[Unfinished] = []
    position: dict[str, str] = {}
    while True:
        page = store.wait(store.ask("list_multipart_uploads", address, "list uploads", Prefix=key, **position))
        for entry in page.get("Uploads", ()):
            if entry["Key"] == key or entry["Key"].startswith(f"{key}/"):
                there = join(f"{S3}://{bucket}", entry["Key"])
                found.append(Unfinished(there, entry["UploadId"], f"{entry.get('Initiated', '')}"))
        if not page.get("IsTruncated"):
            return found
        position = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def is_empty(store: S3Store, one: Unfinished) -> bool:
    """Return True if an upload has no part yet. Raises StoreRefused."""
    return not store.wait(store.ask("list_parts", one.address, "look at the upload", UploadId=one.upload)).get("Parts")
