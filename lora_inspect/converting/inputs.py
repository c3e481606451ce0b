"""The adapter that is converted, as far as it was asked for, and the base beside it."""

from collections.abc import Collection, Mapping

from lora_inspect.algorithms.record import BIAS
from lora_inspect.converting.choices import SINGLE_EXPERTS
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.base.base_codecs import open_weights
from lora_inspect.reading.file_info import ADAPTER, kind_of
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.pipeline import chosen


class Input(NamedTuple):
    """The `adapter` with the components that were asked for, and the keys of what was not, embeddings included.

    `biased` are the modules of it whose biases were left out.
    """

    adapter: Adapter
    left_out: list[str]
    biased: frozenset[str] = frozenset()


def chosen_input(whole: Adapter, options: ConvertOptions) -> Input:
    """The adapter of a `whole` file, as far as it was asked for.

    Raises LoraInspectError where its meaning is unknown, and where no alpha says what the factors change.
    """
    adapter = whole
    adapter.refuse()
    asked, others = chosen(adapter, options.only)
    present = dict.fromkeys(module.name.component for module in asked)
    if absent := [component for component in options.only if component not in present]:
        raise LoraInspectError(f"{adapter.checkpoint.path}: it has no component {absent[0]}; leave its --only out.")
    # Embeddings are of no component.
    embeddings = () if options.only else adapter.embeddings
    left_out = [info.name for module in others for info in module.tensors]
    left_out += [key for one in adapter.embeddings if one not in embeddings for key in one.keys]
    modules = {module.name.key: module for module in asked}
    biases = _biases(adapter, modules) if options.drop_biases else []
    left_out += [info.name for contribution in biases for info in contribution.factors.values()]
    if options.drop_unclaimed:
        left_out += _unclaimed(adapter)
        adapter = adapter._replace(unclaimed=())
    adapter = adapter._replace(modules=_without(modules, biases), embeddings=embeddings)
    _refuse_residual(adapter)
    return Input(adapter, left_out, frozenset(contribution.module.key for contribution in biases))


def _biases(adapter: Adapter, modules: Mapping[str, Module]) -> list[Contribution]:
    """What changes biases alone; LoraInspectError where nothing does, or nothing else."""
    changes = [contribution for module in modules.values() for contribution in module.contributions]
    found = [contribution for contribution in changes if contribution.algorithm.parameter == BIAS]
    if not found or len(found) == len(changes):
        what = "nothing but biases" if found else "no biases"
        raise LoraInspectError(f"{adapter.checkpoint.path}: it changes {what}; leave --drop-biases out.")
    return found


def _unclaimed(adapter: Adapter) -> tuple[str, ...]:
    """The keys that no algorithm claims; LoraInspectError where there is none."""
    if not adapter.unclaimed:
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: all its tensors belong to known algorithms; leave --drop-unclaimed out."
        )
    return adapter.unclaimed


def _without(modules: Mapping[str, Module], biases: Collection[Contribution]) -> dict[str, Module]:
    """The modules without what changes biases; none of those that change nothing else."""
    if not biases:
        return dict(modules)
    left = {
        key: tuple(one for one in module.contributions if one.algorithm.parameter != BIAS)
        for key, module in modules.items()
    }
    return {key: modules[key]._replace(contributions=own) for key, own in left.items() if own}


def _refuse_residual(adapter: Adapter) -> None:
    """Raises LoraInspectError where no alpha says what the factors change."""
    if one := next((c for c in adapter.contributions if c.residual), None):
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: {one.module.key} changes what the {one.residual} initialisation left of the "
            "base, which no standard file says; merge it, or convert it to plain LoRA with the program that trained it."
        )


def open_base(adapter: Adapter, options: ConvertOptions) -> Checkpoint | None:
    """The base for DoRA's true weight change, or for the layers of single experts.

    Raises LoraInspectError where the options do not settle the magnitude, and where there is nothing to do for a base.
    """
    path, is_for_experts = adapter.checkpoint.path, options.layout == SINGLE_EXPERTS
    if adapter.dora.value and not (options.base or options.keep_dora or options.drop_magnitude):
        raise LoraInspectError(
            f"{path}: it is DoRA ({adapter.dora.modules} magnitudes), which alpha/rank alone cannot express; "
            "choose --keep-dora (exact for readers of its magnitude), --base BASE with --rank N or --max-error E "
            "(a plain LoRA of the true change), or --drop-magnitude (loses the magnitude)."
        )
    if not options.base:
        return None
    if not adapter.dora.value and not is_for_experts and options.algorithm is None:
        raise LoraInspectError(f"{path}: it has no DoRA magnitude, so --base has nothing to do; leave it out.")
    if adapter.dora.value and is_for_experts:
        raise LoraInspectError(
            f"{path}: it is DoRA ({adapter.dora.modules} magnitudes), which is settled first; make it plain without "
            "--layout, then give that to the output."
        )
    base = open_weights(options.base)
    if kind_of(read_adapter(base))[0] == ADAPTER:
        raise LoraInspectError(f"{base.path}: it is an adapter itself, not a base; name the model's own weights.")
    return base
