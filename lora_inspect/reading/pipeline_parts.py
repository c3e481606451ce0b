"""The networks of a pipeline that a file has something of, by the names that people have for them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.text_encoders import TITLES, TextEncoder
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.safetensors.header import TensorInfo, count_elements
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_names import BASE_PREFIXES, EXPERTS
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.shown_families import shown_encoders
from lora_inspect.schemes.record import MODEL

_TEXT_ENCODER = "text_encoder"
# What a checkpoint of a whole pipeline calls what makes images of latents.
_VAE = (("first_stage_model.", "vae"), ("vae.", "vae"))


class PipelinePart(NamedTuple):
    """One network of a pipeline: the `component` that keys call it, its `title`, and what a file has of it.

    `modules` are those that change it, none in a base, and `tensors` those that hold numbers of its changes or of it.
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
    """The parts that an adapter changes in the order in which the file has them, the model first."""
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
    """The parts of a base by what the names of its tensors begin with; those without such a beginning are the model's.

    Beside a model that has one they are others.
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
    """The tensors that changes are computed from, once each: what several modules share, and no alpha."""
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
    """How many numbers they hold; most shapes are those of many."""
    shapes = Counter([tensor.shape for tensor in tensors])
    return sum(count_elements(shape) * count for shape, count in shapes.items())


def _models_first(item: tuple[str, object]) -> bool:
    return item[0] not in (MODEL, *EXPERTS)


def _title(component: str, families: Sequence[Detection], encoders: Sequence[TextEncoder] = ()) -> str:
    """What people call a component, with the text encoder that it is where its modules show that."""
    if component == MODEL:
        return _model(families)
    if component in EXPERTS:
        return f"{_model(families)} 2"
    title = component.replace("_", " ")
    if component.startswith(_TEXT_ENCODER) and len(encoders) == 1:
        return f"{title} ({TITLES.get(encoders[0], encoders[0].kind)})"
    return title


def _model(families: Sequence[Detection]) -> str:
    """What the model itself is called: by a pipeline of diffusers, if it has one."""
    names = {family.architecture.pipeline_name if family.layout.kohya_prefix else MODEL for family in families}
    return names.pop() if len(names) == 1 else MODEL
