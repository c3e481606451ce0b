"""What diffusers makes of adapters before and after `convert`: the keys that it loads, and the model's difference.

    python benchmarks/standard_in_diffusers.py [TEXT]

A row a file: the keys that its pipeline loads (or the error), and the largest difference of a layer's output from the
model that the file was saved from, relative to the largest entry; first of the file as it is, then of the converted
one. The models are tiny, with random weights in float32, on the CPU; those of `tests/diffusers_cases.py`. With TEXT
only the rows whose name holds it.
"""

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tabulate import tabulate

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from diffusers_cases import KINDS, LOADERS, Case, difference, of_diffusers, of_networks, with_alphas  # noqa: E402

from lora_inspect.ops.convert import ConvertOptions, convert_to_standard  # noqa: E402

Rows = Iterator[tuple[str, Callable[[Path], Case]]]


def cases() -> Rows:
    """Every file by its name, and how it is made in a folder."""
    for family in LOADERS:
        for kind in KINDS:
            if family != "sdxl":
                yield f"networks, {family}, {kind}", lambda folder, f=family, k=kind: of_networks(f, k, folder)
            yield f"diffusers, {family}, {kind}, metadata", lambda folder, f=family, k=kind: of_diffusers(f, k, folder)
        for kind in ("lora", "dora"):
            yield f"diffusers, {family}, {kind}", lambda folder, f=family, k=kind: of_diffusers(f, k, folder, False)
        yield f"diffusers, {family}, alpha tensors of scale 1", lambda folder, f=family: _with_neutral_alphas(f, folder)


def loaded(case: Case, file: Path) -> tuple[str, str]:
    """The number of keys and the difference, or the error and nothing."""
    models = case.fresh()
    try:
        models.load(file)
    except Exception as error:  # whatever the program raises is its answer
        return type(error).__name__, ""
    return str(models.keys()), f"{difference(models, case.meant):.1e}"


def main() -> None:
    """Prints the table."""
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    rows = []
    for name, made in cases():
        if wanted in name:
            with tempfile.TemporaryDirectory() as folder:
                case = made(Path(folder))
                output = Path(folder) / "standard.safetensors"
                convert_to_standard(str(case.file), str(output), ConvertOptions(keep_dora=case.keeps_dora))
                rows.append((name, *loaded(case, case.file), *loaded(case, output)))
    headers = ("file", "keys before", "difference", "keys after", "difference")
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def _with_neutral_alphas(family: str, folder: Path) -> Case:
    case = of_diffusers(family, "lora", folder, with_metadata=False)
    return case._replace(file=with_alphas(case, None))


if __name__ == "__main__":
    main()
