"""convert --to, loaded by the real libraries: every key, and the layers that a merge of the input makes."""

import pytest
from diffusers_cases import distance
from diffusers_families import adapted, layers, merged_into, model, outputs, says
from loaders import LIBRARIES, tensors_in
from safetensors.torch import save_file
from whole_adapters import rotated, write

pytestmark = pytest.mark.numeric

SCHEMES = ("kohya", "comfyui", "peft", "onetrainer", "diffusers")
CASES = [
    (name, *case)
    for name, library in LIBRARIES.items()
    for case in rotated(library.families, SCHEMES, 3 if name == "diffusers" else 2)
]


@pytest.mark.parametrize(("target", "family", "scheme", "kind"), CASES)
def test_every_layer_of_a_model(target, family, scheme, kind, run, tmp_path):
    plain, library = model(family), LIBRARIES[target]
    shapes = adapted(plain)
    file = write(scheme, family, shapes, kind, tmp_path / "in", says(family))
    save_file(plain.state_dict(), tmp_path / "base.safetensors", says(family))
    out, options = tmp_path / f"out{library.suffix}", library.options if kind == "dora" else ()
    for command in (
        ("convert", file, "--to", target, *options, "-o", out),
        ("merge", tmp_path / "base.safetensors", file, "-o", tmp_path / "merged.safetensors"),
    ):
        ended = run(*command)
        assert ended.status == 0, ended.stderr
    meant, loaded = model(family), model(family)
    merged_into(meant, tmp_path / "merged.safetensors")
    assert library.load(family, loaded, out) == len(tensors_in(out)) > 0
    before, after = outputs(plain, layers(plain)), outputs(meant, layers(meant))
    assert distance(outputs(loaded, layers(plain)), after) < 1e-5
    assert all(distance({path: before[path]}, {path: after[path]}) > 1e-3 for path in shapes)
