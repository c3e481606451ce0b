"""FLUX.1 in diffusers' names in InvokeAI: the parse of underscored names, and the layers that it converts.

Sources: `insert_periods_into_kohya_key` with the tree of OneTrainer's names, and
`lora_layers_from_flux_diffusers_grouped_state_dict`.
"""

import re
from collections.abc import Collection, Iterable, Iterator

from lora_inspect.caching import remembering_names

# The number of blocks of each kind, and their layers.
_NUMBERS = {"transformer_blocks": 19, "single_transformer_blocks": 38}
_ATTENTIONS = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))
_LAYERS = {
    "transformer_blocks": (
        *(f"attn.{layer}" for layers in _ATTENTIONS for layer in layers),
        *("attn.to_out.0", "attn.to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
        *("norm1.linear", "norm1_context.linear"),
    ),
    "single_transformer_blocks": (*("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out", "norm.linear"),),
}
_OUTSIDE = (
    *("x_embedder", "context_embedder", "proj_out"),
    *(
        f"time_text_embed.{embedder}_embedder.linear_{number}"
        for embedder in ("timestep", "text", "guidance")
        for number in (1, 2)
    ),
)
_MODEL = "transformer"
_OF_PEFT = "base_model.model."
_UNDERSCORED = f"lora_{_MODEL}"
_BLOCK = re.compile(r"(transformer_blocks|single_transformer_blocks)\.(0|[1-9]\d*)\.(.+)")
_INDEX = "{i}"


def _nodes() -> Iterator[str]:
    """Yield the paths of the tree: all beginnings of the layers' paths, with `{i}` for numbers."""
    for blocks, layers in _LAYERS.items():
        for layer in layers:
            segments = [_MODEL, blocks, _INDEX, *re.sub(r"\b\d+\b", _INDEX, layer).split(".")]
            for end in range(1, len(segments) + 1):
                yield ".".join(segments[:end])


_TREE = frozenset(_nodes())


@remembering_names
def _dotted(name: str) -> str | None:
    """Return the path that InvokeAI parses from an underscored name, None if it cannot.

    It takes words from the left, and ends a segment at the first match: `ff` ends before `ff_context`.
    """
    segments: list[str] = []
    nodes: list[str] = []
    words = ""
    for word in name.split("_"):
        words = f"{words}_{word}" if words else word
        for node in (words, _INDEX) if words.isnumeric() else (words,):
            if ".".join((*nodes, node)) in _TREE:
                nodes.append(node)
                segments.append(words)
                words = ""
                break
    return None if words else ".".join(segments)


def failure_of_underscored(keys: Iterable[str]) -> str | None:
    """Return the error for the layers of the model in OneTrainer's names."""
    names = dict.fromkeys(key.partition(".")[0] for key in keys if key.startswith(_UNDERSCORED))
    paths = []
    for name in names:
        underscored = name.removeprefix("lora_")
        path = _dotted(underscored)
        if path is None:
            return f"Key {underscored} does not match parsing tree"
        paths.append(path)
    return _failure(paths)


def failure_of_dotted(keys: Iterable[str]) -> str | None:
    """Return the error for layers in diffusers' names, from which InvokeAI takes the two last words of a key."""
    return _failure(dict.fromkeys(key.rsplit(".", 2)[0] for key in keys))


def _failure(names: Collection[str]) -> str | None:
    """Return the error for an incomplete attention, or for a layer that InvokeAI does not convert."""
    prefix = _OF_PEFT if any(name.startswith(_OF_PEFT) for name in names) else f"{_MODEL}."
    paths = {name.replace(prefix, "") for name in names}
    for number in range(_NUMBERS["transformer_blocks"]):
        for layers in _ATTENTIONS:
            attention = [f"transformer_blocks.{number}.attn.{layer}" for layer in layers]
            missing = [path for path in attention if path not in paths]
            if 0 < len(missing) < len(layers):
                return f"Missing LoRA layer: '{missing[0]}'."
    return None if all(map(_is_converted, paths)) else "AssertionError"


@remembering_names
def _is_converted(path: str) -> bool:
    block = _BLOCK.fullmatch(path)
    if not block:
        return path in _OUTSIDE
    kind, number, layer = block.groups()
    return int(number) < _NUMBERS[kind] and layer in _LAYERS[kind]
