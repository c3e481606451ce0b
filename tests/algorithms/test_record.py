"""A record that some verb could not use is refused when it is registered, by the name of its field."""

import importlib
import sys
from functools import partial

import pytest

from lora_inspect import algorithms
from lora_inspect.algorithms import lora, lora_bias
from lora_inspect.algorithms.record import Algorithm, Shared

GAINS = Algorithm(
    name="gains",
    title="Gains",
    dialects={"peft": {"up": ".gains_up", "down": ".gains_down"}},
    marks=("up", "down"),
    formula=lora.ALGORITHM.formula,
    peft_type="GAINS",
    scaled=("up",),
    rows={"up": "down"},
)
FORMULA = lora.ALGORITHM.formula
BIAS_OF_GAINS = GAINS._replace(
    dialects={"peft": {"bias": ".gains"}},
    marks=(),
    scaled=("bias",),
    rows={},
    formula=lora_bias.ALGORITHM.formula,
)
FLAGS = ("decomposes", "multiplies", "blends", "has_alpha", "replaces", "ties", "needs_bias", "packed")
TEXTS = ("why", "equation", "writers")


class Shapes:
    """A class with a hook as its method."""

    def accepts(self, shapes):
        """Return True for any shapes."""
        return bool(shapes)


SHAPES = Shapes()
# By the field that the error has to name: records that differ from a right one in it.
FAULTS = {
    "name": [GAINS._replace(name=name) for name in ("", None)],
    "title": [GAINS._replace(title=title) for title in ("", None)],
    "peft_type": [
        GAINS._replace(peft_type=None),
        GAINS._replace(peft_type=""),
        GAINS._replace(peft_type=1),
        GAINS._replace(peft_type=None, has_alpha=False),
        GAINS._replace(peft_type=None, scaled=()),
    ],
    "parameter": [GAINS._replace(parameter=name) for name in ("gamma", None)],
    "dialects": [
        GAINS._replace(dialects=dialects)
        for dialects in (
            (),
            {},
            {"peft": {}},
            {1: GAINS.dialects["peft"]},
            {"peft": {1: ".gains_up"}},
            {"up": ".gains_up"},
            {"peft": {".gains_up": "up"}},
            {"peft": {"up": ".gains_up", "down": 1}},
            {"peft": {"up": ".gains_up", "down": "." + 63 * "g" + "h"}},
            {"peft": {"up": ".gains_up", "down": ".gains_up"}},
            {"peft": GAINS.dialects["peft"], "kohya": {"up": ".gains_down"}},
        )
    ],
    "unmarked": [GAINS._replace(unmarked=own) for own in ((), {"gain": "weight"}, {"gain": ".gains_up"})],
    "marks": [GAINS._replace(marks=roles) for roles in (("upp",), "up", None, (1,), ["up"], ({},))],
    "common": [GAINS._replace(common=roles) for roles in (("upp",), None, ("",))],
    "numbers": [GAINS._replace(numbers=roles) for roles in (("upp",), None, ("up",))],
    "positions": [GAINS._replace(positions=roles) for roles in (("upp",), None, ("up",), ("down",))],
    "scaled": [GAINS._replace(scaled=roles) for roles in (("upp",), None, ({},))],
    "idle": [
        *(GAINS._replace(idle=roles) for roles in (("upp",), None, ("up",))),
        GAINS._replace(idle=("down",), rows={}),
    ],
    "rows": [GAINS._replace(rows=rows) for rows in (("up",), {"upp": "down"}, {"up": "dwn"}, {"up": {}}, {1: "up"})],
    "shared": [GAINS._replace(shared=shared) for shared in (None, {"v": "gains_v"}, {"up": Shared("v", "no v")})],
    "beside": [
        GAINS._replace(beside="lora"),
        GAINS._replace(beside=1),
        BIAS_OF_GAINS._replace(beside="lorra"),
    ],
    "shared.name": [GAINS._replace(shared={"v": Shared("", "no v")})],
    "shared.missing": [GAINS._replace(shared={"v": Shared("gains_v", None)})],
    "shared.alone": [GAINS._replace(shared={"v": Shared("gains_v", "no v", alone=None)})],
    "shared.part": [
        GAINS._replace(shared={"v": Shared("gains_v", "no v", part=part)}) for part in (1, lambda path: "")
    ],
    "option_of": [GAINS._replace(option_of=pair) for pair in ("lora", ("lora",), ("lora", ""), ("lorra", "use_gains"))],
    "experts": [
        GAINS._replace(experts=-1),
        GAINS._replace(experts="2"),
        GAINS._replace(experts=True),
        GAINS._replace(packed=True),
    ],
    "settings": [GAINS._replace(settings=hook) for hook in ({}, lambda: {}, lambda one, other: {})],
    "variant": [GAINS._replace(variant=hook) for hook in ("bdlora", lambda: GAINS)],
    "fits": [GAINS._replace(fits=hook) for hook in (True, lambda: True)],
    **{field: [GAINS._replace(**{field: flag}) for flag in (None, 1, "no")] for field in FLAGS},
    "transposed": [GAINS._replace(transposed=answer) for answer in (1, "no")],
    **{field: [GAINS._replace(**{field: None}), GAINS._replace(**{field: ("text",)})] for field in TEXTS},
    "formula": [GAINS._replace(formula="up @ down"), GAINS._replace(formula=None, variant=lambda surroundings: GAINS)],
    "bias": [GAINS._replace(bias=True), GAINS._replace(needs_bias=True)],
    "formula.check": [
        *(GAINS._replace(formula=FORMULA._replace(check=check)) for check in (None, lambda: None)),
        GAINS._replace(dialects={"peft": {"up": ".gains_up", "dwn": ".gains_down"}}, marks=(), rows={}),
    ],
    "bias.check": [GAINS._replace(bias=lora_bias.ALGORITHM.formula)],
    "formula.misfit": [GAINS._replace(formula=FORMULA._replace(misfit=lambda shapes: None))],
    "formula.rslora": [GAINS._replace(formula=FORMULA._replace(rslora=None))],
    "formula.sized": [GAINS._replace(formula=FORMULA._replace(sized="yes"))],
    "formula.low_rank": [GAINS._replace(formula=FORMULA._replace(low_rank=low_rank)) for low_rank in (1, lambda: None)],
    "formula.outside": [GAINS._replace(formula=FORMULA._replace(outside=lambda tensors: None))],
    "formula.rank": [GAINS._replace(formula=FORMULA._replace(rank=rank)) for rank in (None, lambda up, down: 1)],
    "formula.thin": [GAINS._replace(formula=FORMULA._replace(thin=2))],
    "formula.change": [
        GAINS._replace(formula=FORMULA._replace(change=None)),
        GAINS._replace(formula=FORMULA._replace(sized=True)),
        GAINS._replace(formula=FORMULA._replace(change=lambda tensors, scale: None)),
        GAINS._replace(experts=2),
    ],
    "bias.shape": [GAINS._replace(bias=FORMULA._replace(shape=(2, 2)))],
}
CASES = [pytest.param(field, record, id=f"{field}-{n}") for field in FAULTS for n, record in enumerate(FAULTS[field])]


@pytest.mark.parametrize(("field", "record"), CASES)
def test_add_wrong_field_raises_with_its_name(field, record):
    count, suffixes = algorithms.changes(), dict(algorithms.CANDIDATES)
    with pytest.raises(ValueError, match=f"^algorithm .*: {field} "):
        algorithms.add(record)
    assert (algorithms.changes(), algorithms.CANDIDATES) == (count, suffixes)
    assert record.name not in algorithms.ALGORITHMS


def test_add_other_object_raises():
    with pytest.raises(ValueError, match="is no Algorithm"):
        algorithms.add({"name": "gains"})


RIGHT = {
    "with a scale": GAINS,
    "of another program": GAINS._replace(dialects={"kohya": GAINS.dialects["peft"]}, peft_type=None),
    "without a scale": GAINS._replace(peft_type=None, has_alpha=False, scaled=()),
    "of saved tensors": GAINS._replace(replaces=True, idle=("twin",)),
    "only recognised": GAINS._replace(formula=None),
    "sized": GAINS._replace(formula=FORMULA._replace(sized=True, change=lambda tensors, scale, alpha, weight: None)),
    "sized by name": GAINS._replace(
        formula=FORMULA._replace(sized=True, change=lambda tensors, scale, alpha, **settings: None)
    ),
    "option": GAINS._replace(option_of=("lora", "use_gains")),
    "packed": GAINS._replace(
        experts=2,
        packed=True,
        formula=FORMULA._replace(change=lambda tensors, scale, alpha, packing, turned: None),
    ),
    "function with a default": GAINS._replace(formula=FORMULA._replace(misfit=lambda shapes, weight, name="up": None)),
    "check that needs other shapes": GAINS._replace(
        formula=FORMULA._replace(check=lambda shapes: str(shapes["up"][3])),
    ),
    "method": GAINS._replace(fits=SHAPES.accepts),
    "function of any arguments": GAINS._replace(settings=lambda *surroundings: {}),
    "partial function": GAINS._replace(formula=FORMULA._replace(rank=partial(max, 1))),
}


@pytest.mark.parametrize("case", RIGHT)
def test_add_right_record_registers(case):
    with algorithms.added(RIGHT[case]):
        assert algorithms.by_name("gains") is RIGHT[case]


@pytest.fixture
def algorithm_file(tmp_path, monkeypatch):
    """A function that writes a file as if it were on demand in the package, and returns the name of its module."""
    package = f"{algorithms.__name__}.on_demand"
    monkeypatch.setattr(sys.modules.get(package) or importlib.import_module(package), "__path__", [str(tmp_path)])
    monkeypatch.setattr(algorithms, "_WAITING", {"gains"})

    def write(text):
        header = "from lora_inspect.algorithms.record import Algorithm\n"
        (tmp_path / "gains.py").write_text(header + text, encoding="utf-8")
        monkeypatch.delitem(sys.modules, f"{package}.gains", raising=False)
        return f"{package}.gains"

    yield write
    sys.modules.pop(f"{package}.gains", None)


def test_file_of_wrong_record_raises_at_every_request(algorithm_file):
    name = algorithm_file(
        "_good = Algorithm('gains', 'Gains', {'': {'up': '.gains_up'}})\n"
        "ALGORITHMS = (_good, _good._replace(name='gains_bias', marks=('down',)))\n"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^{name}: algorithm 'gains_bias': marks has the role 'down'"):
            algorithms.load_for("layer.gains_up")
        assert "gains" not in algorithms.ALGORITHMS


def test_file_of_two_records_with_one_name_raises(algorithm_file):
    name = algorithm_file("ALGORITHMS = 2 * (Algorithm('gains', 'Gains', {'': {'up': '.gains_up'}}),)\n")
    with pytest.raises(ValueError, match=f"^{name}: there is an algorithm called gains already"):
        algorithms.load_for("layer.gains_up")


def test_record_beside_later_record_of_its_file_registers(algorithm_file):
    algorithm_file(
        "ALGORITHMS = (\n"
        "    Algorithm('gains_bias', 'Gains of a bias', {'': {'bias': '.gains_bias'}}, beside='gains'),\n"
        "    Algorithm('gains', 'Gains', {'': {'up': '.gains_up'}}),\n"
        ")\n"
    )
    try:
        assert algorithms.load_for("layer.gains_up")
        assert algorithms.by_name("gains_bias").beside == "gains"
    finally:
        for name in ("gains", "gains_bias"):
            algorithms.ALGORITHMS.pop(name, None)
        for suffix in (".gains_up", ".gains_bias"):
            algorithms.CANDIDATES.pop(suffix, None)
        algorithms._note_change()
