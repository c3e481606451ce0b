"""A rank, an error or a base that `--algorithm lora` has no use for: refused, and never called exact."""

import json

import pytest
import torch
from adapters import drawn_lora
from safetensors.torch import load_file, save_file

from lora_inspect import convert, state_dict
from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard

pytestmark = pytest.mark.numeric

OUT, IN, RANK = 48, 40, 8
NAME = "lora_unet_blocks_0_attn_{}"
PEFT = "base_model.model.encoder.layer.0.attention.self.query"
LIMITS = {"--rank": {"rank": 4}, "--max-error": {"max_error": 0.3}}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lora(name, spelling="kohya", alpha=2.0):
    return drawn_lora(name, seed=1, rank=RANK, alpha=alpha, out=OUT, inputs=IN, spelling=spelling)


def lokr(name):
    """Of whole factors, whose change has the rank of its layer."""
    return {f"{name}.lokr_w1": normal(4, 5, seed=3), f"{name}.lokr_w2": normal(12, 8, seed=4)}


@pytest.fixture
def refused(tmp_path):
    """`refused(tensors, …)`: the sentence, and that nothing was left behind."""

    def ask(tensors, **options):
        save_file(tensors, tmp_path / "in.safetensors", {"ss_base_model_version": "wan2.1"})
        asked = ConvertOptions(**{"algorithm": "lora", **options})
        with pytest.raises(LoraInspectError) as raised:
            convert_to_standard(str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors"), asked)
        assert {path.name for path in tmp_path.iterdir()} <= {"in.safetensors", "base.safetensors"}
        return str(raised.value).removeprefix(f"{tmp_path / 'in.safetensors'}: ")

    return ask


@pytest.fixture
def base(tmp_path):
    save_file({"blocks.0.attn.q.weight": normal(OUT, IN, seed=5)}, tmp_path / "base.safetensors")
    return str(tmp_path / "base.safetensors")


@pytest.mark.parametrize("asked", [{}, {"scheme": "comfyui"}, {"program": "musubi"}], ids=str)
@pytest.mark.parametrize("limit", LIMITS)
def test_lora_of_another_rank_is_refused(refused, limit, asked):
    says = refused(lora("lora_unet_blocks_0_self_attn_q"), **LIMITS[limit], **asked)
    problem = f"the file is LoRA already, so {limit} has nothing to do"
    assert says == f"{problem}; leave it out, or change the ranks with resize."


@pytest.mark.parametrize("settled", ["keep_dora", "drop_magnitude"])
def test_the_rank_of_dora_whose_magnitude_is_kept_or_dropped_is_refused(refused, settled):
    tensors = lora(NAME.format("q")) | {f"{NAME.format('q')}.dora_scale": normal(OUT, 1).abs() + 1}
    says = refused(tensors, rank=4, **{settled: True})
    assert says == "the file is LoRA already, so --rank has nothing to do; leave it out."


def test_a_base_with_nothing_to_tell_is_refused(refused, base):
    says = refused(lora(NAME.format("q")), base=base, rank=4)
    problem = "the file is LoRA already, so --rank and --base have nothing to do"
    assert says == f"{problem}; leave them out, or change the ranks with resize."
    assert refused(lora(NAME.format("q")), base=base).endswith("so --base has nothing to do; leave it out.")


def test_what_is_neither_lora_nor_could_be_is_not_called_so(refused):
    tensors = {f"{NAME.format('norm')}.w_norm": normal(OUT), f"{NAME.format('norm')}.b_norm": normal(OUT)}
    assert refused(tensors, rank=4) == (
        "it holds nothing that --algorithm lora changes, so --rank has nothing to do; leave it out."
    )


@pytest.mark.parametrize("limit", LIMITS)
def test_full_differences_of_a_rank_are_refused(refused, base, limit):
    says = refused({f"{NAME.format('q')}.diff": normal(OUT, IN)}, algorithm="full", base=base, **LIMITS[limit])
    assert says == "a full difference has no rank and no error; leave --rank and --max-error out."


def test_a_folder_of_peft_is_refused_as_well(tmp_path):
    (tmp_path / "in").mkdir()
    save_file(lora(PEFT, "peft", None), tmp_path / "in" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_modules": ["query"]}
    (tmp_path / "in" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(LoraInspectError, match="the file is LoRA already, so --rank has nothing to do"):
        convert_to_standard(str(tmp_path / "in"), str(tmp_path / "out"), ConvertOptions(algorithm="lora", rank=4))
    assert not (tmp_path / "out").exists()


def test_the_command_and_python_refuse_it_alike(tmp_path, run):
    file, output = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(lora("lora_unet_blocks_0_self_attn_q"), file, {"ss_base_model_version": "wan2.1"})
    ended = run("convert", file, "--algorithm", "lora", "--rank", "4", "--allow-loss", "-o", output)
    assert (ended.status, ended.stdout) == (1, "")
    problem = f"{file}: the file is LoRA already, so --rank has nothing to do"
    assert ended.stderr == f"Error: {problem}; leave it out, or change the ranks with resize.\n"
    with pytest.raises(LoraInspectError, match="the file is LoRA already"):
        convert(file, output, algorithm="lora", rank=4)
    with pytest.raises(LoraInspectError, match="the file is LoRA already"):
        state_dict(file, "musubi", algorithm="lora", rank=4)
    assert not output.exists()


def test_of_a_folder_of_adapters_those_that_are_lora_are_named(tmp_path, run):
    (tmp_path / "in").mkdir()
    save_file(lora(NAME.format("q")), tmp_path / "in" / "lora.safetensors")
    save_file(lokr(NAME.format("q")), tmp_path / "in" / "lokr.safetensors")
    ended = run(
        "convert", tmp_path / "in", "--algorithm", "lora", "--rank", "4", "--allow-loss", "-o", tmp_path / "out"
    )  # fmt: skip
    assert ended.status == 1
    assert f"{tmp_path / 'in' / 'lora.safetensors'}: the file is LoRA already, so --rank" in ended.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["lokr.safetensors"]


def test_the_rank_of_doras_true_change_is_that_which_was_asked_for(tmp_path, base):
    tensors = lora(NAME.format("q")) | {f"{NAME.format('q')}.dora_scale": normal(OUT, 1).abs() + 1}
    save_file(tensors, tmp_path / "in.safetensors")
    for algorithm in (None, "lora"):
        options = ConvertOptions(algorithm=algorithm, base=base, rank=4, allow_loss=True)
        convert_to_standard(str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors"), options, force=True)
        found = load_file(tmp_path / "out.safetensors")
        assert found[f"{NAME.format('q')}.lora_down.weight"].shape == (4, IN)


def test_beside_lora_the_rank_is_that_of_the_others_and_a_note_says_so(tmp_path):
    q, k = NAME.format("q"), NAME.format("k")
    save_file(lora(q) | lokr(k), tmp_path / "in.safetensors")

    def made(rank):
        options = ConvertOptions(algorithm="lora", rank=rank, allow_loss=True)
        result = convert_to_standard(
            str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors"), options, force=True
        )
        found = load_file(tmp_path / "out.safetensors")
        return result.notes, {name: len(found[f"{name}.lora_down.weight"]) for name in (q, k)}

    notes, ranks = made(4)
    assert ranks == {q: RANK, k: 4}
    assert notes == (
        f"{tmp_path / 'in.safetensors'}: 1 of 2 modules get a rank above --rank 4 ({q}: 8); existing LoRA keeps "
        "its rank, and changes that join in one module add up their ranks.",
    )
    assert made(RANK) == ((), {q: RANK, k: RANK})
