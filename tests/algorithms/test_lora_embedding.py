"""Which way round an Embedding is, and what becomes of one that does not fit."""

import pytest
from adapters import OUT, lora

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.matching.match import match
from lora_inspect.reading.adapter import read_adapter

NAME = "base_model.model.wte"


def embedding(rows, dimension=OUT, rank=2, **extra):
    return {
        f"{NAME}.lora_embedding_A": ("F32", (rank, rows), 0.5),
        f"{NAME}.lora_embedding_B": ("F32", (dimension, rank), 0.25),
        **{f"{NAME}.{suffix}": tensor for suffix, tensor in extra.items()},
    }


@pytest.fixture
def matched(write_safetensors):
    def match_tensors(tensors, weights):
        read = read_adapter(open_checkpoint(str(write_safetensors(tensors, name="adapter.safetensors"))))
        return match(read, open_checkpoint(str(write_safetensors(weights, name="base.safetensors"))))

    return match_tensors


@pytest.mark.parametrize("rows", [OUT - 2, OUT, OUT + 3], ids=["wide", "square", "tall"])
def test_it_is_stored_as_in_out_and_nobody_is_asked(rows, matched):
    found = matched(embedding(rows), {"wte.weight": ("F32", (rows, OUT), 1)})
    ((placed,),) = found.targets.values()
    assert placed.place.transposed
    assert placed.place.shape == placed.contribution.shape == (OUT, rows)
    assert found.orientations == {}


def test_one_that_was_resized_is_refused_by_name(matched):
    says = r"wte changes an embedding of 9 rows of 6 numbers, but wte.weight of .* has \[10, 6\]"
    with pytest.raises(LoraInspectError, match=says):
        matched(embedding(9), {"wte.weight": ("F32", (10, OUT), 1)})


def test_its_adapter_may_have_a_name(matched):
    tensors = {f"{key}.default": tensor for key, tensor in embedding(9).items()}
    assert list(matched(tensors, {"wte.weight": ("F32", (9, OUT), 1)}).targets) == ["wte.weight"]


def problems(write_safetensors, tensors):
    read = read_adapter(open_checkpoint(str(write_safetensors(tensors))))
    return [problem.code for problem in read.problems if problem.severity == "error" and problem.code[:4] != "scal"]


def test_its_magnitude_belongs_to_the_numbers_of_a_row(write_safetensors):
    tensors = embedding(9, lora_magnitude_vector=("F32", (OUT,), 1))
    assert problems(write_safetensors, tensors) == []
    tensors = embedding(9, lora_magnitude_vector=("F32", (9,), 1))
    assert problems(write_safetensors, tensors) == ["magnitude-shape"]


def test_it_is_no_linear_layer_that_lacks_a_magnitude(write_safetensors):
    linear = lora("base_model.model.q", alpha=None, spelling="peft", **{"lora_magnitude_vector": ("F32", (OUT,), 1)})
    assert problems(write_safetensors, {**linear, **embedding(9)}) == []
