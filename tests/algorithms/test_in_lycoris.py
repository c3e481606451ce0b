"""convert --to lycoris of every algorithm that LyCORIS computes: it loads the file, to the same layer, or raises.

A file that it cannot load at all is of a form of a few algorithms, which it saves and does not read back.
"""

import copy

import pytest
import torch
from every_case import CASES
from libraries import Net
from library_case import apply
from lycoris.wrapper import create_lycoris_from_weights
from safetensors.torch import save_file

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

ALGORITHMS = ("full", "glora", "loha", "lokr", "lora", "lycoris_boft", "norm", "oft", "tlora")
# Cores of LoKr and GLoRA, factors in which the larger one is the first, and a product beside a whole factor.
NOT_READ_BACK = ("lokr Tucker", "use_tucker", "with a core", "unbalanced", "both around a whole one")

REFUSED = {"DoRA on input": "is a magnitude of inputs", "before 3": "cannot load under lycoris names"}


# Those that LyCORIS made.
OWN = [
    (name, case)
    for name in ALGORITHMS
    for case in CASES[name]
    if any(key.startswith("lycoris_layer.") for key in case.tensors)
]


@pytest.mark.parametrize(("name", "case"), [pytest.param(*own, id=f"{own[0]}: {own[1].id}") for own in OWN])
def test_it_loads_what_is_written(name, case, run, tmp_path):
    tensors = {f"diffusion_model.{key.removeprefix('lycoris_')}": value for key, value in case.tensors.items()}
    if {"lokr_w1", "lokr_w2"} <= {key.rpartition(".")[2] for key in tensors}:
        # Other programs write no alpha of whole factors, and LyCORIS cannot do without.
        tensors.pop("diffusion_model.layer.alpha")
    floats = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    save_file({key: value.contiguous() for key, value in floats.items()}, tmp_path / "in.safetensors")
    is_dora = any(key.endswith(".dora_scale") for key in tensors)
    out = tmp_path / "out.safetensors"
    ended = run("convert", tmp_path / "in.safetensors", "--to", "lycoris", "-o", out, *["--keep-dora"] * is_dora)
    if because := next((sentence for form, sentence in REFUSED.items() if form in case.id), None):
        assert because in ended.refusal
        return
    assert ended.status == 0, ended.stderr
    network = Net(copy.deepcopy(case.layer)).float()
    if any(form in f"{name} {case.id}".replace("lycoris ", "") for form in NOT_READ_BACK):
        with pytest.raises((RuntimeError, AttributeError)):
            create_lycoris_from_weights(1.0, str(out), network)
        return
    adapter, _ = create_lycoris_from_weights(1.0, str(out), network)
    adapter.apply_to()
    adapter.eval()
    with torch.no_grad():
        found, before = network(case.input.float()).double(), case.layer(case.input)
    changed = {name: tensor.double() for name, tensor in {**case.base, **case.oracle(1.0)}.items()}
    meant = apply(case.layer, changed, case.input.double())
    assert (found - meant).abs().max() < 1e-5 * meant.abs().max()
    assert (before - meant).abs().max() > 1e-3 * meant.abs().max()
