"""Growth: an output is refused where it is both large and much larger than its input."""

import pytest

from lora_inspect.converting.growth import Growth
from lora_inspect.errors import LoraInspectError

MB = 1 << 20


@pytest.mark.parametrize(("given", "limit"), [(0, 64 * MB), (MB, 64 * MB), (4 * MB, 64 * MB), (10 * MB, 160 * MB)])
@pytest.mark.parametrize("steps", [1, 4])
def test_all_that_is_taken_counts_up_to_the_limit(given, limit, steps):
    growth = Growth("in.safetensors", given, allowed=False)
    for _ in range(steps):
        growth.take(limit // steps, "a module")
    with pytest.raises(LoraInspectError, match=rf"in.safetensors: with one more .*{limit + 1:,} bytes.*--allow-growth"):
        growth.take(1, "one more")


def test_what_is_allowed_has_no_limit():
    Growth("in.safetensors", 1, allowed=True).take(1 << 60, "a module")
