"""The folding of a base, file by file: each weight with its changes, or its bytes unchanged.

`OutputFiles` writes all files of a merged base by its plan; a folder's other files are copied.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.base_folder import copy_side_files
from lora_inspect.files.input_file import Identity
from lora_inspect.files.pending_output import Borrowing
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.safetensors.writer import ROOM, TensorPlan, Writer, encode_header, in_file_order
from lora_inspect.matching.placement import as_matrix
from lora_inspect.merging.encode import Encoder, Recoded, Rounded, Witness
from lora_inspect.merging.fold_chain import Fold, working_type
from lora_inspect.merging.plan import MergePlan
from lora_inspect.merging.resized_embeddings import ResizedTensor
from lora_inspect.merging.retention import Retention
from lora_inspect.merging.storage import Storage
from lora_inspect.merging.threads import Job
from lora_inspect.progress import Progress
from lora_inspect.reading.metadata.output_metadata import merged_metadata

if TYPE_CHECKING:
    from torch import Tensor

    from lora_inspect.maths.rounding import StochasticRounding
    from lora_inspect.merging.working_crew import Tools

# A block of rows that stays in the second-level cache of one core while it is folded: 1 MB in float32. All that is
# computed is computed of these blocks, so that the output depends on this number alone.
BLOCK_ELEMENTS = 1 << 18


def rounding_of(seed: int | None, name: str, folds: "Sequence[Fold]") -> "StochasticRounding | None":
    """Return the stochastic rounding of a weight by the `seed`; None, for the nearest number, without seed or folds."""
    if seed is None or not folds:
        return None
    from lora_inspect.maths.rounding import StochasticRounding

    return StochasticRounding(seed, name)


@dataclass(frozen=True, slots=True)
class Folding:
    """The changes to a base: its folds by tensor name, the storage of the output, and the rule for DoRA.

    `dora_rule` is None if each file's own rule holds. With a `seed`, changed weights are rounded stochastically.
    `keeping` gathers the share of the changes that the output keeps. `resized` are tensors in the size of an adapter's.
    """

    folds: Mapping[str, Sequence[Fold]]
    storage: Storage = field(default_factory=Storage)
    dora_rule: str | None = None
    seed: int | None = None
    keeping: Retention | None = None
    resized: Mapping[str, ResizedTensor] = field(default_factory=dict)

    def folds_of(self, info: TensorInfo) -> list[Fold]:
        """Return the folds that change a tensor of the base, in order."""
        return [fold for fold in self.folds.get(info.name, ()) if fold.multiplier != 0]

    def is_copied(self, info: TensorInfo) -> bool:
        """Return True if the output has the same bytes for a tensor of the base."""
        is_own = info.name not in self.resized and not self.folds_of(info)
        return is_own and self.output(info).dtype == info.dtype

    def output(self, info: TensorInfo) -> TensorPlan:
        """Return the plan of the output tensor for a tensor of the base."""
        resized = self.resized.get(info.name)
        shape = resized.info.shape if resized else info.shape
        return TensorPlan(info.name, self.storage.types.get(info.name, info.dtype), shape)

    def encoder(self, info: TensorInfo) -> Encoder:
        """Return the encoder for the rows of a tensor that is rewritten."""
        folds = self.folds_of(info)
        rounding = rounding_of(self.seed, info.name, folds)
        if info.name in self.storage.recoded:
            return Recoded(self.storage.recoded[info.name], folds, rounding)
        return Rounded(info, folds, self.output(info).dtype, rounding)

    def witness(self, info: TensorInfo, read: TensorInfo) -> Witness | None:
        """Return the witness of a rewritten tensor, read as `read`; None if nothing changes it."""
        folds = self.folds_of(info)
        return self.keeping.witness(read, folds, self.output(info).dtype) if self.keeping and folds else None


class Written(NamedTuple):
    """A file that was written: its tensors by element type, and its identity when it took its name.

    `late` are tensors of other files with content that its weights decide.
    """

    counts: Counter[str]
    late: dict[str, bytes]
    identity: Identity


def write_folded(
    output: str,
    infos: Iterable[TensorInfo],
    folding: Folding,
    metadata: Mapping[str, str],
    progress: Progress,
    inputs: Mapping[str, Identity] | None = None,
    force: bool = False,
    accept: Callable[[], None] = lambda: None,
    borrowing: Borrowing | None = None,
) -> Written:
    """Write the tensors of one file of the base to `output`.

    `progress` receives the finished bytes of the base. With `force` the file replaces one of its name. `accept` is
    called when all is written; if it raises, no file remains. The parts that a `borrowing` takes are holes in the file.
    Raises LoraInspectError if a result is not finite or cannot be computed (for the first one in the order of the
    file), if the name is taken, and if one of the `inputs` has changed since it was read.
    """
    from lora_inspect.maths.tensors import bytes_in
    from lora_inspect.merging.factor_reader import FactorReader
    from lora_inspect.merging.one_weight import WeightJob
    from lora_inspect.merging.working_crew import copying, run_in_order, working_crew

    by_name, recoded = {info.name: info for info in infos}, folding.storage.recoded
    plans = in_file_order(folding.output(info) for info in by_name.values())
    written = [by_name[plan.name] for plan in plans if not folding.is_copied(by_name[plan.name])]
    beside = {own.name for info in written if (weight := recoded.get(info.name)) for own in weight.beside.values()}
    rewritten = beside | {info.name for info in written}
    copied = [by_name[plan.name] for plan in plans if plan.name not in rewritten]
    coded = folding.storage.coded
    late: dict[str, bytes] = {}

    def keep(name: str, tensor: "Tensor") -> None:
        late[name] = bytes(bytes_in(tensor))

    def look(partial: str) -> None:
        identities.append(Identity.of(os.stat(partial)))

    identities: list[Identity] = []
    factors = FactorReader()
    with Writer(output, plans, metadata, inputs, force, look) as writer, working_crew(BLOCK_ELEMENTS) as crew:
        progress(0)

        def fold(info: TensorInfo) -> "Job[Tools]":
            folds = folding.folds_of(info)
            read = folds[0].placed.place.target if folds else _flat(info, folding)
            job = WeightJob(
                read=read,
                working=working_type(read.dtype, folding.output(info).dtype) if folds else None,
                folds=folds,
                encoder=folding.encoder(info),
                writer=writer,
                factors=factors,
                late=keep,
                coded=coded,
                rule=folding.dora_rule,
                witness=folding.witness(info, read),
            )
            beside = coded[read.name].beside.values() if read.name in coded else ()
            return Job(job, job.memory + sum(own.nbytes for own in beside))

        folds = ((writer.place(info.name)[0], fold(info)) for info in written)
        spans = borrowing.rest(writer.spans(copied), writer.size) if borrowing else writer.spans(copied)
        run_in_order(crew, [copying(writer, spans), folds], progress)
        if borrowing:
            writer.leave(borrowing.bytes)
            progress(borrowing.bytes)
        accept()
    return Written(Counter(target.dtype for target in plans), late, identities[-1])


def _flat(info: TensorInfo, folding: Folding) -> TensorInfo:
    """Return a tensor in a shape with one number a row, since its numbers are cast one by one.

    A decoded tensor keeps its rows; experts that are decoded in parts are concatenated along the rows.
    """
    if info.name in folding.resized:
        info = folding.resized[info.name].info
    weight = folding.storage.decoded.get(info.name)
    if weight is None:
        return info._replace(shape=(info.numel,))
    return as_matrix(info) if weight.layout.part else info


class OutputFiles:
    """The output files of a plan, one for each file of the base; `keeping` gathers the share of the changes kept."""

    def __init__(self, plan: MergePlan, keeping: Retention | None = None) -> None:
        self._plan = plan
        options = plan.options
        self._folding = Folding(plan.folds, plan.storage, options.dora_rule, options.seed, keeping, plan.resized)

    def write(
        self,
        file: str,
        output: str,
        record: str,
        progress: Progress,
        inputs: Mapping[str, Identity] | None = None,
        force: bool = False,
        accept: Callable[[], None] = lambda: None,
        borrowing: Borrowing | None = None,
    ) -> Written:
        """Write the tensors of one `file` of the base to `output`, with the `record` of the merge in its metadata.

        The rest is as `write_folded` has it.
        """
        metadata = self._metadata(file, record)
        infos = self._infos(file)
        return write_folded(output, infos, self._folding, metadata, progress, inputs, force, accept, borrowing)

    def header(self, file: str, record: str) -> bytes:
        """Return the bytes before the tensors in the file that `write` makes of a base's `file`."""
        plans = in_file_order(self._folding.output(info) for info in self._infos(file))
        return encode_header(plans, self._metadata(file, record), ROOM)

    @property
    def weight_bytes(self) -> int:
        """The size of all tensors of the output."""
        return sum(self._folding.output(info).nbytes for info in self._plan.written)

    def copy_side_files(self, folder: str, progress: Progress) -> None:
        """Fill the `folder` of the weights with the index and the base's other files."""
        plan = self._plan
        dropped, rewritten = plan.storage.dropped, plan.storage.side_files
        copy_side_files(
            plan.base, plan.side_files, folder, self.weight_bytes, progress, dropped, rewritten, plan.renamed
        )

    def _infos(self, file: str) -> list[TensorInfo]:
        return [info for info in self._plan.written if info.file == file]

    def _metadata(self, file: str, record: str) -> dict[str, str]:
        described = self._plan.storage.metadata.get(file, self._plan.base.file_metadata[file])
        return merged_metadata(described, record)
