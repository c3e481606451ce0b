"""llama.cpp's names of the modules of language models, and the rows that it orders otherwise than transformers.

A GGUF file names its map itself, as `general.architecture`. Sources: `tensor_mapping.py` of the package gguf for the
names, the classes of llama.cpp's `conversion` for the order of rows.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..fast_namedtuple import NamedTuple
from .correspondence import Relation, experts, parameters
from .record import Layout, under

if TYPE_CHECKING:
    from .rows import Arrangement

LAYOUT = "gguf"


class Heads(NamedTuple):
    """The number of heads of the attention: of queries, and of keys and values."""

    query: int
    key_value: int


class GgufNames(NamedTuple):
    """The names of one `general.architecture`: `family` is that of the same modules in transformers.

    `layer` are leaves of transformers below `parent` with those of llama.cpp below `blk.{i}`, `outside` the modules
    outside the layers. Both are below any of the `roots` of classes of transformers; the first root is that of the
    causal model. `heads` are the paths of the output layer. `arranged` are the leaves that have their rows in another
    order, which depends on the number of heads. `experts` are the modules of single experts below a layer, with
    llama.cpp's parameter of all experts, and `parameters` are the parameters of transformers with llama.cpp's that have
    their rows.
    """

    family: str
    parent: str
    layer: Mapping[str, str]
    outside: Mapping[str, str]
    roots: tuple[str, ...]
    heads: tuple[str, ...] = ()
    arranged: "Mapping[str, Callable[[Heads], Arrangement]]" = MappingProxyType({})
    experts: Mapping[str, str] = MappingProxyType({})
    parameters: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    @property
    def layout(self) -> Layout:
        """The layout of llama.cpp's names."""
        own = (*self.outside.values(), *(("output",) if self.heads else ()))
        layer = (*self.layer.values(), *self.experts.values())
        return Layout(LAYOUT, (*own, *under("blk.{i}", *layer)), kohya_prefix="")

    def is_arranged(self, path: str) -> bool:
        """Return True if the rows of the module, by its path in either layout, are in another order in the other."""
        return any(path.endswith((f".{leaf}", f".{self.layer[leaf]}")) for leaf in self.arranged)

    def relations(self, heads: Heads | None) -> Iterator[Relation]:
        """Yield the relations below every root; without `heads` only those of modules that keep their row order."""
        for root in self.roots:
            yield from (Relation(f"{root}{path}", (name,)) for path, name in self.outside.items())
            for leaf, name in self.layer.items():
                arrange = self.arranged.get(leaf)
                if arrange is None or heads is not None:
                    rows = arrange(heads) if arrange and heads else None
                    yield Relation(f"{root}{self.parent}.{{i}}.{leaf}", (f"blk.{{i}}.{name}",), rows)
            for leaf, name in self.experts.items():
                yield experts(f"blk.{{i}}.{name}", f"{root}{self.parent}.{{i}}.{leaf}")
            for leaf, names in self.parameters.items():
                yield parameters(f"{root}{self.parent}.{{i}}.{leaf}", *under("blk.{i}", *names))
        yield from (Relation(path, ("output",)) for path in self.heads)


def _pairs_of_queries(heads: Heads) -> "Arrangement":
    from .rows import PairedHalves

    return PairedHalves(heads.query)


def _pairs_of_keys(heads: Heads) -> "Arrangement":
    from .rows import PairedHalves

    return PairedHalves(heads.key_value)


def _parts_of_heads(heads: Heads) -> "Arrangement":
    from .rows import PartsOfHeads

    return PartsOfHeads(heads.query, 3)


_ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
_GATED = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_ROUTER = {"mlp.gate": "ffn_gate_inp"}
_SHARED_EXPERT = {f"mlp.shared_expert.{leaf}_proj": f"ffn_{leaf}_shexp" for leaf in ("gate", "up", "down")}
_PARAMETERS = {
    "mlp.experts.gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"),
    "mlp.experts.down_proj": ("ffn_down_exps",),
}
_MIXTRAL = {
    f"block_sparse_moe.experts.{{i}}.w{n}": f"ffn_{leaf}_exps" for n, leaf in ((1, "gate"), (3, "up"), (2, "down"))
}
_QWEN = {f"mlp.experts.{{i}}.{leaf}_proj": f"ffn_{leaf}_exps" for leaf in ("gate", "up", "down")}

_LLM = GgufNames(
    family="llm",
    parent="layers",
    layer=_ATTENTION | _GATED,
    outside={"embed_tokens": "token_embd"},
    roots=("model.", "", "model.language_model.", "language_model.model."),
    heads=("lm_head", "language_model.lm_head"),
)
# transformers turns the first half of a head's numbers against the second one, llama.cpp each against its neighbour.
_ROTATED = _LLM._replace(arranged={"self_attn.q_proj": _pairs_of_queries, "self_attn.k_proj": _pairs_of_keys})

GGUF_NAMES: Mapping[str, GgufNames] = {
    "llama": _ROTATED._replace(
        layer={**_LLM.layer, "block_sparse_moe.gate": "ffn_gate_inp"}, experts=_MIXTRAL, parameters=_PARAMETERS
    ),
    "mistral3": _ROTATED,
    "granite": _ROTATED,
    "minicpm": _ROTATED,
    "smollm3": _ROTATED,
    "qwen2": _LLM,
    "qwen3": _LLM,
    "qwen2moe": _LLM._replace(layer=_ATTENTION | _ROUTER | _SHARED_EXPERT, experts=_QWEN, parameters=_PARAMETERS),
    "qwen3moe": _LLM._replace(layer=_ATTENTION | _ROUTER, experts=_QWEN, parameters=_PARAMETERS),
    "gemma": _LLM._replace(heads=()),
    "gemma2": _LLM._replace(heads=()),
    "gemma3": _LLM,
    "olmo2": _LLM,
    "phi3": _LLM._replace(
        layer={
            "self_attn.qkv_proj": "attn_qkv",
            "self_attn.o_proj": "attn_output",
            "mlp.gate_up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
        }
    ),
    "gpt2": GgufNames(
        family="gpt2",
        parent="h",
        layer={
            "attn.c_attn": "attn_qkv",
            "attn.c_proj": "attn_output",
            "mlp.c_fc": "ffn_up",
            "mlp.c_proj": "ffn_down",
        },
        outside={"wte": "token_embd"},
        roots=("transformer.", ""),
        heads=("lm_head",),
    ),
    "gptneox": GgufNames(
        family="gpt_neox",
        parent="layers",
        layer={
            "attention.query_key_value": "attn_qkv",
            "attention.dense": "attn_output",
            "mlp.dense_h_to_4h": "ffn_up",
            "mlp.dense_4h_to_h": "ffn_down",
        },
        outside={"embed_in": "token_embd"},
        roots=("gpt_neox.", ""),
        heads=("embed_out",),
        arranged={"attention.query_key_value": _parts_of_heads},
    ),
    "bert": GgufNames(
        family="bert",
        parent="encoder.layer",
        layer={
            "attention.self.query": "attn_q",
            "attention.self.key": "attn_k",
            "attention.self.value": "attn_v",
            "attention.output.dense": "attn_output",
            "intermediate.dense": "ffn_up",
            "output.dense": "ffn_down",
        },
        outside={"embeddings.word_embeddings": "token_embd"},
        roots=("", "bert.", "roberta."),
    ),
}

# What llama.cpp calls the models of a `model_type` of transformers.
MODEL_TYPES: Mapping[str, str] = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "mistral3": "mistral3",
    "ministral3": "mistral3",
    "granite": "granite",
    "minicpm": "minicpm",
    "smollm3": "smollm3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "olmo2": "olmo2",
    "phi3": "phi3",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "bert": "bert",
}
