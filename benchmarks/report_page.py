"""The cost of the page of `lora-inspect report` for adapters of Wan 14B: rank 32 in 300 layers, and rank 128 in 400.

    python benchmarks/report_page.py [--runs 3] [--folder FOLDER]

Prints the medians of the processor's seconds beyond those of the imports, of the largest memory, and the bytes of the
page. Exits with 1 where a page takes more than 6 or 20 of the processor's seconds, or 300 or 600 kB.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

from compare_resize import taken, wan

IMPORTS = (
    "import lora_inspect.ops.report, lora_inspect.reporting.page, lora_inspect.algebra.measures.change_sizes, jinja2"
)
# By the rank: the blocks of ten layers, and the most seconds and bytes.
CASES = {32: (30, 6.0, 300_000), 128: (40, 20.0, 600_000)}


def write(path: str, rank: int, blocks: int) -> None:
    import torch
    from safetensors.torch import save_file

    numbers = torch.Generator().manual_seed(rank)
    lengths = 0.95 ** torch.arange(rank)
    tensors = {}
    for layer, (rows, columns) in wan(blocks).items():
        down, up = torch.randn(rank, columns, generator=numbers), torch.randn(rows, rank, generator=numbers)
        tensors[f"{layer}.lora_down.weight"] = down.div(columns**0.5).to(torch.bfloat16)
        tensors[f"{layer}.lora_up.weight"] = up.mul(0.01 * lengths).to(torch.bfloat16)
        tensors[f"{layer}.alpha"] = torch.tensor(rank / 2)
    save_file(tensors, path, {"ss_base_model_version": "wan2.1_14b"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    is_good = True
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        imports = statistics.median(taken(["-c", IMPORTS])[1] for _ in range(arguments.runs))
        for rank, (blocks, most_seconds, most_bytes) in CASES.items():
            path, page = os.path.join(folder, f"{rank}.safetensors"), os.path.join(folder, f"{rank}.html")
            # In a process of its own, as memory that is in use here counts as that of a new process.
            subprocess.run([sys.executable, __file__, "--write", path, str(rank), str(blocks)], check=True)
            runs = [taken(["-m", "lora_inspect", "report", path, "-o", page, "--force"]) for _ in range(arguments.runs)]
            seconds = statistics.median(processor for _, processor, _ in runs) - imports
            memory, size = statistics.median(own for _, _, own in runs), os.path.getsize(page)
            print(
                f"rank {rank}, {10 * blocks} layers: {seconds:.2f} s of the processor, {memory:.0f} MB, {size:,} bytes"
            )
            is_good &= seconds <= most_seconds and size <= most_bytes
            os.remove(path)
    sys.exit(not is_good)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
