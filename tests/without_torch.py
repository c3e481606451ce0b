"""Goes through all fixtures in a Python that has no torch: what does not compute works, what does says what is missing.

Sums of LoRA, LoHa and LoKr work too. Run as a script; needs neither torch nor pytest. Prints what is wrong, and ends
with 1 where anything is.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

FIXTURES = Path(__file__).parents[1] / "fixtures"
SYNTHETIC = FIXTURES / "synthetic"
BASE, RSLORA, DORA = (SYNTHETIC / f"{name}.safetensors" for name in ("base_f32", "rslora_flag", "dora_without_flag"))
IS_LIGHT = any(one.metadata["Name"] == "lora-inspect-light" for one in distributions())
MISSING = (
    "Error: this needs torch, but lora-inspect-light, the light form, comes without it; run pip uninstall "
    "lora-inspect-light, then pip install lora-inspect.\n"
    if IS_LIGHT
    else "Error: this needs torch, but it is not installed; run pip install torch.\n"
)
# The algorithms that numpy computes.
BY_NUMPY = {"lora", "loha", "lokr", "mlx", "lora_embedding", "lora_embedding_along_tokens", "lora_bias", "lora_experts"}
BY_NUMPY |= {"stacked_experts", "mlx_experts", "saved"}
# What is not to be loaded, and of which torch alone is not there.
HEAVY = ("torch", "numpy")


class Ended(NamedTuple):
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str


def run(*words: str | Path) -> Ended:
    """The command line, in this process."""
    from lora_inspect.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as ended:
            return Ended(int(ended.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("a command ends its process")


def paths() -> list[Path]:
    """Everything there is to open below the fixtures, and what is found there instead."""
    from lora_inspect.files.discovery import find_checkpoints

    refused = [path for path in (FIXTURES / "refused").iterdir() if path.is_dir()]
    return [*(Path(path) for path in find_checkpoints(str(FIXTURES)) if "refused" not in path), *refused]


def wrong_of_reading(path: Path) -> Iterator[str]:
    """What is wrong with the commands that read, on one path: each ends well, or refuses in a sentence of its own."""
    shown = run("info", path, "--json", "--modules")
    is_refused = "refused" in path.parts
    if shown.status and not is_refused:
        yield f"info: {shown.err}"
        return
    records = json.loads(shown.out)
    record: dict[str, Any] = records[0] if isinstance(records, list) else records
    is_adapter = record.get("kind") == "adapter"
    is_open = any(problem["severity"] == "error" for problem in record.get("problems", []))
    for words in reading(path):
        ended = run(*words)
        must_do = words[0] == "info" or (words[0] == "compat" and is_adapter and not is_open)
        if must_do and ended.status and not is_refused:
            yield f"{' '.join(map(str, words))}: {ended.err}"
        elif ended.status not in (0, 1) or MISSING in ended.err or "internal error" in ended.err:
            yield f"{' '.join(map(str, words))} ends with {ended.status}: {ended.err}"
        elif ended.status and not ended.out and not ended.err.startswith("Error: "):
            yield f"{' '.join(map(str, words))} refuses without a sentence"
    yield from wrong_of_opening(path, None if is_refused else record)


def reading(path: Path) -> Iterator[list[str | Path]]:
    """The commands that read one path."""
    from lora_inspect.cli.group import VERBS

    yield ["info", path]
    yield ["info", path, "--metadata"]
    yield ["compat", path]
    yield ["compat", path, "--json"]
    yield ["check", path]
    if "metadata" in VERBS:
        yield ["metadata", "show", path]


def wrong_of_opening(path: Path, record: dict[str, Any] | None) -> Iterator[str]:
    """What is wrong with the Python API on one path: it says what `info` does."""
    import lora_inspect

    try:
        opened = lora_inspect.open_adapter(path)
        said = json.loads(json.dumps(opened.to_dict(modules=True)))
        if "\n" in repr(opened) or any("\n" in repr(module) for module in opened.modules):
            yield f"{path}: it is shown in more than a line"
    except lora_inspect.LoraInspectError as error:
        said = None if record is None else str(error)
    if record is not None and said != record:
        yield f"{path}: open_adapter says {said}"


def wrong_of_scanning() -> Iterator[str]:
    """What is wrong with the account of all files at once."""
    import lora_inspect

    for one in lora_inspect.scan(FIXTURES, records=True):
        is_refused = "refused" in Path(one.path).parts
        if one.error and not (is_refused and isinstance(one.error, lora_inspect.LoraInspectError)):
            yield f"scan: {one.path}: {one.error!r}"


def wrong_of_numbers() -> Iterator[str]:
    """What is wrong with reading the numbers of tensors, for which numpy does."""
    ended = run("check", RSLORA, "--tensors")
    if ended.status or ended.err or sys.modules.get("numpy", sys) is sys:
        yield f"check --tensors: {ended}"
    ended = run("info", RSLORA, "--norms", "--base", BASE)
    if ended != (3, "", MISSING):
        yield f"info --norms --base: {ended}"
    ended = run("info", RSLORA, "--spectrum")
    if ended.status or "sigma_1" not in ended.out:
        yield f"info --spectrum: {ended}"


def wrong_of_pages(folder: str) -> Iterator[str]:
    """What is wrong with the page of an adapter, which needs Jinja and no torch."""
    page = Path(folder) / "page.html"
    ended = run("report", RSLORA, "-o", page)
    if find_spec("jinja2") is None:
        if ended.status != 3 or not ended.err.endswith("install it with pip install jinja2.\n") or page.exists():
            yield f"report without Jinja: {ended}"
    elif ended.status or "</html>" not in page.read_text(encoding="utf-8"):
        yield f"report: {ended}"


def wrong_of_sizes(path: Path) -> Iterator[str]:
    """What is wrong with the sizes of changes: those that numpy computes are there, the others have a reason."""
    ended = run("info", path, "--norms", "--json")
    if "refused" in path.parts or ended.status == 1:
        if not ended.err.startswith("Error: ") or MISSING in ended.err:
            yield f"info {path} --norms ends with {ended}"
        return
    record = json.loads(ended.out)
    is_adapter = record["kind"] == "adapter"
    by_numpy = set(record["algorithms"]) <= BY_NUMPY - {"saved"} and not record["dora"]["modules"]
    left_out = record["norms"]["left_out"]
    if ended.status or not is_adapter or (by_numpy and left_out) or not all(one["reason"] for one in left_out):
        yield f"info {path} --norms: {ended.err or left_out}"


def wrong_of_sums(path: Path, folder: str) -> Iterator[str]:
    """What is wrong with sums of one adapter: only those of rarer algorithms need torch."""
    import lora_inspect

    opened = lora_inspect.open_adapter(path)
    if not opened.modules or any(problem.severity == "error" for problem in opened.problems):
        return
    is_of_config = path.suffix != ".gguf" and (path.parent / "adapter_config.json").exists()
    out = Path(folder) / ("out" if is_of_config or path.is_dir() else f"out{path.suffix}")
    for words in (
        ["combine", path, path, "-o", out, "--force"],
        ["resize", path, "--rank", "1", "-o", out, "--force"],
        ["average", path, path, "-o", out, "--force"],
        ["compare", path, path],
    ):
        ended = run(*words)
        # Where a change depends on the weight, the base is asked for.
        is_told = ended.status == 0 or (ended.status == 1 and "give --base BASE" in ended.err)
        is_summed = {module.algorithm for module in opened.modules} <= BY_NUMPY
        if not is_told and (is_summed or ended != (3, "", MISSING)):
            yield f"{words[0]} {path} ends with {ended.status}: {ended.err}"


def wrong_of_forms() -> Iterator[str]:
    """What is wrong with what the light form says of itself, where this is one."""
    told = run("--version").out
    expected = f"lora-inspect-light, version {lora_version()} (without torch)\n"
    if IS_LIGHT and told != expected:
        yield f"--version: {told}"
    if IS_LIGHT:
        try:
            import_module("lora_inspect.networks")
            yield "the light form has a training network"
        except ImportError as error:
            if "pip install lora-inspect" not in str(error):
                yield f"lora_inspect.networks: {error}"


def lora_version() -> str:
    """The version of the package."""
    import lora_inspect

    return lora_inspect.__version__


def wrong_of_computing() -> Iterator[str]:
    """What is wrong with what computes: it says what is missing, and leaves nothing."""
    import lora_inspect

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.safetensors"
        for words in (
            ["merge", BASE, RSLORA, "-o", out],
            ["convert", RSLORA, "-o", out],
            ["convert", RSLORA, "--to", "diffusers", "-o", out],
            ["convert", DORA, "--base", BASE, "--rank", "2", "-o", out],
            ["verify", BASE, BASE, RSLORA],
            ["compat", DORA, "--base", BASE],
        ):
            ended = run(*words)
            if ended != (3, "", MISSING):
                yield f"{words[0]}: {ended}"
        calls: list[Callable[[], object]] = [
            lambda: lora_inspect.merge(BASE, RSLORA, out),
            lambda: lora_inspect.convert(RSLORA, out),
            lambda: lora_inspect.verify(BASE, BASE, RSLORA),
            lambda: lora_inspect.state_dict(RSLORA),
            lambda: lora_inspect.open_adapter(RSLORA).modules[0].delta(),
        ]
        for call in calls:
            try:
                yield f"a call returns {call()!r}"
            except lora_inspect.LoraInspectError as error:
                if f"Error: {error}\n" != MISSING:
                    yield f"a call says {error}"
        if left := os.listdir(folder):
            yield f"{left} is left behind"


def main() -> int:
    """Looks at everything, and says what was looked at."""
    with contextlib.suppress(ImportError):
        import torch

        print(f"torch is installed here: {torch.__file__}")
        return 1
    found = paths()
    wrong = [one for path in found for one in wrong_of_reading(path)]
    wrong += wrong_of_scanning()
    wrong += [f"{name} was loaded" for name in HEAVY if sys.modules.get(name)]
    wrong += wrong_of_numbers()
    with tempfile.TemporaryDirectory() as folder:
        wrong += wrong_of_pages(folder)
    wrong += [one for path in found for one in wrong_of_sizes(path)]
    wrong += wrong_of_computing()
    wrong += wrong_of_forms()
    for path in found:
        if "refused" not in path.parts:
            with tempfile.TemporaryDirectory() as folder:
                wrong += wrong_of_sums(path, folder)
    wrong += ["torch was loaded"] if sys.modules.get("torch") else []
    if len(found) < 60:
        wrong.append(f"only {len(found)} fixtures were found")
    print(*wrong, f"{len(found)} fixtures were looked at without torch", sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
