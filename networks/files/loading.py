"""The checks between weights that were read and a network that loads them.

Every tensor gets a place, or an error states the reason.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_inspect.maths.scaling import RANK_STABILISED
from lora_inspect.reading.model.evidence import DORA_FLAG, SCALE_KEY
from lora_inspect.reading.peft.residual_adapters import INITIAL_FACTORS_KEY, residual_init
from lora_inspect.reading.scale.dora_evidence import NORMS_KEY

from . import standard_form
from .reading import MAGNITUDE, StateDictReading, count, is_or_are, some_of

logger = logging.getLogger(__name__)

_WAY_OUT = (
    "; if they are RS-LoRA, write it into the file with "
    f"lora-inspect metadata set FILE '{SCALE_KEY}={RANK_STABILISED}' --allow-meaning-change"
)
_IGNORED = "the network ignores the magnitudes; add use_dora=True to use them"


def check_rslora(reading: StateDictReading, expected: bool, settled: bool = False) -> None:
    """Raise ValueError if the weights' scale rule differs from the network's `expected` one.

    Weights that state no rule count as alpha/rank. If the user has `settled` the rule, only weights that state the
    other rule are an error.
    """
    found = reading.rslora
    if found.value == expected or (settled and (found.value is None or found.source == "default")):
        if found.hint and not expected:
            logger.warning(
                "The weights do not state RS-LoRA, so the network reads them as alpha/rank, but "
                f"{found.hint.sentence()}."
            )
        elif expected and found.value != expected:
            logger.warning(
                "The weights do not state RS-LoRA, so the network reads their alphas as those of "
                "alpha/sqrt(rank), as use_rslora=True asks. Those of a file in standard form are for "
                "alpha/rank: pass its metadata too."
            )
        return
    says = {
        None: "contradict themselves about it",
        True: f"say use_rslora=True ({found.source})",
        False: "do not state it, which means use_rslora=False"
        if found.source == "default"
        else f"say use_rslora=False ({found.source})",
    }[found.value]
    hint = f". Hint: {found.hint.sentence()}{_WAY_OUT if expected else ''}" if found.hint else ""
    raise ValueError(
        f"RS-LoRA flag mismatch: the network has use_rslora={expected}, but the weights {says}; "
        f"set use_rslora as they were trained{hint}"
    )


def check_dora(reading: StateDictReading, expected: Collection[str]) -> set[str]:
    """Return the modules with a magnitude that the network ignores, and log a warning.

    The modules in `expected` need a magnitude. Raises ValueError if one of them has none, and if the flag contradicts
    the tensors.
    """
    present = {name for name, module in reading.modules.items() if module.has_magnitude}
    flag = reading.flags.get(DORA_FLAG)
    if expected and not present:
        raise ValueError("DoRA flag mismatch: network expects DoRA but weights lack it (no dora_layer.weight)")
    missing = sorted(name for name in reading.modules if name in expected and name not in present)
    if missing:
        keys = [f"{name}.{MAGNITUDE}" for name in missing]
        raise ValueError(f"{len(present)} modules have DoRA magnitudes, but {len(keys)} are missing: {some_of(keys)}")
    ignored = present - set(expected)
    if flag is not None and flag != bool(present):
        raise ValueError(f"{DORA_FLAG} is {flag}, but {len(present)} modules of the weights have a dora_layer.weight")
    if present and not expected:
        logger.warning(f"DoRA flag mismatch: weights contain DoRA but network doesn't expect it; {_IGNORED}")
    elif ignored:
        logger.warning(
            f"the network ignores the DoRA magnitudes of {len(ignored)} modules where DoRA is disabled: "
            f"{some_of(sorted(ignored))}"
        )
    return ignored


def has_dora(reading: StateDictReading) -> bool:
    """Return True if the weights are DoRA.

    All Linear modules without slices must then have a magnitude, and either all convolutions or none. Raises ValueError
    otherwise.
    """
    present = {name for name, module in reading.modules.items() if module.has_magnitude}
    if not present:
        check_dora(reading, ())
        return False
    convolutions = reading.has_conv_magnitude
    # Factors of other algorithms do not tell a Linear from a convolution.
    of_lora = [facts for facts in reading.facts if not facts.split and (facts.linear or convolutions)]
    check_dora(reading, present.union(*(facts.places for facts in of_lora)))
    return True


def magnitude_errors(state_dict: Collection[str], prefix: str, modules: Iterable[Any]) -> list[str]:
    """Return the problems with the magnitudes of a state dict, for the network's `modules`.

    Its keys begin with `prefix`. Magnitudes that no module takes are only a warning: torch skips them silently if it is
    not strict.
    """
    expected: set[str] = set()
    missing: list[str] = []
    for module in modules:
        name, key = f"{prefix}{module.lora_name}", f"{prefix}{module.lora_name}.{MAGNITUDE}"
        if getattr(module, "use_dora", False):
            expected.add(key)
            if f"{name}.alpha" in state_dict and key not in state_dict:
                missing.append(key)
    present = {key for key in state_dict if key.startswith(prefix) and key.endswith(f".{MAGNITUDE}")}
    if present - expected:
        logger.warning(f"DoRA flag mismatch: weights contain DoRA but network doesn't expect it; {_IGNORED}")
    if missing and not present:
        return ["DoRA flag mismatch: network expects DoRA but weights lack it (no dora_layer.weight)"]
    return [f"{count(missing, 'DoRA magnitudes')} missing: {some_of(missing)}"] if missing else []


def check_base(reading: StateDictReading, pissa: bool) -> None:
    """Raise ValueError for weights on another base, and for weights that a network cannot continue.

    The latter are magnitudes over the norms of the base and, for a PiSSA network, weights without initial factors.
    """
    if NORMS_KEY in reading.metadata and any(module.has_magnitude for module in reading.modules.values()):
        raise ValueError(
            "the magnitudes are over the norms of the base, as ComfyUI divides them; restore those of the "
            "training first, with lora-inspect convert FILE --keep-dora --base BASE"
        )
    if init := residual_init(reading.metadata):
        raise ValueError(
            f"ss_init_lora_weights is {init}, so the weights change a residual base, not the original one; "
            "convert them to plain LoRA with the program that trained them"
        )
    # A file of torch.save has no place for metadata; any weights of that rank can be read in this way.
    if pissa and reading.metadata and INITIAL_FACTORS_KEY not in reading.metadata:
        raise ValueError(
            "the network has init_lora_weights=pissa, but the weights do not hold its initial factors; leave "
            "init_lora_weights out to continue training them as plain LoRA"
        )


class AcceptedTensors(NamedTuple):
    """The tensors that a network accepts: its scale rule, the shape by key, and the modules with DoRA.

    `alpha_of(rank)` is the alpha of a module that stores none. `settled` says that the user chose the rule. `pissa`
    says that every module also holds its initial factors, so that a file has twice its rank. `ways_in(names)` are the
    options that would adapt these foreign modules. `alphas` are the network's own by module.
    """

    rslora: bool
    settled: bool
    shapes: Mapping[str, torch.Size]
    dora: Collection[str]
    alpha_of: Callable[[int], float]
    pissa: bool = False
    ways_in: Callable[[Collection[str]], Sequence[str]] = lambda names: ()
    alphas: Mapping[str, float] = {}


def fitted(reading: StateDictReading, expected: AcceptedTensors) -> dict[str, dict[str, Tensor]]:
    """Return the tensors that a network can load unchanged, by module name and key.

    Flags are checked and left out. Alphas that `save_format=standard` made of RS-LoRA's are converted back. Magnitudes
    that the network does not expect are left out with a warning, and a missing alpha is filled in. Raises ValueError if
    scale rule, DoRA, modules or shapes differ from the network's, and for numbers that are not finite.
    """
    names = {key.partition(".")[0] for key in expected.shapes}
    foreign = [name for name in reading.modules if name not in names]
    if len(foreign) == len(reading.modules):
        raise ValueError(f"no module of the weights is in the network: the weights have {some_of(foreign)}")
    if foreign:
        way_out = " and ".join(expected.ways_in(foreign))
        raise ValueError(
            f"{count(foreign, 'modules')} of the weights {is_or_are(foreign)} not in the network: {some_of(foreign)}"
            f"{f'; set {way_out} to adapt layers that it leaves out' if way_out else ''}"
        )
    check_base(reading, expected.pissa)
    rank_stabilised = expected.rslora and standard_form.is_rank_stabilised(reading, expected.alphas, expected.settled)
    if not rank_stabilised:
        check_rslora(reading, expected.rslora, expected.settled)
    ignored = check_dora(reading, expected.dora)
    fit: dict[str, dict[str, Tensor]] = {}
    for name, module in reading.modules.items():
        tensors = dict(module.tensors)
        if name in ignored:
            del tensors[MAGNITUDE]
        alpha: Tensor | float | None = tensors.get("alpha", expected.alpha_of(module.rank))
        if rank_stabilised and "alpha" in tensors:
            alpha = standard_form.native_alpha(float(tensors["alpha"]), module.rank)
        tensors["alpha"] = torch.as_tensor(alpha, dtype=torch.float32, device="cpu").detach().reshape(())
        fit[name] = {key: _shaped(f"{name}.{key}", tensor, module.rank, expected) for key, tensor in tensors.items()}
    return fit


def _shaped(key: str, tensor: Tensor, rank: int, expected: AcceptedTensors) -> Tensor:
    """Return the tensor in the network's shape; Linear and 1x1 convolution are interchangeable."""
    # In float32, as fp8 has no test of its own, and flat, as torch computes with no more than 64 dimensions.
    if not torch.isfinite(tensor.reshape(-1).float()).all():
        raise ValueError(f"{key} holds NaN or infinity: training broke before it was saved; use an earlier checkpoint")
    own = expected.shapes.get(key)
    if own is None and key.endswith(".rescale"):
        raise ValueError(f"{key} is not in the network; set rescaled=True")
    if own is None:
        raise ValueError(f"{key} is not in the network, which splits the module differently")
    if own == tensor.shape:
        return tensor
    if _without_kernel(own) == _without_kernel(tensor.shape):
        return tensor.reshape(own)
    if ".lora_down" in key and own[0] != rank:
        found, wanted = (rank // 2, own[0] // 2) if expected.pissa else (rank, own[0])
        raise ValueError(
            f"{key} has rank {found}, but the network has rank {wanted}; "
            f"set network_dim, conv_dim or rank_pattern to {found}"
        )
    if key.endswith(".oft_blocks") and tensor.shape[0] * rank == own[0] * own[1]:
        raise ValueError(
            f"{key} has blocks of {rank} outputs, but the network has blocks of {own[1]}; "
            f"set network_dim, conv_dim or rank_pattern to {rank}"
        )
    raise ValueError(f"{key} has shape {list(tensor.shape)}, but the network has {list(own)}: it is for another model")


def _without_kernel(shape: Sequence[int]) -> list[int]:
    return [size for axis, size in enumerate(shape) if axis < 2 or size != 1]
