"""Writes docs/checking.md from the registry of the problems of `check`: `python docs/write_checking.py`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lora_inspect.checking.rules import RULES  # noqa: E402
from lora_inspect.checking.subject import CheckRule  # noqa: E402

PAGE = ROOT / "docs" / "checking.md"
HEAD = """# Checking a file

```sh
lora-inspect check adapter.safetensors
lora-inspect check adapter.safetensors --tensors --fail-on error
lora-inspect check loras/ --format sarif > problems.sarif
```

`check` reports the problems of each PATH: a file, a sharded set, a PEFT folder, or a folder of adapters. They include
the [problems that `info` reports](problems.md), with the same codes. It reads headers, metadata, alphas and flags, and
the whole file if its metadata contain a hash; `--skip-hashes` compares none. `--tensors` reads all numbers, a few
million at a time, and prints the norms of a single adapter by part and block ([info --norms](inspecting.md)). Settings
after the path supply facts that the file does not state: `adapter.safetensors:alpha=16`.

Each problem is one line, `path: severity code: sentence`, the most serious first; the line names `--fix` if that fixes
it. A file without problems has one line: `no problem in the header`, or with `--tensors` `no problems`. Of several
files, those with problems are named, the worst first, and the others counted. In a folder, pickles and GGUF models are
problems too; optimisers, schedulers, and copies of a single checkpoint with its name are not. `check` prints the same
fix of several unreadable files once, below their rows; JSON and SARIF have it in each message.

The exit status is 1 if a problem has at least the severity of `--fail-on` (`error`, `warning`, which is the default, or
`note`), and 3 if a PATH does not exist.

An **error** stops every command that would have to guess. A **warning** makes some program misread or miss something. A
**note** is odd, and mostly harmless.

## Fixing a file

```sh
lora-inspect check cast.safetensors --fix -o mended.safetensors
```

`--fix` writes a copy in which every problem with one safe fix is fixed, and lists the changes and the remaining
problems. Only tensors with a problem change. Hashes in the metadata are recomputed if the data they cover changed. The
copy is re-read before it appears. It must have every module with its old rank and scale, and none of the fixed
problems. Otherwise `--fix` writes nothing and exits with 1. If problems remain in the copy, the status is still 0;
check OUT. `--fix` takes a single file, no shards or GGUF. With nothing to fix, it exits with 1. The next run removes
leftovers of killed ones.

## For programs

`--format json`, or `--json`, prints {`schema` ("lora-inspect/check/1"), `path`, `numbers_read`, `problems` [{`code`,
`severity`, `message`, `keys`, `fixable`}]}. `numbers_read` is true with `--tensors`, if the file can be read.

- With `--fix` it also has `output`, `fixed` [sentences], `left` [problems of the output] and `notes` [sentences].
- With `--tensors` of an adapter it also has [`norms`](reading.md#info---json) (`base`, `modules`, `norm`, `sigma_1`,
  `relative_norm`, `parts`, `left_out`).
- For several files it is a list of these, with [{`path`, `error`, `code`}](cli.md#json) for a PATH without a file.

`--format sarif` prints a log of SARIF 2.1.0 for code hosts and editors. The codes are rules with their help, and each
problem is a result; `runs[0].properties` has `numbers_read`. Paths are relative to the working folder, tensors are
logical locations, and a fingerprint stays when words change.

"""
GROUPS = (
    ("Problems of the file", "", lambda rule: not rule.of_tensors),
    ("Problems of the numbers", "Only with `--tensors`.\n\n", lambda rule: rule.of_tensors),
)


def section(rule: CheckRule) -> str:
    """A problem by its code."""
    fixed = " Fixed by `--fix`." if rule.fix or rule.rewritten else ""
    return f"### `{rule.code}` ({rule.severity})\n\n{rule.means} {rule.matters}\n\n{rule.way_out}{fixed}\n"


def page() -> str:
    """The page as it should be."""
    parts = [
        f"## {title}\n\n{says}" + "\n".join(section(rule) for rule in RULES if belongs(rule))
        for title, says, belongs in GROUPS
    ]
    return HEAD + "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
