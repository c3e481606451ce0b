"""The place of a standard adapter: one file, or a folder with a config.

The config states rank and scale, as for PEFT and mlx-lm.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lora_inspect.algorithms import saved
from lora_inspect.algorithms.record import BIAS, WEIGHT
from lora_inspect.converting.output.configs import (
    BARE,
    config_of_method,
    lora_config,
    mlx_config,
    moved_experts,
    saved_config,
    standard_config,
    unscaled_config,
)
from lora_inspect.converting.target.key_names import (
    CONFIG,
    FACTORS,
    HEADER,
    OF_ALL_MODULES,
    ONE_SCALE,
    carrier_of,
    magnitude_place,
)
from lora_inspect.converting.target.target_layout import Destination
from lora_inspect.errors import RefusedError
from lora_inspect.files.delivery import delivered
from lora_inspect.files.discovery import ADAPTER_CONFIG, MLX_WEIGHTS, PEFT_WEIGHTS
from lora_inspect.files.file_types import GGUF_KEYS
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
from lora_inspect.files.safetensors.writer import Content, write_contents
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.keys.suffixes import MODELS
from lora_inspect.reading.peft import peft_config
from lora_inspect.reading.scale.scale_records import FoldedScales, folded_record
from lora_inspect.schemes.diffusers import DIFFUSERS

if TYPE_CHECKING:
    from lora_inspect.converting.output.output_tensors import SpelledModule

# Whose names are those of a folder, and what the weights in it are called.
_FOLDERS = {CONFIG: ("PEFT", PEFT_WEIGHTS), ONE_SCALE: ("mlx-lm", MLX_WEIGHTS)}


class StandardOutput:
    """The output of one adapter at the path that the user `named`, and the files next to its tensors.

    `path` is the path of the file, or of the folder if `is_folder`. `scheme` is the scheme of most of its names, and
    `asked` the requested one. `architecture` is llama.cpp's name of the model, for a file of llama.cpp.
    `without_biases` is True if the biases of the input were left out. With `by_leaf`, the config names layers by the
    ends of their paths.

    Raises LoraInspectError if the adapter needs both a file and a folder, or if the name is for the other one.
    """

    def __init__(
        self,
        adapter: Adapter,
        modules: Sequence[Destination],
        named: str,
        inputs: Collection[str],
        asked: str | None = None,
        architecture: str | None = None,
        without_biases: bool = False,
        by_leaf: bool = False,
    ) -> None:
        self._adapter = adapter
        self._without_biases = without_biases
        self._by_leaf = by_leaf
        self._architecture = architecture
        self._asked = asked
        self._modules = modules
        self._carriers = {carrier_of(destination.module) for destination in modules}
        programs = [_FOLDERS[carrier] for carrier in sorted(self._carriers & _FOLDERS.keys())]
        self.is_folder = bool(programs)
        self.scheme = Counter(destination.module.name.scheme for destination in modules).most_common(1)[0][0]
        source = adapter.checkpoint
        if self.is_folder and len(self._carriers) > 1:
            raise RefusedError(
                source.path,
                f"it mixes {programs[0][0]}'s names, which keep their scale in a config, with other names, so "
                "no program reads all its keys",
                f"write {programs[0][0]}'s modules to a separate file first",
            )
        if self.is_folder:
            program, weights = programs[0]
            self._weights = f"{weights}.safetensors"
            has = "has" if any(one.name.scheme == self.scheme for one in adapter.modules.values()) else "gets"
            because = (
                f"{source.path} {has} {program}'s names, which keep their scale in an {ADAPTER_CONFIG} next to "
                "the tensors"
            )
            self.path = folder_output(named, because, inputs)
        else:
            ending = GGUF_ENDING if self._is_gguf else SAFETENSORS_ENDING
            self.path = file_output(named, source.name, inputs, ending)

    @property
    def _is_gguf(self) -> bool:
        return HEADER in self._carriers

    def check(self, inputs: Collection[str], force: bool) -> None:
        """Raise LoraInspectError if the adapter cannot be written to the path."""
        check_output(self.path, inputs, force, folder=self.is_folder)
        if self.is_folder:
            check_replaceable(self.path, (self._weights, ADAPTER_CONFIG))

    def check_magnitudes(self) -> None:
        """Raise LoraInspectError if readers would apply a magnitude to modules that have none."""
        without = [c.module for c in self._adapter.contributions if c.algorithm.decomposes and not c.magnitude]
        kept = (
            magnitude_place(destination.module, c, c.magnitude)[1]
            for destination in self._modules
            for source in destination.sources
            for c in source.module.contributions
            if c.magnitude
        )
        if without and any(suffix in OF_ALL_MODULES for suffix in kept):
            raise RefusedError(
                self._adapter.checkpoint.path,
                f"{len(without)} modules have no magnitude ({without[0].key}), but PEFT, diffusers and mlx-lm "
                "apply magnitudes to all modules or to none",
                "choose --base BASE or --drop-magnitude",
            )

    def embedded(self, modules: "Mapping[str, SpelledModule]") -> str | None:
        """Return the configs of the metadata for diffusers, corrected for the modules, or None without any."""
        configs: Mapping[str, Mapping[str, object]] = peft_config.embedded_configs(self._adapter.checkpoint.metadata)
        components: dict[str, dict[str, SpelledModule]] = defaultdict(dict)
        for module in modules.values():
            name = module.module.name
            # PEFT finds layers by the ends of their names, and CLIP of transformers 5 has no `text_model`.
            path = name.body if name.component in MODELS else name.body.removeprefix("text_model.")
            components[name.prefix][path] = module
        if self._asked == DIFFUSERS.name:
            configs = {prefix: configs.get(prefix, BARE) for prefix in components}
        # diffusers takes no rank from the tensors of a component as soon as another one has a config.
        if self._carriers != {FACTORS} or not configs or not components.keys() <= configs.keys():
            return None
        flat: dict[str, object] = {}
        for prefix, own in components.items():
            use_dora = any(module.magnitude for module in own.values())
            methods = _methods(own.values())
            if len(methods) > 1:
                return None
            config = unscaled_config(configs[prefix], next(iter(methods), None), _ranks(own), use_dora)
            config |= _of_biases(own.values())
            flat |= {prefix + field: value for field, value in config.items()}
        return json.dumps(flat, indent=2, sort_keys=True)

    def folded(self, modules: "Mapping[str, SpelledModule]") -> str | None:
        """Return the record of the scales in the factors, including those of an earlier conversion."""
        before = FoldedScales(self._adapter.checkpoint.metadata)
        scales = {}
        for destination in self._modules:
            key = destination.module.name.key
            if key not in modules:
                continue
            sources = [source.module for source in destination.sources]
            unchanged = all(c.scale == 1.0 for source in sources for c in source.contributions)
            earlier = {before.at(source.name.key) for source in sources}
            is_kept = unchanged and len(earlier) == 1 and not modules[key].is_replaced
            scales[key] = earlier.pop() if is_kept else modules[key].folded
        return folded_record(scales)

    def write(
        self,
        contents: Sequence[Content],
        metadata: Mapping[str, str],
        modules: "Mapping[str, SpelledModule]",
        inputs: Mapping[str, Identity],
        force: bool,
        prove: Callable[[str], None] | None = None,
    ) -> int:
        """Write the adapter made of `inputs`; return the size of its weights in bytes.

        With `force` it replaces an output that `check` allows to replace. It calls `prove` with the path once the
        adapter is complete, before it appears.
        """
        with delivered(self.path, inputs, force) as made:
            weights = self._write(made.path, contents, metadata, modules, inputs, force, prove)
            return os.path.getsize(weights)

    def _write(
        self,
        path: str,
        contents: Sequence[Content],
        metadata: Mapping[str, str],
        modules: "Mapping[str, SpelledModule]",
        inputs: Mapping[str, Identity],
        force: bool,
        prove: Callable[[str], None] | None,
    ) -> str:
        """Write the output at a path on a disk; return the path of its weights."""
        if self._is_gguf:
            alpha = next(module.alpha for module in modules.values() if module.alpha is not None)
            strings = {key: value for key, value in metadata.items() if not key.startswith(GGUF_KEYS)}
            write_gguf(path, self._architecture or "", alpha, contents, strings, inputs, force, prove)
            return path
        if not self.is_folder:
            write_contents(path, contents, metadata, inputs, force, prove)
            return path
        config = self._mlx_config(modules) if ONE_SCALE in self._carriers else self._config(modules)
        with new_folder(path, inputs, force) as folder:
            write_contents(os.path.join(folder, self._weights), contents, metadata)
            with open(os.path.join(folder, ADAPTER_CONFIG), "x", encoding="utf-8") as handle:
                json.dump(config, handle, indent=2, sort_keys=True)
                handle.write("\n")
            if prove:
                prove(folder)
        return os.path.join(path, self._weights)

    def orientation(self, has_config: bool) -> Iterable[str]:
        """Yield a note if the output has no config for weights that the base stores as (in, out)."""
        transposed = [c.module.key for c in self._adapter.contributions if c.fan_in_fan_out]
        if transposed and not (self.is_folder or self._is_gguf or has_config):
            yield (
                f"the output cannot store fan_in_fan_out of {len(transposed)} modules ({transposed[0]}); "
                "programs that read it use the shape of the weight"
            )

    def _mlx_config(self, modules: "Mapping[str, SpelledModule]") -> dict[str, object]:
        parts = [part for module in modules.values() for part in module.parts]
        experts = next((part for part in parts if part.algorithm.experts), None)
        use_dora = any(module.magnitude for module in modules.values())
        if use_dora and experts:
            raise RefusedError(
                self._adapter.checkpoint.path,
                f"{experts.origin.module.key} has all experts of a layer and other modules have magnitudes, "
                "but mlx-lm applies DoRA to all modules or none, and never to experts",
                "write the experts to a separate file first",
            )
        paths = [module.module.name.body for module in modules.values()]
        # All parts are of one rank and scale by now.
        return mlx_config(self._adapter.checkpoint.config, paths, parts[0].rank or 0, parts[0].scale, use_dora)

    def _config(self, modules: "Mapping[str, SpelledModule]") -> dict[str, object]:
        checkpoint = self._adapter.checkpoint
        config = checkpoint.config if checkpoint.config and peft_config.is_peft_config(checkpoint.config) else None
        paths = {key: module.path_in_config for key, module in modules.items()}
        ranks = _ranks({paths[key]: module for key, module in modules.items()})
        alphas = {paths[key]: module.alpha for key, module in modules.items() if module.alpha is not None}
        methods = _methods(modules.values())
        if len(methods) > 1:
            raise RefusedError(
                checkpoint.path,
                f"its output would mix modules of {' and '.join(sorted(methods))}, but a PEFT config describes "
                "one method",
                "write the modules of each to a separate file first",
            )
        if methods and peft_config.LORA_TYPE not in methods:
            method = config_of_method(config, methods.pop(), ranks, alphas)
            return method if config else method | _of_cores(modules.values())
        if config is None:
            config = {**BARE, **peft_config.embedded_configs(checkpoint.metadata).get("", {})}
        use_dora = any(module.magnitude for module in modules.values())
        parameters = {paths[key] for key, module in modules.items() if module.is_of_parameter}
        if any(destination.experts for destination in self._modules):
            config = moved_experts(config, ranks, parameters)
        saved_whole = [paths[key] for key, module in modules.items() if _has_saved(module)]
        # A config that speaks of biases which are not there has programs refuse the folder.
        has_none = config.get("bias", "none") != "none" and not any(map(_has_saved_bias, modules.values()))
        config = saved_config(config, saved_whole, not (self._without_biases or has_none))
        own, listed = lora_config(config), self._asked is not None
        made = standard_config(own, ranks, alphas, use_dora, parameters, listed, self._by_leaf)
        return made | _of_biases(modules.values())


def _of_cores(modules: "Iterable[SpelledModule]") -> dict[str, object]:
    """Return the config entry of LoHa if convolutions have the core that holds their kernel."""
    found = any("t1" in part.factors for module in modules for part in module.parts)
    return {"use_effective_conv2d": True} if found else {}


def _of_biases(modules: "Iterable[SpelledModule]") -> dict[str, object]:
    """Return the config entry for biases on LoRA's up layers, if there are some."""
    found = any(part.algorithm.name == "lora_bias" for module in modules for part in module.parts)
    return {"lora_bias": True} if found else {}


def _has_saved(module: "SpelledModule") -> bool:
    """Return True if a weight of the module is saved whole."""
    return any(part.algorithm.name == saved.NAME and part.algorithm.parameter == WEIGHT for part in module.parts)


def _has_saved_bias(module: "SpelledModule") -> bool:
    """Return True if a bias of the module is saved whole."""
    return any(part.algorithm.name == saved.NAME and part.algorithm.parameter == BIAS for part in module.parts)


def _methods(modules: "Iterable[SpelledModule]") -> set[str]:
    """Return PEFT's names of the modules' algorithms that it knows."""
    return {part.algorithm.peft_type for module in modules for part in module.parts if part.algorithm.peft_type}


def _ranks(modules: "Mapping[str, SpelledModule]") -> dict[str, int]:
    """Return the ranks of the modules that have one; the others are no targets of LoRA."""
    return {path: module.rank for path, module in modules.items() if module.rank is not None}
