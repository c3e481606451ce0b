"""The packing of the factors of all experts: the columns of B, and the dimension that A is along.

Unsloth marks its configs since version 2026.9.6 with `lora_B_layout`, for all parameters or for each. Files of its
earlier versions have no mark, and the order of their columns depends on the model and on settings of the training. The
evidence for the columns is the config, the same name in the metadata of the file, then the program that trained it.
Sources: `fused_expert_lora_layout` and `saved_lora_b_layouts` of unsloth_zoo, `ParamWrapper` of PEFT.

A note gives the likeness of the columns of B within experts, for either packing; nothing is concluded from it. Training
turns the columns of one expert towards each other. In toy models of Qwen3-MoE that were trained a little the mean
|cosine| of two columns was 0.25 to 0.44 within the experts and 0.08 to 0.13 with the other packing; no file of a real
model has been looked at.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import isfinite, sqrt
from typing import Any

from lora_inspect.algorithms.config_fields import peft_version
from lora_inspect.files.checkpoint import Checkpoint, read_row
from lora_inspect.files.safetensors.dtypes import FP8, PLAIN_FLOATS, decode_number
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.scaling import GROUPED_BY_EXPERT, PACKINGS, RANK_MAJOR
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.model.evidence import Evidence, RawProblem
from lora_inspect.reading.peft.config_lookup import Speakers
from lora_inspect.reading.state import Reading

LAYOUT, _DETAIL, _UNSLOTH = "lora_B_layout", "unsloth_fused_expert_lora", "unsloth_fixed"
# What a config says of the packing.
MARKS = (LAYOUT, _DETAIL)
# The parameters for which Unsloth has a forward of its own.
_OF_UNSLOTH = ("gate_up_proj", "down_proj")
OPTION = "expert-packing"
_WAY_OUT = f"give --{OPTION} {'|'.join(PACKINGS)}"

# Which dimension of a parameter (experts, d1, d2) A is along, where both are of one size: always d1, or d1 or d2 by
# whether its class stores (experts, in, out).
FIRST, OUTPUT, INPUT = "first", "output", "input"


def settle_packing(reading: Reading) -> Reading:
    """Settle the packing of every parameter of experts: by the file, or by the user if the file leaves it open."""
    modules, configs, metadata = reading.modules, reading.configs, reading.checkpoint.metadata
    chosen = reading.settings.expert_packing
    speakers = Speakers(configs)

    def packed(contribution: Contribution) -> Contribution:
        if not contribution.algorithm.packed:
            return contribution
        config = next((found.config for found in speakers.of(contribution)), {})
        packing, _ = packing_of(contribution, config, metadata)
        packing = packing or chosen
        if packing is None:
            return contribution._replace(unsettled=_why_unsettled(contribution, config, metadata))
        return contribution._replace(settings={"packing": packing, "along": along(config)})

    own = {
        name: module._replace(contributions=tuple(map(packed, module.contributions)))
        for name, module in modules.items()
    }
    return reading._replace(modules=own)


def packing_of(
    contribution: Contribution, config: Mapping[str, Any], metadata: Mapping[str, str]
) -> tuple[str | None, str]:
    """Return the packing of B's columns and its source; None if nothing states it clearly."""
    if contribution.algorithm.experts == 1 or contribution.known_rank == 1:
        return RANK_MAJOR, "shapes"  # both are the same
    said = _stated_packing(contribution, config, metadata)
    if said:
        known = [one for one in said if one in PACKINGS]
        return (known[0] if len(known) == len(said) and len(set(known)) == 1 else None), "config"
    if is_of_unsloth(config) and _parameter(contribution) in _OF_UNSLOTH:
        return None, "trainer"
    return RANK_MAJOR, "trainer"


def along(config: Mapping[str, Any]) -> str | None:
    """Return the dimension that A is along if the shapes do not show it; None for an unknown PEFT version.

    Up to 0.18 it is the first one. 0.19.0 reverses it where the class stores (experts, in, out), so that it is that of
    the outputs; in later versions it is that of the inputs.
    """
    version = peft_version(config)
    if version is None:
        return None
    if version < (0, 19, 0):
        return FIRST
    return OUTPUT if version == (0, 19, 0) else INPUT


def packing_setting(reading: Reading) -> Iterator[RawProblem]:
    """Yield problems of the setting: it has no effect, or contradicts the known packing."""
    chosen = reading.settings.expert_packing
    if chosen is None:
        return
    setting, speakers = f"{OPTION}={chosen}", Speakers(reading.configs)
    own = [contribution for contribution in reading.contributions if contribution.algorithm.packed]
    if not own:
        message = f"{setting} cannot apply, as no module has the factors of all experts of a layer; leave it out"
        yield RawProblem("setting-contradicts", message)
        return
    known = []
    for contribution in own:
        config = next((found.config for found in speakers.of(contribution)), {})
        known.append((contribution, *packing_of(contribution, config, reading.checkpoint.metadata)))
    if any(packing is None for _, packing, _ in known):
        return
    other = next((one for one in known if one[1] != chosen and one[2] != "shapes"), None)
    if other:
        message = f"its {other[2]} says that {other[0].module.key} is packed {other[1]}, which {setting} contradicts; "
        yield RawProblem("setting-contradicts", message + "leave it out")
    else:
        yield RawProblem("setting-repeats", f"{setting} repeats what is known of it")


def about_experts(reading: Reading) -> Reading:
    """Add the number of parameters with experts, the experts' number, and their packing to the evidence."""
    return reading.with_evidence(_about_experts(reading))


def _about_experts(reading: Reading) -> Iterator[Evidence]:
    contributions, configs, metadata = reading.contributions, reading.configs, reading.checkpoint.metadata
    chosen = reading.settings.expert_packing
    speakers, counts = Speakers(configs), Counter[tuple[int, str, str]]()
    for contribution in contributions:
        if contribution.algorithm.packed and contribution.settings:
            found = next(iter(speakers.of(contribution)), None)
            packing, source = packing_of(contribution, found.config if found else {}, metadata)
            where = found.where if found and packing and source != "shapes" else source
            says = f"packed {packing or chosen}"
            if source == "trainer" and packing:
                says += " as PEFT does"
            where = where if packing else f"{OPTION}={chosen}"
            counts[contribution.algorithm.experts, says if source != "shapes" else "of rank 1", where] += 1
    for (experts, says, where), count in counts.items():
        yield Evidence("experts", f"{count} parameters have the factors of {experts} experts each, {says}", where)


def _stated_packing(contribution: Contribution, config: Mapping[str, Any], metadata: Mapping[str, str]) -> list[Any]:
    """Return the statements of the config and the metadata about the packing of one parameter."""
    mapping = config.get("auto_mapping")
    said: list[Any] = []
    for source in (config, mapping if isinstance(mapping, dict) else {}, metadata):
        detail = source.get(_DETAIL)
        parameters = detail.get("parameters") if isinstance(detail, dict) else None
        own = parameters.get(_parameter(contribution)) if isinstance(parameters, dict) else None
        if isinstance(own, dict) and own.get(LAYOUT) is not None:
            said.append(own[LAYOUT])
        elif source.get(LAYOUT) is not None:
            said.append(source[LAYOUT])
    return said


def _parameter(contribution: Contribution) -> str:
    return contribution.module.body.rpartition(".")[2]


def is_of_unsloth(config: Mapping[str, Any]) -> bool:
    """Return True if Unsloth saved it."""
    mapping = config.get("auto_mapping")
    return isinstance(mapping, dict) and bool(mapping.get(_UNSLOTH))


def _why_unsettled(contribution: Contribution, config: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """Return the reason why the packing is unknown, with the fix."""
    if said := _stated_packing(contribution, config, metadata):
        return f"its {LAYOUT} says {' and '.join(map(_shown, said))}, so the packing is unknown; {_WAY_OUT}"
    return (
        "Unsloth trained it, and before version 2026.9.6 it silently packed the experts of most models "
        f"grouped_by_expert and of others rank_major; {_WAY_OUT}"
    )


def _shown(value: Any) -> str:
    return repr(value)[:40]


# What is looked at: so many parameters, rows of each and experts, spread over what there is.
_PARAMETERS, _ROWS, _EXPERTS = 4, 64, 16
# More columns, or pairs of one expert, take longer than a note is worth.
_MOST_COLUMNS, _MOST_RANK = 1 << 14, 64
# Columns are alike where the mean |cosine| is this large, and this many times as large as with the other packing.
_ALIKE, _TIMES = 0.2, 2.0


def packing_hint(reading: Reading) -> Iterator[RawProblem]:
    """Yield a hint from the likeness of the columns if nothing states their packing."""
    opened = list(_unsettled_factors(reading))
    chosen = [opened[number] for number in _spread(len(opened), _PARAMETERS)]
    means = [mean for up, experts in chosen if (mean := _likeness(reading.checkpoint, up, experts))]
    if not means:
        return
    likeness = {packing: sum(mean[packing] for mean in means) / len(means) for packing in PACKINGS}
    other, best = sorted(PACKINGS, key=lambda packing: likeness[packing])
    if likeness[best] < max(_ALIKE, _TIMES * likeness[other]):
        return
    yield RawProblem(
        "expert-hint",
        f"packed {best}, the columns of B are alike within experts, as training makes them (mean "
        f"|cosine| {likeness[best]:.2f}, {likeness[other]:.2f} if {other}); give --{OPTION} {best} if "
        "that is so",
    )


def _unsettled_factors(reading: Reading) -> Iterator[tuple[TensorInfo, int]]:
    """Yield B and the number of experts of each small parameter with a packing that nobody states."""
    speakers = Speakers(reading.configs)
    for contribution in reading.contributions:
        if (
            contribution.algorithm.packed
            and contribution.algorithm.experts > 1
            and contribution.unsettled
            and _is_small(contribution)
        ):
            config = next((found.config for found in speakers.of(contribution)), {})
            if packing_of(contribution, config, reading.checkpoint.metadata)[0] is None:
                yield contribution.factors["up"], contribution.algorithm.experts


def _is_small(contribution: Contribution) -> bool:
    up = contribution.factors["up"]
    return up.dtype in PLAIN_FLOATS | FP8 and up.shape[1] <= _MOST_COLUMNS and contribution.known_rank <= _MOST_RANK


def _likeness(checkpoint: Checkpoint, up: TensorInfo, experts: int) -> dict[str, float] | None:
    """Return the mean |cosine| of two columns of one expert by packing; None if a column has no direction."""
    height, width = up.shape
    size = up.nbytes // up.numel
    columns: list[list[float]] = [[] for _ in range(width)]
    for number in _spread(height, _ROWS):
        row = read_row(checkpoint, up.name, number)
        for column, values in enumerate(columns):
            values.append(float(decode_number(up.dtype, row[size * column : size * (column + 1)]) or 0.0))
    directions = [_direction(values) for values in columns]
    rank = width // experts
    found: dict[str, float] = {}
    for packing in PACKINGS:
        cosines = []
        for expert in _spread(experts, _EXPERTS):
            is_grouped = packing == GROUPED_BY_EXPERT
            own = slice(expert * rank, (expert + 1) * rank) if is_grouped else slice(expert, width, experts)
            for one, other in combinations(directions[own], 2):
                if one is None or other is None:
                    return None
                cosines.append(abs(sum(x * y for x, y in zip(one, other, strict=True))))
        found[packing] = sum(cosines) / len(cosines)
    return found


def _direction(values: Sequence[float]) -> list[float] | None:
    """Return the values at length 1; None if their length is 0 or not finite."""
    length = sqrt(sum(value * value for value in values))
    return [value / length for value in values] if length and isfinite(length) else None


def _spread(count: int, most: int) -> list[int]:
    """Return at most so many of the numbers below `count`, evenly spread."""
    return sorted({number * count // most for number in range(most)}) if count else []
