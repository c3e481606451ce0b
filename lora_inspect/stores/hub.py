"""Repositories of Hugging Face: `hf://[datasets/|spaces/]OWNER/NAME[@REVISION][/PATH]`, read at one commit each.

The login, the endpoint and its proxies are those of huggingface_hub.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from lora_inspect.caching import Remembered
from lora_inspect.errors import CouldNotWorkError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.stores.client import Answer, Located, Sink
from lora_inspect.stores.http import get_from
from lora_inspect.stores.patience import timeout
from lora_inspect.stores.store_failures import Silent, Transient, missing, of_status

_KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
_FORM = "hf://OWNER/NAME/PATH, or hf://OWNER/NAME@REVISION/PATH"
# A branch or a tag with a slash in it has to be spelled with %2F, but for these.
_REPOSITORY = re.compile(
    r"(?:(?P<kind>models|datasets|spaces)/)?(?P<name>(?!(?:buckets|datasets|models|spaces)/)[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_READ: Remembered["_Place", Mapping[str, Answer]] = Remembered(8)


class _Place(NamedTuple):
    """A repository at a revision, which `spelled` stands for in an address."""

    kind: str
    name: str
    revision: str
    spelled: str


async def get(sink: Sink) -> None:
    """Request the bytes of a sink once; its file is fixed by a commit."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # which is documented

    place, path = _parts(sink.address)
    known = sink.answer

    def identify(size: int, headers: Mapping[str, str]) -> Answer:
        return Answer(size, 0, known.tag if known else "")

    url = hf_hub_url(
        place.name, path, repo_type=_KINDS[place.kind], revision=place.revision, endpoint=os.environ.get("HF_ENDPOINT")
    )
    login = {name: value for name, value in build_hf_headers().items() if name.lower() == "authorization"}
    await get_from(sink, url, login, identify)


async def look(address: str) -> Located | None:
    """Return the file or folder at an address, in which the revision is replaced by its commit."""
    place, path = _parts(address)
    if not _COMMIT.fullmatch(place.revision) or _READ.get(place) is None:
        place = await _read(address, place)
    files = _READ.get(place) or {}
    pinned = f"{place.spelled}/{path}".rstrip("/")
    if path in files:
        return Located(pinned, files[path])
    return Located(pinned) if not path or any(name.startswith(f"{path}/") for name in files) else None


async def below(address: str, deep: bool) -> list[Located]:
    """List a folder: its files and subfolders, or with `deep` all files below it."""
    folder = await look(address)
    if folder is None:
        return []
    place, path = _parts(folder.address)
    start = f"{path}/" if path else ""
    found: dict[str, Located] = {}
    for file, answer in (_READ.get(place) or {}).items():
        if not file.startswith(start):
            continue
        name, slash, _ = file[len(start) :].partition("/")
        if deep or not slash:
            found[file] = Located(f"{place.spelled}/{file}", answer)
        else:
            found[start + name] = Located(f"{place.spelled}/{start}{name}")
    return list(found.values())


def _parts(address: str) -> tuple[_Place, str]:
    found = _REPOSITORY.fullmatch(address.partition("://")[2])
    if found is None:
        raise RefusedError(address, "it does not name a repository of Hugging Face", f"write {_FORM}")
    kind, revision = found["kind"] or "models", found["revision"] or "main"
    return _place(kind, found["name"], revision), (found["path"] or "").strip("/")


def _place(kind: str, name: str, revision: str) -> _Place:
    from urllib.parse import unquote

    before = "" if kind == "models" else f"{kind}/"
    return _Place(kind, name, unquote(revision), f"hf://{before}{name}@{revision}")


async def _read(address: str, place: _Place) -> _Place:
    """The place at its commit, with its files remembered."""
    import asyncio

    told = await asyncio.get_running_loop().run_in_executor(None, _ask, address, place)
    at_commit = _place(place.kind, place.name, told.sha)
    _READ.put(at_commit, {one.rfilename: _answer(one) for one in told.siblings or ()})
    return at_commit


def _ask(address: str, place: _Place) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return HfApi(endpoint=os.environ.get("HF_ENDPOINT")).repo_info(
            place.name,
            revision=place.revision,
            repo_type=_KINDS[place.kind],
            files_metadata=True,
            timeout=timeout(),
        )
    except HFValidationError:
        raise missing(address) from None
    except OfflineModeIsEnabled:
        raise CouldNotWorkError(
            address, "HF_HUB_OFFLINE is set", "unset it, or name the file in the cache of Hugging Face"
        ) from None
    except HfHubHTTPError as error:
        response = error.response
        raise of_status(address, response.status_code if response is not None else 404) from None
    except Exception as error:
        # The clients of different versions have errors of their own, which are all of the connection.
        of_client = type(error).__module__.partition(".")[0].startswith(("httpx", "httpcore", "requests"))
        if of_client and "Timeout" in type(error).__name__:
            raise Silent(timeout()) from None
        if of_client or isinstance(error, OSError):
            raise Transient("there is no connection to the server") from None
        raise


def _answer(file: Any) -> Answer:
    stored = file.lfs
    return Answer(file.size or 0, 0, (stored["sha256"] if stored else file.blob_id) or "")
