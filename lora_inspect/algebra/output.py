"""The file or the folder of an adapter that was made of others: its names, its tensors as they come, and its config.

Every module is plain LoRA whose alpha is its rank, so programs that read an alpha, a config or neither apply the
factors as they stand. Nothing but the modules at work is held in memory.
"""

import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from lora_inspect.algebra.changes import DIFFERENCE_NAMES
from lora_inspect.algebra.combination import MadeModule, Making, PlannedModule
from lora_inspect.algebra.streamed_file import alpha_plan, bytes_of, streamed_bytes, streamed_file
from lora_inspect.algorithms.full import DIFFERENCE
from lora_inspect.algorithms.lora import ALGORITHM as LORA
from lora_inspect.algorithms.record import WEIGHT, Algorithm
from lora_inspect.converting.output.configs import BARE, lora_config, saved_config, standard_config
from lora_inspect.converting.target.key_names import (
    ALPHA,
    CONFIG,
    alpha_key,
    carrier_of,
    factor_key,
    new_factor_key,
)
from lora_inspect.converting.target.target_algorithm import DIFFERENCES, reads_differences
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.delivery import delivered
from lora_inspect.files.discovery import ADAPTER_CONFIG, PEFT_WEIGHTS
from lora_inspect.files.input_file import Identity
from lora_inspect.files.outputs import check_output, check_replaceable, file_output, folder_output, new_folder
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.safetensors.writer import TensorPlan, renamed
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.peft import peft_config

UP, DOWN = "up", "down"
_WEIGHTS = f"{PEFT_WEIGHTS}.safetensors"
# Factors that stand as those of plain LoRA do, under names of their own.
_ALIKE = ("lora_embedding",)
# Settings of PEFT's LoRA that say how the factors of an input are meant or began, which is not true of a sum.
_OF_ORIGIN = (
    *("use_bdlora", "kasa_config", "trainable_token_indices", "init_lora_weights", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config", "velora_config", "monteclora_config", "arrow_config"),
)


class SpelledFactors(NamedTuple):
    """The keys of a module's factors, and of its alpha where programs look for one."""

    up: str
    down: str
    alpha: str | None


class AdapterOutput:
    """The output of some modules where the user `named` it: None for a plan alone.

    Plain LoRA keeps the suffixes of the adapter `first` in its names. Where it `stabilises` scales by rank, alpha is
    √rank beside the adapter's flags, else it is the rank. `passed` are tensors that stay as they are. The metadata get
    hashes that programs look up where `hashed` has one of their keys.

    Raises LoraInspectError for names that no one output can have, and for a name that is meant for the other kind.
    """

    def __init__(
        self,
        first: Adapter | None,
        modules: Sequence[PlannedModule],
        named: str | None,
        inputs: Collection[str],
        name: str,
        stabilises: bool = False,
        passed: Sequence[TensorInfo] = (),
        hashed: Collection[str] = (),
    ) -> None:
        self._first, self._modules, self._passed, self._hashed = first, modules, passed, hashed
        self.alpha_of: Callable[[int], float] = math.sqrt if stabilises else float
        self._stabilises = stabilises
        carriers = {carrier_of(one.sum.module) for one in modules}
        self.is_folder = CONFIG in carriers
        if self.is_folder and len(carriers) > 1:
            raise RefusedError(
                name,
                "the output would mix PEFT's names, which keep their scale in a config, with other names",
                "choose names with --to",
            )
        if named is None:
            self.path = ""
        elif self.is_folder:
            because = f"PEFT's names keep their scale in an {ADAPTER_CONFIG} next to the tensors"
            self.path = folder_output(named, because, inputs)
        else:
            self.path = _file(named, name, inputs)
        self._suffixes = _suffixes(first) if first else {}

    def check(self, inputs: Collection[str], force: bool) -> None:
        """Raises LoraInspectError where the output cannot be written to its path."""
        check_output(self.path, inputs, force, folder=self.is_folder)
        if self.is_folder:
            check_replaceable(self.path, (_WEIGHTS, ADAPTER_CONFIG))

    def spelled(self, one: PlannedModule) -> SpelledFactors:
        """The keys of a module: with the suffixes of the first adapter, or those of the scheme that was asked for."""
        module, origin = one.sum.module, _origin(one)
        alpha = alpha_key(module) if carrier_of(module) == ALPHA else None
        is_alike = origin is not None and origin.algorithm.name in _ALIKE
        if self._suffixes and not module.respelled and not is_alike:
            up, down = (module.name.key + self._suffixes[role] for role in (UP, DOWN))
            return SpelledFactors(up, down, alpha)
        algorithm = origin.algorithm if origin and is_alike else LORA
        up, down = (key_of(module, origin, algorithm, role) for role in (UP, DOWN))
        return SpelledFactors(up, down, alpha)

    def plans(self, ranks: Sequence[int], making: Making) -> list[TensorPlan]:
        """The tensors of the modules at their ranks, none of rank 0, in the order of the file."""
        alphas, others = list[TensorPlan](), [_as_it_is(info) for info in self._passed]
        for one, rank in zip(self._modules, ranks, strict=True):
            others += [TensorPlan(key, making.differences, shape) for key, shape in self._differences(one).values()]
            if rank and one.shape and not one.is_difference:
                keys = self.spelled(one)
                others += _factor_plans(keys, one.shape, rank, making.dtype)
                alphas += [alpha_plan(keys.alpha)] if keys.alpha else []
        return [*alphas, *others]

    def _differences(self, one: PlannedModule) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The key and the shape of the difference of each parameter that has one."""
        found = {
            parameter: (difference_key(one.sum.module, terms[0].contribution, parameter), one.vector_shapes[parameter])
            for parameter, terms in one.vectors.items()
        }
        if one.is_difference:
            found[WEIGHT] = (difference_key(one.sum.module, _origin(one), WEIGHT), one.shape)
        return found

    def size(
        self, plans: Sequence[TensorPlan], metadata: Mapping[str, str], most: Sequence[TensorPlan] | None = None
    ) -> int:
        """The bytes of the file with these tensors, and a header with room for `most`."""
        return streamed_bytes(plans, metadata, most)

    def write(
        self,
        plans: Sequence[TensorPlan],
        made: Iterable[MadeModule],
        making: Making,
        metadata: Callable[[], Mapping[str, str]],
        inputs: Mapping[str, Identity],
        force: bool,
    ) -> int:
        """Write the modules as they are made; `metadata` is asked again once all of them are there.

        `plans` are their tensors at the largest ranks that they may have. The file is read back before it appears:
        every tensor has to be the one that was made. Returns the bytes of the weights. Raises LoraInspectError where
        the disk refuses, and where it holds something else.
        """
        with delivered(self.path, inputs, force) as place:
            if not self.is_folder:
                self._write(place.path, plans, made, making, metadata, inputs, force)
                return os.path.getsize(place.path)
            with new_folder(place.path, inputs, force) as folder:
                weights = os.path.join(folder, _WEIGHTS)
                ranks = self._write(weights, plans, made, making, metadata, None, False)
                with open(os.path.join(folder, ADAPTER_CONFIG), "x", encoding="utf-8") as handle:
                    json.dump(self._config(ranks), handle, indent=2, sort_keys=True)
                    handle.write("\n")
                return os.path.getsize(weights)

    def _write(
        self,
        path: str,
        plans: Sequence[TensorPlan],
        made: Iterable[MadeModule],
        making: Making,
        metadata: Callable[[], Mapping[str, str]],
        inputs: Mapping[str, Identity] | None,
        force: bool,
    ) -> dict[str, int]:
        """Write the file; return the ranks of its modules by their dotted paths."""
        ranks: dict[str, int] = {}
        with streamed_file(path, plans, metadata, inputs, force, self._hashed) as file:
            for info in self._passed:
                file.append(_as_it_is(info), b"".join(renamed(info, info.name).chunks()))
            for one in made:
                keys = self._differences(one.module)
                for parameter, numbers in one.differences.items():
                    key, shape = keys[parameter]
                    file.append(TensorPlan(key, making.differences, shape), bytes_of(numbers))
                if one.up is None or one.down is None:
                    continue
                spelled = self.spelled(one.module)
                ranks[one.module.sum.module.name.body] = one.rank
                factors = _factor_plans(spelled, one.module.shape, one.rank, making.dtype)
                for plan, tensor in zip(factors, (one.up, one.down), strict=True):
                    file.append(plan, bytes_of(tensor))
                if spelled.alpha:
                    file.set_alpha(spelled.alpha, self.alpha_of(one.rank))
        return ranks

    def _config(self, ranks: Mapping[str, int]) -> dict[str, object]:
        own = self._first.checkpoint.config if self._first else None
        config = lora_config(own if own and peft_config.is_peft_config(own) else BARE)
        saved = [info.name for info in self._passed]
        config = saved_config(config, saved, biases=False)
        config = {field: value for field, value in config.items() if field not in _OF_ORIGIN}
        alphas = {path: self.alpha_of(rank) for path, rank in ranks.items()}
        stabilised = {"use_rslora": True} if self._stabilises else {}
        return {**standard_config(config, ranks, alphas, use_dora=False), **stabilised}


def _origin(one: PlannedModule) -> Contribution | None:
    """The contribution whose keys show the spelling of the module; None where no file has it."""
    return one.sum.terms[0].contribution if one.sum.terms else None


def difference_key(module: Module, origin: Contribution | None, parameter: str) -> str:
    """The key of the difference of a parameter.

    Raises LoraInspectError where programs that read the names know none.
    """
    has_own = origin is not None and origin.algorithm.name in DIFFERENCE_NAMES
    algorithm = origin.algorithm if origin and has_own else DIFFERENCES[parameter]
    if not reads_differences(module.name.scheme) and not has_own:
        names = "choose other names, for instance with --to kohya"
        is_weight = parameter == WEIGHT
        raise RefusedError(
            next(iter(origin.factors.values())).file if origin else module.name.key,
            f"the sum of the changes of {module.name.key} is a full difference of its {parameter}, and no program "
            f"reads one under {module.name.scheme} names",
            f"give --rank N for plain LoRA, or {names}" if is_weight else f"{names}, or leave it out with --exclude",
        )
    return key_of(module, origin, algorithm, DIFFERENCE)


def key_of(module: Module, origin: Contribution | None, algorithm: Algorithm, role: str) -> str:
    """The key of a factor of a module, also of one that no file has."""
    return factor_key(module, origin, algorithm, role) if origin else new_factor_key(module, algorithm, role)


def _file(named: str, name: str, inputs: Collection[str]) -> str:
    """The path of a file that the user named; LoraInspectError for a folder, as the output is none of the inputs."""
    if os.path.isdir(named):
        raise RefusedError(
            named, "it is a folder, and the output is a new file", f"name the file: {os.path.join(named, name)}"
        )
    return file_output(named, name, inputs)


def _suffixes(first: Adapter) -> dict[str, str]:
    """The suffixes of the factors of plain LoRA in a file, of its first module that has them; none without any."""
    for contribution in first.contributions:
        if contribution.algorithm.name == LORA.name and contribution.rows is None:
            keys = {role: contribution.factors[role].name for role in (UP, DOWN)}
            if all(key.startswith(contribution.module.key) for key in keys.values()):
                return {role: key.removeprefix(contribution.module.key) for role, key in keys.items()}
    return {}


def _as_it_is(info: TensorInfo) -> TensorPlan:
    return TensorPlan(info.name, info.dtype, info.shape)


def _factor_plans(keys: SpelledFactors, shape: tuple[int, ...], rank: int, dtype: str) -> list[TensorPlan]:
    """The plans of up (out, rank, 1, …) and down (rank, in, *kernel) for a weight of a shape."""
    rows, *columns = shape
    up = TensorPlan(keys.up, dtype, (rows, rank, *[1] * len(columns[1:])))
    return [up, TensorPlan(keys.down, dtype, (rank, *columns))]
