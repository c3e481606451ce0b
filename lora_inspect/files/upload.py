"""An output that is made here and goes to a store: in uploads that are completed when all of it has arrived."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from tempfile import TemporaryDirectory

from lora_inspect.errors import CouldNotWorkError, DiskRefused, LoraInspectError
from lora_inspect.files.deferred_signals import committing, noted_signals
from lora_inspect.files.input_file import Identity, check_unchanged
from lora_inspect.files.pending_output import Borrowing, PendingOutput
from lora_inspect.files.store_outputs import output_address
from lora_inspect.progress import Progress, silent
from lora_inspect.stores import client
from lora_inspect.stores.address import join, split
from lora_inspect.stores.multipart_upload import Upload, abort_all, check_all_own, complete_all
from lora_inspect.stores.s3 import S3Store, StoreRefused, Unfinished, is_empty, unfinished

_RUN_BYTES = 8
_INDEX, _CONFIG, _RANKS = ".index.json", "config.json", 3


@contextmanager
def sent_to_store(
    output: str, inputs: Mapping[str, Identity] | None = None, force: bool = False, progress: Progress = silent
) -> Iterator["ToStore"]:
    """Send the output that the block makes at the `path` of the delivery to the store.

    At the end, everything not yet sent is sent. Nothing is visible until all has arrived and the `inputs` are
    unchanged; otherwise nothing stays. With `force` it replaces objects at its addresses. `progress` gets the bytes
    that the store has. Raises LoraInspectError if the store or the folder for temporary files refuses.
    """
    address = output_address(output)
    try:
        with TemporaryDirectory(prefix="lora-inspect-", ignore_cleanup_errors=True) as folder:
            path = os.path.join(folder, split(address)[1])
            try:
                with _sent(address, path, inputs or {}, force, progress) as sending:
                    yield sending
            except DiskRefused as refused:
                raise _no_room(address, folder, refused.reason) from None
            except LoraInspectError as error:
                error.replace(path, address)
                raise
    except LoraInspectError:
        raise
    except OSError as error:
        raise _no_room(address, "the folder for temporary files", error.strerror) from None


@contextmanager
def _sent(
    address: str, path: str, inputs: Mapping[str, Identity], force: bool, progress: Progress
) -> Iterator["ToStore"]:
    sending = ToStore(address, path, progress)
    try:
        yield sending
        sending.send_rest()
        check_unchanged(inputs)
        with committing():
            sending.complete(force)
            sending.abort_lost()
    except BaseException as error:  # an interrupt as well: nothing half sent stays in the store
        with noted_signals():
            left = sending.abort()
        if left and isinstance(error, LoraInspectError):
            raise error.saying(f"{str(error)[:-1]}; abort the unfinished uploads of {', '.join(left)}.") from None
        raise


class ToStore(PendingOutput):
    """An output that is made in a folder for temporary files, a part at a time, and goes to a store."""

    def __init__(self, address: str, path: str, progress: Progress) -> None:
        super().__init__(path)
        self._address, self._progress = address, progress
        self._store = S3Store(address)
        self._run = os.urandom(_RUN_BYTES).hex()
        self._uploads: list[Upload] = []
        self._before = set(self._unfinished())

    @property
    def bytes(self) -> int:
        """The size of all that was sent."""
        return sum(upload.bytes for upload in self._uploads)

    def borrowing(self) -> Borrowing:
        """Return an empty record of a file's parts that the store copies from inputs."""
        return Borrowing(self._address)

    def send(self, file: str, borrowing: Borrowing | None = None) -> None:
        """Send a file and remove it here, except a small one, which goes with the rest."""
        if os.path.getsize(file) > client.PART_BYTES:
            self._send(file, "" if file == self.path else os.path.basename(file), borrowing)
            os.unlink(file)

    def send_rest(self) -> None:
        """Send everything that is still here."""
        if os.path.isfile(self.path):
            self._send(self.path, "")
        for parent, _, names in os.walk(self.path):
            for name in sorted(names):
                file = os.path.join(parent, name)
                self._send(file, os.path.relpath(file, self.path))

    def complete(self, replaces: bool) -> None:
        """Complete all uploads, the files that lead to the rest last; if that fails, none stays.

        If it `replaces` others, these go one by one: the index is removed first, so that nobody mixes old and new
        files. Raises LoraInspectError.
        """
        groups = [[upload for upload in self._uploads if _rank(upload) == rank] for rank in range(_RANKS)]
        try:
            if replaces and len(self._uploads) > 1:
                for upload in groups[-1]:
                    upload.clear_place()
            for group in groups:
                complete_all(self._store, group, replaces)
            if not replaces:  # a store that ignores conditions lets another run replace these meanwhile
                check_all_own(self._store, self._uploads)
        except LoraInspectError as error:
            if replaces:
                raise error.saying(
                    f"{str(error)[:-1]}; some files at {self._address} may be replaced already."
                ) from None
            with suppress(StoreRefused):
                for upload in self._uploads:
                    upload.remove()
            raise

    def abort(self) -> list[str]:
        """Abort the incomplete uploads; return the addresses of uploads that the store did not abort."""
        left = abort_all(self._store, [(own.address, own.unfinished) for own in self._uploads if own.unfinished])
        if not left:
            self.abort_lost()
        return left

    def abort_lost(self) -> None:
        """Abort uploads from requests with a lost reply that have received no part since."""
        own = {upload.address for upload in self._uploads}
        begun = [one for one in self._unfinished() if one not in self._before and one.address in own]
        with suppress(StoreRefused):
            abort_all(self._store, [(one.address, one.upload) for one in begun if is_empty(self._store, one)])

    def _unfinished(self) -> list[Unfinished]:
        """Return the unfinished uploads to the output that the store lists; none if it lists none."""
        with suppress(StoreRefused):
            return unfinished(self._store, self._address)
        return []

    def _send(self, file: str, name: str, borrowing: Borrowing | None = None) -> None:
        upload = Upload(self._store, join(self._address, name) if name else self._address, self._run)
        self._uploads.append(upload)
        upload.send(file, borrowing.parts if borrowing else (), self._progress)


def _rank(upload: Upload) -> int:
    """Return the position of an object in the order of completion: programs look first for the last ones."""
    return 2 if upload.address.endswith(_INDEX) else 1 if upload.address.endswith(_CONFIG) else 0


def _no_room(address: str, folder: str, reason: str | None) -> LoraInspectError:
    return CouldNotWorkError(
        address,
        f"lora-inspect first writes it into {folder}, which does not take it ({reason})",
        "set TMPDIR to a folder with room",
    )
