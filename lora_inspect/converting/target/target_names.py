"""The modules of an output under its names: those of `--to`, of `--layout`, or of llama.cpp.

`--to` takes the names of a scheme, in the layout of the programs that load these names. `--layout` takes another layout
of the family, under the names of the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from lora_inspect import schemes
from lora_inspect.architectures.correspondence import Correspondence, Link
from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.gguf import GGUF_NAMES, MODEL_TYPES, GgufNames, Heads
from lora_inspect.architectures.record import Architecture, Layout, is_parameter
from lora_inspect.architectures.text_encoders import TextEncoder, below, has
from lora_inspect.converting.options import (
    ALL_EXPERTS,
    ARRANGED,
    FUSED,
    NAMED,
    OF_DIFFUSERS,
    ORIGINAL,
    SINGLE_EXPERTS,
    ConvertOptions,
)
from lora_inspect.converting.target.expert_rows import with_all_experts, with_single_experts
from lora_inspect.converting.target.target_layout import (
    ArrangedLayout,
    Destination,
    NamedLayout,
    OwnLayout,
    Target,
    TargetLayout,
    destinations,
)
from lora_inspect.converting.target.target_program import WAY_OUT, check_loadable, writing_of
from lora_inspect.errors import AmbiguousError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.gguf.gguf_format import ARCHITECTURE_KEY
from lora_inspect.matching.match import Matching
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_names import EXPERTS
from lora_inspect.reading.base.model_config import ModelConfig, gguf_names, has_header, read_model_config
from lora_inspect.reading.identify import adapter_candidates, certain_correspondence, described
from lora_inspect.reading.keys.suffixes import MODELS
from lora_inspect.reading.model.contribution import Module
from lora_inspect.reading.shown_families import shown_encoders
from lora_inspect.schemes.comfyui import COMFYUI
from lora_inspect.schemes.diffusers import DIFFUSERS
from lora_inspect.schemes.gguf import GGUF
from lora_inspect.schemes.peft import PEFT
from lora_inspect.schemes.record import MODEL, OWN, ModuleName, Scheme, Writing
from lora_inspect.sentences import listed

_WAY_OUT = "leave --layout out"


def layout_target(adapter: Adapter, families: Sequence[Detection], layout: str) -> Target:
    """Return the layout called `layout`; raise LoraInspectError if no family is known, or none with such a layout."""
    file = adapter.checkpoint.path
    if not families:
        raise RefusedError(
            file,
            "lora-inspect knows no model family with these module names and shapes, so --layout cannot apply",
            "leave it out",
        )
    family = families[0].architecture
    named = {name: one for one in family.layouts for name in one.names if name in NAMED}
    choices: Sequence[str] = list(named) if len(named) > 1 else ARRANGED
    called_alike = all(any(one.also for one in known.architecture.layouts) for known in families)
    if not called_alike and not certain_correspondence(families).relations:
        raise RefusedError(
            file, f"it is of {described(families)}, and lora-inspect knows no other layout of that", _WAY_OUT
        )
    if layout not in choices:
        raise RefusedError(
            file,
            f"it is of {described(families)}, which has the layouts {listed(choices, 'and')}",
            "choose one of them",
        )
    found = named.get(layout)

    def rename(module: Module, path: str) -> ModuleName:
        if module.name.component in EXPERTS and layout == ORIGINAL:
            raise RefusedError(
                file,
                f"{module.name.key} is of a second expert, but names of the {layout} layout do not distinguish "
                "it from the first",
                "write its modules to a separate file, with the names of the first expert",
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
    """Return the name that readers of its scheme have for `path` in the layout, which was `asked` for by name.

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


class RelatedLayout(NamedTuple):
    """The names of the one program, of modules that have those of the other."""

    correspondence: Correspondence

    def links(self, path: str) -> list[Link]:
        """Return the module's names there."""
        return list(self.correspondence.links(path))

    def has(self, path: str) -> bool:
        """Return False: no module has its name already."""
        return False


def llama_cpp_layout(adapter: Adapter, options: ConvertOptions) -> RelatedLayout:
    """Return the layout of llama.cpp; raise LoraInspectError if the model or its number of heads is unknown."""
    names = GGUF_NAMES[architecture_of(adapter, options)]
    heads = _heads(adapter, names, options)
    return RelatedLayout(Correspondence(lambda: names.relations(heads)))


def transformers_layout(adapter: Adapter, options: ConvertOptions) -> RelatedLayout:
    """Return the causal model's layout in transformers.

    Raises LoraInspectError if the names of the header are not known, or if the number of heads is unknown.
    """
    names = gguf_names(adapter.checkpoint)
    heads = _heads(adapter, names, options)
    of_causal_model = names._replace(roots=names.roots[:1], heads=names.heads[:1])
    return RelatedLayout(Correspondence(lambda: of_causal_model.relations(heads)))


def architecture_of(adapter: Adapter, options: ConvertOptions) -> str:
    """Return llama.cpp's name of the model, from the GGUF input or from the model's config."""
    if adapter.scheme == GGUF.name:
        return adapter.checkpoint.metadata.get(ARCHITECTURE_KEY, "")
    config = _config(options)
    if config is None:
        raise RefusedError(
            adapter.checkpoint.path,
            "llama.cpp loads an adapter only for the model that its header names, and this adapter names none",
            "give the model's config.json with --model-config",
        )
    named = next((MODEL_TYPES[kind] for kind in config.kinds if kind in MODEL_TYPES), None)
    if named is None:
        raise RefusedError(
            config.path,
            f"its model_type is {' and '.join(config.kinds) or 'missing'}, but lora-inspect knows llama.cpp's "
            f"module names only for {listed(sorted(MODEL_TYPES), 'and')}",
            "convert it with convert_lora_to_gguf.py",
        )
    return named


def _heads(adapter: Adapter, names: GgufNames, options: ConvertOptions) -> Heads | None:
    """Return the number of heads if a module has rows in another order; raise LoraInspectError if it is unknown."""
    bodies = (module.name.body for module in adapter.modules.values())
    first = next(filter(names.is_arranged, bodies), None)
    config = _config(options) if first else None
    if first and (config is None or config.heads is None):
        lacks = f", and {config.path} does not give it" if config else ""
        raise RefusedError(
            adapter.checkpoint.path,
            f"unlike transformers, llama.cpp orders the rows of {first} by the number of heads{lacks}",
            "give the model's config.json with --model-config",
        )
    return config.heads if config else None


def _config(options: ConvertOptions) -> ModelConfig | None:
    return read_model_config(options.model_config) if options.model_config is not None else None


# Which of a pipeline's text encoders a component is, where nothing but its name tells.
_NUMBERS = {"text_encoder": 0, "text_encoder_2": 1, "text_encoder_3": 2, "text_encoder_4": 3}


def scheme_target(adapter: Adapter, families: Sequence[Detection], scheme: Scheme, options: ConvertOptions) -> Target:
    """Return the names of `scheme`; raise LoraInspectError if its programs know no such file."""
    writing = writing_of(scheme)
    check_loadable(adapter, scheme, options)
    asked = _RequestedNames(adapter, families, scheme, writing, options)
    return Target(
        family=described(families) if families else "a model of no known family",
        title=f"{scheme.name} names",
        layout=asked.layout,
        respells=True,
        rename=asked.rename,
        rename_encoder=asked.rename_encoder,
        way_out=WAY_OUT,
        keeps=scheme.name if isinstance(asked.layout, OwnLayout) else None,
    )


class _RequestedNames:
    """The names of one adapter's modules in the `scheme`."""

    def __init__(
        self,
        adapter: Adapter,
        families: Sequence[Detection],
        scheme: Scheme,
        writing: Writing,
        options: ConvertOptions,
    ) -> None:
        self._adapter = adapter
        self._options = options
        self._file = adapter.checkpoint.path
        # Whoever names a program means a family that it loads.
        loaded = [family for family in families if writing.layout(family.architecture) is not None]
        self._families = loaded or families
        self._scheme, self._writing = scheme, writing
        self._components = {module.name.component for module in adapter.modules.values()}
        self._prefixes: dict[str, str] = {}
        self.layout = self._found_layout()

    def rename(self, module: Module, path: str) -> ModuleName:
        """Return the name of a module of the model, at `path` of the layout."""
        if module.name.component in EXPERTS and MODEL in self._components:
            raise RefusedError(
                self._file,
                f"{module.name.key} is of a second expert, but a file with {self._scheme.name} names holds only one",
                "write each to a separate file, with --only model and --only model_2",
            )
        writing = self._writing
        is_nameless = is_parameter(path) and not writing.parameters
        if is_nameless or not path.startswith(writing.roots) or any(part in path for part in writing.lacks):
            raise RefusedError(
                self._file, f"{module.name.key} would be {path}, but {writing.title} has no such module", WAY_OUT
            )
        return self._named(module, self._model_prefix, path)

    def rename_encoder(self, module: Module) -> ModuleName:
        """Return the name of a module of a text encoder."""
        component = module.name.component
        if module.path is None:
            raise RefusedError(self._file, f"{module.name.key} is no module of a known text encoder", WAY_OUT)
        if component not in self._prefixes:
            self._prefixes[component] = self._encoder_prefix(component)
        return self._named(module, self._prefixes[component], self._rooted(module.path))

    def _rooted(self, path: str) -> str:
        """Return the path of an encoder's layer in the class that the programs use for it."""
        found = {below(path, self._writing.encoder_roots(family.architecture)) for family in self._families} or {path}
        return found.pop() if len(found) == 1 else path

    def _named(self, module: Module, prefix: str, path: str) -> ModuleName:
        scheme = self._scheme
        return ModuleName(scheme.name, module.name.component, prefix, scheme.module(path, ""), scheme.flat)

    def _found_layout(self) -> TargetLayout:
        if not self._components & set(MODELS):
            return OwnLayout()
        if not self._families and self._writing.layout(None) is None:
            raise RefusedError(
                self._file,
                "lora-inspect knows no model family with these module names and shapes, so it cannot choose "
                f"{self._scheme.name} names",
                WAY_OUT,
            )
        families = [family.architecture for family in self._families]
        names = dict.fromkeys(map(self._writing.layout, families or (None,)))
        name = next(iter(names))
        if len(names) > 1:
            raise AmbiguousError(
                self._file,
                f"it is of {described(self._families)}, and each has its own {self._scheme.name} names",
                f"choose one with --architecture {families[0].name}",
            )
        if name is None:
            raise RefusedError(
                self._file,
                f"it is of {described(self._families)}, which has no {self._scheme.name} names",
                WAY_OUT,
            )
        if name == OWN:
            return self._own_layout()
        return NamedLayout(self._families, next(one for one in families[0].layouts if one.name == name))

    def _own_layout(self) -> TargetLayout:
        """Return the file's own layout, or llama.cpp's or transformers' if only one side has llama.cpp's names."""
        is_gguf, to_gguf = has_header(self._adapter.checkpoint), self._scheme.name == GGUF.name
        if is_gguf == to_gguf:
            return OwnLayout()
        return (llama_cpp_layout if to_gguf else transformers_layout)(self._adapter, self._options)

    @cached_property
    def _model_prefix(self) -> str:
        writing, families = self._writing, [family.architecture for family in self._families]
        prefixes = {
            writing.prefixes.get(family.name, writing.prefix).format(pipeline=family.pipeline_name)
            for family in families
        } or {writing.prefix.format(pipeline="")}
        if len(prefixes) > 1:
            raise AmbiguousError(
                self._file,
                f"it is of {described(self._families)}, and each has its own beginning of {self._scheme.name} names",
                f"choose one with --architecture {self._families[0].architecture.name}",
            )
        return prefixes.pop()

    def _encoder_prefix(self, component: str) -> str:
        """Return the prefix of a text encoder's modules; raise LoraInspectError if the scheme has no names for it."""
        if len(self._components) == 1 and self._writing.layout(None) == OWN:
            return self._model_prefix
        found = {family.architecture: self._prefix_in(family.architecture, component) for family in self._families}
        prefixes = set(found.values())
        if len(prefixes) > 1:
            first = next(family.name for family, prefix in found.items() if prefix)
            raise AmbiguousError(
                self._file,
                f"it is of {described(self._families)}, and each has its own {self._scheme.name} names for its "
                f"{component}",
                f"choose one with --architecture {first}",
            )
        if prefix := "".join(prefixes):
            return prefix
        lacks = f"{self._file}: {self._scheme.name} names do not cover its {component}"
        if len(self._components) == 1:
            raise RefusedError(f"{lacks}; {WAY_OUT}.")
        if self._writing.layout(None) == OWN:
            choice = "choose with " + listed([f"--only {one}" for one in sorted(self._components)], "or")
        else:
            others = sorted(self._components - {component})
            choice = "leave it out with " + " ".join(f"--only {one}" for one in others)
        raise RefusedError(
            f"{lacks}, so {self._writing.title} cannot load it with the rest; {choice}, or choose another scheme."
        )

    def _prefix_in(self, family: Architecture, component: str) -> str:
        """Return the prefix of the text encoder that the component is in a family, or empty for none."""
        prefixes = self._writing.encoders(family)
        own, shown = family.text_encoders, self._encoders.get(component, ())
        # A width tells encoders of one kind apart; without it the kind alone may do.
        fitting = [at for at, one in enumerate(own) if any(has([one], found) for found in shown)]
        fitting = fitting or [at for at, one in enumerate(own) if any(one.kind == found.kind for found in shown)]
        # Programs number them in different ways, so what they are comes before what they are called.
        at = fitting[0] if len(fitting) == 1 else _NUMBERS.get(component, -1)
        return prefixes[at] if 0 <= at < len(prefixes) and (not shown or at in fitting) else ""

    @cached_property
    def _encoders(self) -> Mapping[str, tuple[TextEncoder, ...]]:
        return shown_encoders(self._adapter.modules)


def targets(
    adapter: Adapter, whole: Adapter, base: Checkpoint | None, matching: Matching | None, options: ConvertOptions
) -> tuple[Destination, ...]:
    """Return the modules of the output for the `adapter`, which is the `whole` file's or a part of it.

    Raises LoraInspectError if the requested layout has none.
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
    """Return the options with PEFT's names for a llama.cpp input, as no safetensors file has llama.cpp's.

    Raises LoraInspectError for a model's config that nothing depends on.
    """
    if options.model_config is not None and GGUF.name not in (options.scheme, adapter.scheme):
        raise RefusedError(
            adapter.checkpoint.path,
            "--model-config only affects llama.cpp's names, and neither the file nor the output has these",
            "leave it out",
        )
    is_open = options.scheme is None and options.layout is None
    return replace(options, scheme=PEFT.name) if is_open and adapter.scheme == GGUF.name else options
