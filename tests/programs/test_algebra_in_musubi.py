"""Files of the adapter algebra in musubi-tuner's own code where it is installed, and averages beside its formula."""

import numpy
import pytest
import torch
from diffusers_cases import MODULES, make, outputs_at
from safetensors.torch import load_file, save_file

import lora_inspect

pytestmark = [pytest.mark.numeric, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MULTIPLIERS = (0.7, -0.3)
SAME = 1e-5
ARCHITECTURES = ("wan", "qwen_image", "z_image", "flux", "flux2", "hunyuan_video", "krea2", "framepack")


def its_module(name):
    return pytest.importorskip(f"musubi_tuner.networks.{MODULES[name]}", exc_type=ImportError)


def network_of(name, rank, alpha):
    """(the trainer's network over a new model, the model)."""
    model = make(name, "original")
    network = its_module(name).create_arch_network(1.0, rank, alpha, None, None, model)
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    return network, model


def saved(name, rank, alpha, file, seed):
    """The paths of the layers that the trainer adapts; the file is one that it saves after some training."""
    network, model = network_of(name, rank, alpha)
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=numbers))
    network.save_weights(str(file), torch.float32, {"ss_network_module": MODULES[name]})
    forwards = [one.forward for one in network.unet_loras]
    return [path for path, layer in model.named_modules() if layer.forward in forwards]


def with_networks(name, files, multipliers):
    model = make(name, "original")
    for file, multiplier in zip(files, multipliers, strict=True):
        network = its_module(name).create_arch_network_from_weights(multiplier, load_file(file), unet=model)
        network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
        assert network.load_weights(str(file)).missing_keys == []
    return model


def merged(name, file):
    model, weights = make(name, "original"), load_file(file)
    network = its_module(name).create_arch_network_from_weights(1.0, weights, unet=model, for_inference=True)
    network.merge_to(None, model, weights, torch.float32, "cpu")
    return model


def started(name, file, rank):
    """A training with --network_weights; alpha has to be that of the file, which the trainer does not read."""
    network, model = network_of(name, rank, float(rank))
    loaded = network.load_weights(str(file))
    assert (loaded.missing_keys, loaded.unexpected_keys) == ([], [])
    return model


def assert_same(found, meant, name, paths):
    before, found, meant = (outputs_at(paths, model) for model in (make(name, "original"), found, meant))
    for path, value in meant.items():
        assert float((found[path] - value).abs().max()) <= SAME * float((value - before[path]).abs().max())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_sum_is_both_adapters(name, tmp_path):
    files, out = [tmp_path / f"{number}.safetensors" for number in range(2)], tmp_path / "out.safetensors"
    paths = saved(name, 4, 3.0, files[0], 1)
    assert saved(name, 2, 5.0, files[1], 2) == paths
    lora_inspect.combine(list(zip(files, MULTIPLIERS, strict=True)), out)
    meant = with_networks(name, files, MULTIPLIERS)
    for found in (with_networks(name, [out], [1.0]), merged(name, out), started(name, out, 6)):
        assert_same(found, meant, name, paths)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_higher_rank_begins_as_the_file(name, tmp_path):
    file, out = tmp_path / "file.safetensors", tmp_path / "out.safetensors"
    paths = saved(name, 4, 3.0, file, 1)
    lora_inspect.resize(file, out, rank=16)
    assert_same(started(name, out, 16), with_networks(name, [file], [1.0]), name, paths)


def test_it_merges_the_sum_while_it_loads_a_model(tmp_path):
    loading = pytest.importorskip("musubi_tuner.utils.lora_utils", exc_type=ImportError)
    files, out = [tmp_path / f"{number}.safetensors" for number in range(2)], tmp_path / "out.safetensors"
    for number, file in enumerate(files):
        saved("wan", 4, 3.0 + number, file, number)
    lora_inspect.combine(list(zip(files, MULTIPLIERS, strict=True)), out)
    base = {key: value.contiguous() for key, value in make("wan", "original").state_dict().items()}
    save_file(base, tmp_path / "base.safetensors")

    def loaded(adapters, multipliers):
        return loading.load_safetensors_with_lora_and_fp8(
            str(tmp_path / "base.safetensors"), [load_file(file) for file in adapters], list(multipliers), False,
            torch.device("cpu"),
        )  # fmt: skip

    found, meant = loaded([out], [1.0]), loaded(files, MULTIPLIERS)
    changes = {key: float((value - base[key]).norm()) for key, value in meant.items()}
    assert sum(map(bool, changes.values())) == 24
    assert all(float((found[key] - value).norm()) <= SAME * changes[key] for key, value in meant.items())


def epochs(folder, count):
    """Files of one training, after 10 steps each."""
    numbers, files = torch.Generator().manual_seed(9), []
    layers = [f"lora_unet_blocks_{number}_self_attn_q" for number in range(3)]
    for epoch in range(1, count + 1):
        tensors = {}
        for layer in layers:
            tensors[f"{layer}.lora_down.weight"] = torch.randn(4, 20, generator=numbers)
            tensors[f"{layer}.lora_up.weight"] = torch.randn(24, 4, generator=numbers)
            tensors[f"{layer}.alpha"] = torch.tensor(3.0)
        files.append(folder / f"style-{epoch:06}.safetensors")
        save_file(tensors, files[-1], {"ss_steps": str(10 * epoch), "ss_network_module": "networks.lora_wan"})
    return files


def by_beta(files, beta):
    """The formula of its script in float64."""
    state = {key: value.double() for key, value in load_file(files[0]).items()}
    for file in files[1:]:
        state = {key: beta * state[key] + (1 - beta) * value.double() for key, value in load_file(file).items()}
    return state


def by_sigma(files, sigma):
    """The formula of its script in float64, in which the file before the first one is left without a weight."""
    squared = sigma**-2
    roots = numpy.roots([1, 7, 16 - squared, 12 - squared])
    gamma = max(root.real for root in roots if abs(root.imag) < 1e-9)
    state = {key: value.double() for key, value in load_file(files[0]).items()}
    for number, file in enumerate(files[1:], 2):
        beta = (1 - 1 / number) ** (gamma + 1)
        state = {key: beta * state[key] + (1 - beta) * value.double() for key, value in load_file(file).items()}
    return state


def assert_alike(found, meant):
    assert found.keys() == meant.keys()
    for key, value in meant.items():
        assert float((found[key].double() - value).abs().max()) <= 1e-6 * float(value.abs().max())


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("beta", [0.5, 0.95])
def test_an_average_by_beta_is_its_formula(beta, count, tmp_path):
    files = epochs(tmp_path, count)
    lora_inspect.average(files, tmp_path / "out.safetensors", of="factors", beta=beta)
    assert_alike(load_file(tmp_path / "out.safetensors"), by_beta(files, beta))


@pytest.mark.parametrize("sigma", [0.05, 0.15, 0.28])
def test_an_average_by_sigma_is_its_formula(sigma, tmp_path):
    files = epochs(tmp_path, 5)
    lora_inspect.average(files, tmp_path / "out.safetensors", of="factors", sigma_rel=sigma)
    assert_alike(load_file(tmp_path / "out.safetensors"), by_sigma(files, sigma))


@pytest.mark.parametrize(("rule", "value"), [("beta", 0.9), ("sigma_rel", 0.15)])
def test_an_average_is_that_of_its_script(rule, value, tmp_path):
    script = pytest.importorskip("musubi_tuner.lora_post_hoc_ema", exc_type=ImportError)
    files, its = epochs(tmp_path, 5), tmp_path / "its.safetensors"
    lora_inspect.average(files, tmp_path / "out.safetensors", of="factors", **{rule: value})
    # With a width, the oldest of its files has no weight.
    paths = [str(file) for file in (files[:1] if rule == "sigma_rel" else []) + files]
    beta, sigma = (value, None) if rule == "beta" else (0.0, value)
    script.merge_lora_weights_with_post_hoc_ema(paths, True, beta, beta, sigma, str(its))
    assert_alike(load_file(tmp_path / "out.safetensors"), {key: one.double() for key, one in load_file(its).items()})
