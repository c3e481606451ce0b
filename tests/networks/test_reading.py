"""A state dict means to a network what a file with its keys means to every command."""

import json

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from lora_inspect.algorithms import lora as lora_algorithm
from lora_inspect.maths import dora
from networks import lokr, lora
from networks.files import reading, standard_form
from networks.loha import LoHaModule
from networks.lokr import LoKrModule
from networks.modules.lora_module import LoRAModule

NAME = "lora_unet_embed"
LOHA = {f"hada_{side}_{half}": (6, 2) if half == "a" else (2, 5) for side in ("w1", "w2") for half in "ab"}
LOKR = {"lokr_w1": (2, 5), "lokr_w2_a": (3, 1), "lokr_w2_b": (1, 4)}
WHOLE = {"lokr_w1": (2, 5), "lokr_w2": (3, 4)}


def pair(out=6, rank=2, columns=5, part=""):
    return {f"lora_down{part}.weight": (rank, columns), f"lora_up{part}.weight": (out, rank)}


def weights_of(shapes, name=NAME, **more):
    tensors = {f"{name}.{key}": torch.randn(shape) for key, shape in shapes.items()}
    return tensors | {f"{name}.{key}": tensor for key, tensor in more.items()}


def read_one(weights, reader=None):
    return reading.read(weights, reader=reader).modules[NAME]


@pytest.mark.parametrize("dialect", [name for name, roles in lora_algorithm.DIALECTS.items() if "up" in roles])
def test_factors_in_every_dialect_are_those_of_the_module(dialect):
    down, up, alpha = torch.randn(2, 5), torch.randn(6, 2), torch.tensor(3.0)
    roles = lora_algorithm.DIALECTS[dialect]
    found = read_one({NAME + roles["down"]: down, NAME + roles["up"]: up, f"{NAME}.alpha": alpha})
    assert found.tensors["lora_down.weight"] is down
    assert found.tensors["lora_up.weight"] is up
    assert (found.rank, found.alpha, found.linear, found.split_dims) == (2, 3.0, True, None)
    assert found.tensors.keys() == {"lora_down.weight", "lora_up.weight", "alpha"}


def test_factors_of_a_named_adapter_of_peft():
    weights = {f"{NAME}.lora_A.default.weight": torch.randn(2, 5), f"{NAME}.lora_B.default.weight": torch.randn(6, 2)}
    assert read_one(weights).tensors.keys() == {"lora_down.weight", "lora_up.weight"}


# mlx-lm has no convolutions, so that its magnitudes are vectors.
MAGNITUDES = [
    (suffix, shape)
    for suffix in dora.SPELLINGS
    for shape in ((6,), (1, 6), (1, 6, 1, 1))
    if suffix != ".dora_scale" and (suffix != dora.OF_STORED_ROWS or len(shape) == 1)
]


@pytest.mark.parametrize(("suffix", "shape"), MAGNITUDES)
def test_magnitudes_of_the_outputs_are_one_number_for_each(suffix, shape):
    magnitude = torch.randn(shape)
    found = read_one(weights_of(pair()) | {NAME + suffix: magnitude})
    assert torch.equal(found.tensors["dora_layer.weight"], magnitude.flatten())
    assert found.facts().magnitude_axis == "output"


def test_a_dora_scale_of_the_outputs_is_the_magnitude_and_one_of_the_inputs_is_none():
    magnitude = torch.randn(6, 1)
    found = read_one(weights_of(pair()) | {f"{NAME}.dora_scale": magnitude})
    assert torch.equal(found.tensors["dora_layer.weight"], magnitude[:, 0])
    with pytest.raises(ValueError, match=rf"{NAME}\.dora_scale is a magnitude of the inputs"):
        read_one(weights_of(pair()) | {f"{NAME}.dora_scale": torch.randn(1, 5)})


@pytest.mark.parametrize("kernel", [(), (1, 1)])
@pytest.mark.parametrize("dialect", ["kohya", "peft"])
def test_a_pair_whose_up_has_the_network_s_blocks_is_in_slices(dialect, kernel):
    ups, downs = [torch.randn(size, 2) for size in (4, 3, 5)], [torch.randn(2, 5) for _ in range(3)]
    roles = lora_algorithm.DIALECTS[dialect]
    weights = {
        NAME + roles["up"]: torch.block_diag(*ups).view(12, 6, *kernel),
        NAME + roles["down"]: torch.cat(downs).view(6, 5, *kernel),
        f"{NAME}.alpha": torch.tensor(6.0, dtype=torch.float64),
    }
    whole = reading.read(weights)
    found = standard_form.in_slices(whole, {NAME: (4, 3, 5)}.get).modules[NAME]
    assert (found.rank, found.alpha, found.split_dims) == (2, 2.0, (4, 3, 5))
    assert found.tensors.keys() == {
        "alpha", *(f"lora_{side}.{number}.weight" for side in ("up", "down") for number in range(3))
    }  # fmt: skip
    for number in range(3):
        assert torch.equal(found.tensors[f"lora_up.{number}.weight"].flatten(1), ups[number])
        assert torch.equal(found.tensors[f"lora_down.{number}.weight"].flatten(1), downs[number])
    for sizes in (None, (3, 4, 5), (6, 6), (4, 3, 4)):
        assert standard_form.in_slices(whole, {NAME: sizes}.get) == whole


@pytest.mark.numeric
def test_a_network_of_weights_in_peft_s_spelling_merges_them(make_model, tmp_path):
    down, up = torch.randn(2, 12), torch.randn(12, 2)
    weights = {f"{NAME}.lora_A.weight": down, f"{NAME}.lora_B.weight": up, f"{NAME}.alpha": torch.tensor(5.0)}
    model = make_model()
    expected = model.embed.weight.double() + 5 / 2 * up.double() @ down.double()
    network = lora.create_network_from_weights(None, 1.0, weights, None, model, for_inference=True)
    network.merge_to(None, model, weights)
    assert torch.allclose(model.embed.weight.double(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("reader", "shapes", "key"),
    [
        (LoRAModule, pair(), "extra"),
        (LoRAModule, pair(), f"{NAME}.extra"),
        (LoRAModule, pair(), ".alpha"),
        (LoRAModule, pair(), ""),
        (LoRAModule, pair(), "lokr_factor"),
        (LoRAModule, pair(), f"{NAME}.use_rslora_flag"),
        (LoRAModule, pair(), f"{NAME}.lora_up.bias"),
        (LoRAModule, pair(), f"{NAME}.diff"),
        (LoRAModule, pair(), f"{NAME}.diff_b"),
        (LoRAModule, pair(), f"{NAME}.hada_w1_a"),
        (LoRAModule, pair(), f"{NAME}.lora_down.1.0.weight"),
        (LoRAModule, pair(), "lora_unet_other.alpha"),
        (LoHaModule, LOHA, f"{NAME}.lora_up.weight"),
        (LoHaModule, LOHA, "lora_unet_other.lokr_w1"),
        (LoHaModule, LOHA, "lokr_factor"),
        (LoKrModule, LOKR, f"{NAME}.hada_w1_a"),
    ],
)
def test_a_tensor_that_no_module_of_the_network_has_is_named(reader, shapes, key):
    title = getattr(reader, "reader", reading.LORA).algorithm.title
    with pytest.raises(ValueError, match="1 tensor of the weights cannot be used") as error:
        reading.read(weights_of(shapes) | {key: torch.ones(6)}, reader=getattr(reader, "reader", None))
    assert str(error.value).endswith(f"by a {title} network: {key}")


@pytest.mark.parametrize(("odd", "says"), [(2, "odd.0, odd.1$"), (5, "odd.4$"), (6, r"odd.4, …$")])
def test_the_first_of_many_are_named(odd, says):
    with pytest.raises(ValueError, match=rf"^{odd} tensors of the weights cannot be used .*{says}"):
        reading.read(weights_of(pair()) | {f"odd.{number}": torch.ones(1) for number in range(odd)})


@pytest.mark.parametrize(
    ("reader", "shapes", "key", "shape"),
    [
        (None, {"lora_down.weight": (2, 5, 1, 1), "lora_up.weight": (6, 2, 1, 1)}, "lora_mid.weight", (2, 2, 3, 3)),
        (LoKrModule.reader, {"lokr_w1": (2, 5), "lokr_w2_a": (1, 3), "lokr_w2_b": (1, 4)}, "lokr_t2", (1, 1, 3, 3)),
    ],
)
def test_what_the_algorithm_knows_and_the_network_does_not_train_is_named(reader, shapes, key, shape):
    with pytest.raises(ValueError, match=rf"1 tensor of the weights cannot be used by a Lo.. network: {NAME}\.{key}"):
        reading.read(weights_of(shapes | {key: shape}), reader=reader)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (pair(part=".0") | pair(part=".1", rank=3), r"its slices have the ranks \[2, 3\], but one rank was expected"),
        (pair(part=".0") | pair(part=".2"), "its slices are numbered 0, 2, not 0 to 1"),
        (pair() | pair(part=".0"), "its slices are numbered none, 0, not 0 to 1"),
        (pair(part=".0") | pair(part=".1", columns=7), "its slices have different numbers of inputs, 5 and 7"),
        (pair(part=".0") | {"lora_down.1.weight": (2, 5)}, r"lora_down\.1\.weight is there, but its module has no up"),
        (pair(part=".0") | {"dora_layer.weight": (6,)}, r"dora_layer\.weight is the magnitude of a split module"),
        (pair() | {"dora_layer.weight": (7,)}, r"dora_layer\.weight has shape \[7\], which matches neither"),
        (pair() | {"lora_A.weight": (2, 5)}, r"lora_A\.weight is a second tensor for the same role"),
        (pair() | {"dora_layer.weight": (6,), "magnitude": (6,)}, r"magnitude is a second tensor for the same role"),
        ({"lora_down.weight": (2, 5), "lora_up.weight": (6, 2, 3)}, "up .* has a kernel, which only down may have"),
    ],
)
def test_what_does_not_fit_together_is_named(shapes, message):
    with pytest.raises(ValueError, match=message) as error:
        read_one(weights_of(shapes))
    assert NAME in str(error.value)


@pytest.mark.parametrize("missing", LOHA)
def test_a_missing_factor_of_loha_is_named(missing):
    shapes = {key: shape for key, shape in LOHA.items() if key != missing}
    with pytest.raises(ValueError, match=rf"{NAME}\.\w+ is there, but its module has no {missing[5:]} factor"):
        reading.read(weights_of(shapes), reader=LoHaModule.reader)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_slices_stand_in_the_order_of_their_numbers(order):
    sizes = (4, 3, 5)
    weights = {}
    for number in order:
        weights |= weights_of(pair(sizes[number], part=f".{number}"))
    found = read_one(weights)
    assert found.split_dims == sizes
    assert found.has_slices
    for key, tensor in weights.items():
        assert found.tensors[key.removeprefix(f"{NAME}.")] is tensor


def test_a_single_slice_is_one():
    assert read_one(weights_of(pair(part=".0"))).split_dims == (6,)


NUMBERS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "uint8")


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_an_alpha_may_be_of_any_dtype(dtype, shape):
    alpha = torch.full(shape, 2.0).to(getattr(torch, dtype))
    assert read_one(weights_of(pair(), alpha=alpha)).alpha == 2.0


@pytest.mark.parametrize("shapes", [LOHA, LOKR, pair()])
@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        (torch.ones(0), r"alpha has shape \[0\], but a single number"),
        (torch.ones(2), r"alpha has shape \[2\], but a single number"),
        (torch.tensor(0.0), "alpha is 0, which gives no scale"),
        (torch.tensor(False), "alpha is 0, which gives no scale"),
        (torch.tensor(torch.inf), "alpha is inf, which gives no scale"),
        (torch.tensor(torch.nan), "alpha is nan, which gives no scale"),
        (torch.tensor(1j), "there are complex64 numbers in 1 tensor"),
    ],
)
def test_an_alpha_that_is_no_number_is_named(shapes, alpha, message):
    reader = {"hada": LoHaModule.reader, "lokr": LoKrModule.reader}.get(next(iter(shapes))[:4])
    with pytest.raises(ValueError, match=message):
        reading.read(weights_of(shapes, alpha=alpha), reader=reader)


@pytest.mark.parametrize(
    ("alpha", "rank"), [(None, 4), (7.0, 7), (7.5, 4), (0.0, 4), (-2.0, 4), (torch.inf, 4), (torch.nan, 4)]
)
def test_whole_factors_have_the_rank_that_alpha_tells(alpha, rank):
    """`LokrModule` of lycoris-lora stores the rank as alpha there; the side stands for it where it is none."""
    more = {} if alpha is None else {"alpha": torch.tensor(alpha)}
    found = read_one(weights_of(WHOLE, **more), LoKrModule.reader)
    assert (found.rank, found.alpha) == (rank, float(rank))
    assert found.keywords == {"factor_shapes": {"w1": (2, 5), "w2": (3, 4)}}


def test_blissful_s_factor_is_in_the_shapes_of_products_and_divides_the_alpha_of_whole_factors():
    flags = {"lokr_factor": torch.tensor(-1), "use_rslora_flag": torch.tensor(False)}
    found = reading.read(weights_of(LOKR, alpha=torch.tensor(3.0)) | flags, reader=LoKrModule.reader)
    assert (found.modules[NAME].rank, found.modules[NAME].alpha) == (1, 3.0)
    assert found.flags == {"use_rslora_flag": False}
    with pytest.raises(ValueError, match=rf"lokr_factor says that the alpha of {NAME} .* lora-inspect convert"):
        reading.read(weights_of(WHOLE, alpha=torch.tensor(3.0)) | flags, reader=LoKrModule.reader)


@pytest.mark.numeric
def test_what_convert_writes_of_blissful_s_whole_factors_merges(make_model, tmp_path, run):
    """By the formula of blissful-tuner: alpha is divided by the longest side of w2."""
    w1, w2 = torch.randn(3, 4), torch.randn(4, 3)
    weights = {f"{NAME}.lokr_w1": w1, f"{NAME}.lokr_w2": w2, f"{NAME}.alpha": torch.tensor(3.0)}
    save_file(weights | {"lokr_factor": torch.tensor(-1)}, tmp_path / "blissful.safetensors")
    outcome = run("convert", tmp_path / "blissful.safetensors", "-o", tmp_path / "plain.safetensors")
    assert outcome.status == 0, outcome.stderr
    plain, model = load_file(tmp_path / "plain.safetensors"), make_model()
    expected = model.embed.weight.double() + 3 / 4 * torch.kron(w1.double(), w2.double())
    network = lokr.create_arch_network_from_weights(1.0, plain, unet=model, for_inference=True, architecture="wan")
    network.merge_to(None, model, plain)
    assert torch.allclose(model.embed.weight.double(), expected, atol=1e-5)


@pytest.mark.parametrize("module_class", [LoHaModule, LoKrModule])
@pytest.mark.parametrize("says", ["flag", "metadata"])
def test_the_rule_of_lora_says_nothing_of_other_algorithms(module_class, says):
    """blissful-tuner stores the flag and the option of modules that swallow them."""
    weights = weights_of(LOHA if module_class is LoHaModule else LOKR, alpha=torch.tensor(1.0))
    flags = {"use_rslora_flag": torch.tensor(True)} if says == "flag" else {}
    metadata = {"ss_network_args": json.dumps({"use_rslora": "True"})} if says == "metadata" else {}
    found = reading.read(weights | flags, metadata, module_class.reader)
    assert (found.rslora.value, found.facts) == (False, [])
    lora_found = reading.read(weights_of(pair(), alpha=torch.tensor(1.0)) | flags, metadata)
    assert lora_found.rslora.value is True


@pytest.mark.parametrize("weights", [{}, {"use_rslora_flag": torch.tensor(True)}])
def test_weights_without_a_module_are_none(weights):
    for reader in (None, LoHaModule.reader):
        with pytest.raises(ValueError, match=r"the weights hold no Lo(RA|Ha) module"):
            reading.read(weights, reader=reader)


@pytest.mark.parametrize("flag", [torch.tensor(1.0).bfloat16(), torch.tensor([1]), torch.tensor(True)])
def test_a_flag_may_be_of_any_dtype(flag):
    found = reading.read(weights_of(pair()) | {"use_dora_flag": flag})
    assert found.flags == {"use_dora_flag": True}


@pytest.mark.parametrize("key", ["use_rslora_flag", "use_dora_flag"])
def test_a_flag_that_is_no_number_is_named(key):
    with pytest.raises(ValueError, match=f"{key} is NaN"):
        reading.read(weights_of(pair()) | {key: torch.tensor(torch.nan)})


def test_one_slice_under_two_numbers_is_named():
    weights = weights_of(pair(part=".0") | {"lora_down.00.weight": (2, 5)})
    with pytest.raises(ValueError, match=r"lora_down\.00\.weight is a second tensor for the same role"):
        read_one(weights)
    renamed = {key.replace("down.0.", "down.00."): tensor for key, tensor in weights_of(pair(part=".0")).items()}
    assert read_one(renamed).tensors.keys() == pair(part=".0").keys()


def test_integers_and_booleans_are_factors_as_their_numbers():
    weights = {
        f"{NAME}.lora_down.weight": torch.ones(2, 5, dtype=torch.int64),
        f"{NAME}.lora_up.weight": torch.ones(6, 2, dtype=torch.bool),
    }
    assert read_one(weights).rank == 2


STORED = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "bool")
STORED += ("int64", "int32", "int16", "int8", "uint8", "uint64", "uint32", "uint16")


@pytest.mark.parametrize("name", STORED)
def test_a_state_dict_is_described_as_safetensors_writes_it(name):
    weights = {"a.b": torch.zeros(2, 3, dtype=getattr(torch, name)), "c": torch.zeros((), dtype=getattr(torch, name))}
    data = save(weights)
    entries = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found = reading.header_of(weights)
    assert {key: (info.dtype, list(info.shape)) for key, info in found.items()} == {
        key: (entry["dtype"], entry["shape"]) for key, entry in entries.items()
    }
    assert all(info.name == key for key, info in found.items())
    # No file has these numbers, which keep torch's name.
    assert reading.dtype_name(torch.complex128) == "complex128"
