"""The parts in which an object goes into a store, and which of them the store may copy from another one.

Some stores want all parts but the last to be of one size, so that a grid of it lies over each object.
"""

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.stores.answers import Answer

PART_BYTES = 16 << 20
_MOST_PARTS = 10_000


class Borrowed(NamedTuple):
    """Bytes `start` to `stop` of an object of the same store, `at` a position of the new one.

    `answer` is what the store said of the object, which it must still be.
    """

    address: str
    answer: Answer
    start: int
    stop: int
    at: int


def part_size(size: int) -> int:
    """The size of the parts of an object: of all but the last."""
    return PART_BYTES * -(-size // (PART_BYTES * _MOST_PARTS)) or PART_BYTES
