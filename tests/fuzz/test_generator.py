"""A case depends on its seed and number alone, and all that there is comes up."""

import random

from fuzz import commands, seeds
from fuzz.case import VERBS, Case, case_from_json
from fuzz.contents import as_bytes
from fuzz.generator import generate


def plain(case: Case) -> object:
    contents = {name: as_bytes(c) if hasattr(c, "encoded") else c for name, c in case.contents.items()}
    return case.command, contents


def test_a_case_depends_on_its_seed_and_number_alone():
    alone = [plain(generate(3, number)) for number in (7, 8)]
    for number in range(20):
        generate(3, number)
    assert [plain(generate(3, number)) for number in (7, 8)] == alone
    assert plain(generate(4, 7)) != alone[0]


def test_a_case_comes_back_from_the_corpus_as_it_was():
    for number in range(60):
        case = generate(5, number)
        assert plain(case_from_json(case.as_json(), "")) == plain(case)


def test_every_verb_and_every_option_comes_up():
    source, files = random.Random(1), seeds.seed("kohya")
    words = {(target, word.partition("=")[0]) for target in commands.targets() for _ in range(800)
             for word in commands.command(source, target, files)}  # fmt: skip
    for verb, found in VERBS.items():
        options = {name for option in found.params for name in option.opts if name[0] == "-"}
        assert {option for option in options if (verb, option) not in words} == set()


def test_every_fixture_is_a_seed():
    adapters = [path for path in seeds.FIXTURES.rglob("*.safetensors") if not path.name.startswith("oracle_")]
    readable = {str(path.relative_to(seeds.FIXTURES)) for path in adapters if path.stat().st_size > 200}
    assert readable <= set(seeds.names())
    assert {path.name for path in (seeds.FIXTURES / "key-shapes").iterdir()} <= set(seeds.names())
