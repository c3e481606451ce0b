"""Sums of random adapters, whole and hostile: 400 in the quick run, 5,000 in the slow one, and 200 as commands."""

import random
from collections import Counter

import pytest

from fuzz import mutations, seeds, sums
from fuzz.contents import Weights, write

SEED = 1


def run(numbers, folder):
    """How many cases ended in each way; all failures are named."""
    ended, failures = Counter(), {}
    for number in numbers:
        place = folder / str(number)
        place.mkdir()
        case = sums.drawn(SEED, number, place)
        try:
            ended[sums.examine(case, place)] += 1
        except Exception as error:  # all failures are named
            failures[number] = f"{case.verb} {case.options} {case.defect}: {error!r}"
    assert failures == {}
    return ended


@pytest.mark.parametrize("first", [0, 100, 200, 300])
def test_some_cases(first, tmp_path):
    ended = run(range(first, first + 100), tmp_path)
    # Fuzzing that never gets through finds nothing behind the first check.
    assert ended["written"] >= 30
    assert ended["refused"] >= 10


@pytest.mark.slow
@pytest.mark.parametrize("first", range(400, 5000, 920))
def test_many_cases(first, tmp_path):
    ended = run(range(first, first + 920), tmp_path)
    assert ended["written"] >= 300


VERBS = ("combine", "resize", "average")
NAMES = ("kohya", "kohya, convolutions", "diffusers", "two adapters", "RS-LoRA", "LoHa", "LoKr", "split", "Tucker")


RULES = (
    "--rank=2",
    "--energy=0.9",
    "--max-error=0.2",
    "--size=9kB",
    "--max-rank=3",
    "--rank=0",
    "--size=x",
    "--to=peft",
)
ENDS = (
    *[""] * 12,
    *[":0.5"] * 6,
    *[":-1"] * 3,
    ":0",
    ":1e400",
    ":nan",
    ":x=1",
    ":alpha=4",
    ":rslora=yes",
    ":step=3",
    ":*=0.3,2",
)
OPTIONS = (
    "--json", "--force", "--dry-run", "--base=base.safetensors", "--of=factors", "--uniform", "--beta=0.5",
    "--sigma-rel=0.1", "--allow-mixed", "--include=*to_q*", "--exclude=*", "--dtype=bf16", "--exact",
)  # fmt: skip


def command_of(source, files):
    """Words for one of the verbs over files of the toy model; one in three has a changed file."""
    if source.random() < 0.3:
        name = source.choice([own for own in files.contents if isinstance(files.contents[own], Weights)])
        files.contents[name] = mutations.content(source, files.contents[name])
    verb = source.choice(VERBS)
    named = source.choices(
        [*files.adapters, "missing.safetensors"], k=1 if verb == "resize" else source.choice((1, 2, 3))
    )
    words = [verb, *(name + source.choice(ENDS) for name in named)]
    words += source.sample(RULES, source.choice((0, *[1] * 9, 2))) + source.sample(OPTIONS, source.choice((0, 0, 0, 1)))
    return [*words, "-o", source.choice((*["out.safetensors"] * 8, "out", "a.safetensors"))]


@pytest.mark.slow
def test_commands(run, tmp_path, monkeypatch):
    ended, failures = Counter(), {}
    for number in range(200):
        source = random.Random(f"sums {SEED}:{number}")
        files = seeds.seed(source.choice(NAMES) if source.random() < 0.8 else source.choice(seeds.names()))
        words = command_of(source, files)
        place = tmp_path / str(number)
        place.mkdir()
        write(files.contents, place)
        monkeypatch.chdir(place)
        before = sums.pictured(place)
        found = run(*(word.replace("\x00", "") for word in words))
        ended[found.status] += 1
        errors = [line for line in found.stderr.splitlines() if line.startswith("Error: ")]
        is_quiet = "Traceback" not in found.stderr and "internal error" not in found.stderr
        is_whole = found.status == 0 or sums.pictured(place) == before
        is_told = len(errors) == (found.status != 0) and found.status in (0, 1, 2, 3)
        if not (is_told and is_quiet and is_whole):
            failures[number] = (words, found)
    assert failures == {}
    assert min(ended[status] for status in range(4)) >= 5, ended
