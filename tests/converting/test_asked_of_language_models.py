"""convert --to peft and lycoris, of language models: what the real libraries compute is what the merged model does."""

import json

import pytest
from adapter_files import factors_of, save
from adapters import NAMES
from language_models import MODELS, has_conv1d, model, output, shapes
from loaders import LIBRARIES, tensors_in

pytestmark = pytest.mark.numeric

DIRECTIONS = (("lycoris", "peft"), ("peft", "lycoris"), ("peft", "peft"), ("lycoris", "lycoris"))
# LyCORIS knows no Conv1D, which has its weight the other way round.
CASES = [
    (name, *DIRECTIONS[2 if name == "GPT2LMHeadModel" else (number + at) % 4], ("lora", "dora", "rslora")[at])
    for number, name in enumerate(MODELS)
    for at in range(3)
]


@pytest.mark.parametrize(("name", "scheme", "target", "kind"), CASES)
@pytest.mark.slow
def test_every_layer_of_a_language_model(name, scheme, target, kind, run, tmp_path):
    plain, library = model(name), LIBRARIES[target]
    adapter = factors_of(shapes(plain), kind == "dora")
    file = save(scheme, adapter, NAMES[scheme].tensors(adapter), kind, tmp_path / "in", {})
    if scheme == "peft" and has_conv1d(plain):
        config = file / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "fan_in_fan_out": True}))
    plain.save_pretrained(tmp_path / "base")
    out = tmp_path / f"out{library.suffix}"
    for command in (
        ("convert", file, "--to", target, *(library.options if kind == "dora" else ()), "-o", out),
        ("merge", tmp_path / "base", file, "-o", tmp_path / "merged"),
    ):
        ended = run(*command)
        assert ended.status == 0, ended.stderr
    before, meant = output(plain), output(type(plain).from_pretrained(tmp_path / "merged").eval())
    loaded = model(name)
    assert library.load(name, loaded, out) == len(tensors_in(out)) > 0
    assert (output(loaded) - meant).abs().max() < 1e-5 * meant.abs().max()
    assert (before - meant).abs().max() > 1e-2 * meant.abs().max()
