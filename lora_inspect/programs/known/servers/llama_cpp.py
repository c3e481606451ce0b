"""llama.cpp: its own GGUF files, and PEFT's folders through its converter.

The converter divides one alpha by each rank. Sources: `convert_lora_to_gguf.py` and `src/llama-adapter.cpp` of
llama.cpp.
"""

from lora_inspect.files.strict_json import json_number
from lora_inspect.programs.known.peft import config_of, is_of_blocks, leaf_of
from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    LEAVES,
    SILENT,
    Finder,
    Given,
    Loader,
    OfKind,
    OfKindInFile,
    Program,
    Rule,
    Strangers,
)
from lora_inspect.reading.adapter import Adapter

_FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
# The converter skips these, or hands them on, and llama.cpp pays no attention to them.
_COPIES, _NORMS = ".base_layer.weight", ("_layernorm", ".norm")
# The only tensors besides factors with which llama.cpp loads its own files.
_OWN_NORM = "_norm.weight"


def _is_own(adapter: Adapter) -> bool:
    from lora_inspect.reading.base.model_config import has_header  # with the tables of llama.cpp's names

    return has_header(adapter.checkpoint)


def _refused_of_its_own(adapter: Adapter) -> str | None:
    """Return the error of llama.cpp for a file in its own format."""
    odd = next((key for key in adapter.unclaimed if not key.endswith(_OWN_NORM)), None) if _is_own(adapter) else None
    return f"LoRA tensor '{odd}' has unexpected suffix" if odd else None


def _refused(adapter: Adapter) -> str | None:
    """Return the error of the converter, or that of llama.cpp for a file in its own format."""
    if _is_own(adapter):
        return _refused_of_its_own(adapter)
    config = config_of(adapter)
    if isinstance(config, str):
        return config
    if "lora_alpha" not in config:
        return "KeyError: 'lora_alpha'"
    return next(filter(None, map(_odd, adapter.checkpoint.tensors)), None)


def _odd(key: str) -> str | None:
    """Return the error of the converter or of llama.cpp for a tensor, None for one that both take."""
    if any(part in key for part in _FACTORS):
        return None if key.endswith(_FACTORS) else f"AssertionError, as {key} has neither of the factors' names"
    if _COPIES in key:
        return None
    if not _is_called_norm(key):
        return f"Unexpected name '{key}': Not a lora_A or lora_B tensor"
    if key.endswith(".bias"):
        return f"the tensor that the converter makes of {key} has unexpected suffix"
    return None if key.endswith(".weight") else f"ValueError: Can not map tensor '{key}'"


def _is_called_norm(key: str) -> bool:
    return any(part in key for part in _NORMS) and not any(part in key for part in (*_FACTORS, _COPIES))


def _unsure(adapter: Adapter) -> str | None:
    """Return the effect of a norm's weight: llama.cpp leaves it out, and the converter takes it of known norms only."""
    norms = (key for key in adapter.unclaimed if key.endswith(_OWN_NORM) or _is_called_norm(key))
    return next((f"the effect of {key}" for key in norms), None)


def _finds(adapter: Adapter) -> Finder:
    """Return a finder of the dense layers of blocks and the token embedding.

    A head is found if the model does not share the embedding with it.
    """

    def finds(given: Given) -> bool | None:
        path = given.module.name.body
        return True if is_of_blocks(path) or leaf_of(path) == "embed_tokens" else None

    return finds


@OfKindInFile
def _scale_of_folder(given: Given) -> float | None:
    """Return `lora_alpha` of the config over the rank of the tensor.

    The converter knows neither RS-LoRA nor patterns.
    """
    config = config_of(given.adapter)
    alpha = None if isinstance(config, str) else json_number(config.get("lora_alpha"))
    return None if alpha is None else _scale(alpha, given.contribution.rank)


@OfKind
def _scale_of_file(given: Given) -> float | None:
    """Return the alpha of the header over the rank of the tensor."""
    alpha = given.contribution.alpha
    return None if alpha is None else _scale(alpha, given.contribution.rank)


def _scale(alpha: float, rank: int | None) -> float | None:
    """Return alpha/rank, but 1 for an alpha of 0."""
    if rank is None:
        return 1.0
    return alpha / rank if alpha else 1.0


# The rule of files in its own format.
OWN = Rule(dialects=("gguf",), kinds={"lora": COMPUTES, "lora_embedding_along_tokens": COMPUTES}, scale=_scale_of_file)

# Families of which nobody tried other files.
UNTRIED = ("bert", "distilbert", "gpt2", "gpt_bigcode", "gpt_neox", "t5")

PROGRAM = Program(
    name="llama-cpp",
    title="llama.cpp",
    version="October 2026",
    ran="2026-12-01",
    loaders=(
        Loader(
            families=("llm",),
            rules=(
                OWN,
                Rule(
                    prefixes=("base_model.model.", ""),
                    layouts=("hf", "hf-backbone"),
                    dialects=("peft",),
                    kinds={"lora": COMPUTES, "lora_embedding": COMPUTES, "": FAILS},
                    finds=_finds,
                    scale=_scale_of_folder,
                ),
                # Modules that are saved whole have no suffix of their own.
                Rule(prefixes=("base_model.model.", ""), kinds={"saved": LEAVES, "": FAILS}),
            ),
            strangers=Strangers(SILENT),
            refuses=_refused,
            unsure=_unsure,
        ),
        # It has models of these families, and may have those of files of no known one; its converter was not tried.
        Loader(
            families=("", *UNTRIED),
            rules=(OWN,),
            strangers=Strangers(SILENT),
            refuses=_refused_of_its_own,
            unsure=_unsure,
        ),
    ),
    schemes={"": "gguf"},
)
