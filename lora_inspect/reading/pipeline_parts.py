"""The networks of a pipeline that an adapter changes, by the names that people have for them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.text_encoders import TITLES
from lora_inspect.files.header import TensorInfo
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base_names import EXPERTS
from lora_inspect.reading.contribution import Contribution, Module
from lora_inspect.reading.identify import text_encoders
from lora_inspect.schemes.record import MODEL

_TEXT_ENCODER = "text_encoder"


class PipelinePart(NamedTuple):
    """One network of a pipeline: the `component` that keys call it, its `title`, and the modules that change it."""

    component: str
    title: str
    modules: tuple[Module, ...]

    @property
    def contributions(self) -> Iterator[Contribution]:
        """Every change of it."""
        return (contribution for module in self.modules for contribution in module.contributions)


def pipeline_parts(adapter: Adapter, families: Sequence[Detection]) -> list[PipelinePart]:
    """The parts in the order in which the file has them, the model first."""
    modules: dict[str, list[Module]] = {}
    for module in adapter.modules.values():
        modules.setdefault(module.name.component, []).append(module)
    shown = text_encoders(adapter) if any(component not in (MODEL, *EXPERTS) for component in modules) else {}
    model = _model(families)
    parts = []
    for component, theirs in sorted(modules.items(), key=lambda item: item[0] not in (MODEL, *EXPERTS)):
        encoders = [TITLES.get(encoder, encoder.kind) for encoder in shown.get(component, ())]
        title = component.replace("_", " ")
        if component in (MODEL, *EXPERTS):
            title = model if component == MODEL else f"{model} 2"
        elif component.startswith(_TEXT_ENCODER) and len(encoders) == 1:
            title = f"{title} ({encoders[0]})"
        parts.append(PipelinePart(component, title, tuple(theirs)))
    return parts


def computing_tensors(modules: Iterable[Module]) -> list[TensorInfo]:
    """The tensors that changes are computed from, once each: what several modules share, and no alpha."""
    found: dict[str, TensorInfo] = {}
    for module in modules:
        no_parameters = {module.alpha.name} if module.alpha else set()
        for contribution in module.contributions:
            idle = contribution.algorithm.idle
            no_parameters.update(contribution.factors[role].name for role in idle if role in contribution.factors)
        found.update((tensor.name, tensor) for tensor in module.tensors if tensor.name not in no_parameters)
    return list(found.values())


def _model(families: Sequence[Detection]) -> str:
    """What the model itself is called: by a pipeline of diffusers, if it has one."""
    names = {family.architecture.pipeline_name if family.layout.kohya_prefix else MODEL for family in families}
    return names.pop() if len(names) == 1 else MODEL
