"""The registry of problems: a file that has each of them, what is told of it, and its row in the documentation."""

import json
import re
import struct
from pathlib import Path

import pytest
from toy_adapters import IN, OUT, lora, loras

from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.problem import ERROR, NOTE, WARNING, Finding, Problem
from lora_inspect.reading.problems import PROBLEMS, Entry, find_problems

PAGE = Path(__file__).parents[2] / "docs" / "reading.md"
ENTRIES = {entry.code: entry for entry in PROBLEMS}

PEFT = lora("base_model.model.blocks.0.q", alpha=None, spelling="peft")
CONFIG = {"peft_type": "LORA", "r": 16, "lora_alpha": 8, "target_modules": ["q"]}
MAGNITUDE = {"dora_scale": ("F32", (OUT, 1), 1)}
SHARDS = ("x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors")


def peft(**config):
    return {"tensors": PEFT, "config": {**CONFIG, **config}, "name": "adapter_model.safetensors"}


# What `read` makes of each problem's own file; `beside` is what `write_safetensors` puts beside it.
TOYS = {
    "weights-missing": {"config": CONFIG},
    "no-weight": {"tensors": {"prompt_embeddings": ("F32", (4, IN), 1)}},
    "scheme": {"tensors": {f"w_{side}_000": ("F32", (4, 4), 1) for side in "ab"}},
    "no-adapter": {
        "tensors": {"a.weight": ("F32", (OUT, IN), 1)},
        "config": {"fine_tune_type": "full"},
        "name": "adapters.safetensors",
    },
    "twice": {"tensors": {**lora("a"), "a.lora_A.weight": ("F32", (16, IN), 1)}},
    "shape": {"tensors": lora("a") | {"a.lora_up.weight": ("F32", (OUT, 5), 1)}},
    "incomplete": {"tensors": {"a.lora_down.weight": ("F32", (16, IN), 1)}},
    "magnitude-shape": {"tensors": lora("a", dora_scale=("F32", (OUT + 1, 1), 1))},
    "experts": peft(target_parameters=["mlp.experts.gate_up_proj"]),
    "peft-setting": peft(use_qalora=True),
    "algorithm": peft(peft_type="OF_NO_FILE_HERE"),
    "residual-base": {"tensors": loras(), "metadata": {"ss_init_lora_weights": "pissa_niter_4"}},
    "pattern": peft(alpha_pattern={"(a+)+": 4}),
    "shards-contradict": {
        "tensors": lora("a"),
        "metadata": {"ss_network_alpha": "8"},
        "name": SHARDS[0],
        "beside": (lora("b"), {"ss_network_alpha": "4"}, SHARDS[1]),
    },
    "dora-conflict": {"tensors": {**lora("a", **MAGNITUDE), "use_dora_flag": ("F32", (), 0.0)}},
    "dora-missing": {"tensors": {**lora("a"), "use_dora_flag": ("F32", (), 1.0)}},
    "dora-partial": {"tensors": {**lora("a", **MAGNITUDE), **lora("b")}},
    "dora-stripped": {"tensors": loras(), "metadata": {"ss_network_args": json.dumps({"use_dora": "True"})}},
    "setting-contradicts": {"tensors": loras(), "alpha": 4.0},
    "setting-repeats": {"tensors": loras(), "alpha": 8.0},
    "scale-unknown": {"tensors": PEFT},
    "config-damaged": {"tensors": loras(), "metadata": {"lora_adapter_metadata": "{"}},
    "formula-unknown": {"tensors": {"base_model.model.a.oft_R.weight": ("F32", (2, 3), 1)}},
    "mixed-schemes": {"tensors": {**loras(1), **lora("transformer.blocks.1.q")}},
    "unclaimed": {"tensors": {**loras(1), "odd.tensor": ("F32", (1,), 1)}},
    "embeddings": {"tensors": {**loras(1), "bundle_emb.<own>.clip_l": ("F32", (2, IN), 1)}},
    "rslora-hint": {"tensors": loras(alpha=4.0)},
    "expert-hint": {
        "tensors": {
            "base_model.model.mlp.experts.lora_A.weight": ("F32", (4, IN), 1),
            # Two experts of rank 2, whose columns have a direction each.
            "base_model.model.mlp.experts.lora_B.weight": ("F32", (2, 4), struct.pack("<8f", 1, 1, 0, 0, 0, 0, 1, 1)),
        },
        "config": {
            **CONFIG,
            "r": 2,
            "target_parameters": ["mlp.experts.down_proj"],
            "auto_mapping": {"unsloth_fixed": True},
        },
        "name": "adapter_model.safetensors",
    },
    "trained-scale": {
        "tensors": loras(),
        "metadata": {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "dylora"}'},
    },
}


@pytest.mark.parametrize("code", ENTRIES)
def test_every_problem_is_found_in_a_file_that_has_it(code, read, write_safetensors):
    toy = dict(TOYS[code])  # a problem that is new needs its file here
    if beside := toy.pop("beside", None):
        write_safetensors(*beside)
    found = [problem for problem in read(**toy).problems if problem.code == code]
    assert {problem.severity for problem in found} == {ENTRIES[code].severity}
    assert all("; " in problem.message for problem in found if problem.severity == ERROR), "the way out"


def test_a_file_without_problems_has_none(read):
    assert read(loras()).problems == ()


def test_every_problem_stands_in_the_documentation_and_no_other():
    rows = re.findall(r"^\| `([a-z-]+)` \| (error|warning|note) \|", PAGE.read_text(encoding="utf-8"), re.M)
    assert rows == [(entry.code, entry.severity) for entry in PROBLEMS]


def test_codes_and_severities_are_those_that_scripts_rely_on():
    assert len(ENTRIES) == len(PROBLEMS)
    assert {entry.severity for entry in PROBLEMS} == {ERROR, WARNING, NOTE}


class TestTheRegistry:
    """Entries are told in their order, whoever finds what, and nothing that is found is passed over."""

    @pytest.fixture
    def reading(self):
        return FileReading(*[None] * len(FileReading._fields))

    def test_an_entry_is_all_that_a_new_problem_takes(self, reading):
        def look(reading):
            yield Finding("new", "it is new", ("key",))

        assert find_problems(reading, (Entry("new", WARNING, (look,)),)) == (
            Problem("new", WARNING, "it is new", ("key",)),
        )

    def test_problems_are_told_in_the_order_of_their_entries(self, reading):
        def look(reading):
            yield Finding("second", "b")
            yield Finding("first", "a")

        def look_again(reading):
            yield Finding("first", "c")

        entries = (Entry("first", ERROR, (look, look_again)), Entry("second", NOTE, (look,)))
        assert [problem.message for problem in find_problems(reading, entries)] == ["a", "c", "b"]

    def test_a_finding_without_an_entry_is_not_lost(self, reading):
        entries = (Entry("first", ERROR, (lambda reading: [Finding("other", "a")],)),)
        with pytest.raises(KeyError, match="other"):
            find_problems(reading, entries)
