"""What `--algorithm` asks for: which changes become plain LoRA, and which of them only a base tells."""

from lora_inspect.algorithms import lora, mlx, saved
from lora_inspect.algorithms.record import BIAS, WEIGHT, Algorithm, Shapes
from lora_inspect.converting.choices import FULL, SINGLE_EXPERTS
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.target.asked_full import check_full
from lora_inspect.errors import LoraInspectError
from lora_inspect.matching.match import Matching
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.peft.peft_config import LORA_TYPE
from lora_inspect.sentences import listed


def becomes_lora(algorithm: Algorithm, shapes: Shapes) -> bool:
    """Whether factors of these shapes change a matrix otherwise than LoRA does, and one could.

    The difference of a norm is a vector, and a saved weight no change; what PEFT calls LoRA stays, and mlx-lm's.
    """
    if algorithm.parameter != WEIGHT or algorithm.replaces or algorithm.formula is None or algorithm.name in mlx.NAMES:
        return False
    if algorithm.name == lora.ALGORITHM.name:
        return "mid" in shapes
    return algorithm.peft_type != LORA_TYPE and (algorithm.multiplies or len(algorithm.formula.shape(shapes)) > 1)


def is_saved_weight(algorithm: Algorithm, shapes: Shapes) -> bool:
    """Whether it is a matrix that is saved whole, whose difference from the base's LoRA could be."""
    return algorithm.name == saved.NAME and algorithm.parameter == WEIGHT and len(shapes[saved.SAVED]) > 1


def is_made_lora(contribution: Contribution, options: ConvertOptions) -> bool:
    """Whether `--algorithm lora` makes LoRA of it: of a saved weight where a base is given, else it stays as it is."""
    algorithm, shapes = contribution.algorithm, contribution.shapes
    if options.algorithm != lora.ALGORITHM.name:
        return False
    return becomes_lora(algorithm, shapes) or (options.base is not None and is_saved_weight(algorithm, shapes))


def needs_base(contribution: Contribution, options: ConvertOptions) -> bool:
    """Whether what it becomes depends on the weight: under DoRA's magnitude, and LoRA of what multiplies a weight."""
    if options.algorithm == FULL:
        return False
    if contribution.magnitude is not None:
        return not (options.keep_dora or options.drop_magnitude)
    algorithm = contribution.algorithm
    depends = algorithm.multiplies or algorithm.replaces or None in contribution.shape
    return is_made_lora(contribution, options) and depends


def check_algorithm(adapter: Adapter, options: ConvertOptions) -> list[str]:
    """Raises LoraInspectError where a base or a rank is needed that is not given, or has nothing to do.

    A note says where all is LoRA already.
    """
    if options.algorithm is None:
        return []
    if options.algorithm == FULL:
        return check_full(adapter, options)
    file, limit = adapter.checkpoint.path, "with --rank N or --max-error E"
    made = [c for c in adapter.contributions if is_made_lora(c, options)]
    whole = next((c for c in adapter.contributions if is_saved_weight(c.algorithm, c.shapes)), None)
    if not made and whole:
        raise LoraInspectError(
            f"{file}: {whole.module.key} is {whole.algorithm.title}, of which only the weight that it replaces tells "
            f"the change; name the base that it was trained on as --base BASE, {limit}."
        )
    told = next((c for c in adapter.contributions if needs_base(c, options)), None)
    if not made:
        if told is None:
            _refuse_idle(adapter, options)
        return [f"{file}: it holds nothing that --algorithm lora changes."]
    if turned := next((c for c in made if c.algorithm.transposed), None):
        raise LoraInspectError(
            f"{file}: {turned.module.key} is {turned.algorithm.title} of a weight stored as (in, out), as that of an "
            "embedding is, and no plain LoRA says that; merge it, or leave --algorithm out."
        )
    if told and told.magnitude is None and options.base is None:
        raise LoraInspectError(
            f"{file}: {told.module.key} is {told.algorithm.title}, whose change only the weight tells; name "
            f"the base that it was trained on as --base BASE, {limit}."
        )
    if told and options.base and options.rank is None and options.max_error is None:
        raise LoraInspectError(
            f"{file}: what {told.module.key} changes in its weight has the rank of the layer; say how close LoRA is to "
            f"come to it, {limit}."
        )
    return []


def _refuse_idle(adapter: Adapter, options: ConvertOptions) -> None:
    """Raises LoraInspectError for what says how LoRA is to come about, in a file of which none is made."""
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
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: {why}, so {listed(idle)} {has} nothing to do; leave {them} out."
        )


def check_biases(adapter: Adapter, matching: Matching | None, options: ConvertOptions) -> None:
    """Raises LoraInspectError where factors that become LoRA change the bias of their layer, too, or may do so."""
    found = [one.contribution for own in matching.targets.values() for one in own] if matching else []
    biases = {(c.module.key, c.algorithm.name) for c in found if c.algorithm.parameter == BIAS}
    for contribution in adapter.contributions if options.algorithm == lora.ALGORITHM.name else ():
        if not becomes_lora(contribution.algorithm, contribution.shapes) or contribution.algorithm.bias is None:
            continue
        if matching is None or (contribution.module.key, contribution.algorithm.name) in biases:
            raise LoraInspectError(
                f"{adapter.checkpoint.path}: {contribution.module.key} is {contribution.algorithm.title}, which "
                "changes the bias of its layer as well, and LoRA does not; merge it, or leave --algorithm out."
            )


def shapes_in_base(matching: Matching | None) -> dict[str, tuple[int, ...]]:
    """(in, *kernel) of the weights that the modules change in a base, by their names."""
    if matching is None:
        return {}
    placed = (one for found in matching.targets.values() for one in found)
    return {one.contribution.module.key: one.place.shape[1:] for one in placed if len(one.place.shape) > 1}
