"""What functions of the API return: one line, a dictionary of what JSON has, and a copy that says the same."""

import json
import logging
import pickle
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path

import pytest

import lora_inspect
from lora_inspect.api.arguments import logged
from lora_inspect.reading.model.evidence import Problem
from lora_inspect.sentences import Result, bounded, brief

SYNTHETIC = Path(__file__).parents[1] / "fixtures" / "synthetic"
BASE, RSLORA, DORA, OTHER = (
    SYNTHETIC / f"{name}.safetensors" for name in ("base_f32", "rslora_flag", "dora_without_flag", "comfyui_alpha")
)


def merged(folder):
    return lora_inspect.merge(BASE, [(RSLORA, 0.5)], folder / "merged.safetensors", force=True)


MADE = {
    "check": lambda folder: lora_inspect.check(DORA),
    "compare": lambda folder: lora_inspect.compare([RSLORA, (OTHER, 0.5)]),
    "report": lambda folder: lora_inspect.report(OTHER, folder / "page.html"),
    "compare of three": lambda folder: lora_inspect.compare([RSLORA, (OTHER, 0.5), OTHER]),
    "compare of a folder": lambda folder: lora_inspect.compare(SYNTHETIC),
    "compat": lambda folder: lora_inspect.compat(RSLORA),
    "convert": lambda folder: lora_inspect.convert(RSLORA, folder / "out.safetensors"),
    "merge": merged,
    "unmerge": lambda folder: lora_inspect.unmerge(
        merged(folder).output, RSLORA, folder / "restored.safetensors", base=BASE
    ),
    "verify": lambda folder: lora_inspect.verify(merged(folder).output, BASE, [(RSLORA, 0.5)]),
    "combine": lambda folder: lora_inspect.combine([(RSLORA, 0.5), RSLORA], folder / "out.safetensors", rank=2),
    "resize": lambda folder: lora_inspect.resize(RSLORA, folder / "out.safetensors", energy=0.9),
    "average": lambda folder: lora_inspect.average([RSLORA, (RSLORA, "step=2")], folder / "out.safetensors"),
    "a planned average": lambda folder: lora_inspect.average([RSLORA, RSLORA], None, of="factors"),
    "scan": lambda folder: next(iter(lora_inspect.scan(SYNTHETIC, records=True))),
    "what cannot be read": lambda folder: next(iter(lora_inspect.scan(folder / "nothing.safetensors"))),
    "state_dict": lambda folder: lora_inspect.state_dict(RSLORA),
}


def tuples(value):
    """The tuples in what is to be JSON."""
    if isinstance(value, tuple):
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for one in inner:
        yield from tuples(one)


def nameless(value, within=None):
    """The tuples in a result that stand for a thing of several parts, by place alone."""
    if isinstance(value, tuple) and (isinstance(within, tuple) or hasattr(value, "_fields")):
        # Reading makes problems, and must not load `dataclasses`.
        yield from [] if isinstance(value, Problem) else [value]
    parts = [getattr(value, one.name) for one in fields(value)] if is_dataclass(value) else value
    parts = parts.values() if isinstance(parts, dict) else parts if isinstance(parts, (list, tuple)) else ()
    for one in parts:
        yield from nameless(one, value)


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_result_is_one_line_a_dictionary_and_a_copy(make, tmp_path):
    found = make(tmp_path)
    assert len(repr(found)) <= 300
    assert "\n" not in repr(found)
    copied = pickle.loads(pickle.dumps(found))
    assert type(copied) is type(found)
    assert repr(copied) == repr(found)
    if isinstance(found, dict):
        return
    assert list(nameless(found)) == []
    record = found.to_dict()
    assert list(tuples(record)) == []
    assert json.loads(json.dumps(record)) == record
    assert copied.to_dict() == record
    if isinstance(found, Result):
        assert is_dataclass(found)
        with pytest.raises(FrozenInstanceError):
            setattr(found, fields(found)[0].name, None)


@pytest.mark.parametrize("tensors", [False, True])
def test_repr_of_check_with_long_path_states_numbers_read(tensors, tmp_path):
    path = tmp_path / f"{'long name ' * 20}.safetensors"
    path.write_bytes(OTHER.read_bytes())
    found = lora_inspect.check(path, tensors=tensors, fix=None)
    assert f"numbers_read={tensors}" in repr(found)
    assert (found.numbers_read, found.to_dict()["numbers_read"]) == (tensors, tensors)


def test_repr_of_scan_states_numbers_not_read():
    (found,) = lora_inspect.scan(OTHER)
    assert "state='fine', numbers_read=False" in repr(found)
    assert found.to_dict()["numbers_read"] is False


def test_a_line_ends_where_it_is_full():
    facts = [f"name{number}={'x' * 40!r}" for number in range(20)]
    line = bounded("Found", facts)
    assert 240 < len(line) <= 300
    assert line.endswith(", ...)")
    assert bounded("Found", facts[:1]) == f"Found({facts[0]})"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("a", "'a'"),
        (None, "None"),
        (0.5, "0.5"),
        (["a", "b"], "['a', 'b']"),
        ({"a": 1}, "{'a': 1}"),
        (["a"] * 3, "<3>"),
        ([["a"]], "<1>"),
        ({}, "[]"),
        (object(), "<object>"),
    ],
)
def test_values_in_a_few_words(value, says):
    assert brief(value) == says
    assert len(brief("\x1b[2J" * 1000)) < 80


def test_notes_go_to_the_log(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    noted = replace(merged(tmp_path), notes=("first", "50 % of it"))
    assert logged(noted) is noted
    assert caplog.messages[-2:] == ["first", "50 % of it"]
