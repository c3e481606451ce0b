"""Writes docs/algorithms.md from the registry of algorithms: `python docs/write_algorithms.py`."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lora_inspect import algorithms  # noqa: E402
from lora_inspect.algorithms.lora_experts import lora_experts  # noqa: E402
from lora_inspect.algorithms.record import Algorithm  # noqa: E402
from lora_inspect.reading.peft.unsupported import METHODS  # noqa: E402

PAGE = ROOT / "docs" / "algorithms.md"
HEAD = """# Every algorithm

The table has the formula of every algorithm that lora-inspect merges. [Modules](modules.md) names the files that
contain them.

W is the weight (out, in·kernel) of a layer, m the multiplier, and s the scale: alpha/rank, or the equivalent in the
file's program. "0, 1" are the multipliers of an algorithm that has no strength setting in its own program. "DoRA" after
a title means that a magnitude may be around the change.

`docs/write_algorithms.py` writes this page from the registry in `lora_inspect/algorithms/`. Each file there says more:
the shapes of the factors, the source of the formula, and anything special.

## Merged

"""
REFUSED = """
## Recognised and refused

"""
WEIGHTLESS = """
## Methods of PEFT that change no weight

`info` names their files, and every command that needs a change refuses them.

"""


def tensors(algorithm: Algorithm) -> str:
    """Every spelling of the factors, and the names of what modules share; N is a number."""
    names = [re.sub(r"\.\d+\b", ".N", suffix.removeprefix(".")) for suffix in algorithm.suffixes]
    names += [f"base_model.{shared.name}" for shared in algorithm.shared.values()]
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names)) or "any"


def cell(text: str) -> str:
    """Text in a table."""
    return text.replace("|", "\\|")


def page() -> str:
    """The page as it should be."""
    # Factors of all experts have the suffixes of LoRA, and are in no registry of suffixes.
    known = [*algorithms.every().values(), lora_experts(1)]
    every = sorted(known, key=lambda algorithm: algorithm.title.casefold())
    lines = ["| | becomes | multipliers | written by | tensors |", "|---|---|---|---|---|"]
    for algorithm in (one for one in every if one.formula):
        multipliers = "0, 1" if algorithm.replaces or not algorithm.blends else "any"
        title = f"{algorithm.title}, DoRA" if algorithm.decomposes else algorithm.title
        cells = (title, algorithm.equation, multipliers, algorithm.writers, tensors(algorithm))
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    refused = [
        f"- **{one.title}** ({tensors(one)}) {one.why or 'is not built yet'}." for one in every if not one.formula
    ]
    weightless = [f"- **{method.title}** (`{name}`) {method.does}." for name, method in METHODS.items()]
    parts = ((HEAD, lines), (REFUSED, refused), (WEIGHTLESS, weightless))
    return "".join(head + "\n".join(body) + "\n" for head, body in parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
