"""Methods of PEFT whose files change no weight: what they do instead, and the tensors by which they are known.

Nothing of them can be merged or rewritten as a LoRA. Source: the tuners of PEFT 0.21.
"""

from collections.abc import Collection, Iterator

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.model.problem import Finding

_VIRTUAL_TOKENS = "prompt_embeddings"
_SHOWN = 5


class Method(NamedTuple):
    """A method by its name in words. `does` says what it does, as the end of a sentence that begins with the title.

    `marks` are pieces of keys that no other method has.
    """

    title: str
    does: str
    marks: tuple[str, ...] = ()


METHODS = {
    "PROMPT_TUNING": Method("prompt tuning", "puts learned vectors before the embedded input"),
    "P_TUNING": Method("p-tuning", "puts vectors that a small network made before the embedded input"),
    "MULTITASK_PROMPT_TUNING": Method(
        "multitask prompt tuning",
        "puts learned vectors, other ones for each task, before the embedded input",
        ("prefix_task_cols", "prefix_task_rows"),
    ),
    "CPT": Method("context-aware prompt tuning", "puts learned vectors of given tokens before the embedded input"),
    "PREFIX_TUNING": Method("prefix tuning", "puts learned keys and values before the attention's own"),
    "CARTRIDGE": Method("Cartridge", "puts a learned cache of keys and values before the attention's own"),
    "ADAPTION_PROMPT": Method(
        "adaption prompt (LLaMA-Adapter)",
        "lets the attention of some layers look at learned vectors through a gate",
        (".adaption_prompt", ".adaption_gate"),
    ),
    "LILY": Method(
        "Lily",
        "mixes its factors anew for each input, by a router",
        (".lily_router.", ".lily_A.", ".lily_B."),
    ),
    "POLY": Method(
        "Poly",
        "mixes its factors anew for each task, by a router",
        (".poly_router.", ".poly_lora_A", ".poly_lora_B"),
    ),
    "XLORA": Method(
        "X-LoRA",
        "mixes several LoRAs anew for each input, by a classifier",
        (".internal_xlora_classifier.",),
    ),
    "SHADOW": Method(
        "ShadowPEFT",
        "runs a network of its own beside the model, which corrects the inputs of its blocks",
        (".shadow_backbone.", ".shadow_down.", ".shadow_up.", ".shadow_update_gate.", ".shadow_update_transform."),
    ),
}
# The methods whose file has the one tensor that several of them call so; the config says which it is.
_TOKENS = Method(
    "a method of virtual tokens, as prompt tuning, prefix tuning or p-tuning,",
    "puts them before the embedded input, or before the attention's own keys and values",
)


def weightless(reading: FileReading) -> Iterator[Finding]:
    """Methods that change no weight, by what configs say and by tensors that only they have."""
    said = {str(found.peft_type): found.where for found in reading.configs if str(found.peft_type) in METHODS}
    for peft_type, where in said.items():
        yield Finding("no-weight", f"{where} says {peft_type}: {METHODS[peft_type].title} {_does(METHODS[peft_type])}")
    if said:
        return
    for method, keys in _by_keys(reading.claims.unclaimed):
        message = f"{method.title} ({keys[0]}{', …' if len(keys) > 1 else ''}) {_does(method)}"
        yield Finding("no-weight", message, tuple(keys[:_SHOWN]))


def _does(method: Method) -> str:
    return f"{method.does}, and changes no weight; use the adapter with PEFT"


def _by_keys(unclaimed: Collection[str]) -> Iterator[tuple[Method, list[str]]]:
    for method in METHODS.values():
        if keys := [key for key in unclaimed if any(mark in key for mark in method.marks)]:
            yield method, keys
    if _VIRTUAL_TOKENS in unclaimed:
        yield _TOKENS, [_VIRTUAL_TOKENS]
