"""Ollama: GGUF files for llama.cpp, and folders of PEFT and mlx-lm for Llama and Gemma 2, which it converts to those.

One whole `lora_alpha` counts, over the rank of each tensor: RS-LoRA, patterns and mlx-lm's own scale are passed over.
Of Llama it reorders the rows of `lora_A` for queries and keys, where llama.cpp's order asks for those of `lora_B`, so
that both become another change. It converts whatever else is in a folder, and llama.cpp refuses that, but a tensor of
one dimension ends the converter for Llama. A base of any other architecture it refuses.

Sources: `ConvertAdapter` in `convert/` of Ollama, run with its reader of GGUF on folders for a small model; the
loading of GGUF files, and the product of llama.cpp, were read.
"""

from lora_inspect.files.strict_json import json_number
from lora_inspect.programs.known.peft import leaf_of
from lora_inspect.programs.known.servers.llama_cpp import OWN, UNTRIED
from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    MISREADS,
    READ,
    Finder,
    Given,
    Loader,
    LoadFailure,
    OfKindInFile,
    Program,
    Rule,
    Strangers,
)
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Contribution

_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_SCRAMBLED = ("q_proj", "k_proj")
_FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_a", ".lora_b")
_READS = ("F32", "F16", "BF16")
_LARGEST = 2**32
# Parts of the names of bases, in small letters, of its two architectures, and of those that it refuses.
_NAMED = {
    "other": ("vision", "llama-4", "llama4"),
    "llama": ("llama",),
    "gemma2": ("gemma-2-", "gemma2", "gemma-2b-2"),
    "others": ("qwen", "mistral", "mixtral", "phi-", "phi3", "gemma", "deepseek", "granite", "starcoder", "minicpm"),
}
_UNSUPPORTED = "unsupported architecture"


def _architecture(adapter: Adapter) -> str:
    """The architecture that the name of the base in the config tells: "llama", "gemma2", another, or empty."""
    config = adapter.checkpoint.config or {}
    name = config.get("base_model_name_or_path") or config.get("model")
    name = name.lower() if isinstance(name, str) else ""
    return next((one for one, parts in _NAMED.items() if any(part in name for part in parts)), "")


def _refused(adapter: Adapter) -> str | None:
    """Returns the error of the converter, or of llama.cpp after it; of a GGUF file nothing."""
    from lora_inspect.reading.base.model_config import has_header  # with the tables of llama.cpp's names

    if has_header(adapter.checkpoint):
        return None
    config = adapter.checkpoint.config
    if config is None:
        return "open adapter_config.json: no such file or directory"
    alpha = config.get("lora_alpha")
    if alpha is not None and not (type(alpha) is int and 0 <= alpha < _LARGEST):
        return f"json: cannot unmarshal number {alpha} into Go struct field AdapterParameters.lora_alpha of type uint32"
    architecture = _architecture(adapter)
    if architecture not in ("llama", "gemma2", ""):
        return _UNSUPPORTED
    tensors = adapter.checkpoint.tensors
    for key, info in tensors.items():
        if info.dtype not in _READS:
            return f"unknown data type: {info.dtype}"
        if not key.endswith(_FACTORS):
            if architecture == "llama" and any(len(other.shape) < 2 for other in tensors.values()):
                return "panic: runtime error: index out of range [1] with length 1"
            return f"LoRA tensor '{key}' has unexpected suffix"
    return None


def _finds(adapter: Adapter) -> Finder:
    """The dense layers of blocks."""
    return lambda given: True if leaf_of(given.module.name.body) in _LAYERS and _is_dense(given) else None


def _is_dense(given: Given) -> bool:
    return ".experts." not in given.module.name.body


@OfKindInFile
def _exceptions(given: Given) -> str | LoadFailure | None:
    """It takes factors by their longer side, and reorders the wrong one of queries and keys of Llama."""
    if _is_turned(given.contribution):
        return LoadFailure(f"LoRA tensor '{given.module.name.key}' has incorrect shape")
    if leaf_of(given.module.name.body) not in _SCRAMBLED:
        return None
    return {"llama": MISREADS, "": ""}.get(_architecture(given.adapter))


def _is_turned(contribution: Contribution) -> bool:
    """Return True if the rank is above a side of the weight."""
    rank = contribution.rank or 0
    return any(side < rank for shape in contribution.shapes.values() for side in shape)


@OfKindInFile
def _scale(given: Given) -> float | None:
    """The alpha of the config, of mlx-lm's parameters first, over the rank of the tensor; 1 where that is 0 or none."""
    config, rank = given.adapter.checkpoint.config or {}, given.contribution.rank
    parameters = config.get("lora_parameters")
    own = json_number(parameters.get("alpha")) if isinstance(parameters, dict) else None
    alpha = own or json_number(config.get("lora_alpha"))
    return alpha / rank if alpha and rank else 1.0


_MAGNITUDES = dict.fromkeys((".lora_magnitude_vector output", ".lora_magnitude_vector.weight output"), FAILS)


def _needs(adapter: Adapter) -> str | None:
    """The base, where its name does not tell the architecture."""
    if adapter.checkpoint.config is None:
        return None
    return None if _architecture(adapter) else "on a base of Llama or Gemma 2, as it refuses all others"


_NO_LAYER = "LoRA tensor does not exist in base model"
_NO_FACTOR = Strangers(FAILS, "LoRA tensor has unexpected suffix")
_FILE = Rule(
    layouts=("hf",), finds=_finds, exceptions=_exceptions, scale=_scale, magnitudes=_MAGNITUDES, says=_NO_LAYER
)

PROGRAM = Program(
    name="ollama",
    title="Ollama",
    version="2026-08-21",
    ran="2026-12-01",
    sets_multiplier=False,
    loaders=(
        Loader(
            families=("llm",),
            rules=(
                OWN._replace(by=READ),
                _FILE._replace(
                    prefixes=("base_model.model.", ""), dialects=("peft",), kinds={"lora": COMPUTES, "": FAILS}
                ),
                _FILE._replace(dialects=("mlx",), kinds={"mlx": COMPUTES, "": FAILS}),
                Rule(kinds={"": FAILS}, says=_NO_LAYER),
            ),
            strangers=_NO_FACTOR,
            refuses=_refused,
            needs=_needs,
        ),
        Loader(families=("", *UNTRIED), rules=(OWN._replace(by=READ),), strangers=_NO_FACTOR),
    ),
    schemes={"": "gguf"},
)
