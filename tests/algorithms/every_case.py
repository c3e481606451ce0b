"""The cases of all algorithms, and one of them as the files of a base and an adapter."""

import json
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path

import pytest
from library_case import LAYERS, NORMS, ODD, WIDE, Case
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.matching.placement import Place, Placement
from lora_inspect.merging import fold
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.model.contribution import Contribution

# The longest name first: another may end in the same words.
KINDS = sorted(LAYERS | WIDE | ODD | NORMS, key=len, reverse=True)


def _of_each_form(cases: list[Case]) -> set[str]:
    """One of the cases that differ in their layer alone: by turns the first, a Linear, and the last, a convolution."""
    forms: dict[str, list[str]] = {}
    for case in cases:
        kind = next((kind for kind in KINDS if case.id.endswith(f" {kind}")), "")
        forms.setdefault(case.id.removesuffix(kind), []).append(case.id)
    return {form[-(turn % 2)] for turn, form in enumerate(forms.values())}


CASES: dict[str, list[Case]] = {
    path.stem: list(import_module(f"cases.{path.stem}").cases())
    for path in sorted(Path(__file__).parent.glob("cases/*.py"))
}
EVERY = [
    pytest.param(case, id=f"{name}: {case.id}", marks=() if case.id in quick else pytest.mark.slow)
    for name, cases in CASES.items()
    for quick in [_of_each_form(cases)]
    for case in cases
]
# Whole weights go through at once.
WHOLE = 1 << 20


class WrittenCase:
    """A case in files, which are written once, as are the merges that several properties look at."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.base, self.adapter = write(case, folder)
        self._merged: dict[float, dict[str, Tensor]] = {}

    @cached_property
    def read(self) -> Adapter:
        """The adapter, as it is read from its file."""
        return read_adapter(open_checkpoint(self.adapter))

    @property
    def contributions(self) -> list[Contribution]:
        """Those of the adapter, which has one module in most cases."""
        return list(self.read.contributions)

    def merged(self, multiplier: float, elements: int = WHOLE) -> dict[str, Tensor]:
        """The layer's tensors with the adapter merged into them, in blocks of so many elements."""
        if elements == WHOLE and multiplier in self._merged:
            return self._merged[multiplier]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fold, "BLOCK_ELEMENTS", elements)
            options = MergeOptions(dora_rule=self.case.dora_rule)
            found = merge_files(self.base, self.adapter, multiplier, options, self.folder / "merged.safetensors")
        if elements == WHOLE:
            self._merged[multiplier] = found
        return found

    def placed_alone(self) -> Iterator[tuple[Placement, dict[str, Tensor]]]:
        """Each contribution in its place, with the tensors that its change is made of."""
        targets = open_checkpoint(self.base).tensors
        for contribution in self.contributions:
            algorithm = contribution.algorithm
            place = Place(targets[f"layer.{algorithm.parameter}"], None, bool(algorithm.transposed))
            infos = dict(contribution.operands)
            if contribution.magnitude:
                infos["magnitude"] = contribution.magnitude.info
            tensors = {role: self.case.tensors[info.name] for role, info in infos.items()}
            positions = {role: tensors[role].long() for role in tensors if role in algorithm.positions}
            yield Placement(contribution, place), tensors | positions


def write(case: Case, folder: Path) -> tuple[str, str]:
    """The base and the adapter of a case, as files."""
    save_file(case.base, folder / "base.safetensors")
    adapter = weights = folder / "adapter.safetensors"
    if case.config is not None:
        adapter = folder / "adapter"
        adapter.mkdir(exist_ok=True)
        (adapter / "adapter_config.json").write_text(json.dumps(case.config))
        weights = adapter / "adapter_model.safetensors"
    save_file(dict(case.tensors), weights, metadata=dict(case.metadata))
    return str(folder / "base.safetensors"), str(adapter)


def merge_files(base: str, adapter: str, multiplier: float, options: MergeOptions, output: Path) -> dict[str, Tensor]:
    """The tensors of the base with the adapter merged into them, through files."""
    merge(plan_merge(base, [(adapter, multiplier)], options), str(output), force=True)
    return load_file(output)


def assert_close(found: Tensor, expected: Tensor, bound: float) -> None:
    """That no number is off by more than the bound, of the largest one that is expected."""
    largest = float(expected.abs().max())
    assert found.shape == expected.shape
    assert float((found.double() - expected.double()).abs().max()) <= bound * largest
