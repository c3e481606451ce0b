"""What `--json` prints has the fields that the pages say, and no other."""

import re

import pytest
from page_files import MERGED
from page_snippets import ROOT, Session

# The page, where its list of fields begins and ends, and commands whose output has them.
LISTS = {
    "info": ("reading.md", '`schema` ("lora', "`source` is", ["info rslora.safetensors --json --modules"]),
    "compat": ("compat.md", "- `schema` is", r"\[Cases\]", ["compat dora.safetensors --json"]),
    "merge": (
        "merging.md",
        '`--json`: `schema` ("lora-inspect/merge/1',
        "## The same bytes",
        [
            f"{MERGED['merged.safetensors']} out.safetensors --json",
            "merge base.safetensors dora.safetensors --dry-run --json",
        ],
    ),
    "convert": ("converting.md", "## --json", r"\Z", ["convert rslora.safetensors -o out.safetensors --json"]),
    "compare": (
        "comparing.md",
        "## --json",
        r"\Z",
        ["compare style.safetensors face.safetensors --json", "compare library --json"],
    ),
    "verify": (
        "verifying.md",
        '`--json`: `schema` ("lora-inspect/verify',
        r"\Z",
        ["verify merged.safetensors base.safetensors style.safetensors:0.8 face.safetensors --json"],
    ),
    "combine": (
        "combining.md",
        "`combine --json` and",
        "## The same files",
        [
            "combine style.safetensors face.safetensors --rank 4 -o out.safetensors --json",
            "combine style.safetensors:0.5 --dry-run --json",
            "combine style.safetensors face.safetensors --method dare --density 0.5 --seed 1 --lambda 0.5 "
            "--calibrate svc --clip-sigma 0.01 --dry-run --json",
        ],
    ),
    "average": (
        "combining.md",
        "`combine --json` and",
        "## The same files",
        ["average style.safetensors face.safetensors -o out.safetensors --json"],
    ),
    "resize": (
        "resizing.md",
        '`resize --json`: `schema` ("lora',
        "## The same files",
        ["resize style.safetensors --rank 2 -o out.safetensors --json"],
    ),
}
# Fields of which each entry has fields of its own, which stand in the list as well.
WITHIN = (
    *("programs", "findings", "evidence", "problems", "from", "to", "rslora", "dora", "verified", "module_list"),
    *("members", "skipped", "best_multiplier"),
    *("inputs", "worst"),
)


def fields(record):
    """The names of a record's fields, and of those within."""
    for name, value in record.items():
        yield name
        inner = value[:1] if isinstance(value, list) else [value]
        if name in WITHIN:
            for one in inner:
                yield from one or ()


@pytest.mark.parametrize("verb", LISTS)
def test_every_field_stands_in_the_page(verb, run, tmp_path, monkeypatch):
    page, start, end, commands = LISTS[verb]
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    told = set(re.findall(r"`(\w+)`", re.search(f"{re.escape(start)}.*?(?={end})", text, re.DOTALL)[0]))
    monkeypatch.chdir(tmp_path)
    session = Session(tmp_path, run)
    printed = set()
    for command in commands:
        session.prepare(command)
        printed |= set(fields(run(*command.split()).json))
    assert printed - told == set()
