"""Adapters of a model whose vocabulary was resized: merged as PEFT merges them, in whatever form the base is."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.model.settings import Settings

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore")]

BEFORE, AFTER = 100, 108
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PREFIX = "base_model.model."


def base_of(folder, tied, dtype=torch.float32):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=BEFORE, num_key_value_heads=1, tie_word_embeddings=tied, **sizes)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder


def adapter_of(base, folder, rows=AFTER, **asked):
    """Train by chance on a base of other rows, as PEFT does; its own merged model is beside, with -merged."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    model.resize_token_embeddings(rows)
    asked = {"target_modules": ["q_proj", "v_proj"], **asked}
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, **asked))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += (0.1 * torch.randn(parameter.shape)).to(parameter.dtype)
    model.save_pretrained(folder)
    model.merge_and_unload().save_pretrained(f"{folder}-merged")
    return folder


KINDS = {
    "saved beside": (False, {}),
    "trained": (False, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied": (True, {}),
    "adapted": (False, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resized")
    made = {}
    for kind, (tied, asked) in KINDS.items():
        base = base_of(folder / f"base {kind}", tied)
        made[kind] = base, adapter_of(base, folder / kind, **asked)
    return made


@pytest.fixture
def case(cases):
    return cases["saved beside"]


def merged(base, adapter, output, **options):
    settings = options.pop("settings", Settings())
    merge(plan_merge(str(base), [(str(adapter), settings)], MergeOptions(**options)), str(output))
    return output


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_is_that_of_peft(kind, cases, tmp_path):
    base, adapter = cases[kind]
    output = merged(base, adapter, tmp_path / "out")
    ours = load_file(output / "model.safetensors")
    theirs = load_file(f"{adapter}-merged/model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)
    assert kind == "adapted" or torch.equal(ours[EMBEDDING], theirs[EMBEDDING])
    assert len(ours[EMBEDDING]) == AFTER
    configs = [json.loads((folder / "config.json").read_text()) for folder in (output, base)]
    assert configs[0] == {**configs[1], "vocab_size": AFTER}


def test_transformers_loads_the_output(case, tmp_path):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(merged(*case, tmp_path / "out"))
    assert model.get_input_embeddings().weight.shape[0] == AFTER
    assert model(torch.tensor([[AFTER - 1]])).logits.shape[-1] == AFTER


def test_a_smaller_vocabulary_is_merged_too(case, tmp_path):
    base, _ = case
    adapter = adapter_of(base, tmp_path / "small", rows=BEFORE - 4)
    ours = load_file(merged(base, adapter, tmp_path / "out") / "model.safetensors")
    theirs = load_file(f"{adapter}-merged/model.safetensors")
    assert torch.equal(ours[HEAD], theirs[HEAD])
    assert len(ours[HEAD]) == BEFORE - 4


def test_the_rows_are_rounded_to_the_type_of_the_base(case, tmp_path):
    _, adapter = case
    base = base_of(tmp_path / "half", False, torch.bfloat16)
    ours = load_file(merged(base, adapter, tmp_path / "out") / "model.safetensors")
    stored = load_file(adapter / "adapter_model.safetensors")[f"{PREFIX}{EMBEDDING}"]
    assert ours[EMBEDDING].dtype == torch.bfloat16
    assert torch.equal(ours[EMBEDDING], stored.to(torch.bfloat16))


def test_a_sharded_base_keeps_its_files(case, tmp_path):
    base, adapter = case
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    shutil.copy(base / "config.json", sharded)
    tensors = load_file(base / "model.safetensors")
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    halves = {name: names[name == HEAD] for name in tensors}
    for file in names:
        save_file({name: tensors[name] for name in tensors if halves[name] == file}, sharded / file)
    index = {"metadata": {"total_size": sum(one.nbytes for one in tensors.values())}, "weight_map": halves}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    output = merged(sharded, adapter, tmp_path / "out")
    theirs = load_file(f"{adapter}-merged/model.safetensors")
    assert torch.equal(load_file(output / names[1])[HEAD], theirs[HEAD])
    assert torch.equal(load_file(output / names[0])[EMBEDDING], theirs[EMBEDDING])
    written = json.loads((output / "model.safetensors.index.json").read_text())
    assert written["weight_map"] == halves
    assert written["metadata"]["total_size"] == sum(one.nbytes for one in theirs.values())


def test_the_note_names_the_rows_and_the_tokenizer(case, tmp_path, run):
    base, adapter = case
    shown = run("merge", base, adapter, "-o", tmp_path / "out")
    assert shown.status == 0
    (note,) = (line for line in shown.stderr.splitlines() if "more rows" in line)
    assert note == (
        f"Note: {adapter}: its {HEAD} and {EMBEDDING} have 8 more rows than the base (100 to 107), as after tokens "
        "were added: the merged model has all 108 rows, and needs the tokenizer that was saved with the adapter."
    )


@pytest.mark.parametrize("kind", KINDS)
def test_verify_takes_the_output_for_a_merge(kind, cases, tmp_path, run):
    base, adapter = cases[kind]
    output = merged(base, adapter, tmp_path / "out")
    assert run("verify", output, base, adapter).status == 0


def test_verify_measures_the_output_against_the_base(case, tmp_path, run):
    base, adapter = case
    output = merged(base, adapter, tmp_path / "out")
    assert run("verify", output, base, adapter).status == 0
    tensors = load_file(output / "model.safetensors")
    tensors[HEAD][AFTER - 1] += 1
    save_file(tensors, output / "model.safetensors")
    shown = run("verify", output, base, adapter)
    assert shown.status == 1
    assert HEAD in shown.stdout


def test_unmerge_needs_the_base_and_restores_it(case, tmp_path, run):
    base, adapter = case
    output = merged(base, adapter, tmp_path / "out")
    refusal = run("unmerge", output, adapter, "-o", tmp_path / "back").refusal
    assert "got the rows of an adapter in the place of its own, which are lost; name " in refusal
    assert run("unmerge", output, adapter, "--base", base, "-o", tmp_path / "back").status == 0
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (base / name).read_bytes()


@pytest.mark.parametrize("multiplier", [0.5, -1.0])
def test_a_multiplier_leaves_rows_that_were_not_trained_as_they_are(multiplier, case, tmp_path):
    base, adapter = case
    ours = load_file(merged(base, adapter, tmp_path / "out", settings=Settings(multiplier)) / "model.safetensors")
    stored = load_file(adapter / "adapter_model.safetensors")
    assert torch.equal(ours[EMBEDDING], stored[f"{PREFIX}{EMBEDDING}"])


def test_a_multiplier_of_trained_rows_is_refused(cases, tmp_path):
    with pytest.raises(LoraInspectError, match=r"is saved whole and can only replace .*a multiplier of 0.5"):
        merged(*cases["trained"], tmp_path / "out", settings=Settings(0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_at_0_leaves_the_base_as_it_is(kind, cases, tmp_path):
    base, adapter = cases[kind]
    output = merged(base, adapter, tmp_path / "out", settings=Settings(0.0))
    ours, before = (load_file(folder / "model.safetensors") for folder in (output, base))
    assert ours.keys() == before.keys()
    assert all(torch.equal(ours[name], before[name]) for name in before)
    assert (output / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_trained_rows_may_be_left_out(cases, tmp_path, run):
    base, adapter = cases["trained"]
    assert run("merge", base, f"{adapter}:embed_tokens=0,lm_head=0", "-o", tmp_path / "out").status == 0
    ours, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", base))
    theirs = load_file(f"{adapter}-merged/model.safetensors")
    for name, tensor in ours.items():
        expected = before[name] if name in (EMBEDDING, HEAD) else theirs[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)


def test_an_adapter_at_0_may_have_other_rows_than_one_at_work(cases, tmp_path, run):
    base, adapter = cases["trained"]
    idle = adapter_of(base, tmp_path / "idle", rows=AFTER + 4)
    assert run("merge", base, f"{idle}:0", adapter, "-o", tmp_path / "out").status == 0
    ours, theirs = (load_file(f"{folder}/model.safetensors") for folder in (tmp_path / "out", f"{adapter}-merged"))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("is_trained_first", [True, False])
def test_another_adapter_s_copy_never_replaces_trained_rows(is_trained_first, cases, tmp_path, run):
    (base, trained), (_, beside) = cases["trained"], cases["saved beside"]
    order = (trained, beside) if is_trained_first else (beside, trained)
    refusal = run("merge", base, *order, "-o", tmp_path / "out").refusal
    assert f"{beside}: {PREFIX}{HEAD} differs from {HEAD}" in refusal
    assert run("merge", base, *order, "-o", tmp_path / "out", "--allow-unmatched").status == 0
    ours = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(ours[EMBEDDING], load_file(f"{trained}-merged/model.safetensors")[EMBEDDING])


@pytest.mark.parametrize(("held", "left"), [("embed_tokens", HEAD), ("lm_head", EMBEDDING)])
def test_a_resized_tensor_whose_counterpart_is_in_no_file_is_refused(held, left, cases, tmp_path):
    base, _ = cases["trained"]
    adapter = adapter_of(base, tmp_path / "one", target_modules=["q_proj", held])
    with pytest.raises(LoraInspectError, match=rf"but {left} of .* would keep its {BEFORE} rows.*\({AFTER}\)"):
        merged(base, adapter, tmp_path / "out")


def test_copies_may_be_left_out(case, tmp_path):
    base, adapter = case
    ours = load_file(merged(base, adapter, tmp_path / "out", allow_unmatched=True) / "model.safetensors")
    before = load_file(base / "model.safetensors")
    assert torch.equal(ours[EMBEDDING], before[EMBEDDING])
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_a_folder_without_the_size_of_its_vocabulary_is_refused(case, tmp_path):
    base, adapter = case
    other = shutil.copytree(base, tmp_path / "other")
    config = json.loads((base / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 7}))
    with pytest.raises(LoraInspectError, match=r"has no config.json with vocab_size 100 to adapt; resize .*\(108\)"):
        merged(other, adapter, tmp_path / "out")


def test_the_vocabulary_of_a_part_of_the_config_is_adapted(case, tmp_path):
    base, adapter = case
    other = shutil.copytree(base, tmp_path / "other")
    config = json.loads((base / "config.json").read_text())
    del config["vocab_size"]
    (other / "config.json").write_text(json.dumps({**config, "text_config": {"vocab_size": BEFORE, "bos": BEFORE}}))
    written = json.loads((merged(other, adapter, tmp_path / "out") / "config.json").read_text())
    assert written["text_config"] == {"vocab_size": AFTER, "bos": BEFORE}


def test_tensors_with_different_rows_are_refused(case, tmp_path):
    base, adapter = case
    other = shutil.copytree(adapter, tmp_path / "other")
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[f"{PREFIX}{HEAD}"] = tensors[f"{PREFIX}{HEAD}"][:104].contiguous()
    save_file(tensors, other / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(LoraInspectError, match="its tensors have different rows"):
        merged(base, other, tmp_path / "out")


def test_a_head_of_its_own_beside_a_trained_embedding_needs_a_base_with_a_head(cases, tmp_path):
    base, _ = cases["tied"]
    adapter = adapter_of(base, tmp_path / "apart", modules_to_save=["embed_tokens"])
    with pytest.raises(LoraInspectError, match=r"is the head of .* too; save the base with tie_word_embeddings false"):
        merged(base, adapter, tmp_path / "out")


def test_other_columns_are_no_resized_vocabulary(case, tmp_path):
    base, adapter = case
    other = shutil.copytree(adapter, tmp_path / "other")
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[f"{PREFIX}{HEAD}"] = torch.ones(AFTER, 12)
    save_file(tensors, other / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(LoraInspectError, match="trained on another version"):
        merged(base, other, tmp_path / "out")
