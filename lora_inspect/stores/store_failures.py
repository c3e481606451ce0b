"""Failures of stores: transient ones are retried, sentences describe the rest. Standard library only.

No sentence repeats a library's words on a request: they contain the address with all its secrets.
"""

from lora_inspect.errors import CouldNotWorkError, LoraInspectError, NotFoundError, RefusedError
from lora_inspect.stores.address import HF, S3, scheme_of, split

_LOG_IN = {
    S3: "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws, or set FSSPEC_S3_ANON=true for a public bucket",
    HF: "run `hf auth login` or set HF_TOKEN, and accept the conditions of the repository on its page",
}
_FETCH_ADDRESS = "fetch a new address if a signed one has expired, or put your login into ~/.netrc"
DOWNLOAD = "download the file and name the copy"


class Transient(Exception):
    """A failure that may pass: `why`, and how many seconds the server asks to wait, None where it says nothing."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.wait = wait


class Silent(Transient):
    """Nothing comes: the server has not answered for so many `seconds`, or its answer has stopped."""

    def __init__(self, seconds: float) -> None:
        super().__init__("the server does not answer")
        self.seconds = seconds


class Missing(NotFoundError):
    """There is nothing at an address."""


class Denied(CouldNotWorkError):
    """The store does not say whether there is something at an address, or does not give it."""


class WholeFilesOnly(CouldNotWorkError):
    """The server sends a file only from its first to its last byte."""


def missing(address: str) -> Missing:
    """The error for an address at which there is nothing."""
    return Missing(address, "there is no such file or folder", "check the address")


def denied(address: str, status: int) -> Denied:
    """Return the error for a file that the user may not read."""
    return Denied(
        address,
        f"the server does not give it to you (status {status})",
        _LOG_IN.get(scheme_of(address), _FETCH_ADDRESS),
    )


def whole_files_only(address: str) -> LoraInspectError:
    """The error for a server that sends a file from its first to its last byte, whichever are asked for."""
    return WholeFilesOnly(
        address, "the server sends only whole files, but lora-inspect reads parts of this one", DOWNLOAD
    )


def refused(address: str, status: int) -> Denied:
    """The error for any other answer that is none of the file."""
    return Denied(address, f"the server refuses to send it (status {status})", "check the address")


def sent_a_page(address: str) -> Denied:
    """Return the error for a server that answers with a web page in place of the file."""
    return Denied(
        address, "the server sends a web page in its place", "check the address, and log in if the server asks for it"
    )


def leads_nowhere(address: str) -> Denied:
    """Return the error for redirects that do not end or leave the web."""
    return Denied(address, "the server redirects to an address without a file", "check the address")


def unknown_host(address: str, host: str) -> LoraInspectError:
    """The error for a name that stands for no machine: that of the address, or of where its server leads to."""
    return CouldNotWorkError(
        address, f"the machine {host or 'of this name'} does not exist", "check the address and the network"
    )


def untrusted(address: str) -> LoraInspectError:
    """The error for a server that cannot prove who it is."""
    return CouldNotWorkError(
        address,
        "lora-inspect cannot trust the certificate of the server",
        "check the address, or name the authority that signed it in SSL_CERT_FILE",
    )


def less_safe(address: str) -> LoraInspectError:
    """The error for a server that leads from an address that is encrypted to one that is not."""
    return CouldNotWorkError(
        address, "the server redirects to an address without encryption", "name that address yourself if you trust it"
    )


def no_folder_of_a_server(address: str) -> LoraInspectError:
    """The error for a folder of a server, which lists none."""
    return CouldNotWorkError(address, "a server does not list its folders", "name a file, or the index.json of a set")


def is_a_folder(address: str) -> LoraInspectError:
    """The error for a folder where a file is asked for."""
    return RefusedError(address, "it is a folder", f"name a file in it, such as {split(address)[1]}/NAME")


def gave_up(address: str, why: str, tries: int) -> LoraInspectError:
    """Return the error for a request that failed on every try."""
    return CouldNotWorkError(address, f"lora-inspect cannot read it ({why}, {tries} times)", "try again later")


def silent(address: str, seconds: float, tries: int) -> LoraInspectError:
    """The error for a server that has not answered in any try."""
    return CouldNotWorkError(
        address,
        f"the server does not answer (nothing came for {seconds:g} s, {tries} times)",
        "try again later, or set a longer timeout (--timeout)",
    )


def too_slow(address: str, rate: float, seconds: float) -> LoraInspectError:
    """The error for a server that sends fewer bytes per second."""
    return CouldNotWorkError(
        address,
        f"the server sends it too slowly (less than {rate:,.0f} bytes per second for {seconds:g} s)",
        "try again later, or download the file and name the copy",
    )


def asks_to_wait(address: str, seconds: float, timeout: float) -> LoraInspectError:
    """The error for a server that asks for a longer pause than the timeout."""
    return CouldNotWorkError(
        address,
        f"the server asks to wait for {int(seconds):,} s, but the timeout is {timeout:g} s",
        "try again then, or set a longer timeout (--timeout)",
    )


def without_credentials(address: str) -> Denied:
    """The error for a store that is asked by nobody."""
    return Denied(address, "there are no credentials for the store", _LOG_IN[S3])


def of_status(address: str, status: int, wait: float | None = None) -> Exception:
    """Return the error for an HTTP status other than success, for every store."""
    if status in (404, 410):
        return missing(address)
    if status in (401, 403):
        return denied(address, status)
    if status in (408, 425, 429) or status >= 500:
        return Transient(f"status {status}", wait)
    return refused(address, status)


# How often a request is tried, and how often one to which nothing comes: that takes the whole timeout each time.
TRIES, SILENT_TRIES = 6, 2
# In seconds: the first pause, which doubles from one to the next.
FIRST_PAUSE = 0.5
# So many bytes that came after all make the next failure the first one again.
PROGRESS = 1 << 20


class Tries:
    """Counter of the failures of one request for an `address`."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._failed = self._silent = 0

    def pause(self, failure: Transient, timeout: float, came: int = 0) -> float:
        """Return the seconds to wait before the next try, after a failure in which `came` bytes arrived.

        The server may ask for a pause up to the timeout. Raises LoraInspectError where there is no next try.
        """
        if came >= PROGRESS:
            self._failed = self._silent = 0
        self._failed += 1
        if isinstance(failure, Silent):
            self._silent += 1
            if self._silent == SILENT_TRIES:
                raise silent(self._address, failure.seconds, SILENT_TRIES) from None
        if failure.wait is not None and failure.wait > timeout:
            raise asks_to_wait(self._address, failure.wait, timeout) from None
        if self._failed == TRIES:
            raise gave_up(self._address, failure.why, TRIES) from None
        import random  # which takes longer to load than all of this, and only failures need it

        # Many that failed at the same time do not come back at the same time.
        own: float = FIRST_PAUSE * 2 ** (self._failed - 1) * random.uniform(0.5, 1)
        return max(own, failure.wait or 0)
