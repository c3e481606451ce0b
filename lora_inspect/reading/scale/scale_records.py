"""The records of scales that no alpha of a file states, and alphas without an effect, for people.

The scale may be in the factors already, if the file's readers know no alpha, or a trainer computed with a scale that no
program reads from its file. No computation looks at these records: such a file is applied as its tensors are.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from lora_inspect.files.strict_json import json_number, parse_json
from lora_inspect.reading.model.evidence import RawProblem, is_lycoris, network_args
from lora_inspect.reading.state import Reading
from lora_inspect.sentences import counted

FOLDED_KEY = "lora_inspect.folded"


def folded_record(scales: Mapping[str, float]) -> str | None:
    """Return the metadata value for the scales by module: the commonest once, the others by name.

    None if all are 1.
    """
    if all(scale == 1.0 for scale in scales.values()):
        return None
    # Of equally common ones the least, and the modules by name: the order of the tensors is another in the output.
    common = Counter(sorted(scales.values())).most_common(1)[0][0]
    others = {module: scale for module, scale in sorted(scales.items()) if scale != common}
    return json.dumps({"scale": common, "modules": others} if others else {"scale": common})


class FoldedScales:
    """The scales that a file's metadata says to be in its factors; 1 where it has no readable record."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        record: object = None
        with suppress(ValueError):
            record = parse_json(metadata.get(FOLDED_KEY, "{}"))
        record = record if isinstance(record, dict) else {}
        self._common = _or_one(json_number(record.get("scale")))
        modules = record.get("modules")
        self._modules = modules if isinstance(modules, dict) else {}

    @property
    def has_any(self) -> bool:
        """True if it says that the factors of any module include a scale."""
        return self._common != 1.0 or bool(self._modules)

    def at(self, module: str) -> float:
        """Return the scale in the factors of the module called `module`."""
        return _or_one(json_number(self._modules[module])) if module in self._modules else self._common

    def scale_before(self, module: str, scale: float | None) -> float | None:
        """Return the scale of `module` before it went into the factors, which readers apply at `scale`.

        A record next to another scale than 1 is not about these tensors.
        """
        return self.at(module) if scale == 1.0 else scale

    def says(self, modules: Iterable[str]) -> str | None:
        """Return the observation about `modules`, which readers apply at 1; None if their factors have no scale."""
        numbers = sorted({self.at(module) for module in modules} - {1.0})
        if not numbers:
            return None
        shown = " and ".join(f"{number:.6g}" for number in numbers)
        return f"{shown} is multiplied into the factors, which readers apply at 1"


def _or_one(scale: float | None) -> float:
    return 1.0 if scale is None else scale


TRAINED_SCALE = "trained-scale"
# What LyCORIS takes where no size is asked.
_BLOCK = 4


def dylora_scale(reading: Reading) -> Iterator[RawProblem]:
    """Yield a problem for LyCORIS's DyLoRA, which trains all blocks at alpha over their number.

    It saves a plain LoRA. Source: the `DyLoraModule` of lycoris-lora.
    """
    metadata = reading.checkpoint.metadata
    args = network_args(metadata)
    if not is_lycoris(metadata) or str(args.get("algo", "")).lower() != "dylora":
        return
    size = _whole(args.get("block_size")) or _BLOCK
    keys = [c.module.key for c in reading.contributions if c.algorithm.name == "lora"]
    if size > 1 and keys:
        yield RawProblem(
            TRAINED_SCALE,
            f"LyCORIS trained its DyLoRA at {size} · alpha/rank in blocks of {size} ranks, and every "
            f"program reads alpha/rank from its file; a multiplier of {size} gives the trained scale",
            tuple(keys[:5]),
        )


def unused_alphas(reading: Reading) -> Iterator[RawProblem]:
    """Yield a problem for LoKr of two whole factors with another alpha than the dim that LyCORIS stores there.

    Source: `LokrModule` of lycoris-lora, which sets alpha to the dim if both factors are whole, so that the scale is 1.
    Without a dim in the metadata, one of at least half of the second factor's larger side is expected: below that size
    the factor is a product.
    """
    metadata = reading.checkpoint.metadata
    dim, conv_dim = _whole(metadata.get("ss_network_dim")), _whole(network_args(metadata).get("conv_dim"))
    unused = [
        (contribution.module.key, contribution.alpha)
        for contribution in reading.contributions
        if contribution.alpha is not None
        and contribution.algorithm.name == "lokr"
        and contribution.rank is None
        and _is_unlike_dim(contribution.alpha, (dim, conv_dim), contribution.shapes["w2"])
    ]
    if unused:
        alpha = unused[0][1]
        divisor = f"the dim {dim}" if dim else "a dim"
        times = f"{alpha / dim:.3g}" if dim else f"{alpha:g}/dim"
        yield RawProblem(
            TRAINED_SCALE,
            f"{counted(len(unused), 'module')} of LoKr with two whole factors and alpha {alpha:g}: LyCORIS stores the "
            f"dim there, and applies scale 1 whatever alpha is; if the training divided alpha by {divisor}, a "
            f"multiplier of {times} gives the trained scale",
            tuple(key for key, _ in unused[:5]),
        )


def _is_unlike_dim(alpha: float, dims: Sequence[int], w2_shape: Sequence[int]) -> bool:
    """Return True if LyCORIS stores another alpha for two whole factors; RS-LoRA multiplies it by the dim's root."""
    if any(dims):
        return not any(math.isclose(alpha, number, rel_tol=1e-2) for dim in dims for number in (dim, dim**1.5))
    return alpha < max(w2_shape[:2]) / 2


def _whole(value: object) -> int:
    """Return the integer that trainers spell; 0 for none."""
    text = str(value).strip()
    return int(text) if text.isdecimal() and len(text) < 10 else 0
