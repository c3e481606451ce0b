"""Parameters that have a layer of all experts of a mixture, (experts, out, in), and which way round they are.

An expert is a gated feed-forward, so that its two parameters, (experts, 2·n, m) and (experts, m, n), show it together:
stored as (experts, in, out) they are (m, 2·n) and (n, m), and no sizes are both.
"""

from lora_inspect.architectures.llm import EXPERT_PARAMETERS
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.header import TensorInfo


def as_matrix(info: TensorInfo) -> TensorInfo:
    """The parameter as a matrix (experts·out, in), where expert e has `out` rows from e·out on."""
    experts, rows, columns = info.shape
    return info._replace(shape=(experts * rows, columns))


def check_orientation(path: str, base: Checkpoint) -> None:
    """Raises LoraInspectError where the parameter at `path` and its sibling are not stored as (experts, out, in)."""
    parent = path.rpartition(".")[0]
    shapes = {
        name: base.tensors[f"{parent}.{name}"].shape for name in EXPERT_PARAMETERS if f"{parent}.{name}" in base.tensors
    }
    if len(shapes) == len(EXPERT_PARAMETERS):
        first, last = shapes.values()
        if len(last) == 3 and first == (last[0], 2 * last[2], last[1]):
            return
    found = " and ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    raise LoraInspectError(
        f"{base.path}: {parent} has {found}, but {' and '.join(EXPERT_PARAMETERS)} of (experts, 2·n, m) and "
        "(experts, m, n) were expected, so that it is not known which rows an expert has; use a base that has the "
        "experts one by one."
    )
