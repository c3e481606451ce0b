"""Numbers beyond what they count, in metadata, configs and shapes, through every verb: a sentence, or an answer."""

import json
import os

import pytest
from adapters import IN, OUT, base, lora, loras

# Digits that no float holds, or that int() does not read; what no rank is, and what is no number.
HUGE, LONG = "1" + "0" * 400, "9" * 5000
TEXTS = [HUGE, LONG, f"-{HUGE}", "1e400", "inf", "nan", "-1", "0", "True", "[4]", "", "4.5", str(2**63)]
JSON = [HUGE, f"-{HUGE}", "1e999", "NaN", "-1", "0", "true", "[4]", "{}", "null", str(2**63), '"4"', "0.5"]
FLUX = "lora_unet_double_blocks_0_img_attn_qkv"
PEFT = "base_model.model.blocks.0.attn.q"
VERBS = [
    ("info", "ADAPTER"),
    ("info", "ADAPTER", "--why", "--modules", "--metadata"),
    ("info", "ADAPTER", "--json"),
    ("check", "ADAPTER"),
    ("compat", "ADAPTER"),
    ("convert", "ADAPTER", "-o", "OUT"),
    ("merge", "BASE", "ADAPTER", "-o", "OUT"),
    ("verify", "BASE", "BASE", "ADAPTER"),
    ("metadata", "set", "ADAPTER", "title=x", "-o", "OUT"),
    ("metadata", "strip", "ADAPTER", "-o", "OUT"),
    ("check", "ADAPTER", "--fix", "-o", "OUT"),
]


def ids(values):
    return [value if len(value) < 12 else f"{value[:6]}… of {len(value)}" for value in values]


@pytest.fixture
def through_every_verb(run, tmp_path, write_safetensors, monkeypatch):
    """`through_every_verb(adapter)`: that none of them ends otherwise than by an answer or by a sentence."""
    # What nobody foresaw is a sentence as well; this has it printed with its place.
    monkeypatch.delenv("LORA_INSPECT_DEBUG", raising=False)

    def ask(adapter, verbs=VERBS, weights=None):
        file = write_safetensors(weights or base(1), name="model/base.safetensors")
        ending = "" if os.path.isdir(adapter) else ".safetensors"
        for number, verb in enumerate(verbs):
            output = tmp_path / f"out{number}{ending}"
            words = [{"ADAPTER": adapter, "BASE": file, "OUT": output}.get(word, word) for word in verb]
            ended = run(*words)
            assert ended.status in (0, 1), (verb, ended.stderr)
            assert "internal error" not in ended.stderr, (verb, ended.stderr)
            assert ended.status == 0 or ended.stderr or ended.stdout, verb

    return ask


@pytest.mark.parametrize("text", TEXTS, ids=ids(TEXTS))
@pytest.mark.parametrize("key", ["ss_network_dim", "ss_network_alpha"])
def test_metadata_of_a_trainer(key, text, through_every_verb, write_safetensors):
    about = {"ss_network_module": "networks.lora", "ss_network_dim": "16", "ss_network_alpha": "8", key: text}
    through_every_verb(write_safetensors(loras(1), about))


@pytest.mark.parametrize("text", [HUGE, LONG, "-1", "nan"], ids=ids([HUGE, LONG, "-1", "nan"]))
@pytest.mark.parametrize("option", ["network_reg_dims", "img_attn_dim", "in_dims", "conv_dim", "split_qkv"])
def test_options_of_a_network(option, text, through_every_verb, write_safetensors):
    value = f"qkv={text}" if option == "network_reg_dims" else text
    about = {
        "ss_network_module": "networks.lora_flux",
        "ss_network_dim": "16",
        "ss_network_alpha": "8",
        "ss_network_args": json.dumps({option: value, "use_rslora": "True"}),
    }
    through_every_verb(write_safetensors(lora(FLUX), about))


FACTORS = {
    "LORA": lora(PEFT, alpha=None, spelling="peft"),
    "LOKR": {f"{PEFT}.lokr_w1": ("F32", (2, 2), 0.5), f"{PEFT}.lokr_w2": ("F32", (OUT // 2, IN // 2), 0.5)},
    "LOHA": {
        f"{PEFT}.hada_{role}": ("F32", shape, 0.5)
        for role, shape in {"w1_a": (OUT, 2), "w1_b": (2, IN), "w2_a": (OUT, 2), "w2_b": (2, IN)}.items()
    },
}
FIELDS = {"LORA": ("r", "lora_alpha"), "LOKR": ("r", "alpha"), "LOHA": ("r", "alpha")}
ASKED = [(kind, field, way) for kind, own in FIELDS.items() for field in own for way in ("field", "pattern")]


@pytest.mark.parametrize("text", JSON, ids=ids(JSON))
@pytest.mark.parametrize(("kind", "field", "way"), ASKED)
def test_a_config_of_peft(kind, field, way, text, through_every_verb, write_safetensors, tmp_path):
    write_safetensors(FACTORS[kind], name="peft/adapter_model.safetensors")
    said = {"peft_type": json.dumps(kind), "r": "16", "target_modules": '["q"]', FIELDS[kind][1]: "8"}
    if way == "field":
        said[field] = text
    else:
        said["rank_pattern" if field == "r" else "alpha_pattern"] = f'{{"q": {text}}}'
    (tmp_path / "peft" / "adapter_config.json").write_text(
        "{" + ", ".join(f'"{name}": {value}' for name, value in said.items()) + "}"
    )
    through_every_verb(tmp_path / "peft")


LAYERS = [f"base_model.model.model.layers.{number}.self_attn.{part}_proj" for number in (0, 1) for part in "qkvo"]


@pytest.mark.parametrize("program", ["sglang", "llama-cpp", "vllm", "peft"])
@pytest.mark.parametrize("field", ["r", "lora_alpha"])
@pytest.mark.parametrize("text", [HUGE, "1e999", "-1", "true"], ids=ids([HUGE, "1e999", "-1", "true"]))
def test_a_config_in_programs_of_language_models(text, field, program, run, write_safetensors, tmp_path):
    tensors = {key: one for name in LAYERS for key, one in lora(name, alpha=None, spelling="peft").items()}
    write_safetensors(tensors, name="peft/adapter_model.safetensors")
    said = {"peft_type": '"LORA"', "r": "16", "lora_alpha": "8", "target_modules": '["q_proj"]', field: text}
    (tmp_path / "peft" / "adapter_config.json").write_text(
        "{" + ", ".join(f'"{name}": {value}' for name, value in said.items()) + "}"
    )
    # The option stands for the alpha that nobody can read, so that the program's own rules are asked.
    for words in (["compat", tmp_path / "peft", "--for", program, "--alpha", "8"], ["info", tmp_path / "peft"]):
        ended = run(*words)
        assert ended.status in (0, 1)
        assert "internal error" not in ended.stderr


def test_a_layer_number_of_thousands_of_digits(through_every_verb, write_safetensors, run):
    deep = f"lora_unet_input_blocks_1_1_transformer_blocks_{'9' * 5000}_attn1_to_q"
    file = write_safetensors(lora(deep), {"ss_base_model_version": "sdxl_base_v1-0"})
    through_every_verb(file, [("info", "ADAPTER"), ("compat", "ADAPTER"), ("check", "ADAPTER")])


def deep(tensors, dimensions):
    """The tensors with so many dimensions, those behind the second of them 1."""
    return {
        key: (dtype, (*shape, *(1 for _ in range(dimensions - len(shape)))) if shape else shape, number)
        for key, (dtype, shape, number) in tensors.items()
    }


Q = "lora_unet_blocks_0_attn_q"
SHAPES = {
    "LoRA": loras(1),
    "a Tucker core": {**loras(1, kernel=(1, 1)), f"{Q}.lora_mid.weight": ("F32", (16, 16, 1, 1), 0.5)},
    "DoRA": loras(1, dora_scale=("F32", (OUT, 1), 1.0)),
    "LoKr": {f"{Q}.lokr_w1": ("F32", (2, 2), 0.5), f"{Q}.lokr_w2": ("F32", (OUT // 2, IN // 2), 0.5)},
    "a difference": {f"{Q}.diff": ("F32", (OUT, IN), 0.5)},
}
# LoKr's first factor is a matrix whatever the layer is.
_FLAT = (".lokr_w1",)
CONVERSIONS = [
    ("convert", "ADAPTER", "-o", "OUT"),
    ("convert", "ADAPTER", "--algorithm", "lora", "-o", "OUT"),
    ("convert", "ADAPTER", "--algorithm", "lora", "--rank", "1", "--allow-loss", "-o", "OUT"),
    ("convert", "ADAPTER", "--algorithm", "full", "--base", "BASE", "-o", "OUT"),
    ("convert", "ADAPTER", "--keep-dora", "-o", "OUT"),
    ("convert", "ADAPTER", "--drop-magnitude", "-o", "OUT"),
    ("convert", "ADAPTER", "--base", "BASE", "--rank", "2", "--allow-loss", "-o", "OUT"),
]


@pytest.mark.parametrize("dimensions", [63, 64, 65, 66, 1000])
@pytest.mark.parametrize("kind", SHAPES)
def test_tensors_of_more_dimensions_than_torch_computes_with(
    kind, dimensions, through_every_verb, write_safetensors, run
):
    flat = {key: tensor for key, tensor in SHAPES[kind].items() if key.endswith(_FLAT)}
    file = write_safetensors(deep(SHAPES[kind], dimensions) | flat)
    through_every_verb(file, [*VERBS, *CONVERSIONS], deep(base(1), dimensions))
    assert run("info", file).status == 0


@pytest.mark.parametrize("dimensions", [65, 1000])
def test_the_sentence_on_dimensions_names_the_tensor_and_a_way_out(dimensions, write_safetensors, run, tmp_path):
    file = write_safetensors(deep(loras(1), dimensions))
    sentence = run("convert", file, "-o", tmp_path / "out.safetensors").refusal
    assert f"{Q}.lora_down.weight has {dimensions} dimensions, but torch computes with at most 64; fetch" in sentence
    assert not (tmp_path / "out.safetensors").exists()
