"""nunchaku: LoRA of FLUX.1, added to the low-rank part of its quantised layers.

It renames a file with the converters of diffusers for FLUX, and requires more than they do. A file with
`lora_transformer_` may have no other key. The first layer of a feed-forward needs the second one, and the output of a
single block needs `proj_mlp`. In LoHa and LoKr it finds an alpha without factors. It loses the magnitudes of DoRA
silently. In kohya's names it ignores the alpha of the last layer.

`compose_lora` joins several files into one, and interfaces for ComfyUI also call it for one file. It also reads PEFT's
names of the original layers, and requires queries, keys and values together.

Sources: `nunchaku/lora/flux/` and `update_lora_params` in `nunchaku/models/transformers/transformer_flux.py` of
nunchaku. They were run with diffusers 0.42.1 at the widths of FLUX.1 up to its kernels. The rules come from the packed
factors that the kernels get.
"""

from collections.abc import Callable, Iterator

from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    INFIXED,
    LEAVES,
    MAGNITUDES_LEFT,
    READ,
    SILENT,
    SLICED,
    TEXT_ENCODERS,
    Given,
    Loader,
    LoadFailure,
    OfKind,
    OfKindInFile,
    Program,
    Rule,
    Strangers,
    alpha_over_rank,
)
from lora_inspect.reading.adapter import Adapter

_OWN, _LEGACY, _PEFT = "transformer.", "lora_transformer_", "base_model.model."
_INCOMPATIBLE = "ValueError: Incompatible keys detected"
_NO_FACTORS = "AssertionError: Key NAME.lora_A.weight not found in new tensors."
_LAST = "final_layer.linear"
# Layers that need another one of their block, by the ends of the names in both layouts, and what it raises.
_NEEDED = (
    ("ff.net.0.proj", "ff.net.2", "AssertionError"),
    ("ff_context.net.0.proj", "ff_context.net.2", "AssertionError"),
    ("img_mlp.0", "img_mlp.2", "AssertionError"),
    ("txt_mlp.0", "txt_mlp.2", "AssertionError"),
    ("linear2", "linear1", "KeyError: proj_mlp"),
)
_PROJECTIONS = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _is_legacy(adapter: Adapter) -> bool:
    return all(key.startswith(_LEGACY) for key in adapter.checkpoint.tensors)


def _is_dotted(adapter: Adapter) -> bool:
    """Return True if the file has diffusers' own names, which the converter never drops."""
    return any(module.name.prefix == _OWN for module in adapter.modules.values())


def _refused(adapter: Adapter) -> str | None:
    """Return the error for an unclaimed tensor of one dimension.

    It takes such a tensor for a difference of a bias.
    """
    if not _is_dotted(adapter):
        return None
    tensors = adapter.checkpoint.tensors
    return next((f"KeyError: '{key}'" for key in adapter.other_keys if len(tensors[key].shape) == 1), None)


def _refused_by_compose(adapter: Adapter) -> str | None:
    """Return the error of `compose_lora`, which takes no scalars either."""
    tensors = adapter.checkpoint.tensors
    if _is_dotted(adapter) and any(not info.shape and not key.endswith(".alpha") for key, info in tensors.items()):
        return "AssertionError: assert v.ndim == 2"
    return _refused(adapter)


@OfKindInFile
def _exceptions(given: Given) -> str | LoadFailure | None:
    """Return the error for a missing layer that this one needs, or "" for untried shapes.

    Nobody tried cores, kernels, and LoHa or LoKr without alpha.
    """
    name, shapes = given.contribution.algorithm.name, given.contribution.shapes
    if name in ("loha", "lokr") and given.module.alpha is None:
        return ""
    if "mid" in shapes or any(len(shape) > 2 for shape in shapes.values()):
        return ""
    if missing := _missing(given):
        return LoadFailure(missing)
    return None


def _missing(given: Given) -> str | None:
    """Return the error for a missing layer that this one needs."""
    key, modules = given.module.name.key, given.adapter.modules
    for one, other, says in _NEEDED:
        for end, needed in ((f".{one}", f".{other}"), (f"_{_flat(one)}", f"_{_flat(other)}")):
            if key.endswith(end) and key.removesuffix(end) + needed not in modules:
                return says
    if "single_transformer_blocks" in key and key.endswith("proj_out"):
        needed = key.removesuffix("proj_out") + "proj_mlp"
        return None if needed in modules else "KeyError: proj_mlp"
    return None


@OfKindInFile
def _exceptions_of_compose(given: Given) -> str | LoadFailure | Strangers | None:
    """Return the error for queries without keys or values.

    Keys and values without queries are ignored silently.
    """
    key, modules = given.module.name.key, given.adapter.modules
    for parts in _PROJECTIONS:
        own = next((part for part in parts if key.endswith((f".{part}", f"_{part}"))), None)
        if own is None:
            continue
        parent = key.removesuffix(own)
        if own != parts[0]:
            return None if parent + parts[0] in modules else Strangers(SILENT)
        if missing := next((part for part in parts if parent + part not in modules), None):
            return LoadFailure(f"KeyError: {missing}")
    return _exceptions(given)


@OfKind
def _scale_of_kohya(given: Given) -> float | None:
    """Return alpha/rank, but 1 for the last layer."""
    is_last = given.module.name.body.replace("_", ".").endswith(_LAST.replace("_", "."))
    return 1.0 if is_last else alpha_over_rank(given)


_Exceptions = Callable[[Given], str | LoadFailure | Strangers | None]


def _rules(exceptions: _Exceptions, composes: bool) -> Iterator[Rule]:
    loaded = Rule(
        kinds={"lora": COMPUTES, "loha": FAILS, "lokr": FAILS, "full": LEAVES},
        exceptions=exceptions,
        magnitudes=MAGNITUDES_LEFT,
        says=_NO_FACTORS,
    )
    yield Rule(dialects=(INFIXED,), kinds={"lora": LEAVES})
    yield Rule(dialects=(SLICED,), kinds={"": ""})
    yield Rule(
        prefixes=("text_encoder.", "text_encoder_2.", "lora_te1_", "lora_te2_", "lora_te3_"),
        layouts=(TEXT_ENCODERS,),
        kinds={"": FAILS},
        says="KeyError: 'text_encoder...'",
    )
    in_diffusers = loaded._replace(layouts=("diffusers",))
    down_and_up = "AssertionError: assert v.ndim == 2" if composes else "IndexError: tuple index out of range"
    yield in_diffusers._replace(
        prefixes=(_OWN,), dialects=("kohya",), alpha=True, kinds={"lora": FAILS}, says=down_and_up
    )
    yield in_diffusers._replace(prefixes=(_OWN,))
    yield in_diffusers._replace(prefixes=("",), alpha=False, kinds={"lora": COMPUTES})
    yield in_diffusers._replace(prefixes=(_LEGACY,), where=_is_legacy)
    yield in_diffusers._replace(prefixes=(_LEGACY,), kinds={"": ""})
    yield in_diffusers._replace(prefixes=("lycoris_",), kinds={"lora": LEAVES, "loha": FAILS, "lokr": FAILS})
    yield in_diffusers._replace(prefixes=("lora_unet_",), kinds={"lora": FAILS}, says=_INCOMPATIBLE)
    in_original = loaded._replace(layouts=("original",), scale=_scale_of_kohya)
    yield in_original._replace(prefixes=("lora_unet_",), dialects=("kohya", "", "lycoris"))
    yield in_original._replace(prefixes=("diffusion_model.",), dialects=("kohya",), kinds={"lora": COMPUTES})
    yield in_original._replace(prefixes=("diffusion_model.",), dialects=("peft",), kinds={"lora": LEAVES})
    yield in_original._replace(prefixes=("",), alpha=False, kinds={"lora": LEAVES})
    yield loaded._replace(layouts=("xlabs",), prefixes=("", "diffusion_model."), alpha=False, kinds={"lora": COMPUTES})
    if not composes:
        yield loaded._replace(prefixes=(_PEFT,), kinds={"lora": LEAVES})
        return
    yield in_original._replace(prefixes=(_PEFT,), alpha=False, dialects=("peft",), kinds={"lora": COMPUTES})
    yield in_diffusers._replace(prefixes=(_PEFT,), kinds={"lora": FAILS}, says=_INCOMPATIBLE, by=READ)


_DIRECT = Program(
    name="nunchaku",
    title="nunchaku",
    version="1.2.0",
    ran="2026-12-01",
    loaders=(
        Loader(
            families=("flux",),
            rules=tuple(_rules(_exceptions, composes=False)),
            strangers=Strangers(SILENT),
            refuses=_refused,
        ),
    ),
    schemes={"": "diffusers"},
)
_COMPOSES = _DIRECT._replace(
    name="nunchaku-compose",
    title="nunchaku (compose_lora)",
    loaders=(
        Loader(
            families=("flux",),
            rules=tuple(_rules(_exceptions_of_compose, composes=True)),
            strangers=Strangers(SILENT),
            refuses=_refused_by_compose,
        ),
    ),
)
PROGRAMS = (_DIRECT, _COMPOSES)
