"""The files that other programs keep next to an adapter, for facts that the adapter itself does not state.

`NAME.civitai.info` is the answer of Civitai on a version of a model, `NAME.metadata.json` is written by ComfyUI's LoRA
Manager, and `NAME.json` by the web UIs of AUTOMATIC1111 and Forge. Anybody may have written them: a sidecar that is too
large, no JSON or nested too deeply is ignored with its problem, and a value of another type counts as missing.
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

from lora_inspect.architectures.detection import Detection
from lora_inspect.caching import Remembered
from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.input_file import read_whole
from lora_inspect.files.locations import real_path
from lora_inspect.files.strict_json import is_shallow, is_unicode, parse_json
from lora_inspect.reading.metadata.provenance import Provenance, texts, trigger_words, words_of
from lora_inspect.stores.address import is_remote

# The largest ones that programs write hold some hundred kilobytes: prompts of many example images.
LARGEST = 1 << 20
_DEEPEST = 64
_LONGEST_TEXT = 10_000


class SidecarFormat(NamedTuple):
    """The ending that replaces the ending of the adapter's file, and the paths of the fields in the JSON object.

    Without any of the fields the file is of another program, which is no sidecar.
    """

    ending: str
    base: tuple[str, ...]
    trigger_words: tuple[str, ...]
    names: tuple[tuple[str, ...], ...] = ()
    title: tuple[str, ...] = ()


# In the order in which they are believed.
FORMATS = (
    SidecarFormat(
        ".civitai.info",
        ("baseModel",),
        ("trainedWords",),
        names=(("name",), ("model", "name")),
        title=("model", "name"),
    ),
    SidecarFormat(
        ".metadata.json", ("base_model",), ("civitai", "trainedWords"), names=(("model_name",),), title=("model_name",)
    ),
    SidecarFormat(".json", ("sd version",), ("activation text",)),
)
# Programs write these for a base model that they do not know.
_UNKNOWN = ("unknown", "other")


class Sidecar(NamedTuple):
    """The facts of one sidecar `file`, or its `problem`; `names` are the names that people use for the adapter."""

    file: str
    title: str | None = None
    base: str | None = None
    trigger_words: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    problem: str = ""


class Sidecars:
    """The sidecars of a checkpoint, which are read once somebody asks for them.

    Files at addresses and sets of shards have none. If a folder is the checkpoint, `root` is its path, and a link out
    of it is ignored with that problem.
    """

    def __init__(self, files: Sequence[str], root: str | None = None) -> None:
        self._files, self._root = files, root

    @cached_property
    def found(self) -> tuple[Sidecar, ...]:
        """All sidecars in the order of FORMATS, also those with a problem."""
        if len(self._files) != 1 or is_remote(self._files[0]):
            return ()
        folder, name = os.path.split(self._files[0])
        stem = os.path.splitext(name)[0]
        there = _names_in(folder)
        read = (
            _read(os.path.join(folder, stem + form.ending), form, self._root)
            for form in FORMATS
            if there is None or stem + form.ending in there
        )
        return tuple(one for one in read if one)


NO_SIDECARS = Sidecars(())


# The folders of the last files, and the names in a folder by its identity and the time of its last change.
_asked: Remembered[str, bool] = Remembered(64)
_listed: Remembered[tuple[str, int, int, int], frozenset[str]] = Remembered(64)


def _names_in(folder: str) -> Collection[str] | None:
    """Return the names in a folder that sidecars may have, cached as long as the folder has not changed.

    None for the first file of a folder: to look for the sidecars of one file takes less time than a list of all files.
    """
    if not _asked.get(folder):
        _asked.put(folder, True)
        return None
    try:
        status = os.stat(folder or os.curdir)
        key = (folder, status.st_dev, status.st_ino, status.st_mtime_ns)
        endings = tuple(form.ending for form in FORMATS)
        return _listed.of(
            key, lambda: frozenset(name for name in os.listdir(folder or os.curdir) if name.endswith(endings))
        )
    except OSError:
        return ()


def _read(path: str, form: SidecarFormat, root: str | None) -> Sidecar | None:
    """Return the sidecar at a path; None if there is no file, or one of another program."""
    if not os.path.isfile(path):
        return None
    name = os.path.basename(path)
    try:
        if root is not None:
            real_path(root, name)
        content, _ = read_whole(path, LARGEST)
    except LoraInspectError as error:
        return Sidecar(name, problem=error.problem)
    try:
        found = parse_json(content)
    except ValueError:
        return Sidecar(name, problem="it is not valid JSON")
    if not isinstance(found, dict):
        return Sidecar(name, problem="it is no JSON object")
    if not is_shallow(found, _DEEPEST):
        return Sidecar(name, problem="its JSON is nested too deeply")
    base = _text(found, form.base)
    sidecar = Sidecar(
        name,
        title=_text(found, form.title),
        base=base if base and base.lower() not in _UNKNOWN else None,
        trigger_words=words_of(_listed_texts(found, form.trigger_words)),
        names=tuple(said for path in form.names if (said := _text(found, path))),
    )
    return sidecar if any(sidecar[1:]) else None


def _value(found: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = found
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text(found: Mapping[str, Any], path: Sequence[str]) -> str | None:
    return next(iter(_printable([_value(found, path)])), None)


def _listed_texts(found: Mapping[str, Any], path: Sequence[str]) -> list[str]:
    value = _value(found, path)
    return _printable(value if isinstance(value, list) else [value])


def _printable(values: Sequence[Any]) -> list[str]:
    """Return the values that are printable texts and not empty."""
    said = texts(dict(enumerate(values)), tuple(range(len(values))))
    return [text for text in said if len(text) <= _LONGEST_TEXT and is_unicode(text)]


def with_sidecars(origin: Provenance, sidecars: Sequence[Sidecar]) -> tuple[Provenance, dict[str, str]]:
    """Return the provenance with missing fields filled from sidecars, and the sidecar's name by filled field."""
    filled: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for field in ("title", "base", "trigger_words"):
        told = next((one for one in sidecars if getattr(one, field)), None)
        if told and not getattr(origin, field):
            filled[field], sources[field] = getattr(told, field), told.file
    return origin._replace(**filled), sources


def trigger_words_of(metadata: Mapping[str, str], sidecars: Sidecars) -> tuple[tuple[str, ...], str | None]:
    """Return the trigger words of a file, and the name of their sidecar; None if the metadata have them."""
    if own := trigger_words(metadata):
        return own, None
    told = next((one for one in sidecars.found if one.trigger_words), None)
    return (told.trigger_words, told.file) if told else ((), None)


class NamedFamily(NamedTuple):
    """The candidates that agree with a sidecar's base model, and the sentence on it; `file` is the sidecar's name."""

    candidates: tuple[Detection, ...]
    says: str
    file: str


def named_family(candidates: Sequence[Detection], sidecars: Sequence[Sidecar]) -> NamedFamily | None:
    """Return the candidates that the first deciding sidecar leaves; None if no sidecar decides between them.

    A base model that is none of the candidates decides nothing: the tensors are better evidence than a sidecar.
    """
    for one in sidecars:
        family = _family_of(one.base or "", candidates)
        left = tuple(found for found in candidates if found.architecture.name == family)
        if left and len(left) < len(candidates):
            return NamedFamily(left, f"the base model is {one.base!r}, as {left[0].architecture.title}", one.file)
    return None


def _family_of(base: str, candidates: Sequence[Detection]) -> str | None:
    """Return the family with the longest name or title that begins the name of a base model.

    Blanks, punctuation and case do not count. A name that begins another one (`flux` of `flux2`) is too short to
    decide.
    """
    from lora_inspect import architectures

    words = re.findall(r"[a-z]+|\d+", base.lower())
    starts = {"".join(words[:count]): count for count in range(1, len(words) + 1)}
    names = {name: name.replace("_", "") for name in architectures.names()}
    spelled = {plain: name for name, plain in names.items() if not _begins_another(plain, names.values())}
    for one in candidates:
        spelled["".join(re.findall(r"[a-z\d]", one.architecture.title.lower()))] = one.architecture.name
    found = max((plain for plain in spelled if plain in starts), key=len, default=None)
    return spelled[found] if found else None


def _begins_another(plain: str, others: Collection[str]) -> bool:
    return any(other != plain and other.startswith(plain) for other in others)
