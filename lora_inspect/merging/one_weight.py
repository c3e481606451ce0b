"""One weight of a base on its way to the output: read, folded, rounded and written a block of rows at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.safetensors.writer import Writer
from lora_inspect.maths.change import Link, Measure, fold_all, holds_all, settled, together_in
from lora_inspect.maths.share import StepSums, both
from lora_inspect.maths.tensors import TORCH_DTYPES, Cut, Decode, bytes_in, cut
from lora_inspect.merging.encode import Encoder, Witness
from lora_inspect.merging.factor_reader import FactorReader
from lora_inspect.merging.fold_chain import Fold, LinkReader, decode_of, no_numbers_of_a_change
from lora_inspect.merging.threads import Worker
from lora_inspect.merging.working_crew import Tools
from lora_inspect.reading.base.base_codecs import CodedWeight

# How many times as large as others the blocks are at most that a thread reads beside the others' for one scale.
_STRETCHED = 4
# As many of these blocks as fit into the memory of so many others are in work at the same time, and one at least.
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Rows:
    """A reader of the rows of a weight, by one member of a crew or by all free ones.

    The rows have the type `working`; None means the type in which the weight is read.
    """

    member: Worker[Tools]
    info: TensorInfo
    decode: Decode | None
    working: torch.dtype | None

    def __call__(self, together: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, rows), one block after the other, read by this member."""
        blocks, tools = self.cut(together), self.member.tools
        return (self.block(tools, blocks, number) for number in range(blocks.number))

    def total(
        self, together: int, measure: Measure, add: Callable[[Any, Any], Any] = lambda one, other: one + other
    ) -> Any:
        """Return the sum of `measure` over the blocks, added in their order; None if there are no blocks."""
        blocks = self.cut(together)

        def part(tools: Tools, number: int) -> Any:
            return measure(*self.block(tools, blocks, number))

        return self.spread(blocks, part, add)

    def spread(self, blocks: Cut, part: Callable[[Tools, int], Any], add: Callable[[Any, Any], Any]) -> Any:
        """Return the sum of `part` over the blocks, added in their order; fewer members work on larger blocks."""
        most = max(1, _AT_ONCE * self.member.tools.blocks.elements // max(1, blocks.elements))
        return self.member.total(blocks.number, part, add, most)

    def cut(self, together: int, aligned: int = 1) -> Cut:
        """Return blocks that keep `together` rows and begin at multiples of `aligned` rows."""
        return cut(self.info, self.member.tools.blocks.elements, together, aligned, self.decode)

    def block(self, tools: Tools, blocks: Cut, number: int) -> tuple[int, Tensor]:
        """Return one of the blocks, in the memory of `tools`."""
        return tools.blocks.block(tools.source(self.info), self.info, blocks, number, self.decode, self.working)


@dataclass(frozen=True, slots=True)
class WeightJob:
    """A weight that is changed, cast, decoded or encoded: its `folds` in order, and the destination of its rows.

    `read` is the tensor as read, which may have another shape than the written one. `working` is the element type of
    the folding, None without folds; `coded` are the weights that are codes in the base. `late` receives its scales that
    are in another file.
    """

    read: TensorInfo
    working: str | None
    folds: Sequence[Fold]
    encoder: Encoder
    writer: Writer
    factors: FactorReader
    late: Callable[[str, Tensor], None]
    coded: Mapping[str, CodedWeight] = field(default_factory=dict)
    rule: str | None = None
    witness: Witness | None = None

    @property
    def memory(self) -> int:
        """Bytes that its factors take, as they are stored and as they are computed with."""
        size = TORCH_DTYPES[self.working].itemsize if self.working else 0
        return sum(
            2 * info.nbytes + size * info.numel for fold in self.folds for info in fold.contribution.operands.values()
        )

    def __call__(self, member: Worker[Tools]) -> None:
        """Write the whole weight; raises LoraInspectError for numbers that cannot be computed or written."""
        working = TORCH_DTYPES[self.working] if self.working else None
        rows = Rows(member, self.read, decode_of(self.read, self.coded), working)
        try:
            terms = self._terms(member, rows)
            links = [link for term in terms for link in term]
            together = together_in(links)
            # What is read in larger blocks for its scales alone may take as much memory as all else of a thread.
            most = member.tools.blocks.elements * (1 if self.encoder.aligned == 1 else _STRETCHED)
            if rows.cut(together, self.encoder.aligned).elements <= most:
                self._write(member, rows, terms, together)
            else:
                with member.alone():
                    self._write(member, rows, terms, together)
        except LinAlgError as error:
            raise no_numbers_of_a_change(self.read, self.folds[-1]) from error

    def _terms(self, member: Worker[Tools], rows: Rows) -> list[list[Link]]:
        """Return the settled changes of each adapter; only one job at a time decomposes a whole weight."""
        reader = LinkReader(member.tools.blocks, self.factors, self.coded, rows.working)
        with member.alone() if any(fold.placed.has_residual for fold in self.folds) else nullcontext():
            links = [(fold.adapter, link) for fold in self.folds for link in reader.links(fold, rows, self.rule)]
        with member.alone() if any(holds_all(change) for _, (change, _) in links) else nullcontext():
            done = settled([link for _, link in links], rows)
        pairs = zip((id(adapter) for adapter, _ in links), done, strict=True)
        return [[link for _, link in own] for _, own in groupby(pairs, key=lambda pair: pair[0])]

    def _write(self, member: Worker[Tools], rows: Rows, terms: Sequence[Sequence[Link]], together: int) -> None:
        encoder: Encoder | None = self.encoder.prepared()
        tell: Callable[[int], None] = member.done
        while encoder is not None:
            beside, sums = self._written(rows, rows.cut(together, encoder.aligned), terms, encoder, tell)
            last, encoder = encoder, encoder.again(beside)
            if encoder is not None:
                self.writer.forget(self.read.name)
                tell = _tell_nothing
        for name, tensor in last.others(beside):
            if self.writer.has(name):
                self.writer.write(name, [bytes_in(tensor)])
            else:
                self.late(name, tensor)
        if self.witness:
            self.witness.done(sums)

    def _written(
        self,
        rows: Rows,
        blocks: Cut,
        terms: Sequence[Sequence[Link]],
        encoder: Encoder,
        tell: Callable[[int], None],
    ) -> tuple[list[Any], StepSums | None]:
        """Write all rows; return the facts about each block, and the sums of the witness."""
        beside: list[Any] = [None] * blocks.number

        def write(tools: Tools, number: int) -> Any:
            first, block = rows.block(tools, blocks, number)
            look = self.witness.look(block, first) if self.witness else None
            for term in terms:
                fold_all(term, block, first)
                if look:
                    look.see(block)
            coded = encoder.encoded(block, first, tools.blocks)
            beside[number] = coded.beside
            row_bytes = coded.codes.nbytes // len(block)
            self.writer.write_at(self.read.name, first * row_bytes, bytes_in(coded.codes))
            tell(len(block) * (self.read.nbytes // blocks.of_all))
            if look is None:
                return None
            look.see(encoder.decoded(coded, first))
            return look.sums()

        return beside, rows.spread(blocks, write, both)


def _tell_nothing(amount: int) -> None:
    """Ignore progress: rewriting was reported at the first writing."""
