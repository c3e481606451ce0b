"""What `info` costs at start-up, as a multiple of `python -c "import click"`.

    python benchmarks/info.py [--runs 21] [FILE]

Runs the three commands in turn, many times, and prints the medians of the ratios pair by pair. Exits with 1 where
`info --json` takes more than 2.5 times, or the table more than 3.5 times, what importing click takes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

LIMITS = {"info --json": 2.5, "info": 3.5}
FILE = os.path.join(os.path.dirname(__file__), "..", "fixtures", "crepe-peft-dora-conv-r4")


def seconds(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default=FILE)
    parser.add_argument("--runs", type=int, default=21)
    arguments = parser.parse_args()
    # A machine that never keeps bytecode would measure the compiler.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    click = [sys.executable, "-c", "import click"]
    program = [sys.executable, "-m", "lora_inspect", "info"]
    commands = {"info --json": [*program, "--json", arguments.file], "info": [*program, arguments.file]}
    for command in (click, *commands.values()):
        seconds(command, environment)
    ratios: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(arguments.runs):
        unit = seconds(click, environment)
        for name, command in commands.items():
            ratios[name].append(seconds(command, environment) / unit)
    failed = False
    for name, found in ratios.items():
        median = statistics.median(found)
        failed |= median > LIMITS[name]
        print(
            f"{name}: {median:.2f} times importing click (limit {LIMITS[name]}; {min(found):.2f} to {max(found):.2f})"
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()
