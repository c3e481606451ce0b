"""What a seed is for."""

import pytest

from lora_inspect.merging.options import seed_of


@pytest.mark.parametrize(
    ("rounding", "seed", "drawn_by"), [("nearest", None, None), ("stochastic", None, 0), ("stochastic", -7, -7)]
)
def test_what_is_drawn_by(rounding, seed, drawn_by):
    assert seed_of(rounding, seed) == drawn_by


def test_a_seed_without_a_draw_is_refused():
    with pytest.raises(ValueError, match="give both or neither"):
        seed_of("nearest", 0)
