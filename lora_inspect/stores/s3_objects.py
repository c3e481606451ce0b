"""What lies in an S3 store below an address, and which uploads to there were begun and not ended."""

from collections.abc import Iterator

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.stores.address import S3, join
from lora_inspect.stores.s3 import object_at
from lora_inspect.stores.s3_requests import NO_OBJECT, Refused, Reply, S3Store


class Unfinished(NamedTuple):
    """An upload that was begun and neither completed nor aborted, and when that was."""

    address: str
    upload: str
    begun: str


def described(store: S3Store, address: str) -> Reply | None:
    """What the store says of the object that has the address, None where there is none; raises Refused."""
    try:
        return store.wait(store.ask("head_object", address, "look at it"))
    except Refused as refused:
        if refused.code in NO_OBJECT:
            return None
        raise


def names_below(store: S3Store, folder: str) -> Iterator[str]:
    """The objects below an address by their names from there on, asked for as they are taken.

    The empty object that some programs have for a folder is none of them. Raises Refused, as where there is no bucket.
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
    """Whether an upload has no part yet; raises Refused."""
    return not store.wait(store.ask("list_parts", one.address, "look at the upload", UploadId=one.upload)).get("Parts")
