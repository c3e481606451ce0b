"""What is decided for a kind of modules is what would be decided for each of them alone."""

import json
import math

import pytest
from adapters import lora
from hypothesis import given, settings
from hypothesis import strategies as st
from make_synthetic import element, encode
from strategies import odd_adapters

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading import steps
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.keys.groups import ModuleKind
from lora_inspect.reading.model.contribution import Contribution, Module, Scaling, with_scalings
from lora_inspect.reading.model.settings import Settings

# Metadata by which scales are read, alike for all modules or not.
ABOUT = (
    {},
    {"ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_network_alpha": "2"},
    {"ss_network_module": "networks.lora_flux", "ss_network_dim": "2", "ss_network_args": '{"split_qkv": "True"}'},
    {"ss_network_module": "networks.lora", "ss_network_args": '{"network_reg_dims": "blocks_0=2,q=4"}'},
    {"ss_network_args": '{"use_rslora": "True", "use_dora": "True"}', "ss_network_alpha": "0"},
    {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 8, "rank_pattern": {"0.q": 2}, "use_dora": True})},
    {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8, "unet.r": 2})},
)
# The same numbers are spelled in several ways.
ALPHAS = (None, ("F32", (), 4.0), ("BF16", (), 4.0), ("I64", (), 4), ("F32", (), 0.0), ("F32", (), -0.0))
SPELLINGS = (("lora_unet_blocks_{}_q", "kohya"), ("transformer.blocks.{}.q", "peft"), ("unet.blocks.{}.q", "peft"))


def each_alone(modules, numbers, by_path):
    """Every module as the only one of its kind."""
    return [ModuleKind(module, {name: place}) for place, (name, module) in enumerate(modules.items())]


def spelled(path, options):
    """All that is read of a file, as text: what is no number is equal to nothing, and is spelled alike."""
    try:
        return repr(read_adapter(open_checkpoint(str(path)), options))
    except LoraInspectError as refusal:
        return str(refusal)


@st.composite
def adapters(draw):
    """Odd tensors, and modules of which some are alike in all, and others in all but one thing."""
    tensors = {}
    for place in range(draw(st.integers(0, 6))):
        name, spelling = draw(st.sampled_from(SPELLINGS))
        magnitude = {"dora_scale": ("F32", (8, 1), 1.0)} if draw(st.integers(0, 2)) == 0 else {}
        rank, alpha = draw(st.sampled_from([2, 4])), draw(st.sampled_from(ALPHAS))
        tensors |= lora(name.format(place), rank, alpha, out=8, spelling=spelling, **magnitude)
    tensors = {
        key: (dtype, shape, element(dtype, data) * math.prod(shape)) for key, (dtype, shape, data) in tensors.items()
    }
    return draw(odd_adapters()) | tensors


@settings(max_examples=150)
@given(
    tensors=adapters(),
    about=st.sampled_from(ABOUT),
    rslora=st.none() | st.booleans(),
    alpha=st.none() | st.just(3.0),
)
def test_a_file_is_read_by_kinds_as_module_by_module(tensors, about, rslora, alpha, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "kinds.safetensors"
    path.write_bytes(encode(tensors, about))
    options = Settings(rslora=rslora, alpha=alpha)
    found = spelled(path, options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "kinds_of", each_alone)
        assert found == spelled(path, options)


def test_a_number_that_divides_nothing_stays_as_it_is_stored(read):
    """Whole factors of LoKr have no rank."""
    tensors = {}
    for place, alpha in enumerate(ALPHAS[1:]):
        name = f"lora_unet_blocks_{place}_q"
        tensors |= {
            f"{name}.lokr_w1": ("F32", (2, 2), 1),
            f"{name}.lokr_w2": ("F32", (4, 2), 1),
            f"{name}.alpha": alpha,
        }
    found = [contribution.alpha for contribution in read(tensors).contributions]
    assert list(map(repr, found)) == ["4.0", "4.0", "4", "0.0", "-0.0"]


def test_a_contribution_has_every_field_of_a_scaling():
    scaling = Scaling(True, 4, 2.0, False, 0.5, "alpha/rank")
    bare = Contribution(None, None, {}, is_optional=True)
    (module,) = with_scalings([Module(None, (bare, bare))], [scaling, None])
    assert module == Module(None, (bare._replace(**scaling._asdict()), bare))
