"""A merge that several processes make together, each some of its shards; OUT.parts is what they know of each other."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.hashes import file_sha256, sha256_behind
from lora_inspect.files.pending_output import MadeOutput
from lora_inspect.files.safetensors.header import read_header
from lora_inspect.files.safetensors.writer import rewrite_header, rewrite_tensor
from lora_inspect.files.shard_staging import PartsFolder
from lora_inspect.files.temp_files import remove_leftovers
from lora_inspect.maths.torch_threads import load_torch
from lora_inspect.merging.dealing import Share, taken
from lora_inspect.merging.fold import Written
from lora_inspect.merging.kept import check_kept
from lora_inspect.merging.made_of import check_same, made_of
from lora_inspect.merging.output_files import OutputFiles
from lora_inspect.merging.plan import MergePlan
from lora_inspect.merging.record import recorded, with_base_hashes
from lora_inspect.merging.result import MergeResult, result_of
from lora_inspect.merging.retention import Keeping, SeenWeight, kept_of
from lora_inspect.merging.shard_entry import ShardEntry, read_entry
from lora_inspect.progress import Progress, silent
from lora_inspect.sentences import counted, some


class Made(NamedTuple):
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
            raise LoraInspectError(
                f"{self.parts.path}: it went away while shards were made, as another run of this job was faster, or as "
                f"somebody removed it; see whether {self.parts.output} is there, and run the job again if not."
            ) from None

    def _make(self, name: str, progress: Progress) -> Made:
        """Writes a shard."""
        plan, file, output = self._plan, self.files[name], self.parts.new(name)
        hashed = file_sha256(file, plan.base.inputs[file], progress) if plan.options.hash_base else None
        keeping = Keeping(self._adapters)
        written = OutputFiles(plan, keeping).write(file, output, self._record, progress, force=True)
        return Made(output, written, [one.in_record() for one in keeping.seen()], hashed)

    def _describe(self, name: str, made: Made) -> None:
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
                kept = kept_of(self._adapters, self._seen())
                if not self._plan.options.accept_loss:
                    check_kept(kept, self._plan.options.seed)
                self._finish(entries, force, progress)
            except (FileNotFoundError, LoraInspectError):
                if self.parts.is_there():
                    raise
                return None  # where there are no locks, another process was faster
            left = self.parts.remove()
        counts = sum((Counter(one.counts) for one in entries.values()), Counter[str]())
        notes = (*self.leftovers, *([left] if left else []))
        size = MadeOutput(self.parts.output).bytes
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
        with self.parts.beside() as beside:
            files.put_beside(beside, progress)
        side_files = plan.side_files
        self.parts.take_place([*self.files, *side_files.copied], side_files.folders, plan.inputs, force)

    def _all_entries(self) -> dict[str, ShardEntry]:
        found = ((name, self._entry(name)) for name in self.files)
        entries = {name: entry._replace(records=()) for name, entry in found if entry}
        if left := [name for name in self.files if name not in entries]:
            raise LoraInspectError(
                f"{self.parts.path}: of {counted(len(self.files), 'shard')} {len(left)} lack ({some(left, 3)}); run "
                "the jobs that make them, with --shard, and repeat those that ended early."
            )
        return entries

    def _seen(self) -> Iterator[SeenWeight]:
        """What was seen of the weights, in the order in which one process writes them; of one shard in memory."""
        for name in self.files:
            if entry := self._entry(name):
                yield from entry.seen()

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


def dealt(plan: MergePlan, share: Share) -> Sequence[str]:
    """The files of the base that one of several processes takes."""
    return taken(share, {file: plan.base.inputs[file].bytes for file in plan.base.files})


def _late(plan: MergePlan) -> set[str]:
    """The tensors that are in another file than the codes that they scale, which are written anew."""
    weights = plan.storage.recoded.values()
    beside = [(weight.info.file, own) for weight in weights for own in weight.beside.values()]
    return {own.name for file, own in beside if own.file != file}
