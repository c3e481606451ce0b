"""LoRA and DoRA of the layers of a base, with the formula in float64 and a bound of any float32 result."""

from typing import NamedTuple

import torch

EPS = 2.0**-24


class Factors(NamedTuple):
    """LoRA of one layer, of DoRA where it has a magnitude."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float
    magnitude: torch.Tensor | None = None

    def folded(self, weight: torch.Tensor, multiplier: float, interpolate: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(W', a bound of the error of any order of float32 operations), from the formula in float64."""
        shape, weight = weight.shape, weight.double().flatten(1)
        down, up = self.down.double().flatten(1), self.up.double().flatten(1)
        scale = self.alpha / self.down.shape[0]
        terms = self.down.shape[0] + weight.shape[1] + 8
        inner = 1.0 if interpolate and self.magnitude is not None else multiplier
        combined = weight + inner * scale * up @ down
        size = weight.abs() + abs(inner * scale) * up.abs() @ down.abs()
        if self.magnitude is None:
            return combined.reshape(shape), (4 * terms * EPS * size).reshape(shape)
        norm = combined.norm(dim=1, keepdim=True)
        gain = self.magnitude.double().reshape(-1, 1) / norm
        changed = combined * gain
        bound = 4 * terms * EPS * size * gain.abs() * (1 + size.norm(dim=1, keepdim=True) / norm)
        if interpolate:
            changed = weight + multiplier * (changed - weight)
            bound = bound * abs(multiplier) + 4 * terms * EPS * size * (1 + abs(multiplier))
        return changed.reshape(shape), bound.reshape(shape)


def factors(base, paths, dora=False, seed=7):
    """Factors of the layers of `base` at the paths, each of another rank and alpha."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number, path in enumerate(paths):
        weight, rank = base[f"{path}.weight"], 1 + number % 3
        down = torch.randn((rank, *weight.shape[1:]), generator=generator)
        up = torch.randn((weight.shape[0], rank, *(1 for _ in weight.shape[2:])), generator=generator)
        magnitude = weight.flatten(1).norm(dim=1) * (1 + torch.rand(len(weight), generator=generator)) if dora else None
        found[path] = Factors(down, up, 0.5 + number % 4, magnitude)
    return found


def kohya(prefix, adapter):
    """The underscored names, alpha in a tensor; the magnitude as ComfyUI's users know it."""
    tensors = {}
    for path, own in adapter.items():
        name = prefix + path.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": own.down, f"{name}.lora_up.weight": own.up}
        tensors[f"{name}.alpha"] = torch.tensor(own.alpha)
        if own.magnitude is not None:
            tensors[f"{name}.dora_scale"] = own.magnitude.reshape(-1, *(1 for _ in own.down.shape[1:]))
    return tensors


def dotted(prefix, adapter):
    """Dotted names with alpha; the magnitude in PEFT's spelling."""
    tensors = {}
    for path, own in adapter.items():
        tensors |= {f"{prefix}{path}.lora_A.weight": own.down, f"{prefix}{path}.lora_B.weight": own.up}
        tensors[f"{prefix}{path}.alpha"] = torch.tensor(own.alpha)
        if own.magnitude is not None:
            ones = (1,) * (own.down.dim() - 2)
            shape = (1, -1, *ones) if ones else (-1,)
            tensors[f"{prefix}{path}.lora_magnitude_vector"] = own.magnitude.reshape(shape)
    return tensors


def expected(base, adapter, multiplier, interpolate):
    """(float64 tensors, bounds) of the base that the adapter was made for."""
    values = {name: value.double() for name, value in base.items()}
    bounds = {name: torch.zeros_like(value) for name, value in values.items()}
    for path, own in adapter.items():
        name = f"{path}.weight"
        values[name], bounds[name] = own.folded(base[name], multiplier, interpolate)
    return values, bounds


def assert_within(found, values, bounds):
    assert found.keys() == values.keys()
    changed = 0
    for name, value in found.items():
        error = (value.double() - values[name]).abs()
        assert bool((error <= bounds[name]).all()), (name, float((error - bounds[name]).max()))
        changed += bool(bounds[name].any())
    assert changed
