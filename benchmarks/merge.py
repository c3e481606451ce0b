"""What `merge` costs: peak memory, and time against copying the same bytes.

    python benchmarks/merge.py [--blocks 15] [--rank 64] [--rounds 3] [--folder FOLDER]

Fifteen blocks make a base of 2 GB. Every round runs, one after the other: a copy of the base with fsync, the
merge of a LoRA, the merge of a DoRA. Prints a line a round (seconds, peak resident megabytes of each merge) and
the medians of the ratios to the copy. Exits with 1 where a merge took 600 MB or more.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

from synthetic import write_all

LIMIT_MB = 600

# Runs the command line in this process and reports the high-water mark that the system kept of it.
_MEASURED = """
import sys
from lora_inspect.cli import main
try:
    main(sys.argv[1:])
finally:
    print(open("/proc/self/status").read(), file=sys.stderr)
"""


def timed_copy(base: str, out: str) -> float:
    start = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", base, out], check=True)
    descriptor = os.open(out, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return time.perf_counter() - start


def timed_merge(base: str, adapter: str, out: str) -> tuple[float, float]:
    """Seconds and peak resident megabytes of the whole process."""
    start = time.perf_counter()
    command = [sys.executable, "-c", _MEASURED, "merge", base, adapter, "-o", out, "--force"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    peak = re.search(r"VmHWM:\s+(\d+) kB", done.stderr)
    if peak is None:
        raise RuntimeError("the system does not report VmHWM")
    return seconds, int(peak[1]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="keep the synthetic files here and use them again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or scratch
        os.makedirs(folder, exist_ok=True)
        base, lora, dora = write_all(folder, arguments.blocks, arguments.rank)
        out = os.path.join(scratch, "out.safetensors")
        rows = []
        for _ in range(arguments.rounds):
            copy = timed_copy(base, out)
            os.unlink(out)
            row = {"base_gb": round(os.path.getsize(base) / 1e9, 2), "copy_s": copy}
            for name, adapter in (("lora", lora), ("dora", dora)):
                row[f"{name}_s"], row[f"{name}_peak_mb"] = timed_merge(base, adapter, out)
                os.unlink(out)
            rows.append(row)
            print(json.dumps({key: round(value, 2) for key, value in row.items()}), flush=True)
        for name in ("lora", "dora"):
            ratio = statistics.median(row[f"{name}_s"] / row["copy_s"] for row in rows)
            print(f"merge of a {name} takes {ratio:.2f} times the copy (median of {len(rows)})")
        worst = max(row[f"{name}_peak_mb"] for row in rows for name in ("lora", "dora"))
        print(f"peak resident memory {worst:.0f} MB, limit {LIMIT_MB} MB")
        sys.exit(worst >= LIMIT_MB)


if __name__ == "__main__":
    main()
