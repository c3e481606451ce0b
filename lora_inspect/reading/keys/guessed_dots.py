"""Names of layers whose dots are not those of the model: musubi-tuner's `convert_lora.py --target other` guesses them.

It takes every underscore for a dot, and some words of Wan and HunyuanVideo back, so that the attention of FLUX is
`img_attn_qkv` and Kandinsky's blocks are `visual.transformer.blocks`. The metadata stay, and name the family, of whose
layers one alone is spelled so with underscores.
"""

from collections.abc import Mapping, Sequence

from lora_inspect.architectures import by_name
from lora_inspect.architectures.detection import METADATA_KEYS, named_by
from lora_inspect.architectures.patterns import pattern_of, patterns_of
from lora_inspect.reading.keys.claims import Claims
from lora_inspect.reading.keys.written_paths import Table, path_of, table_of
from lora_inspect.reading.model.contribution import Module
from lora_inspect.reading.model.evidence import Evidence
from lora_inspect.schemes.dotted import DOTTED
from lora_inspect.schemes.peft import PEFT
from lora_inspect.schemes.record import MODEL, ModuleName


def with_true_dots(claims: Claims, metadata: Mapping[str, str]) -> tuple[Claims, tuple[Evidence, ...]]:
    """The claims with the paths of the family for names that are none of its own, and what is said of them."""
    layouts = [layout for name in named_by(metadata) for layout in by_name(name).layouts]
    known = patterns_of((path for layout in layouts for path in layout.paths), ".")
    tables = [[table_of(layout.paths)] for layout in layouts]
    modules: dict[str, Module] = {}
    told: dict[str, str] = {}
    for key, module in claims.modules.items():
        name = module.name
        is_own = name.flat or name.component != MODEL or name.scheme == PEFT.name
        if not is_own and pattern_of(name.body, ".") not in known and (found := _found(name, tables)):
            told[key] = found.body
            module = _called(module, found)
        modules[module.name.key] = module
    if not told or len(modules) < len(claims.modules):
        return claims, ()
    (key, path), *_ = told.items()
    says = f"the dots of {len(told)} names are those that musubi-tuner guesses: {key} is {path}"
    return claims._replace(modules=modules), (Evidence("names", says, f"metadata {METADATA_KEYS[0]}"),)


def _found(name: ModuleName, tables: Sequence[Sequence[Table]]) -> ModuleName | None:
    """The name with the dots of the family's layer that alone is spelled so; None for none."""
    # Without a prefix of its own, `transformer.blocks.0` begins as names of diffusers do.
    for one in (name, ModuleName(DOTTED.name, MODEL, "", name.key, flat=False)):
        if path := path_of(one._replace(body=one.body.replace(".", "_"), flat=True), *tables):
            return one._replace(body=path)
    return None


def _called(module: Module, name: ModuleName) -> Module:
    contributions = tuple(contribution._replace(module=name) for contribution in module.contributions)
    return module._replace(name=name, contributions=contributions)
