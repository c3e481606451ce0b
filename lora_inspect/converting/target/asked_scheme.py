"""What `--to` asks for: the names of a scheme, in the layout that the programs which load these names have."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.record import Architecture, is_parameter
from lora_inspect.architectures.text_encoders import TextEncoder, below, has
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.target.gguf_layouts import llama_cpp_layout, transformers_layout
from lora_inspect.converting.target.target_layout import Target
from lora_inspect.converting.target.target_layouts import NamedLayout, OwnLayout, TargetLayout
from lora_inspect.converting.target.target_program import WAY_OUT, check_loadable, writing_of
from lora_inspect.errors import LoraInspectError
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_names import EXPERTS
from lora_inspect.reading.base.model_config import has_header
from lora_inspect.reading.identify import described
from lora_inspect.reading.keys.suffixes import MODELS
from lora_inspect.reading.model.contribution import Module
from lora_inspect.reading.shown_families import shown_encoders
from lora_inspect.schemes.gguf import GGUF
from lora_inspect.schemes.record import MODEL, OWN, ModuleName, Scheme, Writing
from lora_inspect.sentences import listed

# Which of a pipeline's text encoders a component is, where nothing but its name tells.
_NUMBERS = {"text_encoder": 0, "text_encoder_2": 1, "text_encoder_3": 2, "text_encoder_4": 3}


def scheme_target(adapter: Adapter, families: Sequence[Detection], scheme: Scheme, options: ConvertOptions) -> Target:
    """The names of `scheme`; LoraInspectError where its programs know no such file."""
    writing = writing_of(scheme)
    check_loadable(adapter, scheme, options)
    asked = _Asked(adapter, families, scheme, writing, options)
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


class _Asked:
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
        """The name of a module of the model, at `path` of the layout."""
        if module.name.component in EXPERTS and MODEL in self._components:
            raise LoraInspectError(
                f"{self._file}: {module.name.key} is of a second expert, and files of {self._scheme.name} names are of "
                "one alone; write each to a file of its own, with --only model and --only model_2."
            )
        writing = self._writing
        is_nameless = is_parameter(path) and not writing.parameters
        if is_nameless or not path.startswith(writing.roots) or any(part in path for part in writing.lacks):
            raise LoraInspectError(
                f"{self._file}: {module.name.key} would be {path}, which {writing.title} has no module of; {WAY_OUT}."
            )
        return self._named(module, self._model_prefix, path)

    def rename_encoder(self, module: Module) -> ModuleName:
        """The name of a module of a text encoder."""
        component = module.name.component
        if module.path is None:
            raise LoraInspectError(
                f"{self._file}: {module.name.key} is no module of a text encoder that is known here; {WAY_OUT}."
            )
        if component not in self._prefixes:
            self._prefixes[component] = self._encoder_prefix(component)
        return self._named(module, self._prefixes[component], self._rooted(module.path))

    def _rooted(self, path: str) -> str:
        """The path of an encoder's layer in the class of it that the programs hold."""
        found = {below(path, self._writing.encoder_roots(family.architecture)) for family in self._families} or {path}
        return found.pop() if len(found) == 1 else path

    def _named(self, module: Module, prefix: str, path: str) -> ModuleName:
        scheme = self._scheme
        return ModuleName(scheme.name, module.name.component, prefix, scheme.module(path, ""), scheme.flat)

    def _found_layout(self) -> TargetLayout:
        if not self._components & set(MODELS):
            return OwnLayout()
        if not self._families and self._writing.layout(None) is None:
            raise LoraInspectError(
                f"{self._file}: the names and shapes of its modules are of no model family that is known here, so what "
                f"{self._scheme.name} names call them is unknown; {WAY_OUT}."
            )
        families = [family.architecture for family in self._families]
        names = dict.fromkeys(map(self._writing.layout, families or (None,)))
        name = next(iter(names))
        if len(names) > 1:
            raise LoraInspectError(
                f"{self._file}: it is of {described(self._families)}, which have other {self._scheme.name} names each; "
                f"say which with --architecture {families[0].name}."
            )
        if name is None:
            raise LoraInspectError(
                f"{self._file}: it is of {described(self._families)}, for which there are no "
                f"{self._scheme.name} names; {WAY_OUT}."
            )
        if name == OWN:
            return self._own_layout()
        return NamedLayout(self._families, next(one for one in families[0].layouts if one.name == name))

    def _own_layout(self) -> TargetLayout:
        """The layout that the file has; but llama.cpp has names of its own, and no other program has these."""
        is_gguf, to_gguf = has_header(self._adapter.checkpoint), self._scheme.name == GGUF.name
        if is_gguf == to_gguf:
            return OwnLayout()
        return (llama_cpp_layout if to_gguf else transformers_layout)(self._adapter, self._options)

    @property
    def _model_prefix(self) -> str:
        writing, families = self._writing, [family.architecture for family in self._families]
        prefixes = {
            writing.prefixes.get(family.name, writing.prefix).format(pipeline=family.pipeline_name)
            for family in families
        } or {writing.prefix.format(pipeline="")}
        if len(prefixes) > 1:
            raise LoraInspectError(
                f"{self._file}: it is of {described(self._families)}, whose {self._scheme.name} names begin otherwise "
                f"each; say which with --architecture {self._families[0].architecture.name}."
            )
        return prefixes.pop()

    def _encoder_prefix(self, component: str) -> str:
        """What the modules of a text encoder begin with; LoraInspectError where the scheme has no names for it."""
        if len(self._components) == 1 and self._writing.layout(None) == OWN:
            return self._model_prefix
        found = {family.architecture: self._prefix_in(family.architecture, component) for family in self._families}
        prefixes = set(found.values())
        if len(prefixes) > 1:
            first = next(family.name for family, prefix in found.items() if prefix)
            raise LoraInspectError(
                f"{self._file}: it is of {described(self._families)}, which have other {self._scheme.name} names each "
                f"for its {component}; say which with --architecture {first}."
            )
        if prefix := "".join(prefixes):
            return prefix
        lacks = f"{self._file}: {self._scheme.name} names have none for its {component}"
        if len(self._components) == 1:
            raise LoraInspectError(f"{lacks}; {WAY_OUT}.")
        if self._writing.layout(None) == OWN:
            choice = "choose with " + listed([f"--only {one}" for one in sorted(self._components)], "or")
        else:
            others = sorted(self._components - {component})
            choice = "leave it out with " + " ".join(f"--only {one}" for one in others)
        raise LoraInspectError(
            f"{lacks}, so {self._writing.title} cannot load it with the rest; {choice}, or choose another scheme."
        )

    def _prefix_in(self, family: Architecture, component: str) -> str:
        """The prefix of the text encoder that the component is in a family; empty for none."""
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
