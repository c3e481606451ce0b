"""--fix: what it mends is gone from the output, nothing else changes, and nothing is guessed."""

import hashlib
import json
import struct

import pytest
from adapters import IN, OUT, lora, loras
from problem_toys import DATA, LINT_TOYS, alphas, dora
from safetensors import safe_open

from lora_inspect.checking.rules import BY_CODE, RULES
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.safetensors.header import read_header
from lora_inspect.files.safetensors.writer import Content, write_contents
from lora_inspect.ops.check import check, fix
from lora_inspect.reading.adapter import read_adapter

MENDED = [rule.code for rule in RULES if rule.fix or rule.rewritten]
# The tensors that the problem is in; those of all others keep their bytes.
CHANGED = {
    "alpha-rounded": {"lora_unet_blocks_0_attn_q.alpha"},
    "flag-type": {"use_rslora_flag"},
}


def stored(path):
    tensors, _ = read_header(path)
    with open(path, "rb") as file:
        content = file.read()
    return {name: (info.dtype, content[info.start : info.stop]) for name, info in tensors.items()}


def mend(path, settings, tmp_path):
    return fix(path, str(tmp_path / "out.safetensors"), settings)


@pytest.mark.parametrize("code", MENDED)
def test_what_is_mended_is_gone_and_nothing_else_changes(code, write_toy, tmp_path):
    path, settings = write_toy(LINT_TOYS[code])
    result = mend(path, settings, tmp_path)
    assert code in result.fixable
    assert result.fixed
    left = check(result.output, settings, tensors=True).problems
    assert not {problem.code for problem in left} & result.fixable
    assert tuple(problem for problem in left if not BY_CODE[problem.code].of_tensors) == result.left
    before, after = stored(path), stored(result.output)
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == CHANGED.get(code, set())
    with safe_open(result.output, "np") as opened:
        assert set(opened.keys()) == set(before)


@pytest.mark.parametrize("code", sorted(set(LINT_TOYS) - set(MENDED) - {"unreadable"}))
def test_what_needs_a_decision_is_left(code, write_toy, tmp_path):
    path, settings = write_toy(LINT_TOYS[code])
    assert code not in check(path, settings, tensors=True).fixable
    with pytest.raises(LoraInspectError, match="can be fixed without a guess"):
        mend(path, settings, tmp_path)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_clean_file_is_not_written_again(write_toy, tmp_path):
    path, settings = write_toy({"tensors": loras(rank=4)})
    with pytest.raises(LoraInspectError, match="its header has no problem, so there is nothing to fix; give --tensors"):
        mend(path, settings, tmp_path)


def test_hashes_are_those_of_the_output(write_toy, tmp_path):
    stated = {"sshs_model_hash": "", "sshs_legacy_hash": "11111111", "modelspec.hash_sha256": "0x12", "ss_epoch": "3"}
    path, settings = write_toy({"tensors": loras(), "metadata": stated})
    result = mend(path, settings, tmp_path)
    with open(result.output, "rb") as file:
        content = file.read()
    (length,) = struct.unpack("<Q", content[:8])
    written = json.loads(content[8 : 8 + length])["__metadata__"]
    digest = hashlib.sha256(content[8 + length :]).hexdigest()
    assert written["modelspec.hash_sha256"] == f"0x{digest}"
    assert written["sshs_legacy_hash"] == hashlib.sha256(b"").hexdigest()[:8]
    by_library = sorted(stored(path))
    data = b"".join(stored(path)[name][1] for name in by_library)  # all are F32, which the library orders by name
    assert written["sshs_model_hash"] == hashlib.sha256(data).hexdigest()


def test_a_hash_that_the_file_does_not_state_is_not_added(write_toy, tmp_path):
    path, settings = write_toy({"tensors": loras(), "metadata": {"ss_training_comment": ""}})
    assert read_header(mend(path, settings, tmp_path).output)[1] == {}


def test_hashes_follow_a_tensor_that_is_mended(write_toy, tmp_path):
    toy = {"tensors": {**loras(), "use_rslora_flag": ("F32", (), 1.0)}}
    path, settings = write_toy(toy)
    data = b"".join(stored(path)[name][1] for name in sorted(stored(path)))
    true = hashlib.sha256(data).hexdigest()
    path, settings = write_toy({**toy, "metadata": {"sshs_model_hash": true}})
    assert [problem.code for problem in check(path).problems] == ["flag-type", "rank-large"]
    result = mend(path, settings, tmp_path)
    assert read_header(result.output)[1]["sshs_model_hash"] != true
    assert [problem.code for problem in result.left] == ["rank-large"]


def test_alphas_are_those_that_were_asked_for(write_toy, tmp_path):
    path, settings = write_toy(alphas("F16", 3.3, ss_network_alpha="3.3"))
    result = mend(path, settings, tmp_path)
    key = "lora_unet_blocks_0_attn_q.alpha"
    assert open_checkpoint(result.output).numbers([key]) == {key: struct.unpack("<f", struct.pack("<f", 3.3))[0]}
    assert open_checkpoint(result.output).tensors[key].dtype == "F32"


@pytest.mark.parametrize(
    ("toy", "shapes"),
    [
        (dora((OUT,)), [(OUT, 1), (OUT, 1)]),
        (dora((IN,)), [(1, IN), (1, IN)]),
        (dora((OUT,), square=True), [(OUT, 1), (IN, 1)]),
    ],
)
def test_the_axis_of_a_magnitude_is_that_of_the_layers_that_are_not_square(toy, shapes, write_toy, tmp_path):
    path, settings = write_toy(toy)
    result = mend(path, settings, tmp_path)
    tensors = read_header(result.output)[0]
    assert [info.shape for name, info in sorted(tensors.items()) if name.endswith("dora_scale")] == shapes
    assert {problem.code for problem in result.left} == {"rank-large"}


def test_magnitudes_of_a_convolution_have_all_its_dimensions(write_toy, tmp_path):
    tensors = lora("lora_unet_q", rank=2, kernel=(3, 3), dora_scale=("F32", (OUT,), 1.0))
    result = mend(*write_toy({"tensors": tensors}), tmp_path)
    assert read_header(result.output)[0]["lora_unet_q.dora_scale"].shape == (OUT, 1, 1, 1)


def test_a_rank_that_decides_the_scale_is_not_corrected(write_toy, tmp_path):
    """The scale of these modules is open because the metadata contradict them: writing the rank would settle it."""
    path, settings = write_toy(
        {
            "tensors": loras(rank=4, alpha=8.0),
            "metadata": {"ss_network_module": "networks.lora", "ss_network_dim": "3", "ss_network_alpha": "8"},
        }
    )
    result = check(path, settings)
    assert {"scale-unknown", "dim-contradicts"} <= {problem.code for problem in result.problems}
    assert result.fixable == set()


def test_settings_that_the_evidence_needs_stay(write_toy, tmp_path):
    """An empty option may be what nobody needs; one that the reading needs is not there to be left out."""
    path, settings = write_toy({"tensors": loras(rank=4), "metadata": {"ss_network_dim": "8", "ss_x": ""}})
    result = mend(path, settings, tmp_path)
    metadata = read_header(result.output)[1]
    assert metadata == {"ss_network_dim": "4"}
    before, after = (read_adapter(open_checkpoint(file)) for file in (path, result.output))
    assert [one.scale for one in before.contributions] == [one.scale for one in after.contributions]


def test_numbers_that_differ_are_written_as_trainers_do(write_toy, tmp_path):
    tensors = {**loras(1, rank=2), **lora("lora_unet_b", rank=4)}
    result = mend(*write_toy({"tensors": tensors, "metadata": {"ss_network_dim": "0"}}), tmp_path)
    assert read_header(result.output)[1] == {"ss_network_dim": "Dynamic"}


def test_a_hash_follows_the_order_of_the_tensors(write_toy, tmp_path):
    """The file has its narrow tensors first, and the writer puts wide ones there, so that all are aligned."""
    tensors = {**lora("lora_unet_a", rank=2, dtype="F16"), **lora("lora_unet_b", rank=2)}
    path, _ = write_toy({"tensors": tensors})
    true = hashlib.sha256(b"".join(data for _, data in stored(path).values())).hexdigest()
    path, settings = write_toy({"tensors": tensors, "metadata": {"modelspec.hash_sha256": f"0x{true}", "x": ""}})
    assert "hash-stale" not in {problem.code for problem in check(path).problems}
    result = mend(path, settings, tmp_path)
    data = hashlib.sha256(b"".join(data for _, data in stored(result.output).values())).hexdigest()
    assert read_header(result.output)[1] == {"modelspec.hash_sha256": f"0x{data}"}
    assert data != true


def _without_a_tensor(path, contents, *others):
    write_contents(path, [one for one in contents if "blocks_0" not in one.plan.name], *others)


def _with_another_alpha(path, contents, *others):
    changed = [
        Content(one.plan, struct.pack("<f", 9.0)) if one.plan.name.endswith("0_attn_q.alpha") else one
        for one in contents
    ]
    write_contents(path, changed, *others)


@pytest.mark.parametrize("spoil", [_without_a_tensor, _with_another_alpha])
def test_a_proof_that_fails_leaves_nothing(spoil, write_toy, tmp_path, monkeypatch):
    path, settings = write_toy(LINT_TOYS["metadata-empty"])
    monkeypatch.setattr("lora_inspect.checking.fix.write_contents", spoil)
    with pytest.raises(LoraInspectError, match="would have another meaning, so nothing was written"):
        mend(path, settings, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["file.safetensors"]


def test_a_file_with_its_configuration_beside_it_stays_there(write_toy, tmp_path):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"]}
    tensors = lora("base_model.model.blocks.0.q", rank=4, alpha=None, spelling="peft")
    toy = {"tensors": tensors, "config": config, "metadata": {"x": ""}, "name": "adapter_model.safetensors"}
    path, settings = write_toy(toy)
    (tmp_path / "other").mkdir()
    with pytest.raises(LoraInspectError, match="would not be next to it"):
        fix(path, str(tmp_path / "other" / "out.safetensors"), settings)
    result = mend(path, settings, tmp_path)
    assert [one.scale for one in read_adapter(open_checkpoint(result.output)).contributions] == [2.0]


def test_only_single_files_are_mended(write_toy, fixtures, tmp_path):
    names = "x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors"
    toy = {"tensors": lora("a"), "metadata": {"x": ""}, "name": names[0], "beside": (lora("b"), {}, names[1])}
    path, settings = write_toy(toy)
    with pytest.raises(LoraInspectError, match="check fixes only single safetensors files"):
        mend(path, settings, tmp_path)


def test_the_header_is_written_as_the_library_writes_it(write_toy, tmp_path):
    path, settings = write_toy(LINT_TOYS["metadata-late"])
    result = mend(path, settings, tmp_path)
    with open(result.output, "rb") as file:
        content = file.read()
    assert content[8:].startswith(b'{"__metadata__":{"format":"pt"},')
    assert content.endswith(DATA)
