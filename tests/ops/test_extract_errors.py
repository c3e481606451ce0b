"""The two errors of an extraction, beside norms in float64: of the extracted matrices, and of the two models."""

import math

import layouts
import pytest
from adapters import drawn
from safetensors.torch import load_file, save_file

import lora_inspect

pytestmark = pytest.mark.numeric

RANK = 2


def saved(path, tensors):
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


class Pair:
    """A model of layers with biases, and a copy that differs from it everywhere by full ranks."""

    def __init__(self, folder, vectors):
        names = [f"net.{block}.{leaf}" for block in range(2) for leaf in ("q", "up")]
        self.base = {f"{name}.weight": drawn(number, 24, 20) for number, name in enumerate(names)}
        self.base |= {f"{name}.bias": drawn(10 + number, 24) for number, name in enumerate(names)}
        self.base["table"] = drawn(20, 6, 5)
        self.tuned = {
            name: value + (0.1 if value.dim() > 1 else vectors) * drawn(30 + number, *value.shape)
            for number, (name, value) in enumerate(self.base.items())
        }
        self.folder = folder
        self.paths = saved(folder / "tuned.safetensors", self.tuned), saved(folder / "base.safetensors", self.base)
        self.out = folder / "out.safetensors"

    def extract(self, **options):
        return lora_inspect.extract(*self.paths, self.out, rank=RANK, to="lycoris", force=True, **options)

    def squares(self):
        """The squared norm of each tensor's difference."""
        return {
            name: float((self.tuned[name].double() - value.double()).square().sum())
            for name, value in self.base.items()
        }

    def lost(self, only=""):
        """The squared norm of what is missing of each tensor that the output changes."""
        tensors, missing = load_file(self.out), {}
        for key, up in tensors.items():
            if key.endswith(".lora_up.weight"):
                flat = key.removeprefix("lora_unet_").removeprefix("lycoris_").removesuffix(".lora_up.weight")
                name = next(name for name in self.base if name.replace(".", "_") == f"{flat}_weight")
                product = up.double() @ tensors[key.replace("lora_up", "lora_down")].double()
                missing[name] = float((self.tuned[name].double() - self.base[name].double() - product).square().sum())
        return missing

    def expected(self, vectors_kept=True):
        """The error and the whole error, from the written file."""
        squares, lost = self.squares(), self.lost()
        kept = {name for name in squares if name.endswith(".bias") and vectors_kept}
        left = sum(square for name, square in squares.items() if name not in lost and name not in kept)
        error = math.sqrt(sum(lost.values()) / sum(squares[name] for name in lost))
        return error, math.sqrt((sum(lost.values()) + left) / sum(squares.values()))


def assert_errors(result, expected):
    error, whole_error = expected
    assert result.error == pytest.approx(error, rel=1e-3)
    assert result.energy == pytest.approx(1 - error**2, rel=1e-3)
    assert result.whole_error == pytest.approx(whole_error, rel=1e-3)


@pytest.mark.parametrize("vectors", [0.01, 1.0])
def test_error_does_not_depend_on_vectors(vectors, tmp_path):
    pair = Pair(tmp_path, vectors)
    result = pair.extract()
    assert result.differences == 4
    assert_errors(result, pair.expected())


def test_whole_error_counts_vectors_that_are_left_out(tmp_path):
    pair = Pair(tmp_path, 1.0)
    result = pair.extract(weights_only=True)
    assert_errors(result, pair.expected(vectors_kept=False))
    assert result.whole_error > 1.1 * result.error


@pytest.mark.parametrize("options", [{"include": ["net.0"]}, {"exclude": ["*.up"]}])
def test_whole_error_counts_tensors_that_are_not_requested(options, tmp_path):
    pair = Pair(tmp_path, 1e-9)
    result = pair.extract(**options)
    assert len(pair.lost()) == 2
    assert_errors(result, pair.expected())
    assert result.whole_error > 1.1 * result.error


def test_shares_are_of_difference_of_both_models(tmp_path):
    pair = Pair(tmp_path, 1.0)
    result = pair.extract(include=["net.0"])
    share = pair.squares()["table"] / sum(pair.squares().values())
    assert next(iter(result.shares.values())) == pytest.approx(share, rel=1e-3)


def test_whole_error_of_tensor_with_nan_that_is_not_requested_is_unknown(run, tmp_path):
    pair = Pair(tmp_path, 1.0)
    pair.tuned["net.1.q.weight"][0, 0] = math.nan
    saved(pair.paths[0], pair.tuned)
    asked = ("extract", *pair.paths, "--rank", "2", "--include", "net.0", "--dry-run")
    shown = run(*asked, "--json").json
    assert shown["whole_error"] is None
    assert shown["error"] > 0
    assert "whole error: not known" in run(*asked).stdout


def test_error_of_part_of_fused_tensor_counts_other_rows(tmp_path):
    """CLIP of open_clip has query, key and value in one tensor, of which kohya's names have three modules."""
    prefix = "conditioner.embedders.1.model.transformer.resblocks.0"
    base = {name: 0.1 * value for name, value in clip_of_sdxl(prefix).items()}
    tuned = {name: value + 0.01 * drawn(50 + number, *value.shape) for number, (name, value) in enumerate(base.items())}
    paths = saved(tmp_path / "tuned.safetensors", tuned), saved(tmp_path / "base.safetensors", base)
    result = lora_inspect.extract(*paths, None, rank=1280, include=["*.q_proj"], weights_only=True)
    squares = {name: (tuned[name].double() - base[name].double()).square() for name in base}
    carried = squares[f"{prefix}.attn.in_proj_weight"][:1280].sum()
    expected = math.sqrt(1 - float(carried / sum(square.sum() for square in squares.values())))
    assert result.modules == 1
    assert result.whole_error == pytest.approx(expected, rel=1e-3)


def unet_of_sdxl():
    unet, names = layouts.sdxl()
    small = [name for name, value in unet.items() if value.dim() == 2][:24]
    return {f"model.diffusion_model.{names[name]}": unet[name] for name in small}


def clip_of_sdxl(prefix):
    shapes = {"attn.in_proj_weight": (3840, 1280), "attn.in_proj_bias": (3840,), "attn.out_proj.weight": (1280, 1280)}
    return unet_of_sdxl() | {
        f"{prefix}.{leaf}": drawn(number, *shape) for number, (leaf, shape) in enumerate(shapes.items())
    }


def test_both_errors_are_in_text_json_and_python(run, tmp_path):
    pair = Pair(tmp_path, 1.0)
    result = pair.extract(weights_only=True)
    asked = ("extract", *pair.paths, "--rank", str(RANK), "--to", "lycoris", "--weights-only", "--dry-run")
    shown = run(*asked, "--json").json
    assert (shown["error"], shown["whole_error"]) == pytest.approx((result.error, result.whole_error))
    text = run(*asked).stdout
    assert f"error: {result.error:.3g}," in text
    assert f"whole error: {result.whole_error:.3g}," in text


def test_whole_error_of_vae_is_counted(tmp_path):
    name = "first_stage_model.encoder.conv_in.weight"
    base = {name: drawn(2, 8, 3, 3, 3)} | unet_of_sdxl()
    tuned = {name: value + 0.1 * drawn(90 + number, *value.shape) for number, (name, value) in enumerate(base.items())}
    paths = saved(tmp_path / "tuned.safetensors", tuned), saved(tmp_path / "base.safetensors", base)
    result = lora_inspect.extract(*paths, None, rank=1)
    squares = {name: float((tuned[name].double() - base[name].double()).square().sum()) for name in base}
    share = squares[name] / sum(squares.values())
    assert result.shares["it is of the VAE, which adapters do not change"] == pytest.approx(share, rel=1e-3)
    assert result.whole_error**2 >= share
