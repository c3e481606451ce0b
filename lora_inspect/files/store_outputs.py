"""Outputs in a store: valid addresses, and objects that an output must not replace."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from lora_inspect.errors import RefusedError, WouldOverwriteError
from lora_inspect.stores.address import HF, S3, VERSION, printable_address, scheme_of
from lora_inspect.stores.client import file_system

if TYPE_CHECKING:
    from lora_inspect.stores.s3 import S3Store

# What S3 stores take as the key of an object, in bytes.
_LONGEST_KEY = 1024
_WAYS_OUT = {HF: "write to a folder, and send it with `hf upload`"}
_OTHERWISE = "write a file or a folder here, and send it by a way that the server accepts"


def output_address(output: str) -> str:
    """Return an output without slashes at its end. Raises LoraInspectError for an address that cannot be written."""
    address = printable_address(output)
    scheme = scheme_of(address)
    if scheme != S3:
        way_out = _WAYS_OUT.get(scheme, _OTHERWISE)
        raise RefusedError(address, f"lora-inspect only reads addresses of {scheme}://", way_out)
    address = address.rstrip("/")
    bucket, _, key = address.partition("://")[2].partition("/")
    if not bucket or not key:
        form = f"s3://{bucket or 'BUCKET'}/OUT"
        raise RefusedError(address, "it is a whole bucket", f"name an output in it, such as {form}")
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or not key.isprintable() or "?" in key or "#" in key:
        raise RefusedError(output, "programs read such an address in different ways", "name another output")
    if len(key.encode()) > _LONGEST_KEY:
        raise RefusedError(output, f"a store takes names of at most {_LONGEST_KEY:,} bytes", "choose a shorter one")
    return address


def is_input_address(output: str, inputs: Iterable[str]) -> bool:
    """Return True if an address is that of an input, in any version, or of a folder that holds one."""
    address = output.rstrip("/")
    objects = (path.partition(VERSION)[0].rstrip("/") for path in inputs)
    return any(path == address or path.startswith(f"{address}/") for path in objects)


def check_store_output(output: str, inputs: Iterable[str], force: bool, folder: bool) -> None:
    """Raise LoraInspectError if the output would replace an input or, without `force`, anything at all."""
    address = output_address(output)
    if is_input_address(address, inputs):
        raise RefusedError(address, "it is an input of the command", "choose another output")
    store = _store_of(address)
    from lora_inspect.stores.s3 import described, names_below

    is_folder = next(names_below(store, address), None) is not None
    is_file = described(store, address) is not None
    if not is_folder and not is_file:
        return
    if is_file if folder else is_folder:
        raise WouldOverwriteError(address, f"it is {'a file' if folder else 'a folder'}", "remove it first")
    if not force:
        raise WouldOverwriteError(address, "it exists", "choose another output or add --force")


def check_store_replaceable(output: str, names: Collection[str]) -> None:
    """Raise LoraInspectError if a folder in a store holds more than `names`, which would be lost."""
    address = output_address(output)
    store = _store_of(address)
    from lora_inspect.stores.s3 import names_below

    other = next((name for name in names_below(store, address) if name not in names), None)
    if other is not None:
        raise WouldOverwriteError(
            address, f"the folder holds {other}, which the command does not write", "choose another output"
        )


def unfinished_notes(output: str) -> tuple[str, ...]:
    """Return a sentence on another run's unfinished uploads to an output, if the store lists them."""
    address = output_address(output)
    store = _store_of(address)
    from lora_inspect.stores.s3 import StoreRefused, unfinished

    try:
        found = unfinished(store, address)
    except StoreRefused:
        return ()
    if not found:
        return ()
    how_many = (
        f"an unfinished upload, begun {found[0].begun}, is"
        if len(found) == 1
        else f"{len(found)} unfinished uploads are"
    )
    return (f"{address}: {how_many} there, perhaps from a run that died; abort uploads that no run is sending.",)


def _store_of(address: str) -> "S3Store":
    """Return the store of an address. Raises LoraInspectError if a library for it is missing."""
    file_system(address)
    from lora_inspect.stores.s3 import S3Store

    return S3Store(address)
