"""Whatever a file holds, it is read or refused in a sentence, and every tensor of it is accounted for once."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_synthetic import encode
from strategies import json_values, lora_configs, odd_adapters

from lora_inspect.errors import LoraInspectError
from lora_inspect.reading.file_info import inspect
from lora_inspect.reporting.file_record import as_json

pytestmark = pytest.mark.slow


def read(path):
    """The reading with its JSON record, or None where the file is refused."""
    refusals = []
    try:
        info = inspect(str(path))
    except LoraInspectError as refused:
        refusals.append(str(refused))
    if refusals:
        assert refusals[0].endswith(".")
        assert len(refusals[0].splitlines()) == 1
        return None
    record = as_json(info, modules=True)
    json.dumps(record)
    return info.adapter, record


@settings(max_examples=200)
@given(tensors=odd_adapters())
def test_every_tensor_is_claimed_once_or_named_as_unclaimed(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("odd") / "a.safetensors"
    path.write_bytes(encode(tensors))
    found = read(path)
    if found is None:
        return
    adapter, record = found
    claimed = [info.name for module in adapter.modules.values() for info in module.tensors]
    assert sorted([*claimed, *adapter.unclaimed, *adapter.flags]) == sorted(tensors)
    assert all(problem["keys"] or problem["message"] for problem in record["problems"])
    unknown = [c for c in adapter.contributions if c.algorithm.formula and c.scale is None]
    assert bool(unknown) == ("scale-unknown" in {problem["code"] for problem in record["problems"]})


@settings(max_examples=200)
@given(
    config=lora_configs,
    metadata=st.dictionaries(
        st.sampled_from(
            ["ss_network_args", "ss_network_alpha", "lora_adapter_metadata", "software", "lora_inspect.scale"]
        ),
        json_values,
    ),
)
def test_any_config_and_any_metadata_is_read_or_refused(tmp_path_factory, config, metadata):
    folder = tmp_path_factory.mktemp("config")
    module = "base_model.model.blocks.0.q"
    pair = {
        f"{module}.lora_A.weight": ("F32", (4, 4), bytes(64)),
        f"{module}.lora_B.weight": ("F32", (4, 4), bytes(64)),
    }
    about = {key: json.dumps(value) for key, value in metadata.items()}
    (folder / "adapter_model.safetensors").write_bytes(encode(pair, about))
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    read(folder)


@pytest.mark.parametrize("name", ["dora_and_rslora_flags", "split", "bf16_alpha_and_flags"])
@settings(max_examples=200)
@given(data=st.data())
def test_a_file_with_any_byte_changed_or_cut_is_read_or_refused(tmp_path_factory, fixtures, name, data):
    content = bytearray((fixtures / "synthetic" / f"{name}.safetensors").read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    position = data.draw(st.integers(0, header - 1))
    content[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    path = tmp_path_factory.mktemp("flip") / "a.safetensors"
    path.write_bytes(content[:cut])
    read(path)
