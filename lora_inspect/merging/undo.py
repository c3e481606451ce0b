"""Where the tensors of a model without its adapters come from: the merged model itself, or the base that is at hand."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.hashes import are_same_bytes
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.safetensors.writer import Writer
from lora_inspect.maths.tensors import TORCH_DTYPES, bytes_in
from lora_inspect.merging.factor_reader import FactorReader
from lora_inspect.merging.fold_chain import Fold
from lora_inspect.merging.subtracted import BLOCK_ELEMENTS, Account, Subtraction, why_not
from lora_inspect.merging.threads import Job, Member
from lora_inspect.merging.working import recorded_type
from lora_inspect.merging.working_crew import Tools, copying, run_in_order, working_crew
from lora_inspect.progress import Progress


class FromMerged:
    """Takes out of each weight what was added to it. `accounts` are those of the weights that are written, by name.

    `folded_in` is what the merge recorded of the element types that it computed in.
    """

    def __init__(self, folds: Mapping[str, Sequence[Fold]], folded_in: Mapping[str, str]) -> None:
        self._folds, self._folded_in, self._factors = folds, folded_in, FactorReader()
        self.accounts: dict[str, Account] = {}

    def write(self, writer: Writer, infos: Sequence[TensorInfo], progress: Progress) -> None:
        """Writes the tensors of a file, which come in its order.

        Raises LoraInspectError where numbers are in one that no base can have become.
        """
        changed = [info for info in infos if info.name in self._folds]
        copied = [info for info in infos if info.name not in self._folds]
        self.accounts |= {info.name: Account() for info in changed}
        with working_crew(BLOCK_ELEMENTS) as crew:
            jobs = ((writer.place(info.name)[0], self._job(writer, info)) for info in changed)
            run_in_order(crew, [copying(writer, writer.spans(copied)), jobs], progress)

    def _job(self, writer: Writer, info: TensorInfo) -> Job[Tools]:
        return Job(partial(self._restore, writer, info), _memory(self._folds[info.name]))

    def _restore(self, writer: Writer, info: TensorInfo, member: Member[Tools]) -> None:
        weight = Subtraction(self._folds[info.name], self._factors, info, recorded_type(info.dtype, self._folded_in))
        blocks = weight.blocks

        def restore(tools: Tools, number: int) -> Account:
            first, rows = tools.blocks.block(tools.source(info), weight.merged, blocks, number)
            values, account = weight.restored(rows, first)
            writer.write_at(info.name, first * values.nbytes // len(values), bytes_in(values))
            member.done(values.nbytes)
            return account

        self.accounts[info.name] = member.total(blocks.number, restore, Account.plus) or Account()
        if impossible := self.accounts[info.name].impossible:
            raise _changed_since(info, impossible)


class AgainstBase:
    """Holds the tensors of a base against a model that was merged from it; `unchecked` are those without a rule.

    `beyond_rules` are tensors of which nothing is known but that they may have become others, and `folded_in` is what
    the merge recorded of the element types that it computed in.
    """

    def __init__(
        self,
        merged: Checkpoint,
        folds: Mapping[str, Sequence[Fold]],
        beyond_rules: Collection[str],
        folded_in: Mapping[str, str],
    ) -> None:
        self._merged, self._folds, self._factors = merged, folds, FactorReader()
        self._beyond_rules, self._folded_in = beyond_rules, folded_in
        self.unchecked: list[str] = []

    def check(self, infos: Iterable[TensorInfo], progress: Progress) -> None:
        """Raises LoraInspectError where a tensor of the base cannot have become that of the merged model."""
        with working_crew(BLOCK_ELEMENTS) as crew:
            crew.run([*self._jobs(infos, progress)], progress)

    def _jobs(self, infos: Iterable[TensorInfo], progress: Progress) -> Iterator[Job[Tools]]:
        for info in infos:
            other, folds = self._merged.tensors.get(info.name), self._folds.get(info.name, ())
            is_plain = other is not None and {info.dtype, other.dtype} <= TORCH_DTYPES.keys()
            is_ruled = info.name not in self._beyond_rules and not (
                folds and (not is_plain or any(map(why_not, folds)))
            )
            if other is None or not is_ruled or (not folds and other.dtype != info.dtype):
                self.unchecked.append(info.name)
                progress(info.nbytes)
            elif folds:
                yield Job(partial(self._check_changed, info, other, folds), _memory(folds))
            else:
                yield Job(partial(self._check_same, info, other))

    def _check_changed(self, info: TensorInfo, other: TensorInfo, folds: Sequence[Fold], member: Member[Tools]) -> None:
        weight = Subtraction(folds, self._factors, other, recorded_type(other.dtype, self._folded_in))
        blocks, own = weight.blocks, info._replace(shape=weight.merged.shape)

        def count(tools: Tools, number: int) -> int:
            first, rows = tools.blocks.block(tools.source(other), weight.merged, blocks, number)
            low, high = weight.interval(rows, first)
            _, of_base = tools.blocks.block(tools.source(info), own, blocks, number)
            member.done(len(of_base) * (info.nbytes // blocks.of_all))
            return int(((of_base < low) | (of_base > high)).sum())

        differ = member.total(blocks.number, count, lambda one, more: one + more)
        if differ:
            raise _of_another_base(info, self._merged, f"{differ:,} of its {info.numel:,} numbers are")

    def _check_same(self, info: TensorInfo, other: TensorInfo, member: Member[Tools]) -> None:
        if other.shape != info.shape or not are_same_bytes(info, other, [(0, 0, info.nbytes)]):
            raise _of_another_base(info, self._merged, "it is")
        member.done(info.nbytes)


def _memory(folds: Sequence[Fold]) -> int:
    """Bytes that the factors take in float64, with their absolute values."""
    return sum(16 * info.numel for fold in folds for info in fold.contribution.operands.values())


def _changed_since(info: TensorInfo, count: int) -> LoraInspectError:
    return LoraInspectError(
        f"{info.file}: {count:,} numbers of {info.name} are no result of the merge that it records, so it was changed "
        "since; fetch the base itself."
    )


def _of_another_base(info: TensorInfo, merged: Checkpoint, what: str) -> LoraInspectError:
    return LoraInspectError(
        f"{info.file}: {info.name} did not become that of {merged.path}, as {what} another; name the base that was "
        "merged into."
    )
