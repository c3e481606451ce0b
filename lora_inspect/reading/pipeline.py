"""The expert and the components of a pipeline that a file is of, such as the two models of Wan 2.2.

No tensor shows the expert, and no trainer writes it by a key of its own. People and programs go by names: of the file,
of the folder that it is alone in, or of the output and the base in metadata. Components have the names that people use;
a user may choose some of them.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.text_encoders import TITLES, TextEncoder
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.safetensors.header import TensorInfo, count_elements
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_names import BASE_PREFIXES, EXPERTS
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.shown_families import shown_encoders
from lora_inspect.schemes.record import MODEL

# What `convert` writes into its outputs, whose names tell it no longer.
EXPERT_KEY = "lora_inspect.expert"
# Names in metadata, of the output and, last, of the checkpoint that was trained on.
_NAMES = (EXPERT_KEY, "ss_output_name", "modelspec.title", "name", "ss_sd_model_name")
# Behind one word alone stands nothing but what says how a file is stored or trained, or for which model.
_TECHNICAL = r"(?=$|[ _.-](?:fp\d|bf16|rank|r\d|e\d|v\d|\d|lora|[it]2v|wan))"
# In capitals a word counts wherever it stands alone, and so do its first letters with those of the second word.
_CAPITALS = r"(?<![A-Za-z])(?:{word}|{letters})(?![A-Za-z])"
_LONGEST_NAME = 1000


class PipelineExpert(NamedTuple):
    """The expert of a file, None if the evidence contradicts itself; the text (`says`) and place of the evidence."""

    name: str | None
    says: str
    where: str


def pipeline_expert(
    checkpoint: Checkpoint,
    components: Collection[str],
    families: Sequence[Detection],
    only: Collection[str] = (),
) -> PipelineExpert | None:
    """Return the expert that a file of these families is of; None if they have one model, or without evidence.

    `components` are those of an adapter, empty for a base, and `only` the chosen ones, if any. A file that names the
    modules of both experts is of both.
    """
    experts = _experts_of(families)
    if not experts:
        return None
    if not EXPERTS.keys().isdisjoint(components):
        meant = {component in EXPERTS for component in only or components if component in (MODEL, *EXPERTS)}
        if len(meant) != 1:
            return None
        name = experts[meant.pop()]
        return PipelineExpert(name, f"it is of the {name} expert", "prefix of its keys")
    return expert_of_names(_names(checkpoint), families)


def _experts_of(families: Sequence[Detection]) -> tuple[str, ...]:
    known = {family.architecture.experts for family in families}
    return known.pop() if len(known) == 1 else ()


def expert_of_names(names: Iterable[tuple[str, str]], families: Sequence[Detection]) -> PipelineExpert | None:
    """Return the expert that names show; None if none of them does.

    Each name comes with its place.
    """
    experts = _experts_of(families)
    told: dict[str, str] = {}
    for where, text in names if experts else ():
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
    """Return the one expert with both words in a name, `high_noise` or `HighNoise`; or else with one word.

    A single word counts in capitals (`_HIGH_`, `_HN`). In other letters it counts at the end or before a technical
    part: `_high_fp16`.
    """
    text = text[:_LONGEST_NAME]
    words = {name: name.split() for name in experts}
    near = {name: pair for name, pair in words.items() if _may_have(text, pair[0])}
    whole = [name for name, (first, second) in near.items() if _has_both(text, first, second)]
    if whole:
        return whole[0] if len(whole) == 1 else None
    alone = [name for name, (first, _) in near.items() if _has(text, rf"{first}(?![a-z])")]
    capital = [name for name, pair in words.items() if _has_capitals(text, *pair)]
    if len({*alone, *capital}) != 1:
        return None
    if capital:
        return capital[0]
    return alone[0] if _has(text, words[alone[0]][0] + _TECHNICAL) else None


def _has_both(text: str, first: str, second: str) -> bool:
    """Return True for both words of an expert, also if only capitals begin them: `StyleHighNoise`."""
    return _has(text, rf"{first}[ _.-]?{second}") or f"{first.title()}{second.title()}" in text


def _has_capitals(text: str, first: str, second: str) -> bool:
    letters = (first[0] + second[0]).upper()
    if first.upper() not in text and letters not in text:
        return False
    return re.search(_CAPITALS.format(word=first.upper(), letters=letters), text) is not None


def _may_have(text: str, word: str) -> bool:
    """Return True if an expression for a word may match the text; some letters beyond ASCII count as others."""
    return not text.isascii() or word in text.lower()


def _has(text: str, words: str) -> bool:
    return re.search(rf"(?<![a-z]){words}", text, re.IGNORECASE) is not None


_TEXT_ENCODER = "text_encoder"
# What a checkpoint of a whole pipeline calls what makes images of latents.
_VAE = (("first_stage_model.", "vae"), ("vae.", "vae"))


class PipelinePart(NamedTuple):
    """One network of a pipeline: the `component` in its keys, its `title`, and its part of a file.

    `modules` are the modules that change it, none in a base, and `tensors` the tensors with numbers of its changes or
    of the network.
    """

    component: str
    title: str
    modules: tuple[Module, ...]
    tensors: tuple[TensorInfo, ...]

    @property
    def contributions(self) -> Iterator[Contribution]:
        """Every change of it."""
        return (contribution for module in self.modules for contribution in module.contributions)


def adapter_parts(adapter: Adapter, families: Sequence[Detection]) -> list[PipelinePart]:
    """Return the parts that an adapter changes in the order of the file, the model first."""
    modules: dict[str, list[Module]] = {}
    for module in adapter.modules.values():
        modules.setdefault(module.name.component, []).append(module)
    shown = shown_encoders(adapter.modules) if any(component not in (MODEL, *EXPERTS) for component in modules) else {}
    return [
        PipelinePart(
            component,
            _title(component, families, shown.get(component, ())),
            tuple(theirs),
            tuple(computing_tensors(theirs)),
        )
        for component, theirs in sorted(modules.items(), key=_models_first)
    ]


def base_parts(checkpoint: Checkpoint, families: Sequence[Detection]) -> list[PipelinePart]:
    """Return the parts of a base by the beginnings of tensor names; names without one are the model's.

    They are "others" if the model has a beginning.
    """
    prefixes = [(prefix, component) for component, named in BASE_PREFIXES.items() for prefix in named if prefix]
    prefixes += _VAE
    found: dict[str, list[TensorInfo]] = {}
    for tensor in checkpoint.tensors.values():
        own = next((component for prefix, component in prefixes if tensor.name.startswith(prefix)), "")
        found.setdefault(own, []).append(tensor)
    if rest := found.pop("", []):
        found["others" if MODEL in found else MODEL] = rest
    return [
        PipelinePart(component, _title(component, families), (), tuple(theirs))
        for component, theirs in sorted(found.items(), key=_models_first)
    ]


def computing_tensors(modules: Iterable[Module]) -> list[TensorInfo]:
    """Return the tensors that changes are computed from, each once: shared tensors are included, alphas are not."""
    found: dict[str, TensorInfo] = {}
    for module in modules:
        no_parameters = [module.alpha.name] if module.alpha else []
        for contribution in module.contributions:
            if idle := contribution.algorithm.idle:
                no_parameters += [contribution.factors[role].name for role in idle if role in contribution.factors]
        for tensor in module.tensors:
            if tensor.name not in no_parameters:
                found[tensor.name] = tensor
    return list(found.values())


def elements(tensors: Iterable[TensorInfo]) -> int:
    """Return the total number of elements."""
    shapes = Counter([tensor.shape for tensor in tensors])
    return sum(count_elements(shape) * count for shape, count in shapes.items())


def _models_first(item: tuple[str, object]) -> bool:
    return item[0] not in (MODEL, *EXPERTS)


def _title(component: str, families: Sequence[Detection], encoders: Sequence[TextEncoder] = ()) -> str:
    """Return a component's name for people, with its text encoder if its modules show that."""
    if component == MODEL:
        return _model(families)
    if component in EXPERTS:
        return f"{_model(families)} 2"
    title = component.replace("_", " ")
    if component.startswith(_TEXT_ENCODER) and len(encoders) == 1:
        return f"{title} ({TITLES.get(encoders[0], encoders[0].kind)})"
    return title


def _model(families: Sequence[Detection]) -> str:
    """Return the name of the model itself: that in a pipeline of diffusers, if it has one."""
    names = {family.architecture.pipeline_name if family.layout.kohya_prefix else MODEL for family in families}
    return names.pop() if len(names) == 1 else MODEL


def chosen(
    adapter: Adapter, only: Collection[str], without: Collection[str] = ()
) -> tuple[list[Module], tuple[Module, ...]]:
    """Return the modules of the components `only`, and the others; all modules if `only` is empty.

    Modules with keys in `without` are in neither. Raises LoraInspectError if the adapter has none of these components.
    """
    modules = [module for key, module in adapter.modules.items() if key not in without]
    if not only:
        return modules, ()
    found = [module for module in modules if module.name.component in only]
    if not found:
        present = ", ".join(sorted({module.name.component for module in modules}))
        raise RefusedError(
            adapter.checkpoint.path, f"it has no component {' or '.join(only)}", f"choose from {present}"
        )
    return found, tuple(module for module in modules if module.name.component not in only)
