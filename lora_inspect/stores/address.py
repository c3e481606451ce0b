"""Addresses of stores and servers: their schemes, parts and printable form. Standard library only.

Userinfo and the query of an address may be secrets, and a presigned address is one as a whole. `printable_address`
removes them and returns the path that messages, records and provenance use. Only requests restore them, by `whole`.
"""

import os
from _thread import allocate_lock
from itertools import count

from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple

HTTPS, HTTP, S3, HF = SCHEMES = ("https", "http", "s3", "hf")
# What stands before the version of an object of S3 in an address.
VERSION = "?versionId="
_STARTS = tuple(f"{scheme}://" for scheme in SCHEMES)
_LONGEST_START = max(map(len, _STARTS))


class _Hidden(NamedTuple):
    """The part of an address that is never printed; empty where there is none."""

    userinfo: str
    query: str


_NOTHING = _Hidden("", "")
# By the printed address that was named, and by the folder of it: what lies beside a file is asked for with the same.
_of_files: dict[str, _Hidden] = {}
_of_folders: dict[str, _Hidden] = {}
_naming = allocate_lock()


def is_remote(path: str) -> bool:
    """Return True if a path is an address of a store or a server."""
    return path[:_LONGEST_START].lower().startswith(_STARTS)


def scheme_of(address: str) -> str:
    """Return the scheme of an address, one of SCHEMES."""
    return address.partition("://")[0].lower()


def printable_address(address: str) -> str:
    """Return the printable form of an address; a printable one is returned unchanged.

    Two addresses that differ in their secret parts get different forms. Raises LoraInspectError for credentials in an
    address of a store, which has settings for them.
    """
    scheme, rest = scheme_of(address), address.partition("://")[2]
    if scheme not in (HTTPS, HTTP):
        return _without_credentials(scheme, rest)
    with _naming:
        if address in _of_files or ("?" not in address and split(address)[0] in _of_folders):
            return address
        rest, _, query = rest.partition("#")[0].partition("?")
        authority, slash, path = rest.partition("/")
        userinfo, _, host = authority.rpartition("@")
        hidden = _Hidden(userinfo, query)
        if hidden == _NOTHING:
            return f"{scheme}://{rest}"
        for number in count(1):
            printed = f"{scheme}://{f'{number}@' if number > 1 else ''}{host}{slash}{path}"
            if _of_files.setdefault(printed, hidden) == hidden:
                break
        _of_folders[split(printed)[0]] = hidden
        return printed


def whole(address: str) -> str:
    """Return the address for a request, with the secret parts that `printable_address` removed."""
    hidden = _of_files.get(address) or _of_folders.get(split(address)[0])
    if hidden is None:
        return address
    scheme, _, rest = address.partition("://")
    authority, slash, path = rest.partition("/")
    userinfo = f"{hidden.userinfo}@" if hidden.userinfo else ""
    query = f"?{hidden.query}" if hidden.query else ""
    return f"{scheme}://{userinfo}{authority.rpartition('@')[2]}{slash}{path}{query}"


def split(address: str) -> tuple[str, str]:
    """Split a printed address into its folder and its name; a server, a bucket and a folder's slash have no name."""
    start, mark, rest = address.partition("://")
    folder, slash, name = rest.rpartition("/")
    return (f"{start}{mark}{folder}", name) if slash else (address, "")


def join(folder: str, *names: str) -> str:
    """Join a folder's printed address and names or relative paths in the system's spelling."""
    return "/".join([folder.rstrip("/"), *(name.replace(os.sep, "/") for name in names)])


def _without_credentials(scheme: str, rest: str) -> str:
    """Return a store's address unchanged. Raises LoraInspectError where a part of it would be secret."""
    authority, slash, path = rest.partition("/")
    userinfo, at, store = authority.rpartition("@")
    # In hf://model@revision the mark stands before a revision, in which there is no colon.
    if at and (scheme == S3 or ":" in userinfo):
        raise RefusedError(
            f"{scheme}://{store}{slash}{path}: an address cannot hold credentials; set them as {_SETTINGS[scheme]} "
            "and name the address without them."
        )
    return f"{scheme}://{rest}"


_SETTINGS = {
    S3: "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in ~/.aws/credentials,",
    HF: "HF_TOKEN, or with `hf auth login`,",
}
