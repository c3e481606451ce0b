"""The plan of an extraction, and its making: the difference of two models, streamed in blocks of rows."""

import math
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy

from lora_inspect.algebra.extracting.extracted_modules import Extracted, Naming, Part, named
from lora_inspect.algebra.extracting.extraction import (
    WrittenModule,
    WrittenVector,
    squared_norm,
    written_by_rule,
    written_in_one_rank,
    written_in_size,
    written_vector,
)
from lora_inspect.algebra.extracting.model_layers import OF_VAE
from lora_inspect.algebra.extracting.model_pair import ModelPair, NotFiniteError, open_pair
from lora_inspect.algebra.linear.module_threads import made_in_order
from lora_inspect.algebra.linear.ranks import RankRule
from lora_inspect.algebra.options import ExtractRequest, rank_rule, recorded_options
from lora_inspect.algebra.output.adapter_output import AdapterOutput
from lora_inspect.algebra.output.made_metadata import input_record, made_record
from lora_inspect.algebra.output.output_modules import FileError, Making, WrittenTensor, widest
from lora_inspect.algebra.output.streamed_file import bytes_behind
from lora_inspect.algebra.results import ExtractResult, WorstModule
from lora_inspect.errors import RefusedError
from lora_inspect.files.input_file import check_unchanged
from lora_inspect.files.safetensors.writer import TensorPlan
from lora_inspect.files.temp_files import remove_leftovers
from lora_inspect.maths.scaling import STANDARD
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.metadata.provenance import COMBINED_KEY
from lora_inspect.reading.model.evidence import SCALE_KEY
from lora_inspect.reading.peft.fused_experts import fused_layer

_VERB = "extract"
_UNNAMED = "extracted.safetensors"
_VAE = "vae"
_NO_ROOM = "the size has no room for it"
# The element type of the factors where both models hold codes alone.
_OF_CODES = "BF16"


@dataclass(frozen=True, slots=True)
class ExtractPlan:
    """The modules of an extraction, from headers: both models, and the names of the output at `path`, None for none."""

    pair: ModelPair
    naming: Naming
    request: ExtractRequest
    path: str | None

    @property
    def modules(self) -> int:
        """The number of modules that may have factors."""
        return len(self.naming.matrices)


def plan_extract(tuned: str, base: str, request: ExtractRequest, output: str | None) -> ExtractPlan:
    """Read the headers of both models, and name the modules of their difference.

    `output` is the path that the user named, None where nothing is written. Raises LoraInspectError for any obstacle.
    """
    pair = open_pair(tuned, base)
    plan = ExtractPlan(pair, named(pair, request), request, output)
    if output is not None:
        _place(plan, plan.naming.matrices)
    return plan


def _place(plan: ExtractPlan, modules: Sequence[Extracted]) -> AdapterOutput:
    return AdapterOutput(
        plan.naming.adapter,
        [one.planned for one in modules],
        plan.path,
        plan.pair.files,
        _UNNAMED,
        is_asked=True,
        target=plan.naming.target,
        tied=[one.key for one in modules if any(part.tensor.name == plan.pair.tied for part in one.parts)],
    )


def write_extract(
    plan: ExtractPlan, force: bool = False, dry_run: bool = False, progress: Progress = silent
) -> ExtractResult:
    """Write the difference as an adapter; with `dry_run` compute the same and write nothing.

    `progress` receives 1 for each module. Raises LoraInspectError, and leaves nothing, if the models do not differ, if
    they hold numbers that are not finite, or if the output cannot be as requested.
    """
    started = time.perf_counter()
    leftovers: tuple[str, ...] = ()
    if plan.path is not None:
        place = _place(plan, plan.naming.matrices)
        leftovers = () if dry_run else tuple(remove_leftovers(place.path))
        place.check(plan.pair.files, force)
    run = _Run(plan, progress)
    run.write(force, dry_run)
    check_unchanged(plan.pair.files)
    output = None if dry_run and plan.path is None else run.place.path
    result = run.result(output, not dry_run, time.perf_counter() - started, leftovers)
    progress(plan.modules - len(run.modules))
    return result


def _expert_layer(module: Extracted) -> str | None:
    """Return the path of all experts of a layer, for one of them under PEFT's names."""
    if not module.planned.is_single_expert:
        return None
    layer = fused_layer(module.output.module.name.body)
    return layer and layer.parameter.rpartition(".")[0]


class _Run:
    """One extraction: the modules that differ, and the account of each once it is written."""

    def __init__(self, plan: ExtractPlan, progress: Progress) -> None:
        naming, tensors = plan.naming, plan.pair.tensors
        unasked = set(naming.unasked)
        names = [name for name in tensors if name not in unasked]
        same = made_in_order(lambda name: tensors[name].is_equal, names)
        self.equal = {name for name, is_equal in zip(names, same, strict=True) if is_equal}
        self.plan, self.progress = plan, progress
        self.modules = self._changed_modules(naming.matrices)
        vectors = [one for one in naming.vectors if self._differs(one)]
        self.unwanted = vectors if plan.request.weights_only else []
        self.vectors = [] if plan.request.weights_only else vectors
        if len(self.equal) == len(names):
            raise RefusedError(
                plan.pair.tuned.path,
                f"all {len(names)} tensors are the same in {plan.pair.base.path}",
                "name the tuned model first, then the base that it was tuned from",
            )
        self.rule: RankRule = rank_rule(plan.request)
        self.dtype = plan.request.dtype or widest(
            (dtype for one in self.modules for part in one.parts for dtype in part.tensor.dtypes), _OF_CODES
        )
        self.place = _place(plan, self.modules)
        self.making = Making(self.dtype, self.dtype, common=self.place.one_rank([self.rule.rank or 0]))
        self.has_open_rank = self.place.is_uniform and self.rule.rank is None
        self.written: list[WrittenModule] = []
        self.written_vectors: list[WrittenVector] = []
        self.inputs = [input_record(one, "") for one in (plan.pair.tuned, plan.pair.base)]
        # Before anything is written: these tensors have to be finite, too.
        self.outside = self._outside()
        self.unasked_square = self._unasked_square()
        self.bytes = 0

    def _changed_modules(self, matrices: Sequence[Extracted]) -> list[Extracted]:
        """Return the modules that differ, with all experts of a layer in which some differ, where PEFT needs them."""
        differing = [self._differs(one) for one in matrices]
        layers = [_expert_layer(one) for one in matrices]
        changed = {layer for layer, differs in zip(layers, differing, strict=True) if differs} - {None}
        rows = zip(matrices, layers, differing, strict=True)
        return [one for one, layer, differs in rows if differs or layer in changed]

    def _differs(self, one: Extracted) -> bool:
        return any(part.tensor.name not in self.equal for part in one.parts)

    def write(self, force: bool, dry_run: bool) -> None:
        """Compute all modules, and write them unless it is a `dry_run`."""
        most, made = self._made()
        at_most = self._plans(most)
        # The header has room for the tensors at their largest ranks.
        room = self.place.size(at_most, self._metadata()) - bytes_behind(at_most)
        if dry_run:
            for _ in made:
                pass
        else:
            files = self.plan.pair.files
            self.place.write(at_most, self._checked(made), self.making, self._metadata, files, force)
        self._check_something()
        self.bytes = room + bytes_behind(self._plans([one.made.rank for one in self.written]))

    def _plans(self, ranks: Sequence[int]) -> list[TensorPlan]:
        return [*self.place.plans(ranks, self.making), *self._plans_of_vectors]

    def _checked(self, made: Iterator[Any]) -> Iterator[Any]:
        """Yield the same modules; at the end, before the output appears, check that they have any difference."""
        yield from made
        self._check_something()

    def _check_something(self) -> None:
        if not any(one.rank for one in self.written) and not self.vectors:
            raise RefusedError(
                self.plan.pair.tuned.path,
                f"nothing of its difference from {self.plan.pair.base.path} has a place in the output",
                "allow a larger size or another part of the models, or choose other names with --to",
            )

    def _made(self) -> tuple[list[int], Iterator[Any]]:
        """Return the ranks at most, and everything that is written, which is noted as it is made."""
        if self.has_open_rank:
            return self._made_in_one_rank()
        if self.rule.size is None:
            caps = [cap for cap in (self.rule.rank, self.rule.max_rank) if cap is not None]
            sides = [min(one.shape[0], math.prod(one.shape[1:])) for one in self.modules]
            ranks = [self.making.common or min([side, *caps]) for side in sides]
            return ranks, self._noted(written_by_rule(self.modules, self.rule, self.making, self.progress))
        try:
            ranks, made = written_in_size(self.modules, self.rule, self.making, self._size, self.progress)
        except ValueError:
            raise self._no_room() from None
        return ranks, self._noted(made)

    def _made_in_one_rank(self) -> tuple[list[int], Iterator[Any]]:
        """Return the same where all modules get the largest rank of one, which only all of them show."""
        rule = self.rule if self.rule.size is None else RankRule(rank=self._rank_in_size(self.rule.size))
        self.making, made = written_in_one_rank(self.modules, rule, self.making, self.progress)
        return [self.making.common or 0] * len(self.modules), self._noted(made)

    def _rank_in_size(self, size: int) -> int:
        """Return the largest rank of all modules with which the output takes at most `size` bytes."""
        sides = [min(one.shape[0], math.prod(one.shape[1:])) for one in self.modules]
        most = min(max(sides, default=0), self.rule.max_rank or max(sides, default=0))
        count = bisect_right(range(1, most + 1), size, key=lambda rank: self._size([rank] * len(sides)))
        if not count:
            raise self._no_room()
        return count

    def _no_room(self) -> RefusedError:
        least = self._size([0] * len(self.modules))
        if least > (self.rule.size or 0):
            return RefusedError(
                self.plan.pair.tuned.path,
                f"the output without any factors takes {least:,} bytes already, more than the {self.rule.size:,} that "
                "--size gives",
                "give a larger size, or leave the vectors out with --weights-only",
            )
        first = self._size([1] * len(self.modules))
        return RefusedError(
            self.plan.pair.tuned.path,
            f"all of its modules have one rank, and rank 1 takes {first:,} bytes, more than the {self.rule.size:,} "
            "that --size gives",
            "give a larger size, or choose a part of the model with --include",
        )

    def _size(self, ranks: Sequence[int]) -> int:
        return self.place.size(self._plans(ranks), self._metadata())

    @property
    def _plans_of_vectors(self) -> list[TensorPlan]:
        return [TensorPlan(one.key, self.dtype, one.shape) for one in self.vectors]

    def _noted(self, modules: Iterator[WrittenModule]) -> Iterator[Any]:
        for one in modules:
            # Its factors stay with the file.
            self.written.append(one._replace(made=replace(one.made, up=None, down=None)))
            yield one.made
        for plan, vector in zip(self._plans_of_vectors, self.vectors, strict=True):
            found = written_vector(vector, self.dtype)
            self.written_vectors.append(found)
            yield WrittenTensor(plan, found.values)

    def _metadata(self) -> dict[str, str]:
        errors = FileError(self._error, self._rounding)
        return {
            SCALE_KEY: STANDARD,
            COMBINED_KEY: made_record(
                _VERB, self.inputs, self.rule, self.dtype, errors, recorded_options(self.plan.request)
            ),
        }

    @property
    def _norm(self) -> float:
        """The norm of the difference of the extracted matrices."""
        return math.hypot(*(one.norm for one in self.written))

    @property
    def _carried_norm(self) -> float:
        """The norm of the difference of all tensors that the adapter changes."""
        return math.hypot(self._norm, *(one.norm for one in self.written_vectors))

    @property
    def _error(self) -> float:
        return math.hypot(*(one.error for one in self.written)) / self._norm if self._norm else 0.0

    @property
    def _left_square(self) -> float:
        """The squared norm of the difference of all tensors without a place in the adapter, as far as it is known."""
        return math.fsum([*(square for _, square in self.outside.values()), self.unasked_square or 0.0])

    @property
    def _whole_square(self) -> float:
        """The squared norm of the difference of all tensors that both models have, as far as it is known."""
        return self._carried_norm**2 + self._left_square

    @property
    def _whole_error(self) -> float | None:
        """The norm of everything that the adapter does not carry, over that of the difference of both models."""
        if self.unasked_square is None:
            return None
        lost = math.fsum([*(one.error**2 for one in self.written), self._left_square])
        return math.sqrt(lost / self._whole_square) if self._whole_square else 0.0

    @property
    def _rounding(self) -> float:
        found = [*(one.made.rounding for one in self.written), *(one.rounding for one in self.written_vectors)]
        return math.hypot(*found) / self._carried_norm if self._carried_norm else 0.0

    def result(self, output: str | None, is_made: bool, seconds: float, leftovers: Sequence[str]) -> ExtractResult:
        """Return the account of the extraction, made or planned."""
        plan, written = self.plan, self.written
        each = list(zip(self.modules, written, strict=True))
        zeros = [module for module, one in each if one.norm == 0.0]
        equal = self.equal | {part.tensor.name for module in zeros for part in module.parts}
        left_out, shares = self._left_out()
        known = [
            WorstModule(module.key, one.error / one.norm)
            for module, one in each
            if one.norm and not (one.is_noise and not one.rank)
        ]
        noisy = sum(one.is_noise and one.norm > 0.0 for one in written)
        notes = [*leftovers]
        if noisy:
            notes.append(
                f"{plan.pair.tuned.path}: {noisy} of {len(written) - len(zeros)} modules stop at the noise of rounding "
                "both models, below which no rank is spent."
            )
        paths = (plan.pair.tuned.path, plan.pair.base.path)
        return ExtractResult(
            verb=_VERB,
            output=output,
            is_made=is_made,
            inputs=tuple(
                {"path": path, "sha256": one["sha256"], "settings": ""}
                for path, one in zip(paths, self.inputs, strict=True)
            ),
            modules=sum(one.made.rank > 0 for one in written),
            differences=len(self.written_vectors),
            left_out=left_out,
            shares=shares,
            unasked=plan.naming.unasked,
            ranks=dict(sorted(Counter(one.made.rank for one in written if one.made.rank).items())),
            dtype=self.dtype,
            bytes=self.bytes,
            energy=1.0 - self._error**2,
            error=self._error,
            whole_error=self._whole_error,
            rounding=self._rounding,
            noise=math.hypot(*(one.noise for one in written)) / self._norm if self._norm else 0.0,
            worst=max(known, key=lambda found: found.error, default=None),
            noisy=noisy,
            equal=len(equal),
            unpaired=plan.pair.unpaired,
            seconds=seconds,
            notes=tuple(notes),
        )

    def _outside(self) -> dict[str, tuple[str, float]]:
        """Return the tensors and components without a place in the output, with the reason and the squared norm."""
        found: dict[str, tuple[str, float]] = {}
        tensors, left_out = self.plan.pair.tensors, self.plan.naming.left_out
        differing = [name for name in left_out if name in tensors and name not in self.equal]
        squares = dict(zip(differing, self._squared_norms(differing), strict=True))
        for name, reason in left_out.items():
            square = squares.get(name, 0.0)
            if reason == OF_VAE:
                found[_VAE] = reason, found.get(_VAE, (reason, 0.0))[1] + square
            elif square or name not in tensors:
                found[name] = reason, square
        for one in self.unwanted:
            found[one.key] = "--weights-only leaves it out", squared_norm(one.parts)
        return found

    def _unasked_square(self) -> float | None:
        """Return the squared norm of the difference of rows that no option requested; None if it is not finite."""
        try:
            return math.fsum(made_in_order(lambda part: squared_norm([part]), self._unasked_parts()))
        except (NotFiniteError, RefusedError):
            return None

    def _unasked_parts(self) -> Iterator[Part]:
        """Yield the rows of differing tensors that are neither in a module nor left out with a reason."""
        asked: dict[str, list[Part]] = defaultdict(list)
        for part in (part for one in (*self.modules, *self.vectors, *self.unwanted) for part in one.parts):
            asked[part.tensor.name].append(part)
        for name, tensor in self.plan.pair.tensors.items():
            own = asked[name]
            if name in self.equal or name in self.plan.naming.left_out or any(part.rows is None for part in own):
                continue
            rows = numpy.arange(tensor.shape[0] if tensor.shape else 1)
            others = numpy.setdiff1d(rows, numpy.concatenate([part.rows for part in own])) if own else rows
            if len(others):
                yield Part(tensor, others, None)

    def _squared_norms(self, names: Sequence[str]) -> Iterator[float]:
        """Yield the squared norms of the differences of whole tensors."""
        tensors = self.plan.pair.tensors
        return made_in_order(lambda name: squared_norm([Part(tensors[name], None, None)]), names)

    def _left_out(self) -> tuple[dict[str, str], dict[str, float]]:
        """Return all that is left out, with the reason and the share of the squared norm, and the shares by reason."""
        found = dict(self.outside)
        for module, written in zip(self.modules, self.written, strict=True):
            if not written.rank and written.norm:
                why = "it is no more than the rounding of the models" if written.is_noise else _NO_ROOM
                found[module.key] = why, written.norm**2
        whole = self._whole_square
        shares: dict[str, float] = defaultdict(float)
        for why, square in found.values():
            shares[why] += square / whole if whole else 0.0
        return {
            key: f"{why} ({square / whole:.2g} of the squared norm)" if square and whole else why
            for key, (why, square) in found.items()
        }, dict(shares)
