"""vLLM: PEFT's folders, with PEFT's rule for scales and patterns.

It refuses all other tensors.

Sources: `vllm/lora/peft_helper.py`, `lora_model.py`, `utils.py` and `vllm/config/lora.py` of vLLM.
"""

from collections.abc import Iterable, Mapping

from lora_inspect.programs.known.peft import config_of, is_of_blocks, leaf_of, names_in, settings_of
from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    READ,
    SILENT,
    Finder,
    Given,
    Loader,
    Program,
    Rule,
    Strangers,
    intended_scale,
)
from lora_inspect.reading.adapter import Adapter

# The values of `--max-lora-rank`, and its default.
MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_DEFAULT_RANK = 16
_REQUIRED = ("r", "lora_alpha", "target_modules")
# The heads of classifiers, which alone it takes as whole weights.
_HEADS = ("classifier", "score")
# Initialisations by name that leave the base as it is.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
# Copies of the base that PEFT saves beside adapted embeddings, which it skips.
_COPIES = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
_SAVED = "ValueError: Unsupported modules_to_save"
_UNSUPPORTED = {
    "use_dora": "vLLM does not yet support DoRA",
    "lora_bias": "vLLM does not support LoRA bias (lora_bias)",
    "alora_invocation_tokens": "vLLM does not support Activated LoRA (aLoRA)",
    "layer_replication": "vLLM does not support layer_replication",
    "use_bdlora": "vLLM does not support block-diagonal LoRA (BD-LoRA)",
    "use_qalora": "vLLM does not support QALoRA",
}


def _refused(adapter: Adapter) -> str | None:
    """Return the error that loading raises."""
    config = config_of(adapter)
    if isinstance(config, str):
        return config
    if missing := [name for name in _REQUIRED if name not in config]:
        return f"ValueError: Missing required configuration fields: {set(missing)}"
    saved = config.get("modules_to_save")
    if isinstance(saved, list) and (others := [name for name in saved if name not in _HEADS]):
        return f"{_SAVED}: {others}"
    if field := next((field for field in _UNSUPPORTED if config.get(field)), None):
        return f"ValueError: {_UNSUPPORTED[field]}"
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        return f"ValueError: vLLM does not support init_lora_weights={init!r}"
    if (rank := _largest_rank(adapter)) > MAX_RANKS[-1]:
        return f"ValueError: LoRA rank {rank} is greater than max_lora_rank {MAX_RANKS[-1]}"
    if config.get("bias", "none") != "none":
        return "ValueError: Adapter bias is not supported"
    odd = _odd(adapter.checkpoint.tensors)
    return f"ValueError: {odd} is unsupported LoRA weight" if odd else None


def _odd(keys: Iterable[str]) -> str | None:
    """Return the first key that vLLM does not use."""
    known = (*_FACTORS, *_COPIES, *(f".{head}.weight" for head in _HEADS))
    return next((key for key in keys if not key.endswith(known)), None)


def _unsure(adapter: Adapter) -> str | None:
    """Return the effect of a head that the config does not name: a language model refuses it."""
    saved = names_in(config, "modules_to_save") if isinstance(config := config_of(adapter), Mapping) else frozenset()
    heads = (key for key in adapter.unclaimed for head in set(_HEADS) - saved if key.endswith(f".{head}.weight"))
    return next((f"the effect of {key}" for key in heads), None)


def _never(adapter: Adapter) -> str | None:
    """Return the problem that no conversion solves."""
    if odd := _odd(adapter.other_keys):
        return f"refuses a file with {odd}"
    return f"refuses rank {rank}" if (rank := _largest_rank(adapter)) > MAX_RANKS[-1] else None


def _largest_rank(adapter: Adapter) -> int:
    return max((contribution.rank or 0 for contribution in adapter.contributions), default=0)


def _needs(adapter: Adapter) -> str | None:
    """Return the option that vLLM needs to load the file."""
    rank = _largest_rank(adapter)
    if rank <= _DEFAULT_RANK or rank > MAX_RANKS[-1]:
        return None
    allowed = next(one for one in MAX_RANKS if one >= rank)
    return f"with --max-lora-rank {allowed}, as it refuses rank {rank} by default"


def _finds(adapter: Adapter) -> Finder:
    """Return a finder of the dense layers of blocks.

    vLLM finds embeddings and heads of some models, and experts by their layout.
    """
    settings = settings_of(adapter)

    def finds(given: Given) -> bool | None:
        path = given.module.name.body
        is_ranked = given.contribution.rank is None or settings.rank(path) == given.contribution.rank
        return True if is_of_blocks(path) and is_ranked else None

    return finds


def _finds_no_head(adapter: Adapter) -> Finder:
    """Return a finder of all modules except heads.

    vLLM takes a classifier's head if it serves the model as one.
    """
    return lambda given: None if leaf_of(given.module.name.body) in _HEADS else True


_NAMES = Rule(
    families=("llm",),
    prefixes=("base_model.model.", ""),
    dialects=("peft",),
    magnitudes={".lora_magnitude_vector output": FAILS},
)

PROGRAM = Program(
    name="vllm",
    title="vLLM",
    version="0.33.0",
    ran="2026-12-01",
    sets_multiplier=False,
    loaders=(
        Loader(
            families=("llm",),
            rules=(
                _NAMES._replace(
                    layouts=("hf",),
                    kinds={"lora": COMPUTES, "lora_embedding": COMPUTES, "": FAILS},
                    finds=_finds,
                    scale=intended_scale,
                ),
                # Its mappers of names take the root of a language model in a multimodal one for that of its own.
                _NAMES._replace(
                    layouts=("hf-multimodal", "hf-multimodal-nested"),
                    kinds={"lora": COMPUTES, "": FAILS},
                    finds=_finds,
                    scale=intended_scale,
                    by=READ,
                ),
                # Modules that are saved whole have no suffix of their own.
                Rule(prefixes=_NAMES.prefixes, kinds={"": FAILS}, finds=_finds_no_head),
                # Its layers stand below `model.`, and nothing tells that none has these names.
                _NAMES._replace(layouts=("hf-backbone",)),
            ),
            strangers=Strangers(SILENT),
            refuses=_refused,
            unsure=_unsure,
            never=_never,
            needs=_needs,
        ),
    ),
    schemes={"": "peft"},
)
