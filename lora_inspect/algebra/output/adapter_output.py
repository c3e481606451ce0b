"""The file or the folder of an adapter that was made of others: its names, its tensors, and its config.

Every module is plain LoRA with an alpha equal to its rank, so programs that read an alpha, a config or neither apply
the factors unchanged. Nothing but the modules at work is held in memory.
"""

import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy

from lora_inspect.algebra.output.numbered_names import layer_of
from lora_inspect.algebra.output.output_modules import MadeModule, Making, PlannedModule, WrittenTensor
from lora_inspect.algebra.output.spelling import difference_key, nested, spelling_of, suffixes_of
from lora_inspect.algebra.output.streamed_file import (
    alpha_plan,
    bytes_of,
    check_written,
    hash_keys,
    streamed_bytes,
    streamed_file,
)
from lora_inspect.algebra.tied_heads import tied_embeddings
from lora_inspect.algorithms import lora_bias
from lora_inspect.algorithms.record import WEIGHT
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.output.configs import BARE, lora_config, mlx_config, saved_config, standard_config
from lora_inspect.converting.target.key_names import CONFIG, HEADER, ONE_SCALE, carrier_of
from lora_inspect.errors import RefusedError
from lora_inspect.files.delivery import delivered
from lora_inspect.files.discovery import ADAPTER_CONFIG, MLX_WEIGHTS, PEFT_WEIGHTS
from lora_inspect.files.file_types import GGUF_KEYS
from lora_inspect.files.gguf.gguf_format import ADAPTER_TYPE_KEY, ALPHA_KEY, ARCHITECTURE_KEY, TYPE_KEY
from lora_inspect.files.gguf.gguf_reader import read_gguf
from lora_inspect.files.gguf.gguf_writer import write_gguf
from lora_inspect.files.input_file import Identity
from lora_inspect.files.outputs import (
    GGUF_ENDING,
    SAFETENSORS_ENDING,
    check_output,
    check_replaceable,
    file_output,
    folder_output,
    new_folder,
)
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.safetensors.writer import Content, TensorPlan, renamed
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.peft import peft_config
from lora_inspect.reading.peft.fused_experts import has_fused_layers
from lora_inspect.reading.peft.peft_config import TYING_TARGETS, WEIGHT_TYING, names_tied_layer

# The programs whose names are those of a folder, by the carrier of their scale, and their names of the weights.
_FOLDERS = {CONFIG: ("PEFT", PEFT_WEIGHTS), ONE_SCALE: ("mlx-lm", MLX_WEIGHTS)}
# Settings of PEFT's LoRA that say how the factors of an input are meant or began, which is not true of a sum.
_OF_ORIGIN = (
    *("use_bdlora", "kasa_config", "trainable_token_indices", "init_lora_weights", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config", "velora_config", "monteclora_config", "arrow_config"),
)


class AdapterOutput:
    """The output of some modules at the path that the user `named`: None for a plan only.

    Plain LoRA keeps the suffixes of the adapter `first` in its names, unless others were asked for (`is_asked`). If it
    `stabilises` scales by rank, alpha is √rank with the adapter's flags, else it is the rank. `passed` are tensors that
    stay as they are. The metadata get hashes that programs look up if `hashed` has one of their keys. `architecture` is
    llama.cpp's name of the model. `target` are the options of a conversion to the output's names, which may give all
    modules one rank and name them otherwise in the config. `tied` are the keys of embeddings whose change is that of
    the head with the same weight, too, if no terms say so.

    In PEFT's names a mixture of experts has one rank for all modules: PEFT puts the experts of a layer together.

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
        is_asked: bool = False,
        architecture: str = "",
        target: ConvertOptions | None = None,
        tied: Collection[str] = (),
    ) -> None:
        self._first, self._modules, self._passed, self._hashed = first, modules, passed, hashed
        self._is_asked, self._architecture = is_asked, architecture
        self.alpha_of: Callable[[int], float] = math.sqrt if stabilises else float
        self._stabilises = stabilises
        carriers = {carrier_of(one.sum.module) for one in modules}
        programs = [_FOLDERS[carrier] for carrier in sorted(carriers & _FOLDERS.keys())]
        self.is_folder, self._is_gguf = bool(programs), HEADER in carriers
        # mlx-lm's config has one rank for all modules, and llama.cpp's header one alpha.
        self._is_mlx = ONE_SCALE in carriers
        self._target = target or ConvertOptions()
        self._tied = tied or tied_embeddings([one.sum for one in modules])
        is_mixture = CONFIG in carriers and has_fused_layers(one.sum.module.name.body for one in modules)
        self.is_uniform = self._is_mlx or self._is_gguf or self._target.uniform or is_mixture
        if (self.is_folder or self._is_gguf) and len(carriers) > 1:
            program = programs[0][0] if programs else "llama.cpp"
            raise RefusedError(
                name,
                f"the output would mix {program}'s names, which keep their scale in a place of their own, with others",
                "choose names with --to",
            )
        self._weights = f"{programs[0][1]}.safetensors" if programs else ""
        if named is None:
            self.path = ""
        elif self.is_folder:
            because = f"{programs[0][0]}'s names keep their scale in an {ADAPTER_CONFIG} next to the tensors"
            self.path = folder_output(named, because, inputs)
        else:
            self.path = _file(named, name, inputs, GGUF_ENDING if self._is_gguf else SAFETENSORS_ENDING)
        suffixes = suffixes_of(first) if first else {}
        spellings = {
            one.sum.module.name.key: spelling_of(one.sum.module, _origin(one), suffixes) for one in modules if one.shape
        }
        self._spellings = nested(spellings, name)

    def one_rank(self, ranks: Iterable[int]) -> int | None:
        """Return the rank up to which zeros fill all factors, or None if each module has its own."""
        return self._target.rank_of_all(ranks) if self.is_uniform else None

    def numbered_layer(self, module: str) -> str:
        """Return the layer, such as `unet:17`, of a module whose name is a number."""
        return layer_of(self._spellings[module].up)

    def check(self, inputs: Collection[str], force: bool) -> None:
        """Raise LoraInspectError if the output cannot be written to its path."""
        check_output(self.path, inputs, force, folder=self.is_folder)
        if self.is_folder:
            check_replaceable(self.path, (self._weights, ADAPTER_CONFIG))

    def _factor_plans(self, one: PlannedModule, rank: int, dtype: str) -> list[TensorPlan]:
        spelled = self._spellings[one.sum.module.name.key]
        up, down = spelled.shapes(one.shape, rank, one.experts)
        return [TensorPlan(spelled.up, dtype, up), TensorPlan(spelled.down, dtype, down)]

    def plans(self, ranks: Sequence[int], making: Making) -> list[TensorPlan]:
        """Return the tensors of the modules at their ranks, none of rank 0, in the order of the file."""
        alphas, others = list[TensorPlan](), [_as_it_is(info) for info in self._passed]
        for one, rank in zip(self._modules, ranks, strict=True):
            others += [TensorPlan(key, making.differences, shape) for key, shape in self._differences(one).values()]
            if rank and one.shape and not one.is_difference:
                others += self._factor_plans(one, rank, making.dtype)
                alpha = self._spellings[one.sum.module.name.key].alpha
                alphas += [alpha_plan(alpha)] if alpha else []
        return [*alphas, *others]

    def _differences(self, one: PlannedModule) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return the key and the shape of the difference of each parameter that has one."""
        has_factors = bool(one.shape) and not one.is_difference
        found = {
            parameter: (difference_key(one.sum.module, terms, parameter, has_factors), one.vector_shapes[parameter])
            for parameter, terms in one.vectors.items()
        }
        if one.is_difference:
            found[WEIGHT] = (difference_key(one.sum.module, one.sum.terms, WEIGHT, False), one.shape)
        return found

    def size(self, plans: Sequence[TensorPlan], metadata: Mapping[str, str]) -> int:
        """Return the bytes of the file with these tensors."""
        return streamed_bytes(plans, metadata)

    def metadata_keys(self, metadata: Mapping[str, str]) -> set[str]:
        """Return the keys of a file that is written with this metadata: also those that its format has."""
        if self._is_gguf:
            return {*self._strings(metadata), ARCHITECTURE_KEY, TYPE_KEY, ADAPTER_TYPE_KEY, ALPHA_KEY}
        return {*metadata, *hash_keys(self._hashed)}

    @staticmethod
    def _strings(metadata: Mapping[str, str]) -> dict[str, str]:
        """Return the metadata for a GGUF file, whose format has the other keys."""
        return {key: text for key, text in metadata.items() if not key.startswith(GGUF_KEYS)}

    def write(
        self,
        plans: Sequence[TensorPlan],
        made: Iterable[MadeModule | WrittenTensor],
        making: Making,
        metadata: Callable[[], Mapping[str, str]],
        inputs: Mapping[str, Identity],
        force: bool,
        look: Callable[[str], None] = lambda path: None,
    ) -> int:
        """Write the modules as they are made; `metadata` is asked again once all of them are there.

        `plans` are their tensors at the largest ranks that they may have. The file is read back before it appears:
        every tensor must equal the made one, and `look` is called with the path of the complete output. Returns the
        bytes of the weights. Raises LoraInspectError if the disk refuses, and if it holds something else.
        """
        with delivered(self.path, inputs, force) as place:
            if self._is_gguf:
                self._write_gguf(place.path, made, making, metadata, inputs, force, look)
                return os.path.getsize(place.path)
            if not self.is_folder:
                self._write(place.path, plans, made, making, metadata, inputs, force, look)
                return os.path.getsize(place.path)
            with new_folder(place.path, inputs, force) as folder:
                weights = os.path.join(folder, self._weights)
                ranks = self._write(weights, plans, made, making, metadata, None, False)
                config = self._mlx_config(ranks) if self._is_mlx else self._config(ranks)
                with open(os.path.join(folder, ADAPTER_CONFIG), "x", encoding="utf-8") as handle:
                    json.dump(config, handle, indent=2, sort_keys=True)
                    handle.write("\n")
                look(folder)
            return os.path.getsize(os.path.join(place.path, self._weights))

    def _write(
        self,
        path: str,
        plans: Sequence[TensorPlan],
        made: Iterable[MadeModule | WrittenTensor],
        making: Making,
        metadata: Callable[[], Mapping[str, str]],
        inputs: Mapping[str, Identity] | None,
        force: bool,
        look: Callable[[str], None] | None = None,
    ) -> dict[str, int]:
        """Write the file; return the ranks of its modules by their paths in a config."""
        ranks: dict[str, int] = {}
        with streamed_file(path, plans, metadata, inputs, force, self._hashed, look) as file:
            for info in self._passed:
                file.append(_as_it_is(info), b"".join(renamed(info, info.name).chunks()))
            for one in made:
                if isinstance(one, WrittenTensor):
                    file.append(one.plan, bytes_of(one.values))
                    continue
                for plan, data in self._tensors(one, making):
                    file.append(plan, data)
                if one.rank:
                    spelled = self._spellings[one.key]
                    ranks[spelled.path] = one.rank
                    if spelled.alpha:
                        file.set_alpha(spelled.alpha, self.alpha_of(one.rank))
        return ranks

    def _tensors(self, one: MadeModule, making: Making) -> Iterator[tuple[TensorPlan, memoryview]]:
        """Yield the tensors of a module as they are written, but for its alpha."""
        keys = self._differences(one.module)
        for parameter, numbers in one.differences.items():
            key, shape = keys[parameter]
            yield TensorPlan(key, making.differences, shape), bytes_of(numbers)
        if one.up is None or one.down is None:
            return
        factors = self._spellings[one.key].arranged(one.up, one.down)
        for plan, tensor in zip(self._factor_plans(one.module, one.rank, making.dtype), factors, strict=True):
            yield plan, bytes_of(numpy.ascontiguousarray(tensor))

    def _write_gguf(
        self,
        path: str,
        made: Iterable[MadeModule | WrittenTensor],
        making: Making,
        metadata: Callable[[], Mapping[str, str]],
        inputs: Mapping[str, Identity],
        force: bool,
        look: Callable[[str], None],
    ) -> None:
        """Write a file of llama.cpp; its header is first and has the record of all that follows."""
        contents, rank = list[Content](), 1
        for one in made:
            if isinstance(one, WrittenTensor):
                raise AssertionError(f"{one.plan.name}: llama.cpp has no tensors beside factors")
            rank = max(rank, one.rank)
            contents += [Content(plan, bytes(data)) for plan, data in self._tensors(one, making)]
        sums = {content.plan.name: crc32(content.source) for content in contents if isinstance(content.source, bytes)}
        strings = self._strings(metadata())

        def prove(complete: str) -> None:
            check_written(complete, path, read_gguf(complete).tensors, sums)
            look(complete)

        write_gguf(path, self._architecture, self.alpha_of(rank), contents, strings, inputs, force, prove)

    def _mlx_config(self, ranks: Mapping[str, int]) -> dict[str, object]:
        config = self._first.checkpoint.config if self._first else None
        return mlx_config(config, list(ranks), max(ranks.values(), default=0), 1.0, use_dora=False)

    def _config(self, ranks: Mapping[str, int]) -> dict[str, object]:
        own = self._first.checkpoint.config if self._first else None
        config = lora_config(own if own and peft_config.is_peft_config(own) else BARE)
        config = saved_config(config, [info.name for info in self._passed], biases=False)
        config = {field: value for field, value in config.items() if field not in _OF_ORIGIN}
        alphas = {path: self.alpha_of(rank) for path, rank in ranks.items()}
        parameters = {one.path for one in self._spellings.values() if one.is_of_parameter and one.path in ranks}
        stabilised = {"use_rslora": True} if self._stabilises else {}
        biased = {"lora_bias": True} if self._has_lora_bias() else {}
        made = standard_config(config, ranks, alphas, False, parameters, self._is_asked, self._target.by_leaf)
        return {**made, **stabilised, **biased, **self._weight_tying(made, ranks)}

    def _weight_tying(self, config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, object]:
        """Return the entries of the config by which PEFT gives a head the change of the embedding that it shares."""
        if any(self._spellings[key].path in ranks for key in self._tied):
            targets = config["target_modules"]
            is_read = isinstance(targets, str) or names_tied_layer(config)
            return {WEIGHT_TYING: True, **({} if is_read else {"target_modules": [*targets, TYING_TARGETS[0]]})}
        # Embeddings that are saved whole stay as the first input has them.
        return {WEIGHT_TYING: False} if WEIGHT_TYING in config and not self._passed else {}

    def _has_lora_bias(self) -> bool:
        """Return True if a module has a bias on LoRA's up layer, which PEFT loads only if its config says so."""
        own = (
            term.contribution.algorithm.name
            for one in self._modules
            for terms in one.vectors.values()
            for term in terms
        )
        return lora_bias.ALGORITHM.name in own


def _origin(one: PlannedModule) -> Contribution | None:
    """Return the contribution with keys that show the module's spelling; of no file if the module itself has it."""
    if one.sum.terms:
        return one.sum.terms[0].contribution
    return next(iter(one.sum.module.contributions), None)


def _file(named: str, name: str, inputs: Collection[str], ending: str) -> str:
    """Return the path of a file that the user named; LoraInspectError for a folder, since the output is a new file."""
    if os.path.isdir(named):
        raise RefusedError(
            named, "it is a folder, and the output is a new file", f"name the file: {os.path.join(named, name)}"
        )
    return file_output(named, name, inputs, ending)


def _as_it_is(info: TensorInfo) -> TensorPlan:
    return TensorPlan(info.name, info.dtype, info.shape)
