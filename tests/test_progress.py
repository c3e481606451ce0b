"""How a work that is gone through several times is told as one."""

import pytest

from lora_inspect.progress import PartialProgress


@pytest.mark.parametrize(
    ("size", "work", "amounts", "told"),
    [
        (100, 100, [40, 60], [40, 60]),
        (100, 300, [150, 150], [50, 50]),
        (100, 300, [90], [30, 70]),  # less was to be done than was thought
        (100, 50, [40, 40], [80, 20]),  # more was
        (100, 0, [], [100]),
        (0, 0, [5], []),
        (3, 1000, [1, 1, 998], [3]),
    ],
)
def test_the_whole_is_told_once_and_never_more(size, work, amounts, told):
    found = []
    share = PartialProgress(found.append, size)
    share.work = work
    for amount in amounts:
        share.done(amount)
    share.finish()
    share.finish()
    assert found == told
