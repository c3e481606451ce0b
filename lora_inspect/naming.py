"""What an adapter's modules are called in a standard file: a scheme whose readers honour alpha."""

from dataclasses import dataclass

from lora_inspect import schemes
from lora_inspect.adapter import Adapter
from lora_inspect.architectures.detection import Detection
from lora_inspect.contribution import Module
from lora_inspect.schemes.dotted import DOTTED
from lora_inspect.schemes.kohya import KOHYA, text_encoder_prefix
from lora_inspect.schemes.record import MODEL, Scheme
from lora_inspect.schemes.suffixes import parse_key


@dataclass(frozen=True, slots=True)
class Namer:
    """Names of one module's tensors in the output; `own` keeps the spellings that the file came with."""

    scheme: Scheme
    module: str
    own: bool

    def key(self, role: str, source: str | None = None) -> str:
        """The key of the tensor with `role`, which was called `source` in the input."""
        parsed = parse_key(source) if self.own and source and role != "magnitude" else None
        return self.module + (parsed.suffix if parsed else self.scheme.suffixes[role])


def standard_namer(module: Module, adapter: Adapter, detection: Detection | None) -> Namer:
    """The file's own scheme where it carries alpha, else kohya's where the architecture has it, else dotted paths."""
    name = module.name
    own = schemes.by_name(name.scheme)
    if own.carries_alpha:
        return Namer(own, name.key, own=True)
    components = {other.name.component for other in adapter.modules.values()}
    prefix = detection.layout.kohya_prefix if detection else ""
    if not prefix:
        return Namer(DOTTED, DOTTED.module(name.body, ""), own=False)
    if name.component != MODEL:
        prefix = text_encoder_prefix(name.component, components)
    return Namer(KOHYA, KOHYA.module(name.body, prefix), own=False)
