"""A program that uses all of the API with types: `.ci/run` has mypy look at it, and a test runs it.

What is assigned to a name with a type is of that type for those who use the package, or mypy refuses it.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import lora_inspect
from lora_inspect import LoraInspectError, ModuleChange, OpenedAdapter, OpenedModule, open_adapter


def told(done: int, total: int) -> None:
    """What watches."""
    assert 0 <= done <= total


def use(base: Path, adapter: "os.PathLike[str]", folder: Path) -> list[str]:
    """Calls every function; the names of what it wrote."""
    with lora_inspect.timeout(30):
        opened: OpenedAdapter = open_adapter(adapter, rslora=None)
    module: OpenedModule = opened.modules[0]
    change: ModuleChange = module.changes[0]
    found: OpenedModule = opened.modules[module.path or module.key]
    scale: float | None = change.scale
    rule: bool | None = opened.rslora
    says: list[str] = [one.says for one in opened.evidence]
    severities: list[str] = [problem.severity for problem in opened.problems]
    metadata: Mapping[str, str] = opened.metadata
    record: dict[str, Any] = opened.to_dict(modules=True)
    delta: torch.Tensor = found.delta(dtype=torch.float64)
    assert (scale, rule, severities, delta.dtype) == (1.5, True, [], torch.float64)
    sizes: lora_inspect.NormsResult = opened.norms(base, transposed=False)
    norm: float = sizes.parts["model"].norm
    spectrum: lora_inspect.SpectrumResult = opened.spectrum(base)
    rank: int | None = spectrum.parts["model"].rank_99
    page: lora_inspect.ReportResult = lora_inspect.report(adapter, folder / "page.html", progress=told)
    assert norm > 0.0
    assert rank
    assert page.bytes
    assert len(says) >= 1
    assert record["metadata"] == metadata

    merged = lora_inspect.merge(base, [(adapter, 0.5)], folder / "merged.safetensors", dtype="bf16", progress=told)
    count: int = merged.modules_merged
    checked = lora_inspect.verify(merged.output, base, (adapter, 0.5), progress=told)
    share: float | None = checked.share[os.fspath(adapter)]
    converted = lora_inspect.convert(adapter, folder / "converted.safetensors", to="diffusers", progress=told)
    exact: bool = converted.exact
    tensors: dict[str, torch.Tensor] = lora_inspect.state_dict(adapter, "diffusers")
    # With an alpha for each of the factors: diffusers reads kohya's names.
    assert len(tensors) == 60
    compared = lora_inspect.compare([adapter, (adapter, 0.5)], exclude="blocks.0", progress=told)
    assert isinstance(compared, lora_inspect.CompareResult)
    norms: list[float] = compared.norm
    assert abs(norms[0] - 2 * norms[1]) < 1e-6
    verdicts: list[str] = [one.verdict for one in lora_inspect.compat(adapter).verdicts]
    assert checked.ok
    assert exact
    assert share
    assert count == 20
    assert verdicts
    codes: list[str] = [problem.code for problem in lora_inspect.check(adapter).problems]
    assert codes == []
    kinds: list[str] = [one.kind for one in lora_inspect.scan(folder, jobs=1)]
    assert sorted(kinds) == ["adapter", "base"]
    try:
        open_adapter(folder / "nowhere")
    except LoraInspectError as error:
        sentence: str = str(error)
        assert sentence
    return [merged.output, converted.output]


if __name__ == "__main__":
    use(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
