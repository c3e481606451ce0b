"""The changes that `--algorithm` converts: to plain LoRA, or to differences of whole weights.

Only a base shows some of these changes; the plan says which, and refuses a conversion that cannot work. Only shapes
show for certain which changes have low rank.
"""

from collections.abc import Callable, Mapping
from math import prod

from lora_inspect import schemes
from lora_inspect.algorithms import full, loha, lokr, lora, mlx, norm, saved
from lora_inspect.algorithms.record import BIAS, WEIGHT, Algorithm, Shapes
from lora_inspect.converting.options import FULL, SINGLE_EXPERTS, ConvertOptions
from lora_inspect.errors import RefusedError
from lora_inspect.matching.match import Matching
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.peft.peft_config import LORA_TYPE
from lora_inspect.sentences import listed

# The difference by the parameter that it is of.
DIFFERENCES = {algorithm.parameter: algorithm for algorithm in full.ALGORITHMS}
ARE_DIFFERENCES = {algorithm.name for algorithm in (*full.ALGORITHMS, *norm.ALGORITHMS)}


def becomes_full(algorithm: Algorithm) -> bool:
    """Return True if it changes a parameter in another way than by a stored difference."""
    return algorithm.formula is not None and algorithm.name not in ARE_DIFFERENCES


def changes_otherwise(module: Module) -> bool:
    """Return True if some change of the module is no difference, so that all of them become differences."""
    return any(becomes_full(contribution.algorithm) for contribution in module.contributions)


def check_full(adapter: Adapter, options: ConvertOptions) -> list[str]:
    """Raise LoraInspectError if differences are impossible or unreadable; return a note if all are differences."""
    file = adapter.checkpoint.path
    if options.rank is not None or options.max_error is not None:
        raise RefusedError(file, "a full difference has no rank and no error", "leave --rank and --max-error out")
    made = [module for module in adapter.modules.values() if changes_otherwise(module)]
    if not made:
        return [f"{file}: it holds nothing that --algorithm full changes."]
    if options.base is None:
        raise RefusedError(
            file,
            "a full difference of a whole weight needs the base",
            "give --base BASE, the base that it was trained on",
        )
    if options.keep_dora:
        raise RefusedError(file, "a full difference already contains the magnitudes", "leave --keep-dora out")
    for module in made:
        for contribution in module.contributions:
            if contribution.algorithm.experts or contribution.algorithm.transposed:
                what = "all experts of a layer" if contribution.algorithm.experts else "a weight stored as (in, out)"
                raise RefusedError(
                    file,
                    f"{module.name.key} changes {what}, and no program reads a full difference of that",
                    "merge it, or leave --algorithm out",
                )
        if not reads_differences(options.scheme or module.name.scheme):
            raise RefusedError(
                file,
                f"no program reads full differences under names such as {module.name.key}",
                "choose other names with --to, for instance --to kohya",
            )
    return []


def reads_differences(scheme: str) -> bool:
    """Return True if programs of the names read differences, as far as known; unused names count as False."""
    own = schemes.by_name(scheme)
    if own.writing is None:
        return own.absent_alpha == "one"
    difference, known = DIFFERENCES[WEIGHT], own.writing.algorithms
    return any(one in difference.dialects for one in own.writing.dialects) and (not known or difference.name in known)


def becomes_lora(algorithm: Algorithm, shapes: Shapes) -> bool:
    """Return True if factors of these shapes change a matrix, are not plain LoRA, and can become LoRA.

    The difference of a norm is a vector, and a saved weight is no change. LoRA in PEFT's sense stays, as does mlx-lm's.
    """
    if algorithm.parameter != WEIGHT or algorithm.replaces or algorithm.formula is None or algorithm.name in mlx.NAMES:
        return False
    if algorithm.name == lora.ALGORITHM.name:
        return "mid" in shapes
    return algorithm.peft_type != LORA_TYPE and (algorithm.multiplies or len(algorithm.formula.shape(shapes)) > 1)


def is_saved_weight(algorithm: Algorithm, shapes: Shapes) -> bool:
    """Return True if it is a saved whole matrix; its difference from the base's could be LoRA."""
    return algorithm.name == saved.NAME and algorithm.parameter == WEIGHT and len(shapes[saved.SAVED]) > 1


def is_made_lora(contribution: Contribution, options: ConvertOptions) -> bool:
    """Return True if `--algorithm lora` makes LoRA of it; of a saved weight only if a base is given."""
    if options.algorithm != lora.ALGORITHM.name:
        return False
    algorithm, shapes = contribution.algorithm, contribution.shapes
    return becomes_lora(algorithm, shapes) or (options.base is not None and is_saved_weight(algorithm, shapes))


def needs_base(contribution: Contribution, options: ConvertOptions) -> bool:
    """Return True if the result depends on the weight, as for DoRA, or LoRA of a change that multiplies a weight."""
    if options.algorithm == FULL:
        return False
    if contribution.magnitude is not None:
        return not (options.keep_dora or options.drop_magnitude)
    algorithm = contribution.algorithm
    depends = algorithm.multiplies or algorithm.replaces or None in contribution.shape
    return is_made_lora(contribution, options) and depends


def check_algorithm(adapter: Adapter, options: ConvertOptions) -> list[str]:
    """Raise LoraInspectError if a needed base or rank is missing, or if a given one has no effect.

    A note says where all is LoRA already.
    """
    if options.algorithm is None:
        return []
    if options.algorithm == FULL:
        return check_full(adapter, options)
    file, limit = adapter.checkpoint.path, "with --rank N or --max-error X"
    made = [c for c in adapter.contributions if is_made_lora(c, options)]
    whole = next((c for c in adapter.contributions if is_saved_weight(c.algorithm, c.shapes)), None)
    if not made and whole:
        raise RefusedError(
            file,
            f"{whole.module.key} is {whole.algorithm.title}, and its change depends on the weight that it replaces",
            f"give --base BASE, the base that it was trained on, {limit}",
        )
    told = next((c for c in adapter.contributions if needs_base(c, options)), None)
    if not made:
        if told is None:
            _refuse_idle(adapter, options)
        return [f"{file}: it holds nothing that --algorithm lora changes."]
    if turned := next((c for c in made if c.algorithm.transposed), None):
        raise RefusedError(
            file,
            f"{turned.module.key} is {turned.algorithm.title} of a weight stored as (in, out), such as an "
            "embedding, which plain LoRA cannot express",
            "merge it, or leave --algorithm out",
        )
    if told and told.magnitude is None and options.base is None:
        raise RefusedError(
            file,
            f"{told.module.key} is {told.algorithm.title}, and its change depends on the weight",
            f"give --base BASE, the base that it was trained on, {limit}",
        )
    if told and options.base and options.rank is None and options.max_error is None:
        raise RefusedError(
            file,
            f"the change that {told.module.key} makes to its weight has the full rank of the layer",
            f"set the accuracy of its approximation {limit}",
        )
    return []


def _refuse_idle(adapter: Adapter, options: ConvertOptions) -> None:
    """Raise LoraInspectError for options on how to make LoRA, in a file where none is made."""
    # A base says of DoRA what norms its magnitudes are over, and of experts what their layers are.
    is_read = adapter.dora.value or options.layout == SINGLE_EXPERTS
    given = {
        "--rank": options.rank is not None,
        "--max-error": options.max_error is not None,
        "--base": options.base is not None and not is_read,
    }
    idle = [name for name, is_given in given.items() if is_given]
    if idle:
        weights = [c.algorithm for c in adapter.contributions if c.algorithm.parameter == WEIGHT]
        is_lora = bool(weights) and all(one.peft_type == LORA_TYPE or one.name in mlx.NAMES for one in weights)
        why = "the file is LoRA already" if is_lora else "it holds nothing that --algorithm lora changes"
        has, them = ("has", "it") if len(idle) == 1 else ("have", "them")
        fix = f"leave {them} out"
        if is_lora and idle != ["--base"] and not adapter.dora.value:
            fix += ", or change the ranks with resize"
        raise RefusedError(adapter.checkpoint.path, f"{why}, so {listed(idle)} {has} nothing to do", fix)


def check_biases(adapter: Adapter, matching: Matching | None, options: ConvertOptions) -> None:
    """Raise LoraInspectError if factors that become LoRA change, or may change, the bias of their layer too."""
    found = [one.contribution for own in matching.targets.values() for one in own] if matching else []
    biases = {(c.module.key, c.algorithm.name) for c in found if c.algorithm.parameter == BIAS}
    for contribution in adapter.contributions if options.algorithm == lora.ALGORITHM.name else ():
        if not becomes_lora(contribution.algorithm, contribution.shapes) or contribution.algorithm.bias is None:
            continue
        if matching is None or (contribution.module.key, contribution.algorithm.name) in biases:
            raise RefusedError(
                adapter.checkpoint.path,
                f"{contribution.module.key} is {contribution.algorithm.title}, which also changes the bias of "
                "its layer, but LoRA cannot",
                "merge it, or leave --algorithm out",
            )


def shapes_in_base(matching: Matching | None) -> dict[str, tuple[int, ...]]:
    """Return (in, *kernel) of the weights that the modules change in a base, by their names."""
    if matching is None:
        return {}
    placed = (one for found in matching.targets.values() for one in found)
    return {one.contribution.module.key: one.place.shape[1:] for one in placed if len(one.place.shape) > 1}


# What (in·kernel) of a 3x3 convolution is a multiple of.
_KERNEL = 9
# Those whose factors may have the kernel of a convolution flattened.
_FLATTENED = ("loha", "lokr")


def is_kernel_open(algorithm: Algorithm, shapes: Shapes) -> bool:
    """Return True if the factors could be of a Linear layer or of a convolution with the most common kernel."""
    return is_kernel_untold(algorithm, shapes) and _columns(algorithm, shapes)[-1] % _KERNEL == 0


def is_kernel_untold(algorithm: Algorithm, shapes: Shapes) -> bool:
    """Return True if a Linear layer and a convolution with some kernel would have the same factors."""
    if algorithm.name not in _FLATTENED or "mid" in shapes:
        return False
    return len(_columns(algorithm, shapes)) == 2


def _columns(algorithm: Algorithm, shapes: Shapes) -> list[int]:
    """Return the known sizes of the change."""
    sizes = () if algorithm.formula is None else algorithm.formula.shape(shapes)
    return [size for size in sizes if size is not None]


def is_thin(algorithm: Algorithm, shapes: Shapes) -> bool:
    """Return True if the change is certainly a product of a rank below that of its layer."""
    inner = _INNER.get(algorithm.name, _unknown)(shapes)
    if algorithm.formula is None or inner is None:
        return False
    out, *columns = (size or 1 for size in algorithm.formula.shape(shapes))
    return inner < min(out, prod(columns))


def _of_loha(shapes: Shapes) -> int:
    return shapes["w1_b"][0] * shapes["w2_b"][0]


def _of_lokr(shapes: Shapes) -> int | None:
    """Return the product of both factors' ranks, with the smaller side of a whole one; None if both are whole."""
    if lokr.is_whole(shapes):
        return None
    sides = (
        shapes[f"{one}_b"][0] if one not in shapes else min(shapes[one][0], prod(shapes[one][1:]))
        for one in ("w1", "w2")
    )
    return prod(sides)


def _unknown(shapes: Shapes) -> None:
    return None


# The inner size of the product by algorithm; of others nobody knows whether there is one.
_INNER: Mapping[str, Callable[[Shapes], int | None]] = {
    lora.ALGORITHM.name: lambda shapes: shapes["up"][1],
    loha.ALGORITHM.name: _of_loha,
    lokr.ALGORITHM.name: _of_lokr,
}
