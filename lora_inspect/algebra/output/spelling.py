"""The form in which the factors of a module are written: their keys, and their orientation.

Most names have plain LoRA: up (out, rank, 1, …) and down (rank, in, *kernel). mlx-lm turns both factors round, and
llama.cpp the down factor of an Embedding. Factors of all experts of a layer are stacked, or packed as PEFT packs them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy
from numpy.typing import NDArray

from lora_inspect import schemes
from lora_inspect.algebra.alignment import Term
from lora_inspect.algorithms import lora, lora_bias, lora_embedding, lora_experts, mlx
from lora_inspect.algorithms.attention_lora import OUT_PROJ, TIMES
from lora_inspect.algorithms.full import DIFFERENCE
from lora_inspect.algorithms.record import BIAS, WEIGHT, Algorithm
from lora_inspect.converting.target.key_names import ALPHA, alpha_key, carrier_of, factor_key, new_factor_key
from lora_inspect.converting.target.target_algorithm import ARE_DIFFERENCES, DIFFERENCES, reads_differences
from lora_inspect.converting.target.target_program import WITHOUT_BIASES
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_names import leaf_of
from lora_inspect.reading.expert_parameters import PARAMETERS
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.peft.saved_tensors import BELOW
from lora_inspect.schemes.gguf import GGUF
from lora_inspect.schemes.mlx import MLX
from lora_inspect.sentences import listed

Numbers = NDArray[numpy.generic]
UP, DOWN = "up", "down"
PLAIN, TURNED, ALONG_TOKENS, STACKED, PACKED = "plain", "turned", "along tokens", "stacked", "packed"
_EMBEDDINGS = {algorithm.name for algorithm in lora_embedding.ALGORITHMS}
# The start of the names of factors in PEFT.
_FACTOR_OF_PEFT = ".lora_"
# Algorithms whose factors a sum keeps: all others become plain LoRA.
_KEPT = {lora.ALGORITHM.name, mlx.NAME, *_EMBEDDINGS}


class Spelling(NamedTuple):
    """The keys of a module's factors and of its alpha, which not all names have, and the form of the factors.

    `path` is the one by which a config of PEFT speaks of the module, and `is_of_parameter` says that it does so in its
    `target_parameters`.
    """

    up: str
    down: str
    alpha: str | None
    form: str
    path: str
    is_of_parameter: bool = False

    def shapes(self, shape: Sequence[int], rank: int, experts: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of up and down as they are written, for a weight (out, in, *kernel), that of one expert."""
        rows, *columns = shape
        if self.form == TURNED:
            return (rank, rows), (columns[0], rank)
        if self.form == ALONG_TOKENS:
            return (rows, rank), (columns[0], rank)
        if self.form == STACKED:
            return (experts, rows, rank), (experts, rank, columns[0])
        if self.form == PACKED:
            return (rows, rank * experts), (experts * rank, columns[0])
        return (rows, rank, *[1] * len(columns[1:])), (rank, *columns)

    def arranged(self, up: Numbers, down: Numbers) -> tuple[Numbers, Numbers]:
        """Return the factors (out, rank) and (rank, columns), perhaps stacked for experts, in their written order."""
        if self.form == TURNED:
            return up.T, down.T
        if self.form == ALONG_TOKENS:
            return up, down.T
        if self.form == PACKED:
            # Column k·experts + e of up is the k-th of expert e, and row e·rank + k of down.
            return up.transpose(1, 2, 0).reshape(up.shape[1], -1), down.reshape(-1, down.shape[2])
        return up, down


def suffixes_of(first: Adapter) -> dict[str, str]:
    """Return the suffixes of the factors of plain LoRA in a file, from the first module that has them; else none."""
    for contribution in first.contributions:
        if contribution.algorithm.name == lora.ALGORITHM.name and contribution.rows is None:
            keys = {role: contribution.factors[role].name for role in (UP, DOWN)}
            if all(key.startswith(contribution.module.key) for key in keys.values()):
                return {role: key.removeprefix(contribution.module.key) for role, key in keys.items()}
    return {}


def spelling_of(module: Module, origin: Contribution | None, suffixes: Mapping[str, str]) -> Spelling:
    """Return the spelling of a module's factors: with the first file's `suffixes` if the module keeps its names.

    `origin` is a contribution of the module in a file, None where no file has it. Raises LoraInspectError for experts
    under names of another program than their own.
    """
    alpha = alpha_key(module) if carrier_of(module) == ALPHA else None
    body = module.name.body
    if origin is None:
        return Spelling(*_keys(module, None, lora.ALGORITHM), alpha, _form(module, lora.ALGORITHM), body)
    is_same = origin.module == module.name
    algorithm = origin.algorithm if origin.algorithm.name in _KEPT or origin.algorithm.experts else lora.ALGORITHM
    if algorithm.experts:
        if not is_same:
            raise RefusedError(
                next(iter(origin.factors.values())).file,
                f"{origin.module.key} is {algorithm.title}, which no other names have",
                "leave --to out, or take the experts apart with convert --layout single-experts",
            )
        form = PACKED if algorithm.packed else STACKED
        is_parameter = algorithm.name == lora_experts.NAME
        return Spelling(*_keys(module, origin, algorithm), None, form, origin.config_path, is_parameter)
    if module.name.scheme == MLX.name:
        algorithm = mlx.EMBEDDING if algorithm.transposed else mlx.ALGORITHM
    else:
        algorithm = mlx.in_lora(algorithm)
    algorithm = lora_embedding.spelled_in(algorithm, [schemes.by_name(module.name.scheme).dialect])
    is_held = is_same and algorithm.name == lora.ALGORITHM.name and algorithm != lora.ALGORITHM
    if suffixes and not module.respelled and algorithm.name == lora.ALGORITHM.name and not is_held:
        up, down = (module.name.key + suffixes[role] for role in (UP, DOWN))
    else:
        up, down = _keys(module, origin, algorithm)
    return Spelling(
        up,
        down,
        alpha,
        _form(module, algorithm),
        origin.config_path if is_same else body,
        is_held and algorithm == lora_experts.OF_MATRIX,
    )


def nested(spellings: Mapping[str, Spelling], name: str) -> dict[str, Spelling]:
    """Return the spellings by module, with keys of their own for parameters of one layer from several inputs.

    In each input a parameter may be the only one of its layer, and so have the layer's name. Together PEFT wraps the
    layer once for each of them: the first parameter is innermost.

    Raises LoraInspectError, about the output called `name`, if the order of such parameters is not known.
    """
    parameters = {module: spelled for module, spelled in spellings.items() if spelled.is_of_parameter}
    if len({spelled.up for spelled in parameters.values()}) == len(parameters):
        return dict(spellings)
    layers: dict[str, list[str]] = defaultdict(list)
    for module, spelled in parameters.items():
        layers[_outermost(spelled.up)].append(module)
    found = dict(spellings)
    for modules in (modules for modules in layers.values() if len(modules) > 1):
        order = {PARAMETERS.index(leaf): module for module in modules if (leaf := leaf_of(module)) in PARAMETERS}
        if len(order) < len(modules):
            raise RefusedError(
                name,
                f"{listed(modules)} have one name in it",
                "leave all of them but one out with --exclude, or choose other names with --to",
            )
        for depth, place in enumerate(sorted(order, reverse=True)):
            spelled, below = spellings[order[place]], BELOW * depth
            up, down = (_inserted(key, below) for key in (spelled.up, spelled.down))
            found[order[place]] = spelled._replace(up=up, down=down)
    return found


def _outermost(key: str) -> str:
    """Return the key that a factor has if its parameter is the only one of its layer."""
    return _inserted(key, "")


def _inserted(key: str, below: str) -> str:
    layer, factor, suffix = key.rpartition(_FACTOR_OF_PEFT)
    while layer.endswith(BELOW):
        layer = layer.removesuffix(BELOW)
    return f"{layer}{below}{factor}{suffix}"


def times_counted(module: Module, origin: Contribution) -> int:
    """Return the number of times that programs with the module's names add the product of its factors."""
    return TIMES if origin.module == module.name and origin.algorithm == OUT_PROJ else 1


def _form(module: Module, algorithm: Algorithm) -> str:
    if module.name.scheme == MLX.name:
        return TURNED
    is_along = module.name.scheme == GGUF.name and algorithm.name in _EMBEDDINGS
    return ALONG_TOKENS if is_along else PLAIN


def _keys(module: Module, origin: Contribution | None, algorithm: Algorithm) -> tuple[str, str]:
    up, down = (_key(module, origin, algorithm, role) for role in (UP, DOWN))
    return up, down


def _key(module: Module, origin: Contribution | None, algorithm: Algorithm, role: str) -> str:
    return factor_key(module, origin, algorithm, role) if origin else new_factor_key(module, algorithm, role)


def difference_key(module: Module, terms: Sequence[Term], parameter: str, has_factors: bool) -> str:
    """Return the key of the difference of a parameter, the sum of `terms` and perhaps others.

    A bias on LoRA's up layer stays one if the module `has_factors`, since their scale of 1 is that of the bias. Raises
    LoraInspectError if programs that read the names know no difference.
    """
    origin = terms[0].contribution if terms else None
    if has_factors and origin and all(term.contribution.algorithm.name == lora_bias.ALGORITHM.name for term in terms):
        return _key(module, origin, lora_bias.ALGORITHM, *lora_bias.ALGORITHM.marks)
    has_own = origin is not None and origin.algorithm.name in ARE_DIFFERENCES
    algorithm = origin.algorithm if origin and has_own else DIFFERENCES[parameter]
    if not reads_differences(module.name.scheme) and not has_own:
        names = "choose other names, for instance with --to kohya"
        is_weight = parameter == WEIGHT
        raise RefusedError(
            next(iter(origin.factors.values())).file if origin else module.name.key,
            f"the sum of the changes of {module.name.key} is a full difference of its {parameter}, and no program "
            f"reads one under {module.name.scheme} names",
            f"give --rank N for plain LoRA, or {names}" if is_weight else f"{names}, or {_without(parameter)}",
        )
    return _key(module, origin, algorithm, DIFFERENCE)


def _without(parameter: str) -> str:
    return WITHOUT_BIASES if parameter == BIAS else "leave it out with --exclude"
