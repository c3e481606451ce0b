"""Methods and settings of PEFT that are recognised and not computed, and settings that formulas need.

Some methods change no weight: nothing of their files can be merged or rewritten as a LoRA, and the file says how they
work and by which tensors they are known. Source: the tuners of PEFT 0.21. A config may be alone, without its weights or
with a method that has no modules. The settings next to the factors of a module decide its computation; they are read
here, or the reason is given why they are unknown.
"""

import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from lora_inspect import algorithms
from lora_inspect.algorithms.record import Algorithm, Surroundings
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.discovery import MLX_WEIGHTS, PEFT_WEIGHTS
from lora_inspect.reading.model.contribution import Contribution, Module, missing_shared
from lora_inspect.reading.model.evidence import Evidence, RawProblem
from lora_inspect.reading.peft import peft_config
from lora_inspect.reading.peft.config_lookup import FoundConfig, Speakers
from lora_inspect.reading.state import Reading
from lora_inspect.sentences import some

_VIRTUAL_TOKENS = "prompt_embeddings"
_SHOWN = 5


class Method(NamedTuple):
    """A method by its title; `does` is its effect, as the end of a sentence that begins with the title.

    `marks` are pieces of keys that no other method has.
    """

    title: str
    does: str
    marks: tuple[str, ...] = ()


METHODS = {
    "PROMPT_TUNING": Method("prompt tuning", "puts learned vectors before the embedded input"),
    "P_TUNING": Method("p-tuning", "puts vectors that a small network made before the embedded input"),
    "MULTITASK_PROMPT_TUNING": Method(
        "multitask prompt tuning",
        "puts other learned vectors for each task before the embedded input",
        ("prefix_task_cols", "prefix_task_rows"),
    ),
    "CPT": Method("context-aware prompt tuning", "puts learned vectors of given tokens before the embedded input"),
    "PREFIX_TUNING": Method("prefix tuning", "puts learned keys and values before the attention's own"),
    "CARTRIDGE": Method("Cartridge", "puts a learned cache of keys and values before the attention's own"),
    "ADAPTION_PROMPT": Method(
        "adaption prompt (LLaMA-Adapter)",
        "lets the attention of some layers look at learned vectors through a gate",
        (".adaption_prompt", ".adaption_gate"),
    ),
    "LILY": Method(
        "Lily",
        "mixes its factors for each input by a router",
        (".lily_router.", ".lily_A.", ".lily_B."),
    ),
    "POLY": Method(
        "Poly",
        "mixes its factors for each task by a router",
        (".poly_router.", ".poly_lora_A", ".poly_lora_B"),
    ),
    "XLORA": Method(
        "X-LoRA",
        "mixes several LoRAs for each input by a classifier",
        (".internal_xlora_classifier.",),
    ),
    "SHADOW": Method(
        "ShadowPEFT",
        "runs its own network next to the model, which corrects the inputs of its blocks",
        (".shadow_backbone.", ".shadow_down.", ".shadow_up.", ".shadow_update_gate.", ".shadow_update_transform."),
    ),
}
# The methods whose file has the one tensor that several of them call so; the config says which it is.
_TOKENS = Method(
    "a method of virtual tokens, as prompt tuning, prefix tuning or p-tuning,",
    "puts them before the embedded input, or before the attention's own keys and values",
)


def weightless(reading: Reading) -> Iterator[RawProblem]:
    """Yield problems of methods that change no weight, by statements of configs and by tensors that only they have."""
    said = {str(found.peft_type): found.where for found in reading.configs if str(found.peft_type) in METHODS}
    for peft_type, where in said.items():
        yield RawProblem(
            "no-weight-change", f"{where} says {peft_type}: {METHODS[peft_type].title} {_does(METHODS[peft_type])}"
        )
    if said:
        return
    for method, keys in _by_keys(reading.claims.unclaimed):
        message = f"{method.title} ({keys[0]}{', …' if len(keys) > 1 else ''}) {_does(method)}"
        yield RawProblem("no-weight-change", message, tuple(keys[:_SHOWN]))


def _does(method: Method) -> str:
    return f"{method.does}, and changes no weight; use the adapter with PEFT"


def _by_keys(unclaimed: Collection[str]) -> Iterator[tuple[Method, list[str]]]:
    for method in METHODS.values():
        if keys := [key for key in unclaimed if any(mark in key for mark in method.marks)]:
            yield method, keys
    if _VIRTUAL_TOKENS in unclaimed:
        yield _TOKENS, [_VIRTUAL_TOKENS]


# The way out where this version cannot compute what a file says.
_OWN_PROGRAM = "merge it with the program that trained it"


def unbuilt_configs(reading: Reading) -> Iterator[RawProblem]:
    """Yield problems of config algorithms and settings that make the tensors something else than known factors."""
    present = {contribution.algorithm.name for contribution in reading.contributions}
    for found in reading.configs:
        method = found.peft_type
        known = algorithms.of_peft_type(str(method))
        # What the keys name as well is told by them.
        is_told = any(algorithm.formula or algorithm.name in present for algorithm in known)
        if str(method) not in METHODS and not is_told:
            why = next((f": {each.title} {each.why}" for each in known if each.why), "")
            unbuilt = f", an algorithm that lora-inspect does not support yet; {_OWN_PROGRAM}"
            yield RawProblem("algorithm-unsupported", f"{found.where} says {method}{why or unbuilt}")
        for says in peft_config.foreign_settings(found.config):
            yield RawProblem("peft-setting-unsupported", f"{found.where}: {says}")
        if found.config.get("kasa_config") and (keys := _names(reading, "lora", "down")):
            says = f"it has kasa_config, but {keys[0]} has no lora_diag next to it"
            yield RawProblem(
                "incomplete", f"{found.where}: {says}; put the config next to the file that it was saved with"
            )
        if method == algorithms.by_name("lokr").peft_type and (keys := _whole_of_conv1d(reading)):
            says = f"PEFT computes another product of w1 and a whole w2 of a Conv1d ({keys[0]})"
            yield RawProblem(
                "peft-setting-unsupported",
                f"{found.where}: {says}, which lora-inspect does not support yet; {_OWN_PROGRAM}",
                keys[:5],
            )


def _names(reading: Reading, algorithm: str, role: str) -> tuple[str, ...]:
    """Return the tensors of one role in the modules of an algorithm."""
    return tuple(c.factors[role].name for c in reading.contributions if c.algorithm.name == algorithm)


def _whole_of_conv1d(reading: Reading) -> tuple[str, ...]:
    """Return the factors w2 (o2, i2, kernel) of LoKr.

    PEFT's `make_kron` pairs their last two dimensions with those of w1.
    """
    own = (c for c in reading.contributions if c.algorithm.name == "lokr" and "w2" in c.factors)
    return tuple(c.factors["w2"].name for c in own if len(c.factors["w2"].shape) == 3)


def unbuilt_algorithms(reading: Reading) -> Iterator[RawProblem]:
    """Yield problems of unbuilt algorithms that the keys name."""
    by_name: dict[str, list[str]] = {}
    for contribution in reading.contributions:
        if contribution.algorithm.formula is None:
            keys = by_name.setdefault(contribution.algorithm.name, [])
            keys.append(next(iter(contribution.factors.values())).name)
    for name, keys in by_name.items():
        algorithm = algorithms.by_name(name)
        why = algorithm.why or f"is not supported yet; {_OWN_PROGRAM}"
        message = f"{algorithm.title} ({len(keys)} modules, {keys[0]}) {why}"
        yield RawProblem("algorithm-unsupported", message, tuple(keys[:5]))


# What of a config is shown, in this order, where it says something.
_FIELDS = (
    "r", "rank", "lora_alpha", "alpha", "use_rslora", "use_dora", "num_virtual_tokens", "target_modules",
    "modules_to_save", "base_model_name_or_path",
)  # fmt: skip
_MOST_ITEMS, _LETTERS = 5, 80


def about_method(reading: Reading) -> Reading:
    """Add the method and the settings of each config to the evidence, for files without modules."""
    return reading.with_evidence(map(_about_method, reading.configs))


def _about_method(found: FoundConfig) -> Evidence:
    said = [f"{name} {value}" for name in _FIELDS if (value := _shown(found.config.get(name)))]
    return Evidence("method", ", ".join([_method(str(found.peft_type)), *said]), found.where)


def missing_weights(reading: Reading) -> Iterator[RawProblem]:
    """Yield a problem for a config without weights."""
    checkpoint = reading.checkpoint
    if checkpoint.files or not checkpoint.config_path:
        return
    methods = [_method(str(found.peft_type)) for found in reading.configs]
    if reading.rules.config:
        methods.append(reading.rules.config.method)
    weights = MLX_WEIGHTS if reading.rules.config else PEFT_WEIGHTS
    yield RawProblem(
        "weights-missing",
        f"it holds {checkpoint.config_path}{''.join(f' of {method}' for method in methods)} without the weights; fetch "
        f"the {weights}.safetensors that belongs to it",
    )


def _method(peft_type: str) -> str:
    """Describe the method, with its name in configs."""
    # Several algorithms may be of one type, as those that are options of LoRA are.
    titles = {algorithm.name: algorithm.title for algorithm in algorithms.of_peft_type(peft_type)}
    known = titles.get(peft_type.lower()) or next(iter(titles.values()), None)
    title = METHODS[peft_type].title if peft_type in METHODS else known
    return f"{title} ({peft_type[:_LETTERS]})" if title else peft_type[:_LETTERS]


def _shown(value: Any) -> str:
    """Format a setting; empty for one that says nothing, or that is no setting."""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, (int, float)):
        return f"{value:.6g}" if isinstance(value, float) or abs(value) < 10**12 else ""
    if isinstance(value, str):
        return value[:_LETTERS]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return some([item[:_LETTERS] for item in value], _MOST_ITEMS) if value else ""
    return ""


def settle_formulas(reading: Reading) -> Reading:
    """Read the settings of every contribution with an algorithm that asks for some, or has variants."""
    modules, configs = reading.modules, reading.configs
    metadata, numbers = reading.checkpoint.metadata, reading.numbers
    speakers = Speakers(configs)
    options = dict(_options(configs))

    def settled(contribution: Contribution, module: Module) -> Contribution:
        if missing := missing_shared(contribution):
            return contribution._replace(unsettled=missing)
        algorithm = contribution.algorithm
        asked = options.get(algorithm.name) or algorithm.variant or algorithm.settings
        if not asked:
            return contribution
        around = _around(contribution, module, speakers.of(contribution), metadata)
        own = {
            role: numbers.factors[info.name]
            for role, info in contribution.factors.items()
            if info.name in numbers.factors
        }
        found = asked(around._replace(numbers=own))
        if isinstance(found, str):
            return contribution._replace(unsettled=found)
        if isinstance(found, Algorithm):
            return contribution._replace(algorithm=found)
        return contribution._replace(settings=found)

    own: dict[str, Module] = {}
    for name, module in modules.items():
        contributions = tuple([settled(contribution, module) for contribution in module.contributions])
        is_same = all(map(operator.is_, contributions, module.contributions))
        own[name] = module if is_same else module._replace(contributions=contributions)
    return reading._replace(modules=own)


def _options(configs: Sequence[FoundConfig]) -> Iterator[tuple[str, Callable[[Surroundings], Algorithm | str]]]:
    """Yield an algorithm with the function that decides whether a config's setting makes it another one."""
    for found in configs:
        for algorithm in algorithms.options_in(found.config):
            if algorithm.option_of and algorithm.variant:
                yield algorithm.option_of[0], algorithm.variant


def _around(
    contribution: Contribution, module: Module, configs: Sequence[FoundConfig], metadata: Mapping[str, str]
) -> Surroundings:
    alpha = contribution.alpha
    return Surroundings(
        key=module.name.key,
        roles=contribution.factors,
        config=configs[0].config if configs else None,
        metadata=metadata,
        alpha=math.nan if module.alpha and alpha is None else alpha,
        shares_alpha=sum(other.algorithm.has_alpha for other in module.contributions) > 1,
        shapes=contribution.shapes,
        beside=tuple(
            other.algorithm.title
            for other in module.contributions
            if other is not contribution and other.algorithm.parameter == contribution.algorithm.parameter
        ),
        chooses=partial(configs[0].modules.chooses, path=module.name.body) if configs else lambda field: None,
    )


def unknown_formulas(reading: Reading) -> Iterator[RawProblem]:
    """Yield problems of contributions with an unknown formula, by the reason."""
    keys: dict[tuple[str, str], list[str]] = {}
    for contribution in reading.contributions:
        if contribution.unsettled:
            same = (contribution.algorithm.title, contribution.unsettled)
            keys.setdefault(same, []).append(contribution.module.key)
    for (title, why), own in keys.items():
        others = f" and {len(own) - 1} more modules" if len(own) > 1 else ""
        yield RawProblem("formula-unknown", f"{title} of {own[0]}{others} is unknown: {why}", tuple(own[:5]))


def refused_patterns(reading: Reading) -> Iterator[RawProblem]:
    """Yield problems of config patterns that are not compared with modules."""
    for where, refused in {found.where: found.modules.refused for found in reading.configs}.items():
        if refused:
            yield RawProblem("pattern-unsupported", f"{where}: {refused}; {_way_out(refused)}")


def _way_out(refused: str) -> str:
    if refused.startswith("target_modules "):
        return "list the module names, or rename the file to adapter_model.safetensors if the two belong together"
    return "write the plain module path instead"
