"""The registry of algorithms. To add one: write its file and name it here."""

from lora_inspect.algorithms.lora import LORA
from lora_inspect.algorithms.recognised import RECOGNISED
from lora_inspect.algorithms.record import Algorithm

BUILT = (LORA,)
ALGORITHMS: tuple[Algorithm, ...] = (*BUILT, *RECOGNISED)


def by_name(name: str) -> Algorithm:
    """The algorithm called `name`; raises KeyError."""
    return _BY_NAME[name]


_BY_NAME = {algorithm.name: algorithm for algorithm in ALGORITHMS}
