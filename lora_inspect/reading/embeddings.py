"""Textual inversion: vectors for a token in a prompt, in a file of their own or bundled with an adapter.

They are appended to the text encoder's vocabulary when a prompt has the token, so they change no weight of the model.
Sources of the names: the bundles of OneTrainer and LyCORIS, `save_safeloras_with_embeds` of cloneofsimo's lora, textual
inversion of sd-scripts, A1111 and diffusers.
"""

from collections.abc import Iterator, Mapping, Sequence

from lora_inspect.reading.model.contribution import Embedding
from lora_inspect.reading.model.evidence import RawProblem
from lora_inspect.reading.state import Reading
from lora_inspect.sentences import some

# `bundle_emb.TOKEN.` and the text encoder, or what a file of textual inversion calls its tensor.
_BUNDLE = "bundle_emb."
_NAMES_WITH_DOTS = (".string_to_param.*", ".string_to_token.*")
# cloneofsimo's metadata of a token.
_EMBED = "<embed>"
# The text encoders in files of one token, which is what the file is called, and the names from before there were two.
_ENCODERS = ("clip_l", "clip_g", "clip_h", "t5", "t5xxl", "llama")
_OF_ONE_TOKEN = frozenset(
    (
        "emb_params", "string_to_param.*", "text_encoders_0", "text_encoders_1",
        *_ENCODERS, *(f"{encoder}_out" for encoder in _ENCODERS),
    )
)  # fmt: skip


def claim_embeddings(reading: Reading) -> Reading:
    """Move the tensors that are embeddings out of the claims, by their tokens."""
    claims, checkpoint = reading.claims, reading.checkpoint
    found: dict[str, list[str]] = {}
    for key in claims.unclaimed:
        token = _token_of(key, checkpoint.metadata)
        if token is not None and 1 <= len(checkpoint.tensors[key].shape) <= 2:
            found.setdefault(token, []).append(key)
    if not found:
        return reading
    taken = {key for keys in found.values() for key in keys}
    unclaimed = tuple(key for key in claims.unclaimed if key not in taken)
    embeddings = tuple(Embedding(token, tuple(keys)) for token, keys in found.items())
    return reading._replace(claims=claims._replace(unclaimed=unclaimed), embeddings=embeddings)


def _token_of(key: str, metadata: Mapping[str, str]) -> str | None:
    """Return the token of a key; empty if its name has none, and None if it is not an embedding's."""
    if key.startswith(_BUNDLE):
        name = next((name for name in _NAMES_WITH_DOTS if key.endswith(name)), "")
        token = key[len(_BUNDLE) : -len(name)] if name else key[len(_BUNDLE) :].rpartition(".")[0]
        return token or None
    if metadata.get(key) == _EMBED or (key[:1] == "<" and key[-1:] == ">" and len(key) > 2):
        return key
    return "" if key in _OF_ONE_TOKEN else None


def about_embeddings(reading: Reading) -> Iterator[RawProblem]:
    """Yield a problem for embeddings of tokens, with or without modules next to them."""
    message = f"{in_words(reading.embeddings)} change no weight: merge leaves them out, and convert passes them on"
    yield RawProblem("embeddings", message, tuple(key for one in reading.embeddings for key in one.keys)[:5])


def in_words(embeddings: Sequence[Embedding]) -> str:
    """Describe the embeddings, by their tokens or by their keys."""
    names = [embedding.token for embedding in embeddings if embedding.token] or embeddings[0].keys
    return f"textual-inversion embeddings ({some(names, 5)})"
