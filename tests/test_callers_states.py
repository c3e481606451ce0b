"""Every call of the API that computes makes the same, whatever the calling program has set in torch for itself."""

import threading
from pathlib import Path

import pytest
import torch
from adapters import drawn, drawn_lora
from callers_states import EVERY, in_each
from safetensors.torch import save_file

import lora_inspect
from lora_inspect.maths.torch_threads import whole_products

pytestmark = pytest.mark.numeric
OUT, IN, RANK, BLOCKS = 24, 16, 4, 2


def adapter(make):
    return {f"lora_unet_blocks_{b}_q.{key}": tensor for b in range(BLOCKS) for key, tensor in make(100 * b).items()}


def lora(seed, **more):
    tensors = drawn_lora("", seed, rank=RANK, alpha=2.0, out=OUT, inputs=IN)
    return {key.removeprefix("."): tensor for key, tensor in tensors.items()} | more


def loha(seed):
    pairs = {f"hada_w{n}_{side}": (n, shape) for n in (1, 2) for side, shape in (("a", (OUT, 2)), ("b", (2, IN)))}
    return {key: drawn(seed + n + len(key), *shape) for key, (n, shape) in pairs.items()} | {"alpha": torch.tensor(2.0)}


KINDS = {
    "lora": lora,
    "rows": lambda seed: lora(seed, dora_scale=drawn(seed + 2, OUT, 1).abs()),
    "columns": lambda seed: lora(seed, dora_scale=drawn(seed + 2, 1, IN).abs()),
    "loha": loha,
    "oft": lambda seed: {"oft_blocks": 0.3 * drawn(seed, OUT // 4, 4, 4)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base in bfloat16 and in eight bits, one of experts, adapters of them, and merged models."""
    path = tmp_path_factory.mktemp("states")
    base = {f"blocks.{b}.q.weight": drawn(10 + b, OUT, IN) for b in range(BLOCKS)}
    save_file({name: tensor.bfloat16() for name, tensor in base.items()}, path / "base.safetensors")
    scales = {f"blocks.{b}.q.scale_weight": torch.tensor(0.5) for b in range(BLOCKS)}
    codes = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in base.items()}
    save_file(codes | scales, path / "codes.safetensors")
    for kind, make in KINDS.items():
        save_file(adapter(make), path / f"{kind}.safetensors")
    experts = {
        f"model.layers.0.mlp.experts.{e}.{part}_proj.weight": drawn(50 + e, *shape).bfloat16()
        for e in range(3)
        for part, shape in (("gate", (12, 8)), ("up", (12, 8)), ("down", (8, 12)))
    }
    save_file(experts, path / "experts.safetensors")
    factors = {
        f"diffusion_model.{name.removesuffix('.weight')}.lora_{side}.weight": drawn(len(name) + ord(side), *shape)
        for name, tensor in experts.items()
        for side, shape in (("A", (2, tensor.shape[1])), ("B", (tensor.shape[0], 2)))
    }
    save_file(factors, path / "of_experts.safetensors")
    for output, adapters in (("merged", ["lora"]), ("both", ["lora", "rows"])):
        files = [str(path / f"{name}.safetensors") for name in adapters]
        lora_inspect.merge(str(path / "base.safetensors"), files, str(path / f"{output}.safetensors"))
    return path


class Calls:
    """The calls, on the files of a folder: what each of them returns or writes."""

    def __init__(self, folder: Path, output: Path) -> None:
        self._folder, self._output = folder, output

    def _file(self, name):
        return str(self._folder / f"{name}.safetensors")

    def merge(self, base, *adapters, **options):
        files = [(self._file(name), 0.5) for name in adapters]
        lora_inspect.merge(self._file(base), files, self._output, force=True, allow_loss=True, **options)
        return self._output.read_bytes()

    def verify(self, merged, *adapters):
        return lora_inspect.verify(self._file(merged), self._file("base"), [self._file(name) for name in adapters])

    def unmerge(self, base=None):
        base = base and self._file(base)
        files = [self._file("lora")]
        lora_inspect.unmerge(
            self._file("merged"), files, self._output, base=base, allow_ambiguous=base is None, force=True
        )
        return self._output.read_bytes()

    def convert(self, kind, base=None, **options):
        base = base and self._file(base)
        lora_inspect.convert(self._file(kind), self._output, base=base, allow_loss=True, force=True, **options)
        return self._output.read_bytes()

    def state_dict(self, kind, names, **options):
        tensors = lora_inspect.state_dict(self._file(kind), names, architecture="flux", allow_loss=True, **options)
        return {name: bits(tensor) for name, tensor in tensors.items()}

    def delta(self, kind, weight=None):
        return [bits(module.delta(weight)) for module in lora_inspect.open_adapter(self._file(kind)).modules]

    def check(self, kind):
        return lora_inspect.check(self._file(kind), tensors=True)


def bits(tensor):
    return tensor.dtype, tensor.device, tensor.numpy(force=True).tobytes()


WEIGHT = drawn(10, OUT, IN)
ASKED = {
    **{
        f"merge {kind} into {base}, {dtype}": lambda calls, kind=kind, base=base, dtype=dtype: calls.merge(
            base, kind, dtype=dtype
        )
        for kind in KINDS
        for base in ("base", "codes")
        for dtype in (None, "fp32")
    },
    "merge of experts": lambda calls: calls.merge("experts", "of_experts"),
    "merge of several": lambda calls: calls.merge("base", *KINDS),
    "merge, stochastically": lambda calls: calls.merge("base", "lora", rounding="stochastic", seed=3),
    "verify": lambda calls: calls.verify("merged", "lora"),
    "verify two": lambda calls: calls.verify("both", "lora", "rows"),
    "verify what is wrong": lambda calls: calls.verify("both", "lora"),
    "unmerge": lambda calls: calls.unmerge(),
    "unmerge with the base": lambda calls: calls.unmerge("base"),
    "convert": lambda calls: calls.convert("lora"),
    "convert DoRA to a rank": lambda calls: calls.convert("rows", "base", rank=4),
    "convert DoRA to an error": lambda calls: calls.convert("rows", "base", max_error=0.2),
    "convert DoRA on codes": lambda calls: calls.convert("columns", "codes", rank=4),
    "convert DoRA to a full difference": lambda calls: calls.convert(
        "rows", "base", algorithm="full", allow_growth=True
    ),
    "convert LoHa to LoRA": lambda calls: calls.convert("loha", algorithm="lora", rank=4),
    "convert OFT to LoRA": lambda calls: calls.convert("oft", "base", algorithm="lora", rank=4),
    "delta": lambda calls: calls.delta("lora"),
    "delta of LoHa": lambda calls: calls.delta("loha"),
    "delta of DoRA": lambda calls: calls.delta("rows", WEIGHT),
    "delta of DoRA on inputs": lambda calls: calls.delta("columns", WEIGHT),
    "delta of OFT": lambda calls: calls.delta("oft", WEIGHT),
    "check": lambda calls: calls.check("rows"),
}


@pytest.fixture(scope="module")
def due(folder, tmp_path_factory):
    """What each call makes where nothing is set."""
    calls = Calls(folder, tmp_path_factory.mktemp("due") / "out.safetensors")
    return {name: ask(calls) for name, ask in ASKED.items()}


@in_each(EVERY)
@pytest.mark.parametrize("asked", ASKED)
def test_a_call_makes_the_same_in_every_state_of_torch(asked, state, folder, tmp_path, due):
    calls = Calls(folder, tmp_path / "out.safetensors")
    with state():
        found = ASKED[asked](calls)
    assert found == due[asked]


@pytest.mark.parametrize("state", EVERY.values(), ids=EVERY)
def test_what_was_set_is_set_again(state, folder, tmp_path):
    def known():
        return (
            torch.get_default_device(), torch.get_default_dtype(), torch.is_autocast_enabled("cpu"),
            torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled, torch.get_num_threads(),
        )  # fmt: skip

    with state():
        before = known()
        Calls(folder, tmp_path / "out.safetensors").merge("base", "rows")
        assert known() == before


def test_a_block_in_a_block_and_one_beside_it_end_as_they_began():
    began, ends = threading.Event(), threading.Event()

    def beside():
        with whole_products():
            began.set()
            ends.wait()

    thread = threading.Thread(target=beside)
    with whole_products():
        thread.start()
        began.wait()
        with whole_products():
            assert not torch.backends.mkldnn.enabled
        assert not torch.backends.mkldnn.enabled
    assert not torch.backends.mkldnn.enabled
    ends.set()
    thread.join()
    assert torch.backends.mkldnn.enabled
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None), whole_products():
        pass
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize("state", EVERY.values(), ids=EVERY)
def test_large_products_are_whole_in_every_state(state):
    """What oneDNN is given needs a size above which it pays."""
    left = drawn(1, 512, 512)
    exact = left.double() @ left.double()
    with state(), whole_products():
        found = left @ left
    assert found.dtype == torch.float32
    assert float((found - exact).abs().max()) < 1e-3
