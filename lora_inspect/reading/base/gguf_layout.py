"""What the modules of a GGUF adapter are in the layout of transformers, by the names that its header chooses."""

from collections.abc import Iterable

from lora_inspect.architectures import by_name
from lora_inspect.architectures.correspondence import Correspondence
from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.gguf import GGUF_NAMES, GgufNames
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.gguf.gguf_format import ARCHITECTURE_KEY, TYPE_KEY
from lora_inspect.reading.base.model_config import NAME, config_beside
from lora_inspect.reading.model.contribution import Module
from lora_inspect.sentences import listed


def has_header(checkpoint: Checkpoint) -> bool:
    """Whether the file is one of llama.cpp's, and not a safetensors file that has its names."""
    return TYPE_KEY in checkpoint.metadata


def gguf_families(checkpoint: Checkpoint) -> tuple[Detection, ...]:
    """The family that the header names; empty where it is not known here."""
    named = checkpoint.metadata.get(ARCHITECTURE_KEY, "")
    names = GGUF_NAMES.get(named)
    if names is None:
        return ()
    says = f"{ARCHITECTURE_KEY} is {named}, which has modules of {by_name(names.family).title}"
    return (Detection(by_name(names.family), names.layout, None, says),)


def gguf_correspondence(checkpoint: Checkpoint, modules: Iterable[Module], base: Checkpoint) -> Correspondence:
    """How the modules of an adapter are called in the base, and where their rows are there.

    Raises LoraInspectError for a `general.architecture` that is not known here, and where the order of rows depends on
    the number of heads and no `config.json` beside the base says it.
    """
    names = gguf_names(checkpoint)
    arranged = next((module.name.key for module in modules if names.is_arranged(module.name.body)), None)
    config = config_beside(base) if arranged else None
    heads = config and config.heads
    if arranged and heads is None:
        raise LoraInspectError(
            f"{checkpoint.path}: llama.cpp has the rows of {arranged} in another order than transformers, which "
            f"depends on the number of heads; put the model's {NAME} beside {base.path}, which says it."
        )
    return Correspondence(lambda: names.relations(heads))


def gguf_names(checkpoint: Checkpoint) -> GgufNames:
    """The names that the header chooses; raises LoraInspectError where they are not known here."""
    named = checkpoint.metadata.get(ARCHITECTURE_KEY, "")
    if named not in GGUF_NAMES:
        raise LoraInspectError(
            f"{checkpoint.path}: its {ARCHITECTURE_KEY} is {named or 'missing'}, whose names are not known here; known "
            f"are {listed(sorted(GGUF_NAMES), 'and')}. Use the PEFT adapter that it was made from."
        )
    return GGUF_NAMES[named]
