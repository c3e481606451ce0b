"""The weights of the files of one training in their average, by their steps.

- uniform: 1/N each.
- beta: an exponential average in the order of the steps, which begins with the first file: β^(N-1), and (1-β) β^(N-k)
  of file k.
- power function: (t_k^(γ+1) - t_(k-1)^(γ+1)) / t_N^(γ+1) of file k at step t_k, with t_0 = 0. That is the share of the
  average ∫ t^γ θ(t) dt between two files; each file represents the steps before it (Karras et al. 2024, "Analyzing
  and Improving the Training Dynamics of Diffusion Models", equation 1). The relative width is
  σ = (γ+1)^½ (γ+2)^-1 (γ+3)^-½, so γ is the root of γ³ + 7γ² + (16 - σ⁻²) γ + 12 - σ⁻² (ibid., appendix C).
"""

import os
import re
from collections.abc import Sequence

from lora_inspect.algebra.options import AverageRequest
from lora_inspect.errors import RefusedError
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.metadata.provenance import whole

_STEPS = "ss_steps"


def steps_of(adapters: Sequence[Adapter]) -> list[int] | None:
    """Return the step of each file: from its path's setting, its metadata or its name; None if one has none.

    If a file lacks the metadata, names give all steps without a setting.
    """
    given = [adapter.settings.step for adapter in adapters]
    stored = [whole(adapter.checkpoint.metadata.get(_STEPS)) for adapter in adapters]
    named = _numbers_in_names([adapter.checkpoint.path for adapter in adapters])
    for told in (stored, named):
        steps = [told[at] if step is None else step for at, step in enumerate(given)]
        known = [step for step in steps if step is not None]
        if len(known) == len(steps):
            return known
    return None


def _numbers_in_names(paths: Sequence[str]) -> list[int | None]:
    """Return the last number in each name that differs from those at its place in the others."""
    names = [os.path.splitext(os.path.basename(os.path.normpath(path)))[0] for path in paths]
    numbers = [[int(found) for found in re.findall("[0-9]{1,12}", name)] for name in names]
    least = min(map(len, numbers))
    differing = [at for at in range(1, least + 1) if len({own[-at] for own in numbers}) > 1]
    return [own[-differing[0]] if differing else None for own in numbers]


def weights_of(adapters: Sequence[Adapter], steps: Sequence[int] | None, request: AverageRequest) -> list[float]:
    """Return the weight of each file in the average; they add up to 1.

    Raises LoraInspectError if the weights depend on unknown steps, or if two files have the same step.
    """
    if request.beta is None and request.sigma_rel is None:
        return [1.0 / len(adapters)] * len(adapters)
    known = _known(adapters, steps)
    order = sorted(range(len(known)), key=known.__getitem__)
    found = [0.0] * len(known)
    for place, at in enumerate(order):
        if request.beta is not None:
            kept = request.beta ** (len(order) - 1 - place)
            found[at] = kept if place == 0 else (1.0 - request.beta) * kept
        else:
            assert request.sigma_rel is not None
            power = exponent(request.sigma_rel) + 1.0
            before = known[order[place - 1]] if place else 0
            last = known[order[-1]]
            found[at] = (known[at] / last) ** power - (before / last) ** power
    return found


def _known(adapters: Sequence[Adapter], steps: Sequence[int] | None) -> Sequence[int]:
    paths = [adapter.checkpoint.path for adapter in adapters]
    if steps is None:
        open_ones = (one for one in adapters if one.settings.step is None and _STEPS not in one.checkpoint.metadata)
        path = next(open_ones, adapters[0]).checkpoint.path
        raise RefusedError(
            path, f"neither {_STEPS} in its metadata nor its name tells its step", f"give {path}:step=N, or --uniform"
        )
    for at, step in enumerate(steps):
        if step in steps[:at]:
            other = paths[list(steps).index(step)]
            raise RefusedError(
                paths[at],
                f"its step is {step}, as that of {other}",
                f"give {paths[at]}:step=N, or leave one of them out",
            )
        if step < 1:
            raise RefusedError(paths[at], "its step is 0, before any training", "leave it out, or give --uniform")
    return steps


def exponent(width: float) -> float:
    """Return the exponent γ ≥ 0 of the power function with a relative width σ, above 0 and below 12^-½ = 0.2887."""
    inverse = 1.0 / (width * width)
    low, high = 0.0, inverse
    # The polynomial is below 0 at 0 for widths below 12^-½, and grows beyond its largest root.
    for _ in range(200):
        middle = (low + high) / 2.0
        value = ((middle + 7.0) * middle + 16.0 - inverse) * middle + 12.0 - inverse
        low, high = (middle, high) if value < 0.0 else (low, middle)
    return (low + high) / 2.0
