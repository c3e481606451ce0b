"""Sums of adapters whose change of an embedding is also that of the head that shares its weight.

With `ensure_weight_tying` PEFT gives the head the factors of the embedding, swapped and transposed, and saves them too.
The head's are left out of a sum: both sums would have other factors of one change, and PEFT loads one over the other.

Source: `_add_targets_to_tie` and `_create_and_replace` of PEFT's LoRA.
"""

from collections.abc import Sequence

from lora_inspect.algebra.alignment import OutputModule, Term
from lora_inspect.errors import RefusedError
from lora_inspect.matching.unmatched import EMBEDDINGS, HEADS, says_same
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.peft.peft_config import ties_weights
from lora_inspect.schemes.peft import PEFT

_EMBEDDINGS = ("lora_embedding", "lora_embedding_along_tokens")
REPEATED = "PEFT gives the head the factors of the embedding"


def tied_embeddings(modules: Sequence[OutputModule]) -> frozenset[str]:
    """Return the keys of the embeddings whose change is that of their head, too.

    Raises LoraInspectError if that holds for some of the adapters only, so that no config is true of their sum.
    """
    tied = set[str]()
    for module in filter(_is_embedding, modules):
        by_answer = {ties_weights(term.adapter.checkpoint.config): term.adapter for term in _active(module)}
        if len(by_answer) > 1:
            raise _conflict(by_answer[True], by_answer[False], module.module.name.body)
        if True in by_answer:
            tied.add(module.module.name.key)
    return frozenset(tied)


def _is_embedding(module: OutputModule) -> bool:
    """Return True for factors of an embedding whose weight a head may share."""
    is_named = module.module.name.body.endswith(EMBEDDINGS)
    return is_named and any(term.contribution.algorithm.name in _EMBEDDINGS for term in module.terms)


def split_repeated_heads(modules: Sequence[OutputModule]) -> tuple[list[OutputModule], list[OutputModule]]:
    """Return the modules of a sum in PEFT's names, and those of heads that repeat a tied embedding.

    Raises LoraInspectError as `tied_embeddings`, and for a head that has another change than the tied embedding.
    """
    in_peft = [module for module in modules if module.module.name.scheme == PEFT.name]
    tied_keys = tied_embeddings(in_peft)
    if not tied_keys:
        return list(modules), []
    embeddings = [module for module in in_peft if module.module.name.key in tied_keys]
    heads = [module for module in in_peft if module.module.name.body.endswith(HEADS)]
    for term in (term for head in heads for term in _active(head)):
        adapter = term.adapter
        if not ties_weights(adapter.checkpoint.config):
            raise _conflict(_active(embeddings[0])[0].adapter, adapter, term.contribution.module.body)
        if not _repeats(term):
            raise RefusedError(
                adapter.checkpoint.path,
                f"its config ties {term.contribution.module.key} to the embedding (ensure_weight_tying), but their "
                "factors differ",
                f"leave it out with --exclude {term.contribution.module.body}",
            )
    return [module for module in modules if module not in heads], heads


def _repeats(term: Term) -> bool:
    module = term.adapter.modules[term.contribution.module.key]
    embeddings = (other for other in term.adapter.modules.values() if other.name.body.endswith(EMBEDDINGS))
    return any(says_same(module, other) for other in embeddings)


def _active(module: OutputModule) -> list[Term]:
    return [term for term in module.terms if term.multiplier]


def _conflict(tied: Adapter, other: Adapter, body: str) -> RefusedError:
    return RefusedError(
        other.checkpoint.path,
        f"its change of {body} is of this layer alone, but {tied.checkpoint.path} changes the embedding and the head "
        "together (ensure_weight_tying)",
        f"leave the layer of one of them out with --exclude {body}",
    )
