"""change_norm and lost_share: against the change written out as one matrix in float64."""

import pytest
import torch

from lora_inspect.algorithms import by_name
from lora_inspect.converting.steps import part as module
from lora_inspect.converting.steps.part import change_norm, lost_share

pytestmark = pytest.mark.numeric


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lora(factors):
    return torch.einsum("or,rixy->oixy", factors["up"][:, :, 0, 0], factors["down"])


def loha(factors):
    return (factors["w1_a"] @ factors["w1_b"]) * (factors["w2_a"] @ factors["w2_b"])


def lokr(factors):
    return torch.einsum("ab,cdxy->acbdxy", factors["w1"], factors["w2"])


def itself(factors):
    (difference,) = factors.values()
    return difference


CHANGES = {
    "lora": (lora, {"up": (7, 3, 1, 1), "down": (3, 4, 3, 2)}),
    "loha": (loha, {"w1_a": (7, 2), "w1_b": (2, 5), "w2_a": (7, 2), "w2_b": (2, 5)}),
    # Both factors are whole, so that there is no thin product of it.
    "lokr": (lokr, {"w1": (3, 2), "w2": (4, 5, 3, 2)}),
    "full": (itself, {"difference": (9, 4, 3, 2)}),
    "full_bias": (itself, {"difference": (9,)}),
}
BY_NAME = pytest.mark.parametrize("name", CHANGES)


def factors_of(name: str) -> dict[str, torch.Tensor]:
    return {role: noise(*shape, seed=seed) for seed, (role, shape) in enumerate(CHANGES[name][1].items())}


@pytest.fixture(params=[1, 50, 1 << 20])
def elements(request, monkeypatch):
    """Blocks of a row each, of some rows and a last one of fewer, and of all rows."""
    monkeypatch.setattr(module, "_ELEMENTS", request.param)


@BY_NAME
@pytest.mark.usefixtures("elements")
def test_the_norm_is_that_of_the_change_as_one_matrix(name):
    factors = factors_of(name)
    expected = float(CHANGES[name][0](factors).norm())
    assert change_norm(by_name(name).formula, factors) == pytest.approx(expected, rel=1e-12)


@BY_NAME
@pytest.mark.usefixtures("elements")
def test_what_is_lost_is_the_difference_of_the_two_changes(name):
    meant, algorithm = factors_of(name), by_name(name)
    role = algorithm.scaled[0]
    written = {**meant, role: meant[role] + 1e-3 * noise(*meant[role].shape, seed=9)}
    of = CHANGES[name][0]
    expected = float((of(written) - of(meant)).norm() / of(meant).norm())
    found = lost_share(algorithm.formula, meant, role, meant[role], written[role])
    assert found == pytest.approx(expected, rel=1e-9)
    assert lost_share(algorithm.formula, meant, role, meant[role], meant[role]) == 0.0


def test_a_change_that_is_nothing_loses_all_or_nothing():
    factors, formula = factors_of("full"), by_name("full").formula
    nothing = torch.zeros_like(factors["difference"])
    assert lost_share(formula, factors, "difference", nothing, factors["difference"]) == 1.0
    assert lost_share(formula, factors, "difference", nothing, nothing) == 0.0
