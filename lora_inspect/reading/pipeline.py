"""Which expert of a pipeline a file is of, where one has several models of the same names, as Wan 2.2.

No tensor tells it, nor does a trainer write it by a key of its own. What people and programs go by is how a file is
called: the file itself, the folder that it is alone in, or what metadata says of the output and the base.
"""

import os
import re
from collections.abc import Collection, Iterator, Sequence

from lora_inspect.architectures.detection import Detection
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.reading.base.base_names import EXPERTS
from lora_inspect.schemes.record import MODEL

# What `convert` writes into its outputs, whose names tell it no longer.
EXPERT_KEY = "lora_inspect.expert"
# Names in metadata, of the output and, last, of the checkpoint that was trained on.
_NAMES = (EXPERT_KEY, "ss_output_name", "modelspec.title", "name", "ss_sd_model_name")
# Behind one word alone stands nothing but what says how a file is stored or trained.
_TECHNICAL = r"(?=$|[ _.-](?:fp\d|bf16|rank|r\d|e\d|\d))"
_LONGEST_NAME = 1000


class PipelineExpert(NamedTuple):
    """The expert of a file, None where what names it contradicts itself; what that `says`, and `where` it stands."""

    name: str | None
    says: str
    where: str


def pipeline_expert(
    checkpoint: Checkpoint,
    components: Collection[str],
    families: Sequence[Detection],
    only: Collection[str] = (),
) -> PipelineExpert | None:
    """The expert that a file of these families is of; None where they have but one model, or nothing tells.

    `components` are those of an adapter, none of a base, and `only` those that are meant of them where some are named.
    What names the modules of both experts is of both.
    """
    known = {family.architecture.experts for family in families}
    experts = known.pop() if len(known) == 1 else ()
    if not experts:
        return None
    if not EXPERTS.keys().isdisjoint(components):
        meant = {component in EXPERTS for component in only or components if component in (MODEL, *EXPERTS)}
        if len(meant) != 1:
            return None
        name = experts[meant.pop()]
        return PipelineExpert(name, f"it is of the {name} expert", "prefix of its keys")
    told: dict[str, str] = {}
    for where, text in _names(checkpoint):
        if found := _named(text, experts):
            told.setdefault(found, where)
    if not told:
        return None
    where = " and ".join(told.values())
    if len(told) > 1:
        return PipelineExpert(None, f"the names contradict each other: {' and '.join(told)} expert", where)
    name = next(iter(told))
    return PipelineExpert(name, f"a name says {name}", where)


def _names(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    for key in _NAMES:
        yield f"metadata {key}", checkpoint.metadata.get(key, "")
    first = os.path.abspath(next(iter(checkpoint.files), checkpoint.path))
    yield "file name", os.path.splitext(os.path.basename(first))[0]
    if checkpoint.root is not None:
        yield "folder name", os.path.basename(os.path.dirname(first))


def _named(text: str, experts: Sequence[str]) -> str | None:
    """The one expert that a name has both words of, `high_noise` or `HighNoise`; or else the one word of one of them.

    A word alone counts at the end or before what is technical: `_HIGH_fp16`.
    """
    text = text[:_LONGEST_NAME]
    words = {name: name.split() for name in experts if _may_have(text, name.split()[0])}
    whole = [name for name, (first, second) in words.items() if _has(text, rf"{first}[ _.-]?{second}")]
    if whole:
        return whole[0] if len(whole) == 1 else None
    alone = [name for name, (first, _) in words.items() if _has(text, rf"{first}(?![a-z])")]
    return alone[0] if len(alone) == 1 and _has(text, words[alone[0]][0] + _TECHNICAL) else None


def _may_have(text: str, word: str) -> bool:
    """Whether an expression for a word may be in the text; of letters beyond ASCII some count as others."""
    return not text.isascii() or word in text.lower()


def _has(text: str, words: str) -> bool:
    return re.search(rf"(?<![a-z]){words}", text, re.IGNORECASE) is not None
