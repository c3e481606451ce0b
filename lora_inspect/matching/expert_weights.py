"""Parameters that have a layer of all experts of a mixture, and how they store the matrix of each.

An expert is a gated feed-forward, so that its two parameters show together which way round they are: (experts, 2·n, m)
and (experts, m, n) are stored as (experts, out, in), (experts, m, 2·n) and (experts, n, m) as (experts, in, out). No
sizes are both. Where each of the layers has a module of its own, as in mlx-lm, its weight is (experts, out, in).
"""

from lora_inspect.algorithms.record import WEIGHT
from lora_inspect.architectures.families.llm import EXPERT_PARAMETERS
from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.safetensors.header import TensorInfo

# The head of a model that gives a class to every token.
_CLASSIFIER = "score.weight"


class Storage(NamedTuple):
    """How the parameters of a layer's experts are stored: as (experts, in, out), and with gate and up taking turns."""

    transposed: bool
    interleaved: bool = False


def as_matrix(info: TensorInfo) -> TensorInfo:
    """The parameter as a matrix (experts·d1, d2), where expert e has d1 rows from e·d1 on."""
    experts, rows, columns = info.shape
    return info._replace(shape=(experts * rows, columns))


def storage_of(path: str, base: Checkpoint) -> Storage:
    """How the parameter at `path` is stored; raises LoraInspectError where it and its sibling do not show it.

    Gate and up take turns in gpt-oss, which stores (experts, in, out) and has biases. The one other class that does, of
    OpenAI's privacy filter, has the head of a classifier, and gate before up.
    """
    parent, _, leaf = path.rpartition(".")
    if leaf == WEIGHT:
        return Storage(transposed=False)
    shapes = {
        name: base.tensors[f"{parent}.{name}"].shape for name in EXPERT_PARAMETERS if f"{parent}.{name}" in base.tensors
    }
    if len(shapes) == len(EXPERT_PARAMETERS):
        first, last = shapes.values()
        if len(first) == 3 and len(last) == 3:
            if first == (last[0], 2 * last[2], last[1]):
                return Storage(transposed=False)
            if first == (last[0], last[2], 2 * last[1]):
                has_biases = f"{parent}.{EXPERT_PARAMETERS[0]}_bias" in base.tensors
                return Storage(transposed=True, interleaved=has_biases and _CLASSIFIER not in base.tensors)
    shapes[leaf] = base.tensors[path].shape  # whatever it is called
    found = " and ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    raise LoraInspectError(
        f"{base.path}: {parent} has {found}, but {' and '.join(EXPERT_PARAMETERS)} of (experts, 2·n, m) and "
        "(experts, m, n), or of (experts, m, 2·n) and (experts, n, m), were expected, so that it is not known which "
        "rows an expert has; use a base that has the experts one by one."
    )
