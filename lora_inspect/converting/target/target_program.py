"""Whether the programs of a naming scheme compute what an adapter has."""

from lora_inspect.algorithms import mlx
from lora_inspect.algorithms.lora_embedding import spelled_in
from lora_inspect.algorithms.record import WEIGHT, Algorithm, Role
from lora_inspect.converting.choices import FULL
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.steps.base_change import lora_of
from lora_inspect.converting.target.asked_full import DIFFERENCES, becomes_full
from lora_inspect.converting.target.own_parameters import is_own_parameter
from lora_inspect.converting.target.target_algorithm import becomes_lora, is_made_lora, is_saved_weight
from lora_inspect.errors import LoraInspectError
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.embeddings import in_words
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.schemes.record import Scheme, Writing
from lora_inspect.sentences import listed, some

WAY_OUT = "choose another scheme, or leave --to out"
# What a factor is, of which programs make something else.
_FACTORS = {"alpha": "a limit", "rescale": "gains of its rows"}


def writing_of(scheme: Scheme) -> Writing:
    """How files of the scheme are written; ValueError where it is only read."""
    if scheme.writing is None:
        raise ValueError(f"{scheme.name} is no scheme that is written")
    return scheme.writing


def check_loadable(adapter: Adapter, scheme: Scheme, options: ConvertOptions) -> None:
    """Raises LoraInspectError where the programs of the scheme do not compute what a module has."""
    writing, path = writing_of(scheme), adapter.checkpoint.path
    for module, contribution in ((one, own) for one in adapter.modules.values() for own in one.contributions):
        algorithm = written_algorithm(contribution, writing, options)
        has_core = "mid" in contribution.shapes and not options.algorithm and not _spells(algorithm, "mid", writing)
        # Who computes whatever its names can spell has it from there.
        is_own = contribution.module.scheme == scheme.name and writing.algorithms is None
        is_named = writing.parameters and is_own_parameter(module)
        if not is_own and (has_core or not (is_named or _is_loaded(algorithm, writing))):
            title = f"{algorithm.title} with a Tucker core" if has_core else algorithm.title
            can_be_lora = becomes_lora(contribution.algorithm, contribution.shapes) and not algorithm.transposed
            instead = "make plain LoRA of it with --algorithm lora, " if can_be_lora else ""
            if is_saved_weight(algorithm, contribution.shapes):
                instead = "make plain LoRA of it with --algorithm lora --base BASE, "
            raise LoraInspectError(
                f"{path}: {contribution.module.key} is {title}, which {writing.title} cannot load under "
                f"{scheme.name} names; {instead}{WAY_OUT}."
            )
        _check_read_alike(path, contribution, algorithm, writing)
    for module in adapter.modules.values():
        of_weight = [one for one in module.contributions if one.algorithm.parameter == WEIGHT]
        titles = list(dict.fromkeys(written_algorithm(one, writing, options).title for one in of_weight))
        if len(titles) > 1:
            raise LoraInspectError(
                f"{path}: {module.name.key} has {listed(titles)} for one weight, and {writing.title} would apply one "
                "of them alone; merge it into the base, or leave --to out."
            )
    if adapter.unclaimed and not writing.extras:
        raise LoraInspectError(
            f"{path}: {some(adapter.unclaimed, 3)} belong to no algorithm that is known here, and {writing.title} may "
            f"refuse a file with them; leave them out with --drop-unclaimed, or {WAY_OUT}."
        )
    if adapter.embeddings and not (writing.embeddings or writing.extras):
        raise LoraInspectError(
            f"{path}: it holds {in_words(adapter.embeddings)} beside the adapter, and {writing.title} may refuse a "
            f"file with them; --only model leaves them out, or {WAY_OUT}."
        )


def written_algorithm(contribution: Contribution, writing: Writing, options: ConvertOptions) -> Algorithm:
    """The algorithm that the output has."""
    algorithm = spelled_in(mlx.in_lora(contribution.algorithm), writing.dialects)
    if options.algorithm == FULL:
        return DIFFERENCES.get(algorithm.parameter, algorithm) if becomes_full(algorithm) else algorithm
    if is_made_lora(contribution, options):
        return spelled_in(lora_of(contribution), writing.dialects)
    return algorithm


def _check_read_alike(path: str, contribution: Contribution, algorithm: Algorithm, writing: Writing) -> None:
    for role in sorted(writing.misread.get(algorithm.name, ())):
        if role in contribution.factors or (role == "alpha" and contribution.alpha):
            raise LoraInspectError(
                f"{path}: {contribution.module.key} is {algorithm.title} with {_FACTORS[role]}, of which "
                f"{writing.title} makes another change; merge it into the base, or {WAY_OUT}."
            )


def _is_loaded(algorithm: Algorithm, writing: Writing) -> bool:
    """Whether the programs compute the algorithm, as it is or as another one."""
    if algorithm.name in writing.instead:
        return True
    is_read = algorithm.name in writing.alike or any(name in algorithm.dialects for name in writing.dialects)
    return is_read and (writing.algorithms is None or algorithm.name in writing.algorithms)


def _spells(algorithm: Algorithm, role: Role, writing: Writing) -> bool:
    """Whether the programs read a factor with the role."""
    return any(role in algorithm.dialects.get(name, {}) for name in writing.dialects)
