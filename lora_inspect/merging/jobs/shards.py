"""A merge that several processes make together, each some of its shards, through the folder OUT.parts.

The first process claims the folder for its merge before it writes anything else, and those of another merge end. An
entry next to each shard describes it for the process that finishes. The shards of one output must be made of the
same inputs and options. An entry may come from another run, another version or a disk that lost bytes: an invalid entry
counts as none.
"""

import hashlib
import json
import os
import time
from _thread import allocate_lock
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from lora_inspect.errors import CouldNotWorkError, DamagedError, LoraInspectError, NotFoundError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.hashes import file_sha256, sha256_behind
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.files.pending_output import PendingOutput
from lora_inspect.files.safetensors.header import LENGTH_BYTES, read_header
from lora_inspect.files.safetensors.writer import rewrite_header, rewrite_tensor
from lora_inspect.files.shard_staging import PartsFolder
from lora_inspect.files.system import usable_cores
from lora_inspect.files.temp_files import remove_leftovers
from lora_inspect.maths.torch_threads import load_torch
from lora_inspect.merging.fold import OutputFiles, Written
from lora_inspect.merging.jobs.shard_entry import ShardEntry, claim_of, read_claim, read_entry
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
# So many shards are read at a time before the output takes its name.
_READERS = 4
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
    """Return all that decides the content of the shards: the `record` of the merge and the facts missing in it."""
    said = json.loads(record)
    options = {name: value for name, value in said.get(OPTIONS, {}).items() if name != _DECIDES}
    base = {**said[BASE], _NUMBERS: _sampled(plan.base)}
    return {**said, BASE: base, OPTIONS: options, _WEIGHTS: _folded(plan)}


def check_same(theirs: Mapping[str, Any], ours: Mapping[str, Any], where: str) -> None:
    """Raise LoraInspectError, with the first difference, if the files at `where` belong to another merge."""
    if said := difference(theirs, ours):
        raise RefusedError(
            where,
            f"it belongs to another merge: {said}",
            "repeat the command that made it, choose another output, or remove the folder",
        )


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """Return the first difference between the inputs of other shards and ours, in words; None if they are equal."""
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
        return "the changed weights or their new numbers differ"
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
    """Return the hash of some bytes of each file."""
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
    """Return the hash of the folds with their multipliers and of the storage of the output."""
    numbers = {id(adapter): number for number, (adapter, _) in enumerate(plan.adapters)}
    folds = {
        name: [(numbers[id(fold.adapter)], fold.contribution.module.key, fold.multiplier) for fold in own]
        for name, own in plan.folds.items()
    }
    storage = plan.storage
    codecs = {name: weight.codec.name for name, weight in {**storage.decoded, **storage.recoded}.items()}
    stored = {"codecs": codecs, "types": dict(storage.types), "dropped": sorted(storage.dropped)}
    return hashlib.sha256(json.dumps([folds, stored], sort_keys=True).encode()).hexdigest()


class MadeShard(NamedTuple):
    """A shard that was written to `output`: the records of its weights, and the hash of the base's file if asked."""

    output: str
    written: Written
    records: list[Any]
    base_sha256: str | None


class SharedMerge:
    """One process' view of a shared merge; `files` are the base files, by name, that the shards are made from.

    Raises LoraInspectError if an existing shard belongs to another merge.
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
        # By shard the identity of the file that this process knows to have the bytes of the entry.
        self._whole: dict[str, Identity] = {}
        self._check_claim()
        for name in self.files:
            self._entry(name)

    def claim(self) -> None:
        """Claim the parts for this merge; raises LoraInspectError if they are of another one."""
        self.parts.make(claim_of(self.made_of))
        if read_claim(self.parts.claim) is None and self.parts.is_there():
            raise DamagedError(self.parts.claim, "it does not say which merge it is of", "remove it")
        self._check_claim()

    def _check_claim(self) -> None:
        """Raise LoraInspectError if the parts are claimed for another merge."""
        if (theirs := read_claim(self.parts.claim)) is not None:
            check_same(theirs, self.made_of, self.parts.path)

    def is_done(self) -> bool:
        """Return True if the output is that of this merge and its parts folder is a leftover without shards.

        A process may have died between these two steps: the output takes its name, and the parts are removed.
        """
        claimed = read_claim(self.parts.claim) if self.parts.is_there() else None
        if claimed is None or difference(claimed, self.made_of) or self.parts.has_shards(list(self.files)):
            return False
        entries = {name: entry for name in self.files if (entry := read_entry(self.parts.entry(name)))}
        try:
            files, record = OutputFiles(self._plan), self._final_record(entries)
            return all(
                _has_header(os.path.join(self.parts.output, name), files.header(file, record))
                for name, file in self.files.items()
            )
        except LoraInspectError:
            return False

    def left(self) -> list[str]:
        """Return the shards that are not there yet."""
        return [name for name in self.files if self._entry(name) is None]

    @contextmanager
    def providing(self) -> Iterator[Callable[[str, Progress], bool]]:
        """Yield a function that makes a shard unless it is complete, and returns True if it was already.

        Its progress receives the bytes written, and those of the base read for a hash. A separate thread reads each
        shard back while the next one is made; after the block all of them count as complete. Complete shards remain if
        the block fails.
        """
        described: list[Future[None]] = []

        def provide(name: str, progress: Progress) -> bool:
            entry = self._entry(name)
            if entry and self._holds(name, entry):
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
                "it disappeared while this job made shards: another run of the job was faster, or somebody removed it",
                f"check whether {self.parts.output} is there, and run the job again if not",
            ) from None

    def _make(self, name: str, progress: Progress) -> MadeShard:
        """Write a shard."""
        plan, file, output = self._plan, self.files[name], self.parts.new(name)
        hashed = file_sha256(file, plan.base.inputs[file], progress) if plan.options.hash_base else None
        keeping = Retention(self._adapters)
        accept = self._check_claim
        written = OutputFiles(plan, keeping).write(file, output, self._record, progress, force=True, accept=accept)
        return MadeShard(output, written, [one.in_record() for one in keeping.observed()], hashed)

    def _describe(self, name: str, made: MadeShard) -> None:
        """Note that a shard is there, unless another run of this job has put its own in its place."""
        identity = made.written.identity
        try:
            tensors, _ = read_header(made.output)
            late = [(tensors[one].start, tensors[one].stop) for one in self._late if one in tensors]
            data_start = len(OutputFiles(self._plan).header(self.files[name], self._record))
            size, digest = sha256_behind(made.output, data_start, late, identity)
        except LoraInspectError:
            if self.parts.is_there() and self._identity(made.output) != identity:
                return
            raise
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
        self._check_claim()
        self.parts.write_entry(name, entry.content())
        self._whole[name] = identity

    def _identity(self, file: str) -> Identity | None:
        try:
            return Identity.of(os.stat(file))
        except OSError:
            return None

    def _holds(self, name: str, entry: ShardEntry, progress: Progress = silent) -> bool:
        """Return True if a shard has every byte of its entry; it is read once, unless the file was replaced."""
        file = self.parts.file(name)
        identity = self._identity(file)
        if identity is None:
            return False
        if identity != self._whole.get(name):
            if not entry.holds(file, identity, progress):
                return False
            self._whole[name] = identity
        return True

    @property
    def seconds(self) -> float:
        """The seconds since it began."""
        return time.perf_counter() - self._started

    def finish(self, force: bool = False, progress: Progress = silent) -> MergeResult | None:
        """Give the output its name, when all shards are there; return None if another process does so.

        Raises LoraInspectError where a shard is missing, where too little of an adapter is kept, and where there is no
        room for the output or another one has its name. The parts stay then.
        """
        with self.parts.finishing() as is_ours:
            if not is_ours:
                return None
            entries = self._all_entries()
            self._check_bytes(entries, progress)
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
        record = self._final_record(entries)
        headers = {name: files.header(file, record) for name, file in self.files.items()}
        for name, header in headers.items():
            rewrite_header(os.path.join(folder, name), header, entries[name].data_start)
        for entry in entries.values():
            for name, content in entry.settled.items():
                shard = os.path.basename(plan.base.tensors[name].file)
                rewrite_tensor(os.path.join(folder, shard), name, content)
        with self.parts.side_folder() as beside:
            files.copy_side_files(beside, progress)
        self._check_claim()
        for name, header in headers.items():
            if not _has_header(os.path.join(folder, name), header):
                raise CouldNotWorkError(
                    os.path.join(folder, name),
                    "another program changed it in the meantime",
                    "run the job again",
                )
        side_files = plan.side_files
        self.parts.take_place([*self.files, *side_files.copied], side_files.folders, plan.inputs, force)

    def _final_record(self, entries: Mapping[str, ShardEntry]) -> str:
        """Return the record of the merge, with the hashes of the base's files where these are recorded.

        A file without an entry is hashed again.
        """
        if not self._plan.options.hash_base:
            return self._record
        inputs = self._plan.base.inputs
        hashes = {
            file: (entries[name].base_sha256 if name in entries else file_sha256(file, inputs[file])) or ""
            for name, file in self.files.items()
        }
        return with_base_hashes(self._record, self._plan.base, hashes)

    def _all_entries(self) -> dict[str, ShardEntry]:
        found = ((name, self._entry(name)) for name in self.files)
        entries = {name: entry._replace(records=()) for name, entry in found if entry}
        if left := [name for name in self.files if name not in entries]:
            raise NotFoundError(
                self.parts.path,
                f"{len(left)} of {counted(len(self.files), 'shard')} are missing ({some(left, 3)})",
                "run the jobs that make them, with --shard, and repeat those that ended early",
            )
        return entries

    def _check_bytes(self, entries: Mapping[str, ShardEntry], progress: Progress) -> None:
        """Raise LoraInspectError if a shard lacks the bytes that its job wrote.

        The shards of other jobs are read, several at a time.
        """
        told = allocate_lock()

        def tell(amount: int) -> None:
            with told:
                progress(amount)

        with ThreadPoolExecutor(min(_READERS, usable_cores())) as pool:
            found = pool.map(lambda name: self._holds(name, entries[name], tell), entries)
            wrong = [name for name, is_whole in zip(entries, found, strict=True) if not is_whole]
        if wrong and self.parts.is_there():
            raise DamagedError(
                self.parts.path,
                f"{counted(len(wrong), 'shard')} ({some(wrong, 3)}) lost bytes after the job wrote them",
                "repeat, with --shard, each job that makes one of them",
            )

    def _observed(self) -> Iterator[ObservedWeight]:
        """Yield the observations of the weights in the order in which one process writes them, one shard in memory."""
        for name in self.files:
            if entry := self._entry(name):
                yield from entry.observed()

    def _entry(self, name: str) -> ShardEntry | None:
        """Return the entry of a shard of full length, else None; LoraInspectError if it belongs to another merge."""
        entry = read_entry(self.parts.entry(name))
        if entry is None:
            return None
        if read_claim(self.parts.claim) is None:
            check_same(entry.made_of, self.made_of, self.parts.entry(name))
        elif difference(entry.made_of, self.made_of):
            return None  # the parts are claimed for this merge, whatever another one has left here
        try:
            is_there = os.path.getsize(self.parts.file(name)) == entry.size
        except OSError:
            return None
        return entry if is_there else None


def _has_header(file: str, header: bytes) -> bool:
    """Return True if a file has this header, however much padding it has."""
    with InputFile(file) as source:
        length = int.from_bytes(source.read(0, LENGTH_BYTES), "little")
        found = source.read(LENGTH_BYTES, length) if length < source.identity.bytes else b""
    return bytes(found).rstrip() == header[LENGTH_BYTES:].rstrip()


def bytes_of(plan: MergePlan, file: str) -> int:
    """Return the number of bytes that `providing` reports for the shard made from a `file` of the base."""
    hashed = plan.base.inputs[file].bytes if plan.options.hash_base else 0
    return sum(info.nbytes for info in plan.written if info.file == file) + hashed


def files_of_share(plan: MergePlan, share: ProcessShare) -> Sequence[str]:
    """Return the files of the base that one of several processes takes."""
    return taken(share, {file: plan.base.inputs[file].bytes for file in plan.base.files})


def _late(plan: MergePlan) -> set[str]:
    """Return the rewritten tensors that are in another file than the codes that they scale."""
    weights = plan.storage.recoded.values()
    beside = [(weight.info.file, own) for weight in weights for own in weight.beside.values()]
    return {own.name for file, own in beside if own.file != file}
