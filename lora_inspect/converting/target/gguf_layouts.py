"""Where modules go between the names of llama.cpp and those of transformers."""

from lora_inspect.architectures.correspondence import Correspondence, Link
from lora_inspect.architectures.gguf import GGUF_NAMES, MODEL_TYPES, GgufNames, Heads
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.gguf.gguf_format import ARCHITECTURE_KEY
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.model_config import ModelConfig, gguf_names, read_model_config
from lora_inspect.schemes.gguf import GGUF
from lora_inspect.sentences import listed


class RelatedLayout(NamedTuple):
    """The names of the one program, of modules that have those of the other."""

    correspondence: Correspondence

    def links(self, path: str) -> list[Link]:
        """What the module is called there."""
        return list(self.correspondence.links(path))

    def has(self, path: str) -> bool:
        """Nothing has its name already."""
        return False


def llama_cpp_layout(adapter: Adapter, options: ConvertOptions) -> RelatedLayout:
    """That of llama.cpp; LoraInspectError where nothing says which model of it that is, or how many heads it has."""
    names = GGUF_NAMES[architecture_of(adapter, options)]
    heads = _heads(adapter, names, options)
    return RelatedLayout(Correspondence(lambda: names.relations(heads)))


def transformers_layout(adapter: Adapter, options: ConvertOptions) -> RelatedLayout:
    """That of the causal model in transformers; LoraInspectError where the names of the header are not known, or
    nothing says how many heads there are."""
    names = gguf_names(adapter.checkpoint)
    heads = _heads(adapter, names, options)
    of_causal_model = names._replace(roots=names.roots[:1], heads=names.heads[:1])
    return RelatedLayout(Correspondence(lambda: of_causal_model.relations(heads)))


def architecture_of(adapter: Adapter, options: ConvertOptions) -> str:
    """What llama.cpp calls the model: as the GGUF input says, or as the model's config does."""
    if adapter.scheme == GGUF.name:
        return adapter.checkpoint.metadata.get(ARCHITECTURE_KEY, "")
    config = _config(options)
    if config is None:
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: llama.cpp loads an adapter for the model alone that its header names, which "
            "the adapter does not say; name the model's config.json with --model-config."
        )
    named = next((MODEL_TYPES[kind] for kind in config.kinds if kind in MODEL_TYPES), None)
    if named is None:
        raise LoraInspectError(
            f"{config.path}: its model_type is {' and '.join(config.kinds) or 'missing'}, and what llama.cpp calls its "
            f"modules is known here for {listed(sorted(MODEL_TYPES), 'and')}; convert it with convert_lora_to_gguf.py."
        )
    return named


def _heads(adapter: Adapter, names: GgufNames, options: ConvertOptions) -> Heads | None:
    """The number of heads, where a module has rows in another order; raises LoraInspectError where nothing says it."""
    bodies = (module.name.body for module in adapter.modules.values())
    first = next(filter(names.is_arranged, bodies), None)
    config = _config(options) if first else None
    if first and (config is None or config.heads is None):
        lacks = f", and {config.path} tells none" if config else ""
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: llama.cpp has the rows of {first} in another order than transformers, which "
            f"depends on the number of heads{lacks}; name the model's config.json, which says it, with --model-config."
        )
    return config.heads if config else None


def _config(options: ConvertOptions) -> ModelConfig | None:
    return read_model_config(options.model_config) if options.model_config is not None else None
