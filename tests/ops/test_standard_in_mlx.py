"""Standard files of mlx-lm: what its loader needs, and the change that they make.

`python fixtures/make_mlx.py --load` has mlx-lm itself load them.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.numeric

CASES = {"lora": "llama", "dora": "llama", "square-lora": "llama-square", "square-dora": "llama-square"}
CASES |= {"experts": "qwen3-moe"}
SCALE, RANK = 2.5, 2
Q = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def folder(fixtures):
    return fixtures / "mlx"


@pytest.fixture
def convert(tmp_path, run):
    """`convert(adapter, …)`: the folder that is written; or with `refused` the refusal."""

    def convert_path(adapter, *options, refused=False):
        ended = run("convert", adapter, "-o", tmp_path / "out", "--force", "--json", *options)
        if refused:
            return ended.refusal
        assert ended.json["exact"] or "--base" in options
        return tmp_path / "out"

    return convert_path


@pytest.fixture
def merge(tmp_path, run):
    def merge_paths(base, adapter):
        out = tmp_path / "merged.safetensors"
        ended = run("merge", base, adapter, "-o", out, "--force")
        assert ended.status == 0, ended.stderr
        return load_file(out)

    return merge_paths


def weights(adapter):
    return load_file(adapter / "adapters.safetensors")


def config_of(adapter):
    return json.loads((adapter / "adapter_config.json").read_text())


def kept(case):
    return ["--keep-dora"] if case.endswith("dora") else []


@pytest.fixture
def made(tmp_path, folder):
    """`made(case, tensors, **config)`: the adapter of a case with other tensors and another config."""

    def make(case, tensors=None, **config):
        target = tmp_path / "made"
        shutil.copytree(folder / case, target)
        if tensors is not None:
            save_file(tensors, target / "adapters.safetensors")
        (target / "adapter_config.json").write_text(json.dumps({**config_of(target), **config}))
        return target

    return make


@pytest.mark.parametrize("case", CASES)
def test_tensors_and_scale_are_those_that_were_there(case, folder, convert):
    out = convert(folder / case, *kept(case))
    assert sorted(path.name for path in out.iterdir()) == ["adapter_config.json", "adapters.safetensors"]
    before, after = weights(folder / case), weights(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    was, becomes = config_of(folder / case), config_of(out)
    assert becomes["lora_parameters"].pop("keys") == sorted(was["lora_parameters"].pop("keys"))
    assert becomes == was


def test_a_config_of_an_early_version_becomes_one_of_now(made, convert):
    path = made("lora")
    config = config_of(path)
    parameters = {"rank": RANK, "scale": SCALE, "alpha": 16, "dropout": 0.05}
    early = {"model": "llama", "lora_layers": 2, "use_dora": False, "lora_parameters": parameters, "iters": 100}
    (path / "adapter_config.json").write_text(json.dumps(early))
    assert config_of(convert(path)) == {
        "model": "llama",
        "iters": 100,
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": {
            "rank": RANK,
            "scale": SCALE,
            "dropout": 0.05,
            "keys": sorted(config["lora_parameters"]["keys"]),
        },
    }


def test_what_an_early_version_trained_is_a_remark(made, run, tmp_path):
    parameters = {"rank": RANK, "scale": SCALE, "alpha": 16, "dropout": 0.0}
    path = made("lora", fine_tune_type=None, lora_parameters=parameters)
    config = config_of(path)
    del config["fine_tune_type"]
    (path / "adapter_config.json").write_text(json.dumps(config))
    (remark,) = run("convert", path, "-o", tmp_path / "out", "--json").json["remarks"]
    assert "a multiplier of 8 gives the trained scale" in remark


def test_without_a_config_it_is_one_for_all_blocks(made, convert):
    path = made("lora")
    (path / "adapter_config.json").unlink()
    config = config_of(convert(f"{path}:alpha=5"))
    # mlx-lm takes 0 and less for all of them.
    assert (config["num_layers"], config["fine_tune_type"]) == (-1, "lora")
    assert config["lora_parameters"]["scale"] == SCALE
    assert config["lora_parameters"]["dropout"] == 0.0


def test_a_scale_is_written_as_it_was(made, convert):
    # One whose product with a rank, divided by the rank, is another number.
    scale, rank = 0.1, 3
    assert scale * rank / rank != scale
    tensors = {f"{Q}.lora_a": torch.ones(8, rank), f"{Q}.lora_b": torch.ones(rank, 8)}
    path = made("lora", tensors, lora_parameters={"rank": rank, "scale": scale, "dropout": 0.0})
    assert config_of(convert(path))["lora_parameters"]["scale"] == scale


def test_factors_of_experts_get_the_shape_of_now(folder, made, convert):
    before = weights(folder / "experts")
    flat = {key: t.flatten(0, 1) if key.endswith("lora_a") and t.dim() == 3 else t for key, t in before.items()}
    after = weights(convert(made("experts", flat)))
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("case", ["lora", "experts"])
def test_smaller_ranks_get_zeros(case, folder, made, convert, merge):
    tensors = weights(folder / case)
    wide = {"lora_a": (1, 3), "lora_b": (0, 3)}
    for side, (dimension, rank) in wide.items():
        key = f"{Q}.{side}"
        shape = [rank if at == dimension else size for at, size in enumerate(tensors[key].shape)]
        tensors[key] = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    path = made(case, tensors, lora_parameters={"scale": SCALE, "dropout": 0.0})
    out = convert(path)
    base = folder / f"{CASES[case]}.safetensors"
    before, after = merge(base, path), merge(base, out)
    # Zeros in the products may have them added up in another order.
    for key, value in before.items():
        assert float((value - after[key]).abs().max()) <= 2.0**-20 * max(4.0, float(value.abs().max())), key
    assert config_of(out)["lora_parameters"]["rank"] == 3
    assert {shape_of_rank(key, tensor) for key, tensor in weights(out).items()} == {3}


def shape_of_rank(key, tensor):
    if tensor.dim() == 3:
        return tensor.shape[1 if key.endswith("lora_a") else 2]
    return tensor.shape[1 if key.endswith("lora_a") else 0]


def test_the_true_change_of_dora_is_a_plain_lora(folder, convert, merge):
    base = folder / "llama.safetensors"
    out = convert(folder / "dora", "--base", base, "--rank", "100", "--allow-loss")
    config = config_of(out)
    assert (config["fine_tune_type"], config["lora_parameters"]["scale"]) == ("lora", 1.0)
    tensors = weights(out)
    assert {key.rpartition(".")[2] for key in tensors} == {"lora_a", "lora_b"}
    assert {shape_of_rank(key, tensor) for key, tensor in tensors.items()} == {config["lora_parameters"]["rank"]}
    theirs = {**load_file(base), **load_file(folder / "oracle_dora.safetensors")}
    for key, value in merge(base, out).items():
        # The factors are rounded to float32.
        assert float((value - theirs[key]).abs().max()) <= 1e-5 * float(theirs[key].abs().max()), key


def test_scales_that_differ_go_into_the_factors(folder, made, convert, merge):
    base = folder / "llama.safetensors"
    path = made("dora", {key: value for key, value in weights(folder / "dora").items() if key != f"{Q}.m"})
    out = convert(path, "--allow-partial-dora", "--base", base, "--rank", "100", "--allow-loss")
    config = config_of(out)
    # That of the module without a magnitude was another one than that of the true changes.
    assert (config["fine_tune_type"], config["lora_parameters"]["scale"]) == ("lora", 1.0)
    a, b = (weights(folder / "dora")[f"{Q}.{side}"].double() for side in ("lora_a", "lora_b"))
    theirs = {**load_file(base), **load_file(folder / "oracle_dora.safetensors")}
    theirs[f"{Q}.weight"] = (load_file(base)[f"{Q}.weight"].double() + SCALE * (a @ b).T).float()
    for key, value in merge(base, out).items():
        assert float((value - theirs[key]).abs().max()) <= 1e-5 * float(theirs[key].abs().max()), key


def test_a_magnitude_can_be_left_out(folder, run, tmp_path):
    run("convert", folder / "dora", "-o", tmp_path / "out", "--drop-magnitude")
    assert config_of(tmp_path / "out")["fine_tune_type"] == "lora"
    assert not any(key.endswith(".m") for key in weights(tmp_path / "out"))


def test_fused_layers_of_phi_are_split_and_put_together(folder, made, convert, merge):
    tensors = weights(folder / "lora")
    generator = torch.Generator().manual_seed(4)
    own = {
        f"{Q.replace('q_proj', 'qkv_proj')}.lora_a": torch.randn(8, RANK, generator=generator),
        f"{Q.replace('q_proj', 'qkv_proj')}.lora_b": torch.randn(RANK, 16, generator=generator),
    }
    path = made("lora", {key: value for key, value in tensors.items() if "self_attn" not in key} | own)
    out = convert(path, "--layout", "split")
    assert {key for key in weights(out) if "self_attn" in key} == {
        f"{Q.replace('q_proj', name)}.{side}"
        for name in ("q_proj", "k_proj", "v_proj")
        for side in ("lora_a", "lora_b")
    }
    assert weights(out)[f"{Q}.lora_a"].shape == (8, RANK)
    a, b = own.values()
    assert torch.equal(weights(out)[f"{Q}.lora_b"], b[:, :8])
    assert torch.equal(weights(out)[f"{Q}.lora_a"], a)
    assert config_of(out)["lora_parameters"]["keys"] == [
        "lm_head", "mlp.down_proj", "model.embed_tokens", "self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj",
    ]  # fmt: skip


def test_names_of_other_programs_beside_them_are_refused(folder, made, convert):
    other = {
        "base_model.model.x.q.lora_A.weight": torch.zeros(2, 3),
        "base_model.model.x.q.lora_B.weight": torch.zeros(3, 2),
    }
    path = made("lora", {**weights(folder / "lora"), **other})
    says = convert(f"{path}:alpha=2,rslora=no", refused=True)
    assert "names, which keep their scale in a config, with other names" in says


def test_some_magnitudes_alone_are_refused(folder, made, convert):
    tensors = weights(folder / "dora")
    path = made("dora", {key: value for key, value in tensors.items() if key != f"{Q}.m"})
    says = convert(path, "--keep-dora", "--allow-partial-dora", refused=True)
    assert "mlx-lm apply magnitudes to all modules or to none" in says


def test_layers_of_experts_stay_together(folder, convert):
    base = folder / "qwen3-moe.safetensors"
    says = convert(folder / "experts", "--layout", "single-experts", "--base", base, refused=True)
    assert "no module has the factors of all experts of a layer" in says


def test_a_file_is_no_place_for_them(folder, run, tmp_path):
    says = run("convert", folder / "lora", "-o", tmp_path / "x.safetensors").refusal
    assert "has mlx-lm's names, which keep their scale in an adapter_config.json" in says


def delta(down, up, scale):
    return scale * up.double() @ down.double()


@pytest.mark.parametrize("case", ["lora", "square-lora"])
def test_to_peft_and_back_every_number_is_the_same(case, folder, tmp_path, run):
    assert run("convert", folder / case, "--to", "peft", "-o", tmp_path / "peft").status == 0
    config, theirs = config_of(tmp_path / "peft"), load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert config["lora_alpha"] / config["r"] == SCALE
    own = weights(folder / case)
    name = f"base_model.model.{Q}"
    found = delta(theirs[f"{name}.lora_A.weight"], theirs[f"{name}.lora_B.weight"], SCALE)
    assert torch.equal(found, SCALE * (own[f"{Q}.lora_a"].double() @ own[f"{Q}.lora_b"].double()).T)
    assert run("convert", tmp_path / "peft", "--to", "mlx", "-o", tmp_path / "back").status == 0
    back = weights(tmp_path / "back")
    assert back.keys() == own.keys()
    assert all(torch.equal(back[key], own[key]) for key in own)
    assert config_of(tmp_path / "back")["lora_parameters"]["scale"] == SCALE


def test_alphas_and_ranks_of_peft_become_one_scale_and_one_rank(tmp_path, run):
    generator = torch.Generator().manual_seed(4)
    paths = {f"model.layers.0.self_attn.{name}_proj": rank for name, rank in (("q", 2), ("k", 3))}
    factors = {
        path: (torch.randn(rank, 8, generator=generator), torch.randn(6, rank, generator=generator))
        for path, rank in paths.items()
    }
    tensors = {f"base_model.model.{path}.lora_A.weight": down for path, (down, _) in factors.items()}
    tensors |= {f"base_model.model.{path}.lora_B.weight": up for path, (_, up) in factors.items()}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 5, "target_modules": ["q_proj", "k_proj"]}
    config |= {"rank_pattern": {"k_proj": 3}, "use_rslora": True}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert run("convert", tmp_path, "--to", "mlx", "-o", tmp_path / "out").status == 0
    found, said = weights(tmp_path / "out"), config_of(tmp_path / "out")["lora_parameters"]
    assert said["rank"] == 3
    for path, (down, up) in factors.items():
        own = said["scale"] * (found[f"{path}.lora_a"].double() @ found[f"{path}.lora_b"].double()).T
        torch.testing.assert_close(own, delta(down, up, 5 / paths[path] ** 0.5), rtol=1e-6, atol=1e-6)


def test_only_language_models_have_names_of_mlx(tmp_path, run):
    tensors = {"lora_unet_blocks_0_cross_attn_o.lora_down.weight": torch.ones(2, 8)}
    tensors["lora_unet_blocks_0_cross_attn_o.lora_up.weight"] = torch.ones(8, 2)
    save_file(tensors, tmp_path / "wan.safetensors", {"ss_base_model_version": "wan"})
    ended = run("convert", tmp_path / "wan.safetensors", "--to", "mlx", "-o", tmp_path / "out")
    assert "which has no mlx names" in ended.refusal


@pytest.mark.parametrize("path", ["model.layers.0.mlp.experts.3.gate_proj", "layers.0.mlp.gate_proj"])
def test_what_mlx_lm_would_not_find_is_refused(path, tmp_path, run):
    tensors = {f"base_model.model.{path}.lora_A.weight": torch.ones(2, 8)}
    tensors[f"base_model.model.{path}.lora_B.weight"] = torch.ones(8, 2)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 5, "target_modules": ["gate_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    refusal = run("convert", tmp_path, "--to", "mlx", "-o", tmp_path / "out").refusal
    assert f"would be {path}, but mlx-lm has no such module" in refusal
