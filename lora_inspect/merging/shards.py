"""A merge that several processes make together, each some of its shards, through the folder OUT.parts.

An entry next to each shard describes it for the process that finishes. The shards of one output must be made of the
same inputs and options. An entry may come from another run, another version or a disk that lost bytes: an invalid entry
counts as none.
"""

import hashlib
import json
import os
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from lora_inspect.errors import CouldNotWorkError, LoraInspectError, NotFoundError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.hashes import file_sha256, sha256_behind
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.json_files import read_json
from lora_inspect.files.pending_output import PendingOutput
from lora_inspect.files.safetensors.header import read_header
from lora_inspect.files.safetensors.writer import rewrite_header, rewrite_tensor
from lora_inspect.files.shard_staging import PartsFolder
from lora_inspect.files.temp_files import remove_leftovers
from lora_inspect.maths.torch_threads import load_torch
from lora_inspect.merging.fold import OutputFiles, Written
from lora_inspect.merging.options import ProcessShare, taken
from lora_inspect.merging.plan import MergePlan
from lora_inspect.merging.record import RECORDED_AS, recorded, with_base_hashes
from lora_inspect.merging.result import MergeResult, result_of
from lora_inspect.merging.retention import ObservedWeight, Retention, check_kept, kept_of
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.metadata.merge_record import ADAPTERS, BASE, CONFIG, FILE, HEADER, OPTIONS, SHA256
from lora_inspect.sentences import counted, listed, shortened, some

# Pieces of so many bytes are looked at, at least so many of a base and so many of each file, from its first tensor to
# its last: models of one shape have the same header, and may differ in some of their weights alone.
_PIECE, _PIECES, _OF_EACH = 4096, 128, 8
_NUMBERS, _WEIGHTS, _VERSION = "numbers", "weights", "version"
# What decides whether an output is written, not what is in it.
_DECIDES = RECORDED_AS["allow_loss"]
_OPTION = "an option"
# Options that records have under an earlier name.
_OPTION_NOW = {earlier: now for now, earlier in RECORDED_AS.items()}
_WORDS = {
    FILE: "the name",
    "bytes": "the size in bytes",
    "dtypes": "the number of tensors by type",
    HEADER: "the hash of the header",
    _NUMBERS: "the hash of samples of the numbers",
    SHA256: "the SHA-256",
    CONFIG: "the SHA-256 of the config",
    _VERSION: "the version of lora-inspect",
}


def made_of(plan: MergePlan, record: str) -> dict[str, Any]:
    """All that decides what the shards hold: the `record` of the merge, and what it does not tell."""
    said = json.loads(record)
    options = {name: value for name, value in said.get(OPTIONS, {}).items() if name != _DECIDES}
    base = {**said[BASE], _NUMBERS: _sampled(plan.base)}
    return {**said, BASE: base, OPTIONS: options, _WEIGHTS: _folded(plan)}


def digest(parts: Mapping[str, Any]) -> str:
    """The hash of a record, in whatever order it is."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def check_same(theirs: Mapping[str, Any], ours: Mapping[str, Any], where: str) -> None:
    """Raises LoraInspectError, which names the first difference, where what is found at `where` is of another merge."""
    if said := difference(theirs, ours):
        raise RefusedError(
            where,
            f"it is of another merge: {said}",
            "give the command that made it, choose another output, or remove the folder",
        )


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """The first difference between what other shards and ours are made of, in words; None where there is none."""
    if theirs == ours:
        return None
    there, here = _files(theirs), _files(ours)
    if there != here:
        return f"the adapters are {listed(there) or 'others'} there and {listed(here)} here"
    pairs: list[tuple[str, Any, Any]] = [
        ("", {_VERSION: theirs.get(_VERSION)}, {_VERSION: ours[_VERSION]}),
        (" of the base", theirs.get(BASE), ours[BASE]),
    ]
    adapters = zip(here, theirs.get(ADAPTERS) or [], ours[ADAPTERS], strict=False)
    pairs += [(f" of the adapter {file}", said, own) for file, said, own in adapters]
    pairs += [(_OPTION, theirs.get(OPTIONS), ours[OPTIONS]), ("", _rest(theirs), _rest(ours))]
    different = next((pair for pair in pairs if pair[1] != pair[2]), None)
    if different is None:
        return "other weights are changed, or by other numbers"
    owner, said, own = different
    said = said if isinstance(said, dict) else {}
    name = next(name for name in (*own, *said) if said.get(name) != own.get(name))
    option = f"--{_OPTION_NOW.get(name, name).replace('_', '-')}"
    what = option if owner == _OPTION else f"{_WORDS.get(name, f'the {name}')}{owner}"
    return f"{what} is {_from_json(said.get(name))} there and {_from_json(own.get(name))} here"


def _rest(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parts.items() if name not in (BASE, ADAPTERS, OPTIONS, _WEIGHTS)}


def _from_json(value: Any) -> str:
    return "not given" if value is None else shortened(value if isinstance(value, str) else json.dumps(value))


def _files(parts: Mapping[str, Any]) -> list[str]:
    adapters = parts.get(ADAPTERS)
    return [shortened(str(one[FILE])) for one in adapters] if isinstance(adapters, list) else []


def _sampled(base: Checkpoint) -> str:
    """The hash of some bytes of each file."""
    found, count = hashlib.sha256(), max(_OF_EACH, _PIECES // max(len(base.files), 1))
    for file in base.files:
        size = base.inputs[file].bytes
        start = min((info.start for info in base.tensors.values() if info.file == file), default=size)
        last = max(size - _PIECE, start)
        places = sorted({start + (last - start) * number // (count - 1) for number in range(count)})
        with InputFile(file, base.inputs[file]) as source:
            for place in places:
                found.update(source.read(place, min(_PIECE, size - place)))
    return found.hexdigest()


def _folded(plan: MergePlan) -> str:
    """The hash of what is folded where and how strongly, and of how it is stored then."""
    numbers = {id(adapter): number for number, (adapter, _) in enumerate(plan.adapters)}
    folds = {
        name: [(numbers[id(fold.adapter)], fold.contribution.module.key, fold.multiplier) for fold in own]
        for name, own in plan.folds.items()
    }
    storage = plan.storage
    codecs = {name: weight.codec.name for name, weight in {**storage.decoded, **storage.recoded}.items()}
    stored = {"codecs": codecs, "types": dict(storage.types), "dropped": sorted(storage.dropped)}
    return hashlib.sha256(json.dumps([folds, stored], sort_keys=True).encode()).hexdigest()


_SCHEMA = 1


class ShardEntry(NamedTuple):
    """What is known of a shard.

    `made_of` is what all shards have in common. `size` is that of the file and `data_start` that of its header;
    `sha256` is the hash of what is behind that, with zeros in the ranges `late`, whose content the weights of other
    shards decide. `settled` has such content, by the names of tensors, that its own weights decide for others.
    `counts` are its tensors by element type, `records` what was seen of each weight, and `base_sha256` is the hash of
    the base's file where that is recorded.
    """

    made_of: Mapping[str, Any]
    size: int
    data_start: int
    sha256: str
    late: Sequence[tuple[int, int]]
    settled: Mapping[str, bytes]
    counts: Mapping[str, int]
    records: Sequence[Any]
    base_sha256: str | None = None

    def content(self) -> bytes:
        """The entry as it is written."""
        record = {
            "schema": _SCHEMA,
            "made_of": dict(self.made_of),
            "bytes": self.size,
            "data_start": self.data_start,
            "sha256": self.sha256,
            "late": [list(one) for one in self.late],
            "settled": {name: b64encode(content).decode() for name, content in self.settled.items()},
            "counts": dict(self.counts),
            "seen": list(self.records),
            "base_sha256": self.base_sha256,
        }
        return json.dumps({**record, "digest": digest(record)}, separators=(",", ":")).encode()

    def observed(self) -> Iterator[ObservedWeight]:
        """What was seen of each weight."""
        return map(ObservedWeight.of_record, self.records)

    def holds(self, file: str) -> bool:
        """Whether the file has every byte that it had when the entry was written, but for its header."""
        try:
            return sha256_behind(file, self.data_start, self.late) == (self.size, self.sha256)
        except LoraInspectError:
            return False


def read_entry(path: str) -> ShardEntry | None:
    """The entry at `path`; None where there is none that is as it was written."""
    try:
        record, _ = read_json(path)
        if record["schema"] != _SCHEMA or record.pop("digest") != digest(record):
            return None
        return ShardEntry(
            made_of=record["made_of"],
            size=_whole(record["bytes"]),
            data_start=_whole(record["data_start"]),
            sha256=str(record["sha256"]),
            late=[(_whole(start), _whole(stop)) for start, stop in record["late"]],
            settled={name: b64decode(content, validate=True) for name, content in record["settled"].items()},
            counts={name: _whole(count) for name, count in record["counts"].items()},
            records=record["seen"],
            base_sha256=record["base_sha256"],
        )
    except (LoraInspectError, LookupError, TypeError, ValueError, AttributeError):
        return None


def _whole(number: Any) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"{number!r} is no count")
    return number


class MadeShard(NamedTuple):
    """A shard that was written to `output`: what was seen of its weights, and the hash of the base's file if asked."""

    output: str
    written: Written
    records: list[Any]
    base_sha256: str | None


class SharedMerge:
    """One process' view of it. `files` of the base are by name what the shards are made from.

    Raises LoraInspectError where a shard that is there is of another merge.
    """

    def __init__(self, plan: MergePlan, output: str) -> None:
        self._started = time.perf_counter()
        self.leftovers = remove_leftovers(output)
        self.parts = PartsFolder(output)
        self.parts.check(plan.inputs)
        self._plan = plan
        self.files = {os.path.basename(file): file for file in plan.base.files}
        self._adapters = [adapter.checkpoint.path for adapter, _ in plan.adapters]
        self._late = _late(plan)
        self._record = recorded(plan, beside=load_torch, hash_base=False)
        self.made_of = made_of(plan, self._record)
        for name in self.files:
            self._entry(name)

    def left(self) -> list[str]:
        """The shards that are not there yet."""
        return [name for name in self.files if self._entry(name) is None]

    @contextmanager
    def providing(self) -> Iterator[Callable[[str, Progress], bool]]:
        """What makes a shard where it is not there to its last byte, and says whether it is.

        Its progress is told of what is written, and read of the base for a hash. A thread of its own reads what was
        written while the next shard is made; behind the block all of them count as there. What is whole stays where the
        block fails.
        """
        described: list[Future[None]] = []

        def provide(name: str, progress: Progress) -> bool:
            entry = self._entry(name)
            if entry and entry.holds(self.parts.file(name)):
                progress(bytes_of(self._plan, self.files[name]))
                return True
            made = self._make(name, progress)
            described.append(pool.submit(self._describe, name, made))
            return False

        try:
            with ThreadPoolExecutor(1) as pool:
                yield provide
            for one in described:
                one.result()
        except LoraInspectError:
            if self.parts.is_there():
                raise
            raise CouldNotWorkError(
                self.parts.path,
                "it went away while shards were made, as another run of this job was faster, or as somebody removed it",
                f"see whether {self.parts.output} is there, and run the job again if not",
            ) from None

    def _make(self, name: str, progress: Progress) -> MadeShard:
        """Writes a shard."""
        plan, file, output = self._plan, self.files[name], self.parts.new(name)
        hashed = file_sha256(file, plan.base.inputs[file], progress) if plan.options.hash_base else None
        keeping = Retention(self._adapters)
        written = OutputFiles(plan, keeping).write(file, output, self._record, progress, force=True)
        return MadeShard(output, written, [one.in_record() for one in keeping.observed()], hashed)

    def _describe(self, name: str, made: MadeShard) -> None:
        """Says that a shard is there."""
        tensors, _ = read_header(made.output)
        late = [(tensors[one].start, tensors[one].stop) for one in self._late if one in tensors]
        data_start = len(OutputFiles(self._plan).header(self.files[name], self._record))
        size, digest = sha256_behind(made.output, data_start, late)
        entry = ShardEntry(
            made_of=self.made_of,
            size=size,
            data_start=data_start,
            sha256=digest,
            late=late,
            settled=made.written.late,
            counts=made.written.counts,
            records=made.records,
            base_sha256=made.base_sha256,
        )
        self.parts.write_entry(name, entry.content())

    @property
    def seconds(self) -> float:
        """How long it has been at work."""
        return time.perf_counter() - self._started

    def finish(self, force: bool = False, progress: Progress = silent) -> MergeResult | None:
        """Gives the output its name, when all shards are there; None where another process does so.

        Raises LoraInspectError where a shard is missing, where too little of an adapter is kept, and where there is no
        room for the output or another one has its name. The parts stay then.
        """
        with self.parts.finishing() as is_ours:
            if not is_ours:
                return None
            entries = self._all_entries()
            try:
                kept = kept_of(self._adapters, self._observed())
                if not self._plan.options.allow_loss:
                    check_kept(kept, self._plan.options.seed)
                self._finish(entries, force, progress)
            except (FileNotFoundError, LoraInspectError):
                if self.parts.is_there():
                    raise
                return None  # where there are no locks, another process was faster
            left = self.parts.remove()
        counts = sum((Counter(one.counts) for one in entries.values()), Counter[str]())
        notes = (*self.leftovers, *([left] if left else []))
        size = PendingOutput(self.parts.output).bytes
        return result_of(self._plan, self.parts.output, counts, kept, notes, self.seconds, size)

    def _finish(self, entries: dict[str, ShardEntry], force: bool, progress: Progress) -> None:
        plan, files = self._plan, OutputFiles(self._plan)
        folder = self.parts.gather(list(self.files))
        record = self._record
        if plan.options.hash_base:
            hashes = {file: entries[name].base_sha256 or "" for name, file in self.files.items()}
            record = with_base_hashes(record, plan.base, hashes)
        for name, file in self.files.items():
            rewrite_header(os.path.join(folder, name), files.header(file, record), entries[name].data_start)
        for entry in entries.values():
            for name, content in entry.settled.items():
                shard = os.path.basename(plan.base.tensors[name].file)
                rewrite_tensor(os.path.join(folder, shard), name, content)
        with self.parts.side_folder() as beside:
            files.copy_side_files(beside, progress)
        side_files = plan.side_files
        self.parts.take_place([*self.files, *side_files.copied], side_files.folders, plan.inputs, force)

    def _all_entries(self) -> dict[str, ShardEntry]:
        found = ((name, self._entry(name)) for name in self.files)
        entries = {name: entry._replace(records=()) for name, entry in found if entry}
        if left := [name for name in self.files if name not in entries]:
            raise NotFoundError(
                self.parts.path,
                f"of {counted(len(self.files), 'shard')} {len(left)} lack ({some(left, 3)})",
                "run the jobs that make them, with --shard, and repeat those that ended early",
            )
        return entries

    def _observed(self) -> Iterator[ObservedWeight]:
        """What was seen of the weights, in the order in which one process writes them; of one shard in memory."""
        for name in self.files:
            if entry := self._entry(name):
                yield from entry.observed()

    def _entry(self, name: str) -> ShardEntry | None:
        """What is known of a shard that is there in its whole length; LoraInspectError where it is of another merge."""
        entry = read_entry(self.parts.entry(name))
        if entry is None:
            return None
        check_same(entry.made_of, self.made_of, self.parts.entry(name))
        try:
            is_there = os.path.getsize(self.parts.file(name)) == entry.size
        except OSError:
            return None
        return entry if is_there else None


def bytes_of(plan: MergePlan, file: str) -> int:
    """What `providing` tells of for the shard that is made from a `file` of the base."""
    hashed = plan.base.inputs[file].bytes if plan.options.hash_base else 0
    return sum(info.nbytes for info in plan.written if info.file == file) + hashed


def files_of_share(plan: MergePlan, share: ProcessShare) -> Sequence[str]:
    """The files of the base that one of several processes takes."""
    return taken(share, {file: plan.base.inputs[file].bytes for file in plan.base.files})


def _late(plan: MergePlan) -> set[str]:
    """The tensors that are in another file than the codes that they scale, which are written anew."""
    weights = plan.storage.recoded.values()
    beside = [(weight.info.file, own) for weight in weights for own in weight.beside.values()]
    return {own.name for file, own in beside if own.file != file}
