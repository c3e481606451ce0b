"""Properties of the outputs of `convert` for every case: each merges to the same, or is refused with the reason."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from every_case import WrittenCase, assert_close, merge_files, write
from library_case import apply
from safetensors.torch import load_file

from lora_inspect.converting.target.target_algorithm import becomes_full, becomes_lora, check_algorithm, is_saved_weight
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.maths.dora import OF_STORED_ROWS, SPELLINGS
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.merge import MergeOptions
from lora_inspect.reading.adapter import read_adapter

# That of mlx-lm stands in files of another form, and is looked at in tests of its own.
PLAIN = tuple(suffix for suffix in SPELLINGS if suffix != OF_STORED_ROWS)
SIDES = ("lora_down", "lora_A", "lora_up", "lora_B")
# An approximation of full rank leaves out singular values below this part of the largest.
LEFT_OUT, EPS = 1e-7, 2.0**-24
# Those beside whose tensors some program writes an alpha.
WITH_ALPHA = {"glora", "old_glora", "loha", "lokr", "lokr_rows", "lora", "lora_bias", "lora_embedding"}
WITH_ALPHA |= {"oft", "lycoris_boft", "tlora", "bdlora", "kasa", "lora_experts", "lora_embedding_along_tokens"}


def its_standard_form_merges_to_the_same(written: WrittenCase) -> None:
    case, folder = written.case, written.folder
    dora = any(key.endswith(tuple(SPELLINGS)) for key in case.tensors)
    # What has llama.cpp's names becomes a folder of PEFT.
    is_folder = case.config is not None or any(key.endswith(".weight.lora_a") for key in case.tensors)
    output = str(folder / ("standard" if is_folder else "standard.safetensors"))
    result = convert_to_standard(written.adapter, output, ConvertOptions(keep_dora=dora))
    assert result.exact
    after = merge_files(written.base, result.output, 1.0, MergeOptions(), folder / "after.safetensors")
    for name, tensor in written.merged(1.0).items():
        # Where alpha goes through a float32, and where programs add another number to a norm.
        assert_close(after[name], tensor, max(case.bound, 1e-6))


def its_plain_lora_is_what_the_library_computes(written: WrittenCase) -> None:
    case, found = written.case, written.contributions
    if any(is_saved_weight(c.algorithm, c.shapes) for c in found):
        with pytest.raises(LoraInspectError, match="its change depends on the weight that it replaces"):
            check_algorithm(written.read, ConvertOptions(algorithm="lora"))
        return
    if not any(becomes_lora(c.algorithm, c.shapes) for c in found):
        (note,) = check_algorithm(written.read, ConvertOptions(algorithm="lora"))
        assert "it holds nothing that --algorithm lora changes" in note
        return
    turned = any(becomes_lora(c.algorithm, c.shapes) and c.algorithm.transposed for c in found)
    biased = any(becomes_lora(c.algorithm, c.shapes) and c.algorithm.bias for c in found)
    output = written.folder / ("made" if case.config is not None else "made.safetensors")
    options = ConvertOptions(base=written.base, max_error=0.0, algorithm="lora")
    if turned or (biased and "layer.bias" in case.base):
        says = "which plain LoRA cannot express" if turned else "also changes the bias of its layer"
        with pytest.raises(LoraInspectError, match=says):
            convert_to_standard(written.adapter, str(output), options)
        return
    result = convert_to_standard(written.adapter, str(output), options)
    assert result.verified is not None
    assert result.verified.max_relative_error <= 1e-5
    names = {c.algorithm.name for c in read_adapter(open_checkpoint(str(output))).contributions}
    assert names & {"lora"}
    made = merge_files(written.base, str(output), 1.0, MergeOptions(), written.folder / "merged.safetensors")
    assert case.base.keys() == made.keys()
    for name, expected in case.oracle(1.0).items():
        assert_close(made[name], expected, case.bound + _of_full_rank(expected, case.base[name]))


def _of_full_rank(expected, base):
    """A bound of the error of an entry of a product of float32 factors, over the largest entry that is expected.

    With singular vectors of length 1, no entry has terms whose sizes add up to more than the largest singular value:
    two roundings of factors, one for each term, and at last that of the sum with the base.
    """
    change = (expected.double() - base.double()).reshape(len(base), -1)
    largest = float(torch.linalg.matrix_norm(change, 2))
    return (LEFT_OUT + (2 + min(change.shape)) * EPS) * largest / float(expected.abs().max()) + EPS


def the_true_change_of_dora_is_a_plain_lora(written: WrittenCase) -> None:
    case = written.case
    if not any(key.endswith(PLAIN) for key in case.tensors):
        return
    output = str(written.folder / ("plain" if case.config is not None else "plain.safetensors"))
    result = convert_to_standard(written.adapter, output, ConvertOptions(base=written.base, rank=1000))
    folder = Path(result.output)
    if case.config is not None:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
    else:
        tensors, config = load_file(folder), None
    change, keys = _added(tensors, config)
    weight = case.base["layer.weight"]
    assert {key.rpartition(".")[2] for key in keys} <= {*SIDES, "alpha"}
    # PEFT looks for the factors of an Embedding under names of their own.
    is_embedding = isinstance(case.layer, torch.nn.Embedding)
    assert len([key for key in tensors if ".lora_embedding_" in key]) == (2 if is_embedding else 0)
    assert result.target["algorithm"] == ("lora_embedding" if is_embedding else "lora")
    if not is_embedding:
        ones = (1,) * len(weight.shape[2:])
        assert {tensor.shape[2:] for key, tensor in tensors.items() if ".lora_up" in key or ".lora_B" in key} == {ones}
        downs = {tensor.shape[1:] for key, tensor in tensors.items() if ".lora_down" in key or ".lora_A" in key}
        assert downs == {weight.shape[1:]}
    change = change.T if is_embedding else change
    changed = {**case.base, "layer.weight": (weight.double() + change.reshape(weight.shape)).to(weight.dtype)}
    # The factors are rounded to float32.
    assert_close(changed["layer.weight"], case.oracle(1.0)["layer.weight"], max(case.bound, 1e-5))
    assert_close(apply(case.layer, changed, case.input), case.library(1.0), max(case.bound, 1e-5))


def _added(weights, config):
    """The change that a reader of alpha and rank adds to the one module's weight, and the keys that it finds."""
    tensors = {key.replace("lora_embedding_", "lora_").removesuffix(".weight"): t for key, t in weights.items()}
    sides = {name: tensor for key, tensor in tensors.items() for name in SIDES if key.endswith(name)}
    (down, up), alphas = (
        [next(sides[name].double() for name in names if name in sides) for names in (SIDES[:2], SIDES[2:])],
        [float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha")],
    )
    alpha = alphas[0] if alphas else config["lora_alpha"] if config else len(down)
    return alpha / len(down) * up.flatten(1) @ down.flatten(1), tensors.keys()


def its_full_difference_is_what_becomes_of_the_layer(written: WrittenCase) -> None:
    case, contributions = written.case, written.contributions
    # Underscored names of no known family stay as they are; of others LyCORIS's take any.
    scheme = None if any(key.startswith("lora_transformer_") for key in case.tensors) else "lycoris"
    options = ConvertOptions(base=written.base, algorithm="full", scheme=scheme, allow_growth=True)
    output = written.folder / "full.safetensors"
    if any(one.algorithm.experts or one.algorithm.transposed for one in contributions):
        with pytest.raises(LoraInspectError, match="and no program reads a full difference of that; merge it"):
            convert_to_standard(written.adapter, str(output), options)
        return
    if not any(becomes_full(one.algorithm) for one in contributions):
        return
    result = convert_to_standard(written.adapter, str(output), options)
    assert result.exact
    assert result.verified.modules == result.modules == 1
    differences = load_file(output)
    prefix = "lycoris_" if scheme else "lora_transformer_"
    ends = {f"{prefix}layer{suffix}": f"layer.{name}" for suffix, name in ((".diff", "weight"), (".diff_b", "bias"))}
    assert differences.keys() <= ends.keys()
    assert {tensor.dtype for tensor in differences.values()} == {torch.float32}
    expected = case.oracle(1.0)
    for key, name in ends.items():
        if key not in differences:
            assert name not in expected or torch.equal(expected[name].double(), case.base[name].double())
            continue
        due = expected[name].double() - case.base[name].double()
        # The difference is rounded once, and the oracle has the bound of its library.
        bound = 2.0**-23 * float(due.abs().max()) + case.bound * float(expected[name].abs().max())
        assert float((differences[key].double() - due).abs().max()) <= bound


def an_alpha_that_nothing_takes_is_left_and_named(written: WrittenCase) -> None:
    for module in written.read.modules.values():
        if module.contributions[0].algorithm.name == "saved":  # where it would be one more parameter of the base
            continue
        alone = {contribution.algorithm.name for contribution in module.contributions}.isdisjoint(WITH_ALPHA)
        key = f"{module.name.key}.alpha"
        again = replace(written.case, tensors={**written.case.tensors, key: torch.tensor(3.0)})
        folder = written.folder / "with alpha"
        folder.mkdir(exist_ok=True)
        assert (key in read_adapter(open_checkpoint(write(again, folder)[1])).unclaimed) == alone


OF_CONVERTING = (
    its_standard_form_merges_to_the_same,
    its_plain_lora_is_what_the_library_computes,
    the_true_change_of_dora_is_a_plain_lora,
    its_full_difference_is_what_becomes_of_the_layer,
    an_alpha_that_nothing_takes_is_left_and_named,
)
