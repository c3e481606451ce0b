"""What a merge refuses, or says, where it would change a head through the weight that it shares with the embedding."""

from collections.abc import Mapping, Sequence

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.base_folder import SideFiles
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.matching.tied_head import has_head, is_embedding
from lora_inspect.merging.fold_chain import Fold
from lora_inspect.merging.model_configs import read_config

# What transformers calls models with a head.
_CLASSES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def check_tied(base: Checkpoint, side_files: SideFiles, folds: Mapping[str, Sequence[Fold]]) -> list[str]:
    """What is to be said of changed embeddings; raises LoraInspectError where the base's config shows a head on one."""
    changed = [(name, fold) for name, own in folds.items() if is_embedding(name) for fold in own if _trains_one(fold)]
    if not changed or has_head(base):
        return []
    name, fold = changed[0]
    path, key = fold.adapter.checkpoint.path, fold.contribution.module.key
    if _is_of_a_head(side_files):
        raise LoraInspectError(
            f"{path}: {key} was trained without the head, but the head of {base.path} has no weight of its own and "
            f"would change with {name}; save the base with tie_word_embeddings false, or leave it out with "
            f"{path}:{fold.contribution.module.body}=0."
        )
    return [f"{base.path} has no head: one that shares {name} changes with it, which {key} of {path} did not train"]


def _trains_one(fold: Fold) -> bool:
    """Whether the change is one of the embedding alone: PEFT may tie it to that of the head, and says so."""
    config = fold.adapter.checkpoint.config or {}
    if fold.contribution.algorithm.ties:
        return False
    return bool(fold.multiplier) and config.get("ensure_weight_tying") is not True


def _is_of_a_head(side_files: SideFiles) -> bool:
    """Whether the config beside a base is one of a model with a head."""
    config = read_config(side_files)
    names = config.get("architectures") if config else None
    return isinstance(names, list) and any(isinstance(name, str) and name.endswith(_CLASSES) for name in names)
