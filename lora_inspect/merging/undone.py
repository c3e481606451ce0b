"""Where the tensors of a model without its adapters come from: the merged model itself, or the base that is at hand."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.header import TensorInfo
from lora_inspect.files.same_bytes import are_same_bytes
from lora_inspect.files.writer import Writer
from lora_inspect.maths.tensor_reader import TORCH_DTYPES, bytes_in
from lora_inspect.merging.factor_reader import FactorReader
from lora_inspect.merging.links import Fold
from lora_inspect.merging.subtracted import Account, Subtraction, why_not
from lora_inspect.merging.working import recorded_type


class FromMerged:
    """Takes out of each weight what was added to it. `accounts` are those of the weights that are written, by name.

    `folded_in` is what the merge recorded of the element types that it computed in.
    """

    def __init__(self, folds: Mapping[str, Sequence[Fold]], folded_in: Mapping[str, str]) -> None:
        self._folds, self._folded_in, self._factors = folds, folded_in, FactorReader()
        self.accounts: dict[str, Account] = {}

    def write(self, writer: Writer, info: TensorInfo) -> None:
        """Writes a tensor; LoraInspectError where numbers are in it that no base can have become."""
        if info.name not in self._folds:
            writer.copy(info)
            return
        writer.write(info.name, self._rows(info, self._folds[info.name]))
        if impossible := self.accounts[info.name].impossible:
            raise _changed_since(info, impossible)

    def _rows(self, info: TensorInfo, folds: Sequence[Fold]) -> Iterator[memoryview]:
        self.accounts[info.name] = Account()
        working = recorded_type(info.dtype, self._folded_in)
        for values, account in Subtraction(folds, self._factors, info, working).blocks():
            self.accounts[info.name] = self.accounts[info.name].plus(account)
            yield bytes_in(values)


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

    def check(self, info: TensorInfo) -> None:
        """Raises LoraInspectError where the tensor of the base cannot have become that of the merged model."""
        other, folds = self._merged.tensors.get(info.name), self._folds.get(info.name, ())
        is_plain = other is not None and {info.dtype, other.dtype} <= TORCH_DTYPES.keys()
        is_ruled = info.name not in self._beyond_rules and not (folds and (not is_plain or any(map(why_not, folds))))
        if other is None or not is_ruled:
            self.unchecked.append(info.name)
        elif folds:
            working = recorded_type(other.dtype, self._folded_in)
            if differ := Subtraction(folds, self._factors, other, working).differing(info):
                raise _of_another_base(info, self._merged, f"{differ:,} of its {info.numel:,} numbers are")
        elif other.dtype != info.dtype:
            self.unchecked.append(info.name)
        elif other.shape != info.shape or not are_same_bytes(info, other, [(0, 0, info.nbytes)]):
            raise _of_another_base(info, self._merged, "it is")


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
