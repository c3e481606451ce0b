"""One object on its way into an S3 store, in parts that nobody sees until the upload is completed."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from lora_inspect.errors import LoraInspectError, WouldOverwriteError, changed
from lora_inspect.progress import Progress, silent
from lora_inspect.stores import client
from lora_inspect.stores.client import Borrowed, part_size
from lora_inspect.stores.requests import read_into
from lora_inspect.stores.s3 import NO_OBJECT, Reply, S3Store, StoreRefused, object_at

_AT_ONCE = 8
# Of them so many hold the content of a part in memory, which is there two times while it is sent.
_HELD_AT_ONCE = 3
_ABORTS = 3
# For so many seconds a run that is ended waits for the name of an upload that it has asked for.
_BEGINNING = 5
# For so many seconds a store that does not answer is asked to give up uploads.
_PATIENCE = 60
# What tells an object that this run made from one of another run, where the reply to the last request is lost.
_MARK = "lora-inspect-run"
_GONE = ("NoSuchUpload", "404")
_TAKEN = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
_UNKNOWN = ("NotImplemented", "501")


def appeared(address: str) -> LoraInspectError:
    """The error for an output that others have written meanwhile."""
    return WouldOverwriteError(
        address, "it appeared while the command ran", "choose another output, or run the command again with --force"
    )


class Upload:
    """An object that takes its `address` when it is completed, and leaves nothing when it is aborted.

    `run` names the owner of the object. Raises StoreRefused where the store refuses.
    """

    def __init__(self, store: S3Store, address: str, run: str) -> None:
        self.address = address
        self.bytes = 0
        self._store, self._run = store, run
        self._file = ""
        self._upload: Reply | None = None
        self._parts: dict[int, Reply] = {}
        self._sent = 0
        self._room = asyncio.Semaphore(_HELD_AT_ONCE)

    def send(self, file: str, borrowed: Sequence[Borrowed] = (), progress: Progress = silent) -> None:
        """Sends a local file, but for the parts that are `borrowed`, which the store copies by itself.

        These are whole parts of the grid of `part_size`. One that is no larger than a part goes when it is completed,
        and has to be there until then. `progress` is told of the bytes.
        """
        self._file, self.bytes = file, os.path.getsize(file)
        if self.bytes <= client.PART_BYTES:
            progress(self.bytes)
            return
        self._store.wait(self._send({one.at: one for one in borrowed}), lambda: self._sent, progress)

    async def complete(self, replaces: bool) -> None:
        """Has the object appear; WouldOverwriteError where there is one meanwhile and it does not replace that.

        Some stores ignore the condition, so this looks at the address first.
        """
        condition = {} if replaces else {"IfNoneMatch": "*"}
        if condition and await self._described() is not None:
            raise appeared(self.address)
        try:
            await self._complete(**condition)
        except StoreRefused as refused:
            if refused.answer in _UNKNOWN and condition:
                await self._complete()
            elif refused.answer not in (*_GONE, *_TAKEN):
                raise
            elif not await self._is_own():
                raise (appeared(self.address) if condition else refused) from None

    @property
    def unfinished(self) -> str | None:
        """The store's name of the upload until it is completed or aborted."""
        return str(self._upload["UploadId"]) if self._upload else None

    def remove(self) -> None:
        """Delete the object if this upload made it."""
        if self._store.wait(self._is_own()):
            self._store.wait(self._ask("delete_object", "remove it"))

    def clear_place(self) -> None:
        """Delete the object at the address."""
        if self._store.wait(self._described()):
            self._store.wait(self._ask("delete_object", "remove it"))

    async def check_own(self) -> None:
        """Raises WouldOverwriteError where another run has replaced the object that this upload has made."""
        with suppress(StoreRefused):  # the store has said already that it has the object
            if not await self._is_own():
                raise appeared(self.address)

    async def _is_own(self) -> bool:
        """Returns whether this upload has made the object at the address; the store's reply may have been lost."""
        found = await self._described()
        if found is None or found.get("Metadata", {}).get(_MARK) != self._run:
            return False
        self._upload = None
        return True

    async def _described(self) -> Reply | None:
        try:
            return await self._ask("head_object", "look at it")
        except StoreRefused as refused:
            if refused.answer in NO_OBJECT:
                return None
            raise

    async def _send(self, borrowed: Mapping[int, Borrowed]) -> None:
        await self._begin()
        size = part_size(self.bytes)
        starts = iter(range(0, self.bytes, size))
        if strays := borrowed.keys() - set(range(0, self.bytes, size)):
            raise AssertionError(f"{self.address}: no part of it begins at {min(strays)}")
        await _all(self._work(starts, size, borrowed) for _ in range(_AT_ONCE))

    async def _begin(self) -> None:
        """Has the store begin the upload. A run that is ended meanwhile waits for its name, by which it is given up."""
        begun = asyncio.ensure_future(self._ask("create_multipart_upload", "write it", Metadata={_MARK: self._run}))
        try:
            self._upload = await asyncio.shield(begun)
        except asyncio.CancelledError:
            with suppress(StoreRefused, asyncio.TimeoutError):  # without a name, it is looked for in the store
                self._upload = await asyncio.wait_for(begun, _BEGINNING)
            raise

    async def _work(self, starts: Iterator[int], size: int, borrowed: Mapping[int, Borrowed]) -> None:
        """One of several that send the next part until there is none."""
        for start in starts:
            number, stop = start // size + 1, min(start + size, self.bytes)
            if one := borrowed.get(start):
                self._parts[number] = await self._copy(number, one)
            else:
                async with self._room:
                    content = await asyncio.to_thread(_read, self._file, start, stop)
                    self._parts[number] = await self._put(number, content)
                    del content
            self._sent += stop - start

    async def _put(self, number: int, content: bytes | bytearray) -> Reply:
        reply = await self._ask_of_upload("upload_part", "write it", PartNumber=number, Body=content)
        return self._named(number, reply)

    async def _copy(self, number: int, one: Borrowed) -> Reply:
        """Has the store copy a part; fetches and sends it where the store does not do that."""
        try:
            return await self._copied(number, one)
        except StoreRefused as refused:
            if refused.answer in _TAKEN:
                raise changed(one.address) from None
        async with self._room:
            content = bytearray(one.stop - one.start)
            await asyncio.to_thread(read_into, one.address, one.answer, one.start, content)
            return await self._put(number, content)

    async def _copied(self, number: int, one: Borrowed) -> Reply:
        reply = await self._ask_of_upload(
            "upload_part_copy",
            f"copy from {one.address}",
            PartNumber=number,
            CopySource=object_at(one.address),
            CopySourceRange=f"bytes={one.start}-{one.stop - 1}",
            CopySourceIfMatch=f'"{one.answer.tag}"',
        )
        return self._named(number, reply["CopyPartResult"])

    def _named(self, number: int, reply: Reply) -> Reply:
        """Return the last request's entry for a part, with its checksum if the upload has promised one."""
        promised = (self._upload or {}).get("ChecksumAlgorithm")
        names = ["ETag", f"Checksum{promised}"] if promised else ["ETag"]
        return {"PartNumber": number, **{name: reply[name] for name in names if name in reply}}

    async def _complete(self, **condition: str) -> None:
        if not self._parts:
            content = await asyncio.to_thread(_read, self._file, 0, self.bytes)
            await self._ask("put_object", "write it", Body=content, Metadata={_MARK: self._run}, **condition)
            return
        parts = {"Parts": [self._parts[number] for number in sorted(self._parts)]}
        await self._ask_of_upload("complete_multipart_upload", "write it", MultipartUpload=parts, **condition)
        self._upload = None

    async def _ask(self, method: str, doing: str, **arguments: Any) -> Reply:
        return await self._store.ask(method, self.address, doing, **arguments)

    async def _ask_of_upload(self, method: str, doing: str, **arguments: Any) -> Reply:
        assert self._upload
        return await self._ask(method, doing, UploadId=self._upload["UploadId"], **arguments)


def abort_all(store: S3Store, uploads: Iterable[tuple[str, str]]) -> list[str]:
    """Abort uploads, each an address and a name; return the addresses of those that did not abort in time."""
    left = list(uploads)
    waiting = iter(tuple(left))

    async def work() -> None:
        for address, upload in waiting:
            with suppress(StoreRefused):
                await _give_up(store, address, upload)
                left.remove((address, upload))

    async def in_time() -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_all(work() for _ in range(_AT_ONCE)), _PATIENCE)

    store.wait(in_time())
    return [address for address, _ in left]


async def _give_up(store: S3Store, address: str, upload: str) -> None:
    """Gives up an upload with all that it has; raises StoreRefused.

    A part that was under way may come behind that, and stay: it is over where the store knows no such upload.
    """
    for _ in range(_ABORTS):
        try:
            await store.ask("abort_multipart_upload", address, "abort the upload", UploadId=upload)
        except StoreRefused as refused:
            if refused.answer in _GONE:
                return
            raise
        try:
            await store.ask("list_parts", address, "look at the upload", UploadId=upload)
        except StoreRefused:
            return


def complete_all(store: S3Store, uploads: Iterable[Upload], replaces: bool) -> None:
    """Completes uploads, some at the same time; where one fails, others may be complete, and no more will be."""
    _each(store, uploads, lambda upload: upload.complete(replaces))


def check_all_own(store: S3Store, uploads: Iterable[Upload]) -> None:
    """Raises WouldOverwriteError where another run has replaced the object of one of these uploads."""
    _each(store, uploads, Upload.check_own)


def _each(store: S3Store, uploads: Iterable[Upload], ask: Callable[[Upload], Awaitable[None]]) -> None:
    """Asks the store about each upload, some at the same time, until one fails.

    None is called off on its way, as the store may do it all the same.
    """
    left = iter(uploads)
    errors: list[LoraInspectError] = []

    async def work() -> None:
        for upload in left:
            if errors:
                return
            try:
                await ask(upload)
            except LoraInspectError as error:
                errors.append(error)

    store.wait(_all(work() for _ in range(_AT_ONCE)))
    if errors:
        raise errors[0]


def _read(path: str, start: int, stop: int) -> bytes:
    with open(path, "rb") as source:
        source.seek(start)
        return source.read(stop - start)


async def _all(works: Iterable[Awaitable[None]]) -> None:
    """Does all at the same time; where one fails, the others are cancelled and over."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
