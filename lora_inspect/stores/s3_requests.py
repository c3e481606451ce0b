"""Requests to S3 stores, asked through s3fs with the credentials, endpoint and retries that its own settings say."""

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from lora_inspect.errors import LoraInspectError
from lora_inspect.progress import Progress, silent
from lora_inspect.stores.client import file_system
from lora_inspect.stores.s3 import object_at

Reply = dict[str, Any]
_Result = TypeVar("_Result")

# How often one who waits is told how far it is, in seconds.
_EVERY = 0.1

_NO_NAME = "no bucket can have such a name; name another"
_ELSEWHERE = "the bucket is in another region; name that in AWS_DEFAULT_REGION"
_UNREACHED = "the store cannot be reached; check the network and its endpoint"
_EXPIRED = "the credentials have expired; log in anew, as with `aws sso login`, or set new ones"
_UNKNOWN = "the store does not know the credentials; set others"
_WAYS_OUT = {
    "NoSuchBucket": "there is no such bucket; make it first, or name another",
    "InvalidBucketName": _NO_NAME,
    "ParamValidationError": _NO_NAME,
    "PermanentRedirect": _ELSEWHERE,
    "AuthorizationHeaderMalformed": _ELSEWHERE,
    "NoCredentialsError": "no credentials are set for it; set those of the store, as in AWS_PROFILE",
    "PartialCredentialsError": "the credentials are not complete; set those of the store, as in AWS_PROFILE",
    "ProfileNotFound": "there is no profile as AWS_PROFILE names it; name one of ~/.aws/config",
    "ExpiredToken": _EXPIRED,
    "UnauthorizedSSOTokenError": _EXPIRED,
    "SSOTokenLoadError": _EXPIRED,
    "TokenRetrievalError": _EXPIRED,
    "InvalidAccessKeyId": _UNKNOWN,
    "SignatureDoesNotMatch": _UNKNOWN,
    "RequestTimeTooSkewed": "the clock of this machine is not that of the store; set it",
    "EndpointConnectionError": _UNREACHED,
    "ConnectTimeoutError": _UNREACHED,
    "QuotaExceeded": "the store has no more room; free some",
}
# What a store says where there is no object of a name.
NO_OBJECT = ("404", "NoSuchKey", "NotFound")
_DENIED = ("AccessDenied", "403", "Forbidden", "AllAccessDisabled")


class Refused(LoraInspectError):
    """What a store answered instead of doing it. `code` is the store's word for it, or the name of the trouble."""

    def __init__(self, address: str, code: str, doing: str) -> None:
        self.code = code
        if code in _DENIED:
            said = f"the store does not allow to {doing} ({code}); check the credentials and their rights"
        else:
            said = _WAYS_OUT.get(code) or f"the store failed to {doing} ({code}); run the command again"
        super().__init__(f"{address}: {said}.")


class S3Store:
    """A connection to the S3 store that the settings name; raises LoraInspectError where a library is missing."""

    def __init__(self, address: str) -> None:
        self._store = file_system(address)

    async def ask(self, method: str, address: str, doing: str, **arguments: Any) -> Reply:
        """What the store replies about the object or the prefix of an address; `doing` says what for.

        Raises Refused, where it is nothing that another try mends.
        """
        try:
            return dict(await self._store._call_s3(method, **object_at(address), **arguments))
        except Exception as error:
            # What the libraries say may hold the key that the request was signed with.
            raise Refused(address, _code_of(error), doing) from None

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
    """The store's own word for an error, or what kind it is."""
    for cause in (error.__cause__, error):
        reply = getattr(cause, "response", None)
        if isinstance(reply, dict) and (code := reply.get("Error", {}).get("Code")):
            return str(code)
    return type(error).__name__
