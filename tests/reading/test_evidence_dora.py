"""Whether a file is DoRA: the flag, the scan for magnitudes, the config, and what contradicts itself."""

import json

import pytest
from adapters import IN, OUT, lora, loras, split

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.model.settings import Settings

ALL = loras(**{"dora_layer.weight": ("F32", (OUT,), 1.0)})
NONE = loras()
SOME = {**lora("lora_unet_a", **{"dora_layer.weight": ("F32", (OUT,), 1.0)}), **lora("lora_unet_b")}
CONV = lora("lora_unet_conv", kernel=(3, 3))


def flag(value, dtype="BOOL"):
    return {"use_dora_flag": (dtype, (), value)}


def embedded(**config):
    config = {"r": 16, "lora_alpha": 8, **config}
    return {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})}


@pytest.fixture
def read(write_safetensors):
    def read_tensors(tensors, metadata=None, **settings):
        return read_adapter(open_checkpoint(str(write_safetensors(tensors, metadata))), Settings(**settings))

    return read_tensors


def errors(adapter):
    return [problem.code for problem in adapter.problems if problem.severity == "error"]


# tensors, metadata, value, source, modules, codes of errors
CASES = {
    "nothing": (NONE, {}, False, "default", 0, []),
    "scan finds all": (ALL, {}, True, "key-scan", 3, []),
    "scan finds some": (SOME, {}, True, "key-scan", 1, ["dora-partial"]),
    "scan finds as many as were written": (SOME, {"lora_inspect.magnitudes": "1"}, True, "key-scan", 1, []),
    "scan finds fewer than were written": (
        SOME,
        {"lora_inspect.magnitudes": "2"},
        True,
        "key-scan",
        1,
        ["dora-partial"],
    ),
    "scan, convolutions may lack it": ({**ALL, **CONV}, {}, True, "key-scan", 3, []),
    "scan, split modules may lack it": ({**ALL, **split()}, {}, True, "key-scan", 3, []),
    "flag true and all": ({**ALL, **flag(1)}, {}, True, "flag", 3, []),
    "flag true as bf16": ({**ALL, **flag(1, "BF16")}, {}, True, "flag", 3, []),
    "flag true and none": ({**NONE, **flag(1)}, {}, True, "flag", 0, ["dora-missing"]),
    "flag true and only convolutions": ({**CONV, **flag(1)}, {}, True, "flag", 0, ["dora-missing"]),
    "flag true and some": ({**SOME, **flag(1)}, {}, True, "flag", 1, ["dora-partial"]),
    "flag true, convolutions may lack it": ({**ALL, **CONV, **flag(1)}, {}, True, "flag", 3, []),
    "flag true, split modules may lack it": ({**ALL, **split(), **flag(1)}, {}, True, "flag", 3, []),
    "flag false and none": ({**NONE, **flag(0)}, {}, False, "flag", 0, []),
    "flag false as bf16 and none": ({**NONE, **flag(0, "BF16")}, {}, False, "flag", 0, []),
    "flag false and all": ({**ALL, **flag(0)}, {}, None, "conflict", 3, ["dora-conflict"]),
    "flag false and some": ({**SOME, **flag(0, "BF16")}, {}, None, "conflict", 1, ["dora-conflict"]),
    "flag that is NaN, and none": ({**NONE, **flag(float("nan"), "F32")}, {}, None, "conflict", 0, ["dora-conflict"]),
    "flag that is no number, and all": (
        {**ALL, **flag(b"\x7f", "F8_E8M0")},
        {},
        None,
        "conflict",
        3,
        ["dora-conflict"],
    ),
    "config of a text, true and all": (ALL, embedded(use_dora="True"), True, "adapter_config", 3, []),
    "config of a text, no and all": (ALL, embedded(use_dora="no"), None, "conflict", 3, ["dora-conflict"]),
    "config that is neither, and none": (NONE, embedded(use_dora="perhaps"), None, "conflict", 0, ["dora-conflict"]),
    "config true of other ranks": (NONE, embedded(use_dora=True, r=4), False, "default", 0, []),
    "config true and all": (ALL, embedded(use_dora=True), True, "adapter_config", 3, []),
    "config true and none": (NONE, embedded(use_dora=True), True, "adapter_config", 0, ["dora-missing"]),
    "config false and none": (NONE, embedded(use_dora=False), False, "adapter_config", 0, []),
    "config false and all": (ALL, embedded(use_dora=False), None, "conflict", 3, ["dora-conflict"]),
    "config true, flag false": ({**ALL, **flag(0)}, embedded(use_dora=True), None, "conflict", 3, ["dora-conflict"]),
}


@pytest.mark.parametrize(("tensors", "metadata", "value", "source", "modules", "codes"), CASES.values(), ids=CASES)
def test_dora_and_its_evidence(tensors, metadata, value, source, modules, codes, read):
    adapter = read(tensors, metadata)
    assert adapter.dora[:3] == (value, source, modules)
    assert adapter.dora.axis == ("output" if modules else None)
    assert errors(adapter) == codes


def test_a_mixture_names_a_module_without_and_the_option_that_accepts_it(read):
    (problem,) = (problem for problem in read(SOME).problems if problem.severity == "error")
    assert "lora_unet_b" in problem.message
    assert "--allow-partial-dora" in problem.message
    assert errors(read(SOME, allow_partial_dora=True)) == []


@pytest.mark.parametrize("option", ["use_dora", "dora_wd"])
def test_a_dora_that_was_asked_for_and_is_not_there_is_a_warning(option, read):
    adapter = read(NONE, {"ss_network_args": json.dumps({option: "True"})})
    assert adapter.dora.value is False
    assert [(problem.code, problem.severity) for problem in adapter.problems] == [("dora-stripped", "warning")]


# suffix, shape of a Linear's magnitude, shape of a 3x3 convolution's, axis
SPELLINGS = [
    ("dora_layer.weight", (OUT,), (OUT,), "output"),
    ("lora_magnitude_vector", (OUT,), (1, OUT, 1, 1), "output"),
    ("lora_magnitude_vector.weight", (OUT,), (1, OUT, 1, 1), "output"),
    ("lora_magnitude_vector.default.weight", (OUT,), (1, OUT, 1, 1), "output"),
    ("lora_magnitude_vector.default", (OUT,), (1, OUT, 1, 1), "output"),
    ("magnitude", (OUT,), (OUT,), "output"),
    ("dora_scale", (OUT, 1), (OUT, 1, 1, 1), "output"),
    ("dora_scale", (1, IN), (1, IN, 1, 1), "input"),
]


@pytest.mark.parametrize("kernel", [(), (3, 3)])
@pytest.mark.parametrize(("suffix", "linear", "conv", "axis"), SPELLINGS)
def test_the_scan_knows_every_spelling_and_its_axis(suffix, linear, conv, axis, kernel, read):
    shape = conv if kernel else linear
    adapter = read(lora("lora_unet_a", kernel=kernel, **{suffix: ("F32", shape, 1.0)}))
    assert adapter.dora == (True, "key-scan", 1, axis, "sum" if axis == "output" else None)
    assert (errors(adapter), adapter.unclaimed) == ([], ())


@pytest.mark.parametrize(("shape", "axis"), [((OUT, 1), "output"), ((1, OUT), "input")])
def test_on_a_square_layer_the_place_of_the_one_tells_the_axis(shape, axis, read):
    adapter = read(lora("lora_unet_a", out=OUT, inputs=OUT, dora_scale=("F32", shape, 1.0)))
    assert adapter.dora.axis == axis


def test_both_axes_in_one_file_are_said_to_be_mixed(read):
    adapter = read(
        {
            **lora("lora_unet_a", dora_scale=("F32", (OUT, 1), 1.0)),
            **lora("lora_unet_b", dora_scale=("F32", (1, IN), 1.0)),
        }
    )
    assert (adapter.dora.axis, errors(adapter)) == ("mixed", [])


# A one-dimensional dora_scale broadcasts to a matrix in its readers, silently on square layers.
MISFITS = [
    ("dora_scale", (OUT,)),
    ("dora_scale", (OUT + 1, 1)),
    ("dora_scale", (OUT, IN)),
    ("dora_scale", (1, OUT)),
    ("dora_layer.weight", (IN,)),
    ("lora_magnitude_vector", (OUT, IN)),
    ("magnitude", (1, IN)),
]


@pytest.mark.parametrize(("suffix", "shape"), MISFITS)
def test_a_magnitude_that_fits_no_axis_is_an_error_and_unclaimed(suffix, shape, read):
    adapter = read(lora("lora_unet_a", **{suffix: ("F32", shape, 1.0)}))
    assert "magnitude-shape" in errors(adapter)
    assert adapter.unclaimed == (f"lora_unet_a.{suffix}",)


def test_the_magnitude_of_a_split_module_is_an_error(read):
    module = "lora_unet_blocks_0_attn_qkv"
    adapter = read({**split(module), f"{module}.dora_layer.weight": ("F32", (6,), 1.0)})
    assert errors(adapter) == ["magnitude-shape"]


def of_components(**use_dora):
    return {"lora_adapter_metadata": json.dumps({f"{name}.{key}": value for name, claim in use_dora.items()
            for key, value in {"r": 16, "lora_alpha": 8, "use_dora": claim}.items()})}  # fmt: skip


def test_each_component_is_held_against_its_own_config(read):
    magnitude = {"lora_magnitude_vector": ("F32", (OUT,), 1.0)}
    model = lora("transformer.a", alpha=None, spelling="peft", **magnitude)
    encoder = lora("text_encoder.a", alpha=None, spelling="peft")
    adapter = read({**model, **encoder}, of_components(transformer=True, text_encoder=False))
    assert (adapter.dora.value, adapter.dora.source, adapter.dora.modules, errors(adapter)) == (
        True, "adapter_config", 1, [])  # fmt: skip
    adapter = read({**model, **encoder}, of_components(transformer=True, text_encoder=True))
    assert errors(adapter) == ["dora-missing"]
    adapter = read({**model, **encoder}, of_components(transformer=False, text_encoder=False))
    assert errors(adapter) == ["dora-conflict"]


@pytest.mark.parametrize(
    ("tensors", "metadata", "says"),
    [
        ({**ALL, **flag(1)}, {}, ["3 modules have a magnitude", "the flag is True"]),
        ({**NONE, **flag(0)}, {}, ["the flag is False"]),
        ({**NONE, **flag(float("nan"), "F32")}, {}, ["the flag is not a number"]),
    ],
)
def test_the_evidence_tells_the_scan_and_the_flag(tensors, metadata, says, read):
    assert [item.says for item in read(tensors, metadata).evidence if item.about == "dora"] == says


@pytest.mark.parametrize(("said", "says"), [(True, "use_dora is True"), ("x", "use_dora is neither yes nor no")])
def test_the_evidence_tells_what_a_config_says(said, says, read):
    adapter = read(lora("transformer.a", alpha=None, spelling="peft"), embedded(use_dora=said))
    told = [(item.says, item.where) for item in adapter.evidence if item.about == "dora"]
    assert told == [(says, "metadata lora_adapter_metadata transformer.")]
