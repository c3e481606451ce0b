"""Tensors of the base that PEFT saves whole, by its config, and copies that it saves next to them.

`bias` "all" trains every bias of the base, "lora_only" the biases of the adapted layers; `modules_to_save` trains
modules with a path that ends with one of its names. PEFT's wrappers add a name of their own to the paths of the modules
in them. Source: `_get_learnable_bias_state_dict`, `_set_trainable` and `AuxiliaryTrainingWrapper` of PEFT.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lora_inspect import schemes
from lora_inspect.algorithms.saved import NAME, ORIGINAL, SAVED, TWIN, saved
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.keys.claims import Claims
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.evidence import Evidence, RawProblem
from lora_inspect.reading.peft.config_lookup import FoundConfig
from lora_inspect.reading.peft.regex import Refused, Steps
from lora_inspect.reading.state import Reading
from lora_inspect.schemes.record import ModuleName
from lora_inspect.sentences import some

BELOW = ".base_layer"
# What a wrapper puts behind the path of the module that it wraps, and what a tensor there is.
_WRAPPERS = {BELOW: SAVED, ".modules_to_save": TWIN, ".original_module": ORIGINAL}
# The steps that a name takes, and how many letters of a path are compared in them.
_STEPS, _LETTERS = 4, 256
# A wrapper is one parameter of a module; a key may have as many of their names as a file has room for.
_MOST_WRAPPERS = 64
# The parameters of a base that are copied.
COPIED = ("weight", "bias")
_SHOWN = 3


class BaseTensor(NamedTuple):
    """A key of a tensor that a base has as well: its module, its parameter, and the wrapper that was in between."""

    module: str
    parameter: str
    wrapper: str = ""

    @classmethod
    def of(cls, key: str) -> "BaseTensor":
        """Split a key into its parts; a parameter of no module has the module ""."""
        module, _, parameter = key.rpartition(".")
        wrapper = next((wrapper for wrapper in _WRAPPERS if module.endswith(wrapper)), "")
        return cls(module.removesuffix(wrapper), parameter, wrapper)


def path_in_model(path: str, wrapped: Collection[str]) -> str:
    """Return a module's path without the names of wrappers; `wrapped` are the model's paths of wrapped modules."""
    return without_wrappers(path, wrapped)[0]


def without_wrappers(path: str, wrapped: Collection[str]) -> tuple[str, list[int]]:
    """Return the same, and the positions in it where the paths of wrapped modules around the module end."""
    ends: list[int] = []
    at = path.find(f"{BELOW}.") if path.count(BELOW) <= _MOST_WRAPPERS else -1
    while at >= 0:
        if path[:at] in wrapped:
            path = path[:at] + path[at + len(BELOW) :]
            ends.append(at)
            at = path.find(f"{BELOW}.", at)
        else:
            at = path.find(f"{BELOW}.", at + 1)
    return path, ends


class _Evidence:
    """The statements of one config about tensors of the base."""

    def __init__(self, found: FoundConfig, steps: Steps) -> None:
        bias = found.config.get("bias")
        self._found, self._steps = found, steps
        self._names = [f"{name}." for name in saved_modules(found.config)]
        self._all_biases = bias == "all"
        self._own_biases = isinstance(bias, str) and bias.endswith("_only")

    def trains(self, tensor: BaseTensor, module: ModuleName, claims: Claims) -> bool:
        """Return True if the tensor of this module was trained."""
        if self._found.prefix and self._found.prefix != module.prefix:
            return False
        if tensor.parameter == "bias" and (self._all_biases or (self._own_biases and tensor.module in claims.modules)):
            return True
        return tensor.wrapper != BELOW and self._names_module(module.body)

    def _names_module(self, path: str) -> bool:
        """Return True if the path of the module, or of a module around it, ends with one of the names."""
        if not self._names or self._found.modules.refused:
            return False
        try:
            self._steps.take(_STEPS * len(self._names) * (1 + len(path) // _LETTERS))
        except Refused as why:
            self._found.modules.refused = f"modules_to_save {why}"
            return False
        ends = f"{path}."
        return any(name in ends for name in self._names)


def saved_modules(config: Mapping[str, Any]) -> list[str]:
    """Return the names in `modules_to_save`; none if it is not a list of names."""
    names = config.get("modules_to_save")
    return [name for name in names if isinstance(name, str) and name] if isinstance(names, list) else []


def _says(config: Mapping[str, Any]) -> bool:
    return config.get("bias") not in (None, "none") or bool(saved_modules(config))


def claim_saved(reading: Reading) -> Reading:
    """Claim the tensors that were saved whole by the configs, before other changes of the same parameter."""
    claims, tensors = reading.claims, reading.checkpoint.tensors
    evidence = [_Evidence(found, reading.budget) for found in reading.configs if _says(found.config)]
    if not evidence:
        return reading
    groups: dict[tuple[str, str], dict[str, TensorInfo]] = {}
    findings, wrapped = list(claims.findings), _wrapped(claims)
    for key in claims.unclaimed:
        tensor = BaseTensor.of(key)
        tensor = tensor._replace(module=path_in_model(tensor.module, wrapped))
        name = schemes.recognise(tensor.module)
        if not tensor.module or not any(one.trains(tensor, name, claims) for one in evidence):
            continue
        role = _WRAPPERS.get(tensor.wrapper, SAVED)
        if groups.setdefault((tensor.module, tensor.parameter), {}).setdefault(role, tensors[key]).name != key:
            message = f"{key} is a second tensor for the same role of its module; leave one of them out"
            findings.append(RawProblem("duplicate-tensor", message, (key,)))
    modules = dict(claims.modules)
    claimed: set[str] = set()
    for (path, parameter), factors in groups.items():
        module = modules.get(path) or Module(schemes.recognise(path), ())
        changed = {contribution.algorithm.parameter for contribution in claims.modules.get(path, module).contributions}
        if SAVED not in factors or (parameter != "bias" and parameter in changed):
            continue
        contribution = Contribution(module.name, saved(parameter), factors)
        together = sorted((contribution, *module.contributions), key=lambda one: one.turn)
        modules[path] = module._replace(contributions=tuple(together))
        claimed.update(info.name for info in factors.values())
    unclaimed = tuple(key for key in claims.unclaimed if key not in claimed)
    claims = claims._replace(modules=modules, unclaimed=unclaimed, findings=tuple(findings))
    return reading._replace(claims=claims)


def copies_below(unclaimed: Iterable[str], modules: Collection[str]) -> list[str]:
    """Return the keys of base tensors below a module of the file, which PEFT saves for a merge to compare."""
    named = ((key, BaseTensor.of(key)) for key in unclaimed)
    return [key for key, one in named if one.wrapper == BELOW and one.parameter in COPIED and one.module in modules]


def _wrapped(claims: Claims) -> set[str]:
    """Return the paths of modules of the model that have wrappers with factors."""
    found: set[str] = set()
    for module in claims.modules.values():
        for info in module.tensors:
            holder = info.name.partition(".lora_")[0]
            if not holder.startswith(module.name.key) or holder == module.name.key:
                found.add(path_in_model(holder.removesuffix(BELOW), found))
    return found


def about_saved(reading: Reading) -> Reading:
    """Add evidence of tensors that are saved whole, with the config that says so, and of copies of the base's."""
    return reading.with_evidence(_about_saved(reading.claims, reading.configs))


def _about_saved(claims: Claims, configs: Sequence[FoundConfig]) -> Iterator[Evidence]:
    found = [c for module in claims.modules.values() for c in module.contributions if c.algorithm.name == NAME]
    where = [one.where for one in configs if _says(one.config)]
    biases = [c.module.key for c in found if c.algorithm.parameter == "bias"]
    others = [c.module.key for c in found if c.algorithm.parameter != "bias"]
    for what, keys in (("biases", biases), ("tensors", others)):
        if keys and where:
            yield Evidence("saved", f"{len(keys)} {what} are saved whole ({some(keys, _SHOWN)})", where[0])
    if copies := copies_below(claims.unclaimed, claims.modules):
        says = (
            "the file also holds copies of parts of the base below adapted layers, for a merge to compare: "
            f"{some(copies, _SHOWN)}"
        )
        yield Evidence("saved", says, "names")


def missing_saved(reading: Reading) -> Iterator[RawProblem]:
    """Yield problems of configs that name modules to save without any tensor in the file."""
    parameters = {c.algorithm.parameter for c in reading.contributions if c.algorithm.name == NAME}
    for found in reading.configs:
        names = saved_modules(found.config)
        if names and not parameters and not found.modules.refused:
            yield RawProblem(
                "incomplete",
                f"{found.where} lists {some(names, _SHOWN)} in modules_to_save, but the file has no "
                "tensor of them, so it is not the whole adapter; fetch the file that the trainer saved, "
                "or remove them from the config if there were none",
            )


# The field in which a config names tokens whose rows were trained beside its factors.
_TOKENS = "trainable_token_indices"


def missing_tokens(reading: "Reading") -> Iterator[RawProblem]:
    """Yield problems of LoRA configs that name trained tokens without any rows in the file."""
    if any(c.algorithm.ties for c in reading.contributions):
        return
    for found in reading.configs:
        if found.config.get(_TOKENS):
            yield RawProblem(
                "incomplete",
                f"{found.where} lists {_TOKENS}, but the file has no rows of tokens, so it is not the "
                "whole adapter; fetch the file that the trainer saved, or remove them from the config if "
                "there were none",
            )
