"""Writes docs/checking.md from the registry of what `check` tells: `python docs/write_checking.py`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lora_inspect.checking.rules import RULES  # noqa: E402
from lora_inspect.checking.subject import CheckRule  # noqa: E402

PAGE = ROOT / "docs" / "checking.md"
HEAD = """# What check looks for

Written by `docs/write_checking.py` from the registry in `lora_inspect/checking/`.

```sh
lora-inspect check adapter.safetensors
lora-inspect check adapter.safetensors --tensors --fail-on error
lora-inspect check loras/ --format sarif > problems.sarif
```

`check` tells what is wrong or doubtful with each PATH: a file, a sharded set, a PEFT folder, or a folder of adapters.
The [problems that `info` reports](problems.md) are among these, by the same codes. Headers, metadata, alphas and flags
are read, and the whole file where its metadata state a hash. `--tensors` reads all numbers, a few million at a time,
and prints the norms of a single adapter by part and block ([info --norms](inspecting.md)).
Settings on a path settle facts that the file leaves open, as everywhere: `adapter.safetensors:alpha=16`.

A line is `path: severity code: sentence`, the most serious first, and says where `--fix` mends it. A file without any
is one line. Of several files those with problems are named, the worst first, and the others counted. In a folder,
pickles and GGUF models are problems too, but not optimisers, schedulers, and copies of a single checkpoint that have
its name. `check` prints a way out that several unreadable files have once, below their rows; JSON and SARIF have it
in each message. The exit status is 1 where a problem is as serious as `--fail-on` says (`error`, `warning`, which is
the default, or `note`), or more, and where a PATH leads nowhere.

An **error** stops every command that would have to guess. A **warning** is what programs get wrong or find nothing by.
A **note** is odd, and mostly harmless.

## Mending

```sh
lora-inspect check cast.safetensors --fix -o mended.safetensors
```

`--fix` writes the file without all problems that can be mended without a guess, and says what it did and what it left.
The bytes of tensors stay as they are, but for those that the problem is in; hashes that the metadata state are taken
anew where anything changed that they are of. The output is read before it appears: it has every module with the rank
and the scale of before, and none of the problems that were mended, or nothing is written and the exit status is 1.
Otherwise it is 0, whatever is left; check OUT for that. Changes of the meaning of a file are for
[convert](converting.md). One file is mended at a time; not shards or GGUF.
With nothing to mend, nothing is written and the status is 1.

## For programs

`--format json`, or `--json`, prints {`schema` ("lora-inspect/check/1"), `path`, `problems` [{`code`, `severity`,
`message`, `keys`, `fixable`}]}, with `--fix` also `output`, `fixed` [sentences] and `left` [problems of the output],
and with `--tensors` of an adapter [`norms`](reading.md#info---json) (`base`, `modules`, `norm`, `sigma_1`,
`relative_norm`, `parts`, `left_out`): a list of these where several files are checked, with [{`path`, `error`,
`code`}](cli.md#json) for what leads to none. `--format sarif` prints a log of SARIF 2.1.0 for code hosts and editors:
the codes as rules with their help, a result for each problem, paths relative to the working folder, tensors as
logical locations, and a fingerprint that stays when words change.
"""
GROUPS = (
    ("What the file is", "", lambda rule: not rule.of_tensors),
    ("What the numbers say", "With `--tensors` alone.\n\n", lambda rule: rule.of_tensors),
)


def section(rule: CheckRule) -> str:
    """A problem by its code."""
    mends = " Mended by `--fix`." if rule.fix or rule.rewritten else ""
    return f"### `{rule.code}` ({rule.severity})\n\n{rule.means} {rule.matters}\n\n{rule.way_out}{mends}\n"


def page() -> str:
    """The page as it should be."""
    parts = [
        f"## {title}\n\n{says}" + "\n".join(section(rule) for rule in RULES if belongs(rule))
        for title, says, belongs in GROUPS
    ]
    return HEAD + "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
