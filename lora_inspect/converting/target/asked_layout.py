"""What `--layout` asks for: another layout of the family, under the names that the file has."""

from collections.abc import Sequence

from lora_inspect import schemes
from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.record import Architecture, Layout
from lora_inspect.converting.choices import ARRANGED, FUSED, NAMED, OF_DIFFUSERS, ORIGINAL
from lora_inspect.converting.target.target_layout import Target
from lora_inspect.converting.target.target_layouts import ArrangedLayout, NamedLayout
from lora_inspect.errors import LoraInspectError
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_names import EXPERTS
from lora_inspect.reading.identify import certain_correspondence, described
from lora_inspect.reading.model.contribution import Module
from lora_inspect.schemes.comfyui import COMFYUI
from lora_inspect.schemes.diffusers import DIFFUSERS
from lora_inspect.schemes.record import ModuleName
from lora_inspect.sentences import listed

_WAY_OUT = "leave --layout out"


def layout_target(adapter: Adapter, families: Sequence[Detection], layout: str) -> Target:
    """The layout called `layout`; LoraInspectError where no family is known, or none with such a layout."""
    file = adapter.checkpoint.path
    if not families:
        raise LoraInspectError(
            f"{file}: the names and shapes of its modules are of no model family that is known here, so --layout has "
            "nothing to go by; leave it out."
        )
    family = families[0].architecture
    named = {name: one for one in family.layouts for name in one.names if name in NAMED}
    choices: Sequence[str] = list(named) if len(named) > 1 else ARRANGED
    called_alike = all(any(one.also for one in known.architecture.layouts) for known in families)
    if not called_alike and not certain_correspondence(families).relations:
        raise LoraInspectError(
            f"{file}: it is of {described(families)}, of which no other layout is known here; {_WAY_OUT}."
        )
    if layout not in choices:
        raise LoraInspectError(
            f"{file}: it is of {described(families)}, whose layouts are {listed(choices, 'and')}; choose one of them."
        )
    found = named.get(layout)

    def rename(module: Module, path: str) -> ModuleName:
        if module.name.component in EXPERTS and layout == ORIGINAL:
            raise LoraInspectError(
                f"{file}: {module.name.key} is of a second expert, which the names of the {layout} layout do not tell "
                "from the first; write its modules to a file of their own, named as those of the first."
            )
        # Only diffusers has names for a second expert, and they are of its layout.
        return module.name if module.name.component in EXPERTS else _renamed(module.name, path, family, found, layout)

    return Target(
        family=family.title,
        title=f"the {layout} layout",
        layout=NamedLayout(families, found) if found else ArrangedLayout(families, layout == FUSED),
        respells=False,
        rename=rename,
        rename_encoder=lambda module: module.name,
        way_out=_WAY_OUT,
    )


def _renamed(name: ModuleName, path: str, family: Architecture, layout: Layout | None, asked: str) -> ModuleName:
    """The name that the readers of its scheme have for `path` in the layout, which was `asked` for by that name.

    Without any layout they have but one.
    """
    scheme, prefix = schemes.by_name(name.scheme), name.prefix
    if layout is None:
        return name._replace(body=scheme.module(path, ""))
    if scheme.flat and prefix.rstrip("_") in {layout.kohya_prefix.rstrip("_") for layout in family.layouts}:
        prefix = layout.kohya_prefix
    elif scheme in (COMFYUI, DIFFUSERS) or not scheme.suffixes:
        # ComfyUI's generic names are those of its own model, which has the original layout.
        scheme = DIFFUSERS if asked == OF_DIFFUSERS else COMFYUI
        prefix = f"{family.pipeline_name}." if scheme is DIFFUSERS else "diffusion_model."
    return ModuleName(scheme.name, name.component, prefix, scheme.module(path, ""), scheme.flat)
