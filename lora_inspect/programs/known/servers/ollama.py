"""Ollama: adapters of Llama and Gemma 2, which it converts to GGUF for llama.cpp.

It takes PEFT's folders or mlx-lm's. One integer `lora_alpha` counts, over the rank of each tensor; it ignores RS-LoRA,
patterns and mlx-lm's own scale.

In Llama's queries and keys it reorders the rows of `lora_A`, where llama.cpp's order requires those of `lora_B`. So
both become another change. It converts everything else in a folder, and llama.cpp refuses that, but a tensor of one
dimension stops the converter for Llama. It refuses a base of any other architecture.

Sources: `ConvertAdapter` in `convert/` of Ollama, run with its reader of GGUF on folders for a small model. The loading
and the product of llama.cpp were read.
"""

from lora_inspect.files.strict_json import json_number
from lora_inspect.programs.known.peft import leaf_of
from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    MISREADS,
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
# Parts of names of bases, in small letters, of each architecture, and those of others that have them too.
_LLAMA, _GEMMA2 = ("llama",), ("gemma-2-", "gemma2", "gemma-2b-2")
_OTHERS = ("llama-4", "llama4", "vision", "mllama")


def _refused(adapter: Adapter) -> str | None:
    """Return the error of the converter, or of llama.cpp after it."""
    config = adapter.checkpoint.config
    if config is None:
        return "open adapter_config.json: no such file or directory"
    alpha = config.get("lora_alpha")
    if alpha is not None and not (type(alpha) is int and 0 <= alpha < _LARGEST):
        return f"json: cannot unmarshal number {alpha} into Go struct field AdapterParameters.lora_alpha of type uint32"
    for key, info in adapter.checkpoint.tensors.items():
        if info.dtype not in _READS:
            return f"unknown data type: {info.dtype}"
        if not key.endswith(_FACTORS):
            return f"LoRA tensor '{key}' has unexpected suffix"
    return None


def _refused_of_llama(adapter: Adapter) -> str | None:
    """Return the same error for Llama; its converter reads the second side of each tensor."""
    refusal = _refused(adapter)
    has_vector = any(len(info.shape) < 2 for info in adapter.checkpoint.tensors.values())
    if refusal and refusal.startswith("LoRA tensor") and has_vector:
        return "panic: runtime error: index out of range [1] with length 1"
    return refusal


def _base_of(adapter: Adapter) -> str:
    """Return the name of the base in the config, empty without one."""
    config = adapter.checkpoint.config or {}
    name = config.get("base_model_name_or_path") or config.get("model")
    return name if isinstance(name, str) else ""


def _finds(adapter: Adapter) -> Finder:
    """Return a finder of the dense layers of blocks."""
    return lambda given: True if leaf_of(given.module.name.body) in _LAYERS and _is_dense(given) else None


def _is_dense(given: Given) -> bool:
    return ".experts." not in given.module.name.body


@OfKindInFile
def _exceptions(given: Given) -> str | LoadFailure | None:
    """Return the error for factors with a rank above a side.

    It takes factors that are higher than wide for mlx-lm's, and the other way round.
    """
    if _is_turned(given.contribution):
        return LoadFailure(f"LoRA tensor '{given.module.name.key}' has incorrect shape")
    return None


def _is_turned(contribution: Contribution) -> bool:
    """Return True if the rank is above a side of the weight."""
    rank = contribution.rank or 0
    return any(side < rank for shape in contribution.shapes.values() for side in shape)


@OfKindInFile
def _exceptions_of_llama(given: Given) -> str | LoadFailure | None:
    """Return MISREADS for queries and keys too: it reorders their wrong factor."""
    return _exceptions(given) or (MISREADS if leaf_of(given.module.name.body) in _SCRAMBLED else None)


@OfKindInFile
def _scale(given: Given) -> float | None:
    """Return the alpha of the config over the rank of the tensor, 1 without alpha.

    The alpha of mlx-lm's parameters comes first. An alpha of 0 counts as none.
    """
    config, rank = given.adapter.checkpoint.config or {}, given.contribution.rank
    parameters = config.get("lora_parameters")
    own = json_number(parameters.get("alpha")) if isinstance(parameters, dict) else None
    alpha = own or json_number(config.get("lora_alpha"))
    return alpha / rank if alpha and rank else 1.0


def _never_of_llama(adapter: Adapter) -> str | None:
    """Return the problem that no conversion solves."""
    for module in adapter.modules.values():
        if leaf_of(module.name.body) in _SCRAMBLED:
            return f"makes another change of {module.name.body}"
    return _never(adapter)


def _never(adapter: Adapter) -> str | None:
    """Return the problem that no conversion solves, for any model.

    It is an alpha that is no integer above 0, or a tensor or layer that it does not take.
    """
    alpha = (adapter.checkpoint.config or {}).get("lora_alpha")
    if alpha is not None and (alpha != int(alpha) or alpha <= 0 if isinstance(alpha, (int, float)) else True):
        return "reads no lora_alpha but whole numbers above 0"
    if adapter.other_keys:
        return f"refuses a file with {adapter.other_keys[0]}"
    if types := {info.dtype for info in adapter.checkpoint.tensors.values()} - set(_READS):
        return f"reads no {min(types)}"
    for contribution in adapter.contributions:
        path = contribution.module.body
        if leaf_of(path) not in _LAYERS:
            return f"refuses a file with {path}"
        if _is_turned(contribution):
            return f"refuses a rank above a side of {path}"
    return None


def _loader(of_llama: bool) -> Loader:
    names, title = (_LLAMA, "Llama") if of_llama else (_GEMMA2, "Gemma 2")

    def unsure(adapter: Adapter) -> str | None:
        """Return the unknown effect on a base without the architecture in its name."""
        base = _base_of(adapter)
        is_named = any(part in base.lower() for part in names) and not any(part in base.lower() for part in _OTHERS)
        return f"its loading on {base}, which may be no {title}," if base and not is_named else None

    def needs(adapter: Adapter) -> str | None:
        """Return the required base if the config names none."""
        return None if _base_of(adapter) else f"on a base of {title}, as it refuses most others"

    rule = Rule(
        layouts=("hf",),
        finds=_finds,
        exceptions=_exceptions_of_llama if of_llama else _exceptions,
        scale=_scale,
        magnitudes=dict.fromkeys((".lora_magnitude_vector output", ".lora_magnitude_vector.weight output"), FAILS),
        says="LoRA tensor does not exist in base model",
    )
    return Loader(
        families=("llm",),
        rules=(
            rule._replace(prefixes=("base_model.model.", ""), dialects=("peft",), kinds={"lora": COMPUTES, "": FAILS}),
            rule._replace(dialects=("mlx",), kinds={"mlx": COMPUTES, "": FAILS}),
            Rule(kinds={"": FAILS}, says="LoRA tensor does not exist in base model"),
        ),
        strangers=Strangers(FAILS, "LoRA tensor has unexpected suffix"),
        refuses=_refused_of_llama if of_llama else _refused,
        never=_never_of_llama if of_llama else _never,
        needs=needs,
        unsure=unsure,
    )


_LLAMA_BASES = Program(
    name="ollama",
    title="Ollama",
    version="2026-08-21",
    ran="2026-12-01",
    sets_multiplier=False,
    loaders=(_loader(True),),
    schemes={"": "peft"},
    uniform=True,
)
_GEMMA2_BASES = _LLAMA_BASES._replace(name="ollama-gemma2", title="Ollama (Gemma 2)", loaders=(_loader(False),))
PROGRAMS = (_LLAMA_BASES, _GEMMA2_BASES)
