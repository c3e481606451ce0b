"""Adapters of parameters of all experts, merged into bases that store these in each way.

What is expected is what PEFT's own merge makes of its own models, saved by transformers; of what PEFT does not read,
the formula in float64, expert by expert.
"""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.merging import fold

transformers = pytest.importorskip("transformers", minversion="5.0")
peft = pytest.importorskip("peft", minversion="0.20")

pytestmark = pytest.mark.numeric

EXPERTS, RANK = 3, 2
SIZES = {
    "vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "pad_token_id": 0, "tie_word_embeddings": False, "num_experts_per_tok": 2, "head_dim": 4,
}  # fmt: skip
# Of the last one every matrix of the second parameter is square.
MODELS = {
    "qwen3": ("Qwen3Moe", {"intermediate_size": 12, "moe_intermediate_size": 6, "num_experts": EXPERTS}),
    "mixtral": ("Mixtral", {"intermediate_size": 6, "num_local_experts": EXPERTS}),
    "gpt-oss": ("GptOss", {"intermediate_size": 6, "num_local_experts": EXPERTS}),
    "gpt-oss of square matrices": ("GptOss", {"intermediate_size": 8, "num_local_experts": EXPERTS}),
}
BOTH = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


class Trained:
    """A tiny model and an adapter of it, saved by transformers and by PEFT, and what PEFT's merge makes of them.

    `saved` is the folder of transformers, which has the experts of Qwen3-MoE and Mixtral one by one, and `fused` a
    file of the tensors as the class has them.
    """

    def __init__(self, name, folder, targets=BOTH, **config):
        known, own = MODELS[name]
        torch.manual_seed(3)
        model = getattr(transformers, f"{known}ForCausalLM")(getattr(transformers, f"{known}Config")(**SIZES, **own))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        self.saved, self.fused, self.adapter = (folder / part for part in ("saved", "fused.safetensors", "adapter"))
        model.save_pretrained(self.saved)
        self._save(model, self.fused)
        config = {"r": RANK, "lora_alpha": 3, "target_modules": ["q_proj"], **config}
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_parameters=list(targets), **config))
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(self.adapter)
        merged = adapted.merge_and_unload()
        merged.save_pretrained(folder / "theirs")
        self._save(merged, folder / "theirs.safetensors")
        self.theirs = {"saved": folder / "theirs" / "model.safetensors", "fused": folder / "theirs.safetensors"}

    def base(self, form):
        return {"saved": self.saved, "fused": self.fused}[form]

    @staticmethod
    def _save(model, path):
        save_file({key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}, path)


@pytest.fixture
def trained(tmp_path):
    def make(name, *arguments, **config):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Trained(name, tmp_path, *arguments, **config)

    return make


@pytest.fixture
def merge(tmp_path, run):
    """`merge(base, adapter, …)`: the tensors of the output; or the refusal."""

    def merge_paths(base, adapter, *options, settings="", refused=False):
        out = tmp_path / ("out" if base.is_dir() else "out.safetensors")
        ended = run("merge", base, f"{adapter}{settings}", "-o", out, "--force", *options)
        if refused:
            return ended.refusal
        assert ended.status == 0, ended.stderr
        return load_file(out / "model.safetensors" if base.is_dir() else out)

    return merge_paths


@pytest.fixture(params=[1 << 20, 24], ids=["in one block", "in tiny blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(fold, "BLOCK_ELEMENTS", request.param)


def assert_equal(found, theirs, changed):
    """Within 1e-6 of what PEFT made; the numbers are below 10."""
    assert found.keys() == theirs.keys()
    assert all(float((found[key] - theirs[key]).abs().max()) <= 1e-6 for key in found)
    assert changed


def count_changed(found, base):
    return sum(not torch.equal(found[key], base[key]) for key in found)


@pytest.mark.slow
@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("form", ["saved", "fused"])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_peft_merges(name, form, trained, merge):
    own = trained(name)
    found = merge(own.base(form), own.adapter)
    base = load_file(own.base(form) / "model.safetensors" if form == "saved" else own.base(form))
    single = name in ("qwen3", "mixtral") and form == "saved"
    assert count_changed(found, base) == 2 * (1 + (3 * EXPERTS if single else 2))
    assert_equal(found, load_file(own.theirs[form]), changed=True)


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True},
        {"rank_pattern": {r".*\.gate_up_proj": 4}, "alpha_pattern": {r".*\.gate_up_proj": 5}},
        {"rank_pattern": {"layers.1.mlp.experts.down_proj": 3}},
        {"targets": ["mlp.experts.gate_up_proj"]},
        {"targets": ["mlp.experts.down_proj"]},
        {"targets": ["down_proj", "gate_up_proj"]},
        {"targets": ["model.layers.1.mlp.experts.down_proj", "k_proj.weight", "o_proj.weight"]},
        {"targets": ["mlp.experts.down_proj"], "r": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize(("name", "form"), [("qwen3", "saved"), ("qwen3", "fused"), ("gpt-oss", "fused")])
def test_what_the_config_says_of_a_parameter_counts(name, form, config, trained, merge):
    own = trained(name, **config)
    assert_equal(merge(own.base(form), own.adapter), load_file(own.theirs[form]), changed=True)


VERSIONS = {
    f"{version}-{case}": case.removesuffix("-square")
    for version in ("0.17.1", "0.18.1", "0.19.0")
    for case in ("gpt-oss", "gpt-oss-square", "qwen3-moe", "qwen3-moe-square")
    if not (version == "0.17.1" and case.startswith("qwen"))
}


@pytest.mark.parametrize("case", VERSIONS)
def test_earlier_versions_of_peft_are_read_as_they_were(case, fixtures, merge):
    base, adapter = fixtures / "experts" / f"{VERSIONS[case]}.safetensors", fixtures / "experts" / f"peft-{case}"
    before, theirs = load_file(base), load_file(adapter / "oracle_merged.safetensors")
    found = merge(base, adapter)
    assert {key for key in found if not torch.equal(found[key], before[key])} == theirs.keys()
    for key, value in theirs.items():
        assert float((found[key] - value).abs().max()) <= 1e-6 * float(value.abs().max()), key


def single_experts(fused):
    """The tensors of a base with the parameters of Qwen3-MoE, one expert after the other, as in its checkpoints."""
    found = {}
    for key, value in fused.items():
        parent, _, leaf = key.rpartition(".")
        for expert in range(len(value)) if leaf in ("gate_up_proj", "down_proj") else ():
            parts = {"down_proj": value[expert]}
            if leaf == "gate_up_proj":
                parts = dict(zip(("gate_proj", "up_proj"), value[expert].chunk(2), strict=True))
            found |= {f"{parent}.{expert}.{part}.weight": matrix.contiguous() for part, matrix in parts.items()}
        if leaf not in ("gate_up_proj", "down_proj"):
            found[key] = value
    return found


@pytest.mark.parametrize("case", [case for case in VERSIONS if "qwen3" in case])
def test_earlier_versions_land_in_single_experts_alike(case, fixtures, tmp_path, merge):
    folder = fixtures / "experts"
    base, adapter = load_file(folder / "qwen3-moe.safetensors"), folder / f"peft-{case}"
    save_file(single_experts(base), tmp_path / "base.safetensors")
    found = merge(tmp_path / "base.safetensors", adapter)
    theirs = single_experts(base | load_file(adapter / "oracle_merged.safetensors"))
    assert found.keys() == theirs.keys()
    for key, value in theirs.items():
        assert float((found[key] - value).abs().max()) <= 1e-6 * float(value.abs().max()), key


@pytest.mark.parametrize("name", MODELS)
def test_the_multiplier_0_leaves_every_bit_as_it_is(name, trained, tmp_path, merge):
    own = trained(name)
    base = {key: value.bfloat16() for key, value in load_file(own.fused).items()}
    save_file(base, tmp_path / "half.safetensors")
    found = merge(tmp_path / "half.safetensors", own.adapter, settings=":0")
    assert all(torch.equal(found[key].view(torch.int16), base[key].view(torch.int16)) for key in base)


@pytest.mark.parametrize("form", ["saved", "fused"])
def test_a_multiplier_scales_the_change(form, trained, merge):
    own = trained("qwen3")
    base = load_file(own.saved / "model.safetensors" if form == "saved" else own.fused)
    whole, half = load_file(own.theirs[form]), merge(own.base(form), own.adapter, settings=":*.gate_up_proj=0.5")
    for key, value in half.items():
        share = 0.5 if "gate" in key.rpartition("experts")[2] or ".up_proj" in key else 1.0
        assert float((value - (base[key] + share * (whole[key] - base[key]))).abs().max()) <= 1e-6, key


def rewritten(adapter, **config):
    """The adapter with another config."""
    path = adapter / "adapter_config.json"
    says = {key: value for key, value in (json.loads(path.read_text()) | config).items() if value is not ...}
    path.write_text(json.dumps(says))
    return adapter


def grouped(own):
    """The adapter with the columns of B in Unsloth's order, and what it then is in PEFT's: expert by expert."""
    tensors = load_file(own.adapter / "adapter_model.safetensors")
    for key, value in tensors.items():
        if ".experts." in key and ".lora_B." in key:
            columns = [k * EXPERTS + e for e in range(EXPERTS) for k in range(RANK)]
            tensors[key] = value[:, columns].contiguous()
    save_file(tensors, own.adapter / "adapter_model.safetensors")
    return own.adapter


FIXED = {"auto_mapping": {"base_model_class": "Qwen3MoeForCausalLM", "unsloth_fixed": True}}
LAYOUTS = {"gate_up_proj": {"lora_B_layout": "grouped_by_expert"}, "down_proj": {"lora_B_layout": "grouped_by_expert"}}
MARKED = {
    "in the config": {"lora_B_layout": "grouped_by_expert"},
    "of a file of Unsloth": {**FIXED, "lora_B_layout": "grouped_by_expert"},
    "beside the class": {"auto_mapping": {"unsloth_fixed": True, "lora_B_layout": "grouped_by_expert"}},
    "by parameter": {"unsloth_fused_expert_lora": {"parameters": LAYOUTS}},
}


@pytest.mark.parametrize("config", MARKED.values(), ids=MARKED)
@pytest.mark.parametrize(("name", "form"), [("qwen3", "saved"), ("qwen3", "fused"), ("gpt-oss", "fused")])
def test_unsloths_packing_is_known_by_its_mark(name, form, config, trained, merge):
    own = trained(name)
    adapter = rewritten(grouped(own), **config)
    assert_equal(merge(own.base(form), adapter), load_file(own.theirs[form]), changed=True)


def test_the_mark_may_stand_in_the_metadata(trained, merge):
    own = trained("qwen3")
    path = grouped(own) / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"lora_B_layout": "grouped_by_expert"})
    assert_equal(merge(own.fused, own.adapter), load_file(own.theirs["fused"]), changed=True)


def test_each_parameter_has_the_packing_that_is_said_of_it(trained, merge):
    own = trained("qwen3", ["mlp.experts.gate_up_proj"])
    whole, adapter = load_file(own.theirs["fused"]), grouped(own)
    detail = {"gate_up_proj": LAYOUTS["gate_up_proj"], "down_proj": {"lora_B_layout": "rank_major"}}
    rewritten(adapter, lora_B_layout="rank_major", unsloth_fused_expert_lora={"parameters": detail})
    assert_equal(merge(own.fused, adapter), whole, changed=True)


@pytest.mark.parametrize("way", ["option", "path"])
def test_what_unsloth_did_not_mark_is_asked_for(way, trained, merge):
    own = trained("qwen3")
    adapter = rewritten(grouped(own), **FIXED)
    refusal = merge(own.fused, adapter, refused=True)
    assert "--expert-packing rank_major|grouped_by_expert" in refusal
    assert "Unsloth" in refusal
    options = {"option": ["--expert-packing", "grouped_by_expert"], "path": []}[way]
    settings = "" if way == "option" else ":1,expert-packing=grouped_by_expert"
    found = merge(own.fused, adapter, *options, settings=settings)
    assert_equal(found, load_file(own.theirs["fused"]), changed=True)


def test_of_rank_1_both_packings_are_one(trained, merge):
    own = trained("qwen3", r=1)
    assert_equal(merge(own.fused, rewritten(own.adapter, **FIXED)), load_file(own.theirs["fused"]), changed=True)


MARKS = {
    "contradicts": ({"lora_B_layout": "rank_major"}, ["contradicts", "config", "rank_major"]),
    "contradicts the program": ({}, ["contradicts", "trainer", "rank_major"]),
}


@pytest.mark.parametrize(("config", "words"), MARKS.values(), ids=MARKS)
def test_an_option_does_not_change_what_is_known(config, words, trained, merge):
    own = trained("qwen3")
    adapter = rewritten(own.adapter, **config)
    refusal = merge(own.fused, adapter, "--expert-packing", "grouped_by_expert", refused=True)
    assert [word for word in words if word not in refusal] == []


def test_an_option_that_says_it_again_is_a_note(trained, run, tmp_path):
    own = trained("qwen3")
    ended = run("merge", own.fused, own.adapter, "--expert-packing", "rank_major", "--dry-run")
    assert ended.status == 0
    assert "expert-packing=rank_major repeats" in ended.stderr


def other_mark(own):
    rewritten(own.adapter, lora_B_layout="mixed")


def without_config(own):
    (own.adapter / "adapter_config.json").unlink()


def without_rank(own):
    rewritten(own.adapter, r=5)


def without_names(own):
    rewritten(own.adapter, target_parameters=["mlp.experts.gate_up_proj"])


def unknown_names(own):
    rewritten(own.adapter, target_parameters=["mlp.experts.w1", "mlp.experts.w2"])


def lost(own):
    tensors = load_file(own.adapter / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if "q_proj" in k}, own.adapter / "adapter_model.safetensors")


def lost_in_part(own):
    tensors = load_file(own.adapter / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if ".base_layer" not in k}, own.adapter / "adapter_model.safetensors")


def more_experts(own):
    base = load_file(own.fused)
    save_file({k: torch.cat([v, v]) if v.dim() == 3 else v for k, v in base.items()}, own.fused)


def wider(own):
    base = load_file(own.fused)
    save_file({k: torch.cat([v, v], 2) if v.dim() == 3 else v for k, v in base.items()}, own.fused)


def packed(own):
    base = load_file(own.fused)
    for key in [key for key in base if key.endswith("experts.gate_up_proj")]:
        value = base.pop(key)
        base[f"{key}_blocks"] = torch.zeros(len(value), 16, 1, 16, dtype=torch.uint8)
        base[f"{key}_scales"] = torch.zeros(len(value), 16, 2, dtype=torch.uint8)  # which fit no such blocks
    save_file(base, own.fused)


def fewer_single(own):
    base = single_experts(load_file(own.fused))
    save_file({k: v for k, v in base.items() if ".experts.2." not in k}, own.fused)


def one_single_lost(own):
    base = single_experts(load_file(own.fused))
    save_file({k: v for k, v in base.items() if ".experts.1.up" not in k}, own.fused)


def contradicting_marks(own):
    rewritten(own.adapter, lora_B_layout="rank_major", auto_mapping={"lora_B_layout": "grouped_by_expert"})


def one_mark_unknown(own):
    rewritten(own.adapter, lora_B_layout="rank_major", auto_mapping={"lora_B_layout": "mixed"})


REFUSED = {
    "a mark that is no packing": (other_mark, ["'mixed'", "--expert-packing"]),
    "marks that contradict each other": (contradicting_marks, ["'rank_major' and 'grouped_by_expert'", "is unknown"]),
    "a mark beside one that is no packing": (one_mark_unknown, ["'rank_major' and 'mixed'", "--expert-packing"]),
    "no config": (without_config, ["all experts", "adapter_config.json"]),
    "another rank": (without_rank, ["6 rows", "is 5"]),
    "fewer names than factors": (without_names, ["names 1 parameters", "2 have factors"]),
    "parameters whose order is not known": (unknown_names, ["the order of", "w1 and w2"]),
    "parameters that the file has not": (lost, ["mlp.experts.gate_up_proj", "no tensor of them"]),
    "parameters that the file has in part": (lost_in_part, ["names 2 parameters", "1 have factors"]),
    "a base of more experts": (more_experts, ["factors of 3 experts", "[6, 12, 8]"]),
    "a base of other sizes": (wider, ["3 experts of [12, 8] or [8, 12]", "[3, 12, 16]"]),
    "a packed base": (packed, ["mxfp4", "gate_up_proj_blocks"]),
    "a base of fewer single experts": (fewer_single, ["factors of 3 experts", "it has 2 experts"]),
    "a base without a part of one": (one_single_lost, ["have no target", "several layers there"]),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_known_is_refused(change, words, trained, merge):
    own = trained("qwen3")
    change(own)
    refusal = merge(own.fused, own.adapter, refused=True)
    assert [word for word in words if word not in refusal] == []


def test_square_matrices_need_a_version_or_others(trained, merge):
    own = trained("gpt-oss of square matrices", ["mlp.experts.down_proj"])
    assert_equal(merge(own.fused, own.adapter), load_file(own.theirs["fused"]), changed=True)
    refusal = merge(own.fused, rewritten(own.adapter, peft_version="0.19.1.dev0"), refused=True)
    assert "peft_version" in refusal
    both = trained("gpt-oss of square matrices")
    assert_equal(
        merge(both.fused, rewritten(both.adapter, peft_version="0.19.1.dev0")),
        load_file(both.theirs["fused"]),
        changed=True,
    )


def test_vllms_flat_names_need_no_parameters_in_the_config(trained, merge):
    own = trained("qwen3")
    adapter = rewritten(own.adapter, target_parameters=None)
    assert_equal(merge(own.fused, adapter), load_file(own.theirs["fused"]), changed=True)


def test_info_says_how_they_are_packed(trained, run):
    own = trained("qwen3")
    says = [item["says"] for item in run("info", own.adapter, "--json").json["evidence"] if item["about"] == "experts"]
    assert says == ["4 parameters have the factors of 3 experts each, packed rank_major as PEFT does"]


class Experts(torch.nn.Module):
    """The matrices of all experts, square, in a parameter of that name."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        setattr(self, name, torch.nn.Parameter(torch.randn(EXPERTS, 8, 8)))

    def forward(self, x):
        return x @ getattr(self, self.name)[0]


@pytest.fixture
def of_square_experts(tmp_path):
    """A file of a model with one module `blocks.0` of such experts, and a folder of PEFT's adapter of them, merged."""

    def make(parameter):
        torch.manual_seed(0)
        model = torch.nn.Sequential()
        model.add_module("blocks", torch.nn.ModuleList([Experts(parameter)]))
        save_file({key: value.clone() for key, value in model.state_dict().items()}, tmp_path / "base.safetensors")
        config = peft.LoraConfig(
            r=RANK, lora_alpha=4, target_modules=[], target_parameters=[f"0.{parameter}"], init_lora_weights=False
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = peft.get_peft_model(model, config)
            adapted.save_pretrained(tmp_path / "adapter")
            return tmp_path / "base.safetensors", tmp_path / "adapter", adapted.merge_and_unload().state_dict()

    return make


def test_square_matrices_in_the_weight_of_a_module_are_what_peft_merges(of_square_experts, merge):
    base, adapter, theirs = of_square_experts("weight")
    found = merge(base, adapter)
    assert_equal(found, theirs, count_changed(found, load_file(base)) == 1)


def test_a_parameter_of_another_name_is_named_where_its_matrices_are_square(of_square_experts, merge):
    base, adapter, _ = of_square_experts("odd")
    assert f"{base}: blocks.0 has odd [3, 8, 8], but gate_up_proj and " in merge(base, adapter, refused=True)
