"""Verdicts that are remembered are those that would be judged, and of no other file."""

import json

import pytest
from adapters import loras

from lora_inspect.caching import Remembered
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.discovery import find_checkpoints
from lora_inspect.programs import PROGRAMS, evaluate
from lora_inspect.programs import verdict as module
from lora_inspect.programs.adapter_view import FramedKeys, View, loader_for
from lora_inspect.programs.record import OfKind
from lora_inspect.programs.verdict import judge_each, verdicts_on
from lora_inspect.reading.file_info import ADAPTER, inspect

EVERY = tuple(PROGRAMS.values())


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(module, "_remembered", Remembered(module._MOST))


@pytest.fixture
def on(write_safetensors):
    """The verdicts on a file of Wan's names."""

    def verdicts(metadata=None, settings="", config=None, name="a.safetensors", **options):
        tensors = {
            key.replace("attn_q", "self_attn_q"): tensor for key, tensor in loras(out=24, inputs=24, **options).items()
        }
        file = write_safetensors(tensors, metadata, name)
        beside = file.with_name("adapter_config.json")
        beside.write_text(json.dumps(config)) if config else beside.unlink(missing_ok=True)
        info = inspect(str(file))
        return verdicts_on(info.adapter, info.candidates, EVERY)

    return verdicts


def adapters(fixtures):
    """The adapters among the fixtures that can be read, with their paths."""
    for path in find_checkpoints(str(fixtures)):
        try:
            info = inspect(path)
        except LoraInspectError:
            continue
        if info.kind == ADAPTER:
            yield path, info


def test_they_are_those_that_would_be_judged(fixtures):
    count = 0
    for path, info in adapters(fixtures):
        count += 1
        names = [family.architecture.name for family in info.candidates] or [""]
        keys = FramedKeys(info.checkpoint.tensors)
        asked = [one for one in EVERY if any(loader_for(one, name, keys) for name in names)]
        judged = [one._replace(reception=None) for one in judge_each(info.adapter, info.candidates, asked)]
        for _ in range(2):
            assert list(verdicts_on(info.adapter, info.candidates, EVERY)) == judged, path
    assert count > 50


def judged_fixtures(fixtures):
    """All that each program makes of each adapter among the fixtures, by path and title."""
    found = {}
    for path, info in adapters(fixtures):
        for one in judge_each(info.adapter, info.candidates, EVERY):
            place = {module.name.key: number for number, module in enumerate(info.adapter.modules.values())}
            taken = [(place[own.module.name.key], own.scale, own.does, own.magnitude) for own in one.taken]
            found[path, one.program.title] = one._replace(reception=None), one.ignored, taken
    return found


def test_a_rule_of_a_kind_looks_at_no_file(fixtures, monkeypatch):
    with_files = judged_fixtures(fixtures)
    monkeypatch.setattr(evaluate, "_READERS", {})

    def call(self, given):
        return self._rule(given._replace(adapter=None) if type(self) is OfKind else given)

    monkeypatch.setattr(OfKind, "__call__", call)
    assert judged_fixtures(fixtures) == with_files


def test_what_becomes_of_a_kind_is_what_becomes_of_it_in_each_file(fixtures, monkeypatch):
    remembered = judged_fixtures(fixtures)
    assert any(outcome for reader in evaluate._READERS.values() for outcome in reader._outcomes.values())
    monkeypatch.setattr(evaluate.Reader, "outcome", lambda *of_group: None)
    assert judged_fixtures(fixtures) == remembered


def test_files_that_differ_for_people_alone_are_judged_once(on):
    first = on({"ss_output_name": "one"})
    assert on({"ss_output_name": "two", "modelspec.title": "x"}, name="b.safetensors") is first
    assert len(module._remembered) == 1


OTHERS = {
    "alpha": {"alpha": 4.0}, "no alpha": {"alpha": None}, "rank": {"rank": 8}, "number": {"count": 4},
    "spelling": {"spelling": "peft"}, "magnitude": {"dora_scale": ("F32", (24, 1), 1.0)},
    "embedded": {"metadata": {"lora_adapter_metadata": "{}"}}, "stray": {"odd": ("F32", (1,), 1.0)},
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_files_that_a_rule_can_tell_apart_are_judged_apart(other, on):
    first = on()
    assert on(**other) is not first
    assert len(module._remembered) == 2
    assert on() is first


def test_a_config_is_a_part_of_the_file(on):
    first = on(name="adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8}
    assert on(name="adapter_model.safetensors", config=config) is not first
    assert on(name="adapter_model.safetensors", config=config | {"bias": "all"}) is not first
    assert on(name="other.safetensors", config=config) is not first
    assert len(module._remembered) == 4


def test_rules_see_no_other_metadata(on, monkeypatch):
    seen = []

    def view(adapter):
        seen.append((adapter.checkpoint.metadata, adapter.checkpoint.file_metadata, adapter.problems, adapter.evidence))
        return View(adapter)

    monkeypatch.setattr(module, "View", view)
    on({"title": "x", "lora_adapter_metadata": "{}"})
    assert seen == [({"lora_adapter_metadata": "{}"}, {}, (), ())]


def test_what_is_remembered_is_bounded(on):
    for number in range(module._MOST + 5):
        on(alpha=float(number + 1))
    assert len(module._remembered) == module._MOST


def test_a_scale_in_a_tensor_is_read_anew(on):
    on(scale=("F32", (), 2.0))
    assert len(module._remembered) == 0
