"""What `program_grid` sees of toy programs, and that every kind of adapter is what the program's own reading takes."""

import pytest
import torch
from adapters import KINDS, adapter
from program_grid import Observed, Weight, differs, is_gap, observe
from safetensors.torch import load_file, save_file

from lora_inspect.programs.record import Program
from lora_inspect.programs.verdict import Verdict

pytestmark = pytest.mark.numeric

PROGRAM = Program("toy", "Toy", "1", (), {})


def drawn(seed):
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


BASE, DELTA, MAGNITUDE = drawn(1), drawn(2), drawn(3).abs()[:, :1] + 0.5
PLAIN = BASE + DELTA
DORA = MAGNITUDE * PLAIN
WEIGHTS = {"a": Weight(BASE, BASE + DELTA), "b": Weight(BASE, BASE + 2 * DELTA)}
DECOMPOSED = {"a": Weight(BASE, DORA, PLAIN)}


@pytest.mark.parametrize(
    ("found", "verdict", "factors"),
    [
        ({"a": BASE + DELTA, "b": BASE + 2 * DELTA}, "same meaning", {1.0: 2}),
        ({"a": BASE + DELTA / 2, "b": BASE + DELTA}, "wrong strength", {0.5: 2}),
        ({"a": BASE + DELTA, "b": BASE + DELTA}, "wrong strength", {1.0: 1, 0.5: 1}),
        ({"a": BASE - DELTA, "b": BASE + DELTA}, "wrong strength", {-1.0: 1, 0.5: 1}),
        ({"a": BASE + DELTA, "b": BASE}, "partly loaded", {1.0: 1}),
        ({"a": BASE, "b": BASE}, "nothing loaded", {}),
        ({"a": BASE + DELTA, "b": BASE + 2 * DELTA.flip(0)}, "wrong change", {1.0: 1}),
    ],
)
def test_it_names_what_happened(found, verdict, factors):
    seen = observe(WEIGHTS, lambda: found)
    assert (seen.verdict, seen.factors) == (verdict, factors)
    # What float32 leaves is no difference.
    assert observe(WEIGHTS, lambda: {name: value.float() for name, value in found.items()}) == seen


@pytest.mark.parametrize(
    ("found", "verdict", "factor"),
    [
        (DORA, "same meaning", 1.0),
        (PLAIN, "DoRA lost", 1.0),
        (BASE + DELTA / 4, "DoRA lost", 0.25),
        (MAGNITUDE * 1.1 * PLAIN, "DoRA wrong", None),
        (BASE, "nothing loaded", None),
    ],
)
def test_it_tells_magnitudes(found, verdict, factor):
    seen = observe(DECOMPOSED, lambda: {"a": found})
    assert (seen.verdict, seen.factor) == (verdict, factor)


def test_what_is_raised_is_a_refusal():
    def refuses():
        raise KeyError("alpha")

    assert observe(WEIGHTS, refuses) == Observed("refused", says="KeyError: 'alpha'")


def test_a_change_that_cannot_be_seen_is_none():
    with pytest.raises(AssertionError, match="too small"):
        observe({"a": Weight(BASE, BASE * (1 + 1e-6))}, lambda: {"a": BASE})


@pytest.mark.parametrize(
    ("verdict", "factors", "seen", "is_alike"),
    [
        ("same meaning", {1.0: 2}, Observed("same meaning", {1.0: 9}), True),
        ("same meaning", {1.0: 2}, Observed("wrong strength", {0.5: 2}), False),
        ("wrong strength", {0.3536: 2}, Observed("wrong strength", {0.354: 6}), True),
        ("wrong strength", {0.5: 2}, Observed("wrong strength", {0.25: 2}), False),
        ("wrong strength", {0.5: 2}, Observed("wrong strength", {0.5: 1, 1.0: 1}), False),
        ("wrong strength", {0.5: 1, 1.0: 1}, Observed("wrong strength", {0.5: 2}), False),
        ("refused", {}, Observed("refused", says="any"), True),
        ("nothing loaded", {}, Observed("refused", says="any"), False),
        ("DoRA wrong", {1.0: 2}, Observed("DoRA wrong"), True),
    ],
)
def test_a_verdict_differs_from_what_was_seen(verdict, factors, seen, is_alike):
    said = Verdict(PROGRAM, verdict, factors=factors)
    assert (differs(said, seen) == "") == is_alike
    assert not is_gap(said)


def test_what_is_unknown_is_a_gap():
    unknown = Verdict(PROGRAM, "not tested")
    assert is_gap(unknown)
    assert not differs(unknown, Observed("refused"))


@pytest.mark.parametrize("has_alpha", [True, False], ids=["alpha", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_means_what_a_merge_makes_of_it(kind, has_alpha, run, tmp_path):
    generator = torch.Generator().manual_seed(6)
    layers = {
        f"blocks.{number}.self_attn.{leaf}": {
            "weight": torch.randn(shape, generator=generator),
            "bias": torch.randn(shape[:1], generator=generator),
        }
        for number, (leaf, shape) in enumerate((("q", (8, 8)), ("k", (12, 8)), ("o", (8, 12))))
    }
    if KINDS[kind].of_norms:
        layers = {
            path: {name: value.reshape(-1)[:8].clone() for name, value in own.items()} for path, own in layers.items()
        }
    tensors, meant = adapter(KINDS[kind], layers, lambda path: f"lora_unet_{path.replace('.', '_')}", has_alpha)
    base = {f"{path}.{name}": value for path, own in layers.items() for name, value in own.items()}
    save_file(base, tmp_path / "base.safetensors")
    save_file(tensors, tmp_path / "in.safetensors")
    ended = run("merge", tmp_path / "base.safetensors", tmp_path / "in.safetensors", "-o", tmp_path / "o.safetensors")
    assert ended.status == 0, ended.stderr
    assert observe(meant, lambda: load_file(tmp_path / "o.safetensors")).verdict == "same meaning"
