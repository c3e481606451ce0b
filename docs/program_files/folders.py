"""Folders of a language model's adapter as PEFT saves them, each with one thing that programs differ in."""

from collections.abc import Mapping
from types import MappingProxyType

from lora_inspect.reading.model.settings import Settings
from program_files.written import A_B, ALPHA, RANK, WIDTH, File, Tensors, folder, plain

BLOCKS = 2
LEAVES = (
    *(f"self_attn.{leaf}_proj" for leaf in "qkvo"),
    *(f"mlp.{leaf}_proj" for leaf in ("gate", "up", "down")),
)
PREFIX = "base_model.model."
MODULES = {f"{PREFIX}model.layers.{block}.{leaf}": WIDTH for block in range(BLOCKS) for leaf in LEAVES}
_HEAD = f"{PREFIX}lm_head.weight"
# The other rank and the other alpha, of a pattern.
_MORE = 2 * RANK


def _plain(rank: int = RANK) -> Tensors:
    return plain(MODULES, A_B, rank=rank)


def _beside(suffix: str, number: float = 0.0, scalar: bool = False) -> Tensors:
    """The factors, and a vector or a number beside those of each module."""
    return _plain() | {module + suffix: (() if scalar else (WIDTH,), number) for module in MODULES}


def _renamed(old: str, new: str) -> Tensors:
    return {key.replace(old, new): tensor for key, tensor in _plain().items()}


def _saved(**fields: object) -> File:
    return folder(_plain(), **fields)


def _patterned() -> File:
    """Values have another rank than the rest."""
    values = {module: inputs for module, inputs in MODULES.items() if module.endswith("v_proj")}
    return folder(_plain() | plain(values, A_B, rank=_MORE), rank_pattern={"v_proj": _MORE})


FOLDERS: Mapping[str, File] = MappingProxyType(
    {
        "plain LoRA": _saved(),
        "`use_rslora`": _saved(use_rslora=True),
        "`alpha_pattern`": _saved(alpha_pattern={"v_proj": 2 * ALPHA}),
        "`rank_pattern`": _patterned(),
        "rank 64": folder(_plain(64), r=64),
        "rank 1024": folder(_plain(1024), r=1024),
        "`use_dora`": folder(_beside(".lora_magnitude_vector"), use_dora=True),
        "`lora_bias`": folder(_beside(".lora_B.bias"), lora_bias=True),
        '`bias` "lora_only" in the config': _saved(bias="lora_only"),
        "`modules_to_save` lm_head": folder(_plain() | {_HEAD: ((WIDTH, WIDTH), 0.0)}, modules_to_save=["lm_head"]),
        "no `base_model.model.` before the names": folder(_renamed(PREFIX, ""), lora_alpha=RANK),
        "`.lora_A.default.weight`": folder(_renamed(".weight", ".default.weight")),
        "`target_modules` without some of the file": _saved(target_modules=["q_proj", "v_proj"]),
        "a key of nobody": folder(_plain() | {"unknown": ((WIDTH,), 0.0)}),
        "no config": File(_plain(), settings=Settings(alpha=ALPHA, rslora=False)),
    }
)
