"""A file of several naming schemes says which modules are of which."""

from adapters import lora, loras


def test_the_modules_of_each_scheme_are_told(write_safetensors, run):
    tensors = {
        **loras(2),
        **lora("transformer.blocks.1.q"),
        **lora("base_model.model.x.q", spelling="peft", alpha=None),
    }
    record = run("info", write_safetensors(tensors), "--json", "--modules").json
    assert record["scheme"] == "mixed"
    assert record["schemes"] == {"kohya": 2, "diffusers": 1, "peft": 1}
    assert {item["module"]: item["scheme"] for item in record["module_list"]} == {
        "lora_unet_blocks_0_attn_q": "kohya",
        "lora_unet_blocks_1_attn_q": "kohya",
        "transformer.blocks.1.q": "diffusers",
        "base_model.model.x.q": "peft",
    }
    (problem,) = (one for one in record["problems"] if one["code"] == "mixed-schemes")
    assert problem["message"] == (
        "the modules follow 3 naming schemes: diffusers (1: transformer.blocks.1.q), "
        "kohya (2: lora_unet_blocks_0_attn_q, …) and peft (1: base_model.model.x.q)"
    )
    assert problem["keys"] == ["transformer.blocks.1.q", "lora_unet_blocks_0_attn_q", "base_model.model.x.q"]


def test_a_file_of_one_scheme_names_it(write_safetensors, run):
    record = run("info", write_safetensors(loras()), "--json").json
    assert (record["scheme"], record["schemes"]) == ("kohya", {})
    assert record["problems"] == []
