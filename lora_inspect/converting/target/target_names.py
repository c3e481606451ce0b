"""What the options ask of a conversion: the modules of its output."""

from dataclasses import replace

from lora_inspect import schemes
from lora_inspect.converting.choices import ALL_EXPERTS, SINGLE_EXPERTS
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.target.asked_layout import layout_target
from lora_inspect.converting.target.asked_scheme import scheme_target
from lora_inspect.converting.target.expert_rows import with_all_experts, with_single_experts
from lora_inspect.converting.target.target_layout import Destination, destinations
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.matching.match import Matching
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.identify import adapter_candidates
from lora_inspect.schemes.gguf import GGUF
from lora_inspect.schemes.peft import PEFT


def targets(
    adapter: Adapter, whole: Adapter, base: Checkpoint | None, matching: Matching | None, options: ConvertOptions
) -> tuple[Destination, ...]:
    """The modules of the output that the `adapter` goes to, which is that of the `whole` file or a part of it.

    Raises LoraInspectError where the layout that is asked for has none.
    """
    if options.layout == SINGLE_EXPERTS:
        return with_single_experts(adapter, base, matching)
    if options.layout == ALL_EXPERTS:
        return with_all_experts(adapter)
    if options.layout is None and options.scheme is None:
        return destinations(adapter, None)
    families = adapter_candidates(whole)
    if options.scheme:
        asked = scheme_target(adapter, families, schemes.by_name(options.scheme), options)
        return destinations(adapter, asked, families)
    return destinations(adapter, layout_target(adapter, families, options.layout or ""), families)


def with_scheme(adapter: Adapter, options: ConvertOptions) -> ConvertOptions:
    """The options with PEFT's names for what has llama.cpp's, of which no safetensors file has any.

    Raises LoraInspectError for a model's config where nothing depends on it.
    """
    if options.model_config is not None and GGUF.name not in (options.scheme, adapter.scheme):
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: --model-config says what only llama.cpp's names depend on, and neither the "
            "file nor the output has these; leave it out."
        )
    is_open = options.scheme is None and options.layout is None
    return replace(options, scheme=PEFT.name) if is_open and adapter.scheme == GGUF.name else options
