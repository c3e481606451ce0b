"""The common rules of diffusers' pipelines: its own names, and conversions.

Its loaders test a whole adapter file for an embedded config, for alphas, and for properties of all keys.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    LEAVES,
    SILENT,
    TEXT_ENCODERS,
    UNTRAINED,
    WARNS,
    Given,
    Loader,
    LoadFailure,
    OfKind,
    OfKindInFile,
    Rule,
    RulesByFamily,
    ScaleOfFile,
    ScaleRule,
    Strangers,
    intended_scale,
)
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.keys.groups import group_equal
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.peft.peft_config import EMBEDDED_KEY, embedded_configs
from lora_inspect.schemes.record import ModuleName

NOT_LORA = "ValueError: Invalid LoRA checkpoint"
_NOT_ADAPTER = "ValueError: Invalid adapter checkpoint"


@OfKind
def endless(given: Given) -> LoadFailure | None:
    """Return the failure of a negative alpha.

    Conversions halve and double shares of a scale until they are equal, which a negative one never is.
    """
    is_negative = given.module.alpha is not None and (given.contribution.alpha or 0.0) < 0
    return LoadFailure("it never ends, because an alpha is negative") if is_negative else None


@OfKind
def _of_tensors(given: Given) -> float | None:
    if given.contribution.rank is None:
        return given.contribution.scale
    if given.module.alpha is None:
        return 1.0
    return None if given.contribution.alpha is None else given.contribution.alpha / given.contribution.rank


def _stored_in(adapter: Adapter) -> ScaleRule:
    """Return the rule for the embedded config's scale, else for alpha/rank."""
    return intended_scale if EMBEDDED_KEY in adapter.checkpoint.metadata else _of_tensors


stored = ScaleOfFile(_stored_in)


# Attention layers of a UNet: the pattern for the alpha of one is made of a name that no layer has.
_OF_ATTENTION = ("to_q", "to_k", "to_v", "to_out_0")


def alphas_by_pattern(adapter: Adapter) -> ScaleRule:
    """Return alpha/rank if all modules of a model have one alpha.

    Otherwise diffusers sets other alphas by patterns, which do not match all layers.
    """
    alphas: dict[str, Counter[float | None]] = defaultdict(Counter)
    for module in adapter.modules.values():
        own = {one.alpha if module.alpha else None for one in module.contributions if one.rank}
        alphas[module.name.component].update(own)
    scale = _stored_in(adapter)
    if all(len(own) == 1 for own in alphas.values()):
        return scale
    common = {component: _most_common(own) for component, own in alphas.items()}

    def by_pattern(given: Given) -> float | None:
        name, rank = given.module.name, given.contribution.rank
        if len(alphas[name.component]) < 2:
            return scale(given)
        alpha = common[name.component]
        if name.component != "model" or rank is None or alpha is None:
            return None
        if name.prefix == _UNET_PREFIX and name.body.endswith(_OF_ATTENTION):
            return alpha / rank
        return scale(given)

    return OfKindInFile(by_pattern)


_UNET_PREFIX = "lora_unet_"


def _most_common(alphas: Counter[float | None]) -> float | None:
    """Return the alpha of most modules, or None for a tie or a module without one."""
    (first, most), *others = alphas.most_common() or [(None, 0)]
    return None if None in alphas or any(count == most for _, count in others) else first


def without_lora(pipeline: str, adapter: Adapter) -> str | None:
    """Return the refusal of a key without "lora".

    The pipeline removes `dora_scale` before.
    """
    odd = (key for key in adapter.checkpoint.tensors if "lora" not in key and "dora_scale" not in key)
    return NOT_LORA if next(odd, None) else config_fails(pipeline, adapter)


def without_lokr(pipeline: str, adapter: Adapter) -> str | None:
    """Return the same for a pipeline that loads LoKr too."""
    words = ("lora", "lokr", "dora_scale")
    odd = (key for key in adapter.checkpoint.tensors if not any(word in key for word in words))
    return _NOT_ADAPTER if next(odd, None) else config_fails(pipeline, adapter)


def no_lora(pipeline: str, adapter: Adapter) -> str | None:
    """Return the refusal of a file without "lora" in any key: FLUX needs only one."""
    has_some = any("lora" in key for key in adapter.checkpoint.tensors)
    return config_fails(pipeline, adapter) if has_some else NOT_LORA


def config_fails(pipeline: str, adapter: Adapter) -> str | None:
    """Return PEFT's refusal of an embedded config without the modules to adapt."""
    if EMBEDDED_KEY not in adapter.checkpoint.metadata:
        return None
    config = embedded_configs(adapter.checkpoint.metadata).get(f"{pipeline}.", {})
    return None if config.get("target_modules") else "KeyError: 'model_type'"


def unsure(adapter: Adapter) -> str | None:
    """Return the unknown effect of properties of the whole file.

    Examples are a config next to alphas, and parts that only some modules have.
    """
    kinds = [module for module in group_equal(adapter.modules).firsts if module.name.component == "model"]
    loras = [one for module in kinds for one in module.contributions if one.algorithm.name == "lora"]
    biases = {"lora_bias", "full_bias"}
    layers = [module for module in kinds if not _is_removed(module)]
    if len({module.name.prefix for module in kinds}) > 1:
        return "its choice among the names of several programs"
    if _are_spelled_in_two_ways(adapter):
        return "its choice between two spellings of the factors"
    if len({one.magnitude is not None for one in loras}) > 1:
        return "its value for the missing magnitudes"
    if len({any(one.algorithm.name in biases for one in module.contributions) for module in layers}) > 1:
        return "its value for the missing biases"
    if EMBEDDED_KEY in adapter.checkpoint.metadata:
        return _unsure_of_config(adapter)
    return None


def _is_removed(module: Module) -> bool:
    """Return True if conversions remove it: differences only, of a norm or convolution."""
    is_plain = all(one.algorithm.name in ("full", "full_bias") for one in module.contributions)
    return is_plain and ("norm" in module.name.body or module.name.body == "patch_embedding")


def _are_spelled_in_two_ways(adapter: Adapter) -> bool:
    keys = "\n".join(adapter.checkpoint.tensors)
    if ".lora_A." not in keys and ".lora_B." not in keys:
        return False
    models = (module for module in adapter.modules.values() if module.name.component == "model")
    loras = (one for module in models for one in module.contributions if one.algorithm.name == "lora")
    names = (info.name for one in loras for info in one.factors.values())
    return len({".lora_A." in name or ".lora_B." in name for name in names}) > 1


def _unsure_of_config(adapter: Adapter) -> str | None:
    if any(module.alpha for module in adapter.modules.values()):
        return "its choice between the scales of a config and of alphas"
    configs = embedded_configs(adapter.checkpoint.metadata)
    first = next(iter(configs.values()), {})
    parts: dict[ModuleName, list[Contribution]] = {}
    for module in adapter.modules.values():
        own = (one for one in module.contributions if one.algorithm.name == "lora")
        parts.setdefault(module.name._replace(body=""), []).extend(own)
    for name, loras in parts.items():
        is_encoder = name.component != "model"
        if is_encoder and (why := _unsure_of_targets(configs.get(name.prefix, {}))):
            return why
        config = configs.get(name.prefix, {} if is_encoder else first)
        if bool(config.get("use_dora")) != any(one.magnitude for one in loras):
            return "its use of a config that does not match the magnitudes"
        if not config.get("rank_pattern") and {one.rank for one in loras} != {config.get("r")}:
            return "its use of a config that does not match the ranks"
    return None


def _unsure_of_targets(config: Mapping[str, Any]) -> str | None:
    """Return the unknown effect of an encoder's config with names of some versions.

    Names such as `q_proj` work in each.
    """
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not targets:
        return "its use of a config without the layers of the text encoder"
    has_root = any(str(target).startswith("text_model.") for target in targets)
    return "its use of a config with names that transformers 5 does not have" if has_root else None


LEFT_OVER = "ValueError: `state_dict` should be empty at this point"
NO_KEYS = Strangers(WARNS, "No LoRA keys associated to the model found with its prefix")
NO_SCALE = Strangers(WARNS, "going to filter out the keys associated to 'dora_scale'")
UNEXPECTED = Strangers(WARNS, "Loading adapter weights from state_dict led to unexpected keys")

OUTPUTS = (".lora_magnitude_vector output", ".lora_magnitude_vector.weight output")
DORA_SCALES = (".dora_scale output", ".dora_scale input")
LAYER_SCALE = ".dora_layer.weight output"
PEFT_DORA = {**dict.fromkeys(OUTPUTS, COMPUTES), **dict.fromkeys(DORA_SCALES, LEAVES)}
NO_DORA = dict.fromkeys((*OUTPUTS, *DORA_SCALES, LAYER_SCALE), FAILS)
SCALES_LEFT = {**dict.fromkeys((*OUTPUTS, LAYER_SCALE), FAILS), **dict.fromkeys(DORA_SCALES, LEAVES)}
ONLY_LORA = {"lora": COMPUTES, "": FAILS}
ALL_FAIL = {"": FAILS}
# Tucker cores were not tried.
NO_CORE = {"lora.mid": ""}


def own(family: str, pipeline: str = "transformer", **fields: object) -> Loader:
    """Return the loader for diffusers' own names; PEFT gets every key.

    Other names match no layer.
    """
    loader = Loader(
        families=(family,),
        rules=RulesByFamily((family,), lambda asked: own_rules(pipeline, asked)),
        strangers=NO_KEYS,
        leaves=NO_SCALE,
        flags=Strangers(SILENT),
        refuses=partial(without_lora, pipeline),
        unsure=unsure,
    )
    return loader._replace(**fields)  # type: ignore[arg-type]


def own_rules(pipeline: str, family: str) -> tuple[Rule, ...]:
    """Return the rules of a pipeline's own names, and of others that it does not find."""
    peft = Rule(
        prefixes=(f"{pipeline}.",),
        layouts=("diffusers",),
        dialects=("peft",),
        kinds={"lora": COMPUTES, "lora_bias": COMPUTES},
        magnitudes=PEFT_DORA,
        parts=NO_CORE,
        scale=stored,
    )
    other = peft._replace(dialects=("kohya",), kinds=ALL_FAIL, says="IndexError: list index out of range")
    second = Rule(prefixes=("transformer_2.",))
    return (
        *(peft, other, second._replace(where=_has_first, unfound=Strangers(SILENT)), second),
        *own_encoders(family),
        *FOREIGN,
    )


def _has_first(adapter: Adapter) -> bool:
    """Return True if the file changes the first expert too.

    Then no message reports the layers of the second.
    """
    return any(key.startswith("transformer.") for key in adapter.checkpoint.tensors)


# The text encoders whose adapters a pipeline loads, all of CLIP; it asks nothing of the others.
ENCODERS = {"sd15": 1, "sd2": 1, "sdxl": 2, "sd3": 2, "flux": 1}
_NAMES = ("text_encoder.", "text_encoder_2.", "text_encoder_3.", "text_encoder_4.")
# transformers, which loads those of encoders, takes the magnitudes under the name alone that their module has.
_ENCODER_DORA = {**PEFT_DORA, OUTPUTS[0]: UNTRAINED}
CANNOT_INFER = "ValueError: Could not automatically infer state dict type"


def own_encoders(family: str, scale: ScaleRule | ScaleOfFile = stored, **fields: object) -> tuple[Rule, ...]:
    """Return the rules of text encoders in diffusers' own names."""
    known = Rule(
        prefixes=_NAMES[: ENCODERS.get(family, 0)],
        layouts=("text_model.encoder.layers.{i}",),
        dialects=("peft",),
        kinds={"lora": COMPUTES},
        magnitudes=_ENCODER_DORA,
        parts=NO_CORE,
        scale=scale,
    )
    known = known._replace(**fields)  # type: ignore[arg-type]
    # CLIP without a projection has no `text_model` any more, which is taken off names that have it.
    plain = known._replace(prefixes=known.prefixes[:1], layouts=("encoder.layers.{i}",))
    ways = (known, plain) if family != "sd3" else (known,)
    fails = (way._replace(dialects=("kohya",), kinds=ALL_FAIL, says=CANNOT_INFER) for way in ways)
    loads = (*ways, *fails) if known.prefixes else ()
    return *loads, Rule(prefixes=_NAMES[len(known.prefixes) :], unfound=Strangers(SILENT))


UNDERSCORED_ENCODERS = ("lora_te_", "lora_te1_", "lora_te2_", "lora_te3_")


def renamed_encoders(says: str, scale: ScaleRule | ScaleOfFile, *prefixes: str) -> Rule:
    """Return the rule of text encoders in kohya's names behind `prefixes`.

    A conversion renames them for the pipeline.
    """
    return Rule(
        prefixes=prefixes,
        layouts=(TEXT_ENCODERS,),
        dialects=("kohya", "lycoris"),
        kinds=ONLY_LORA,
        magnitudes=SCALES_LEFT,
        scale=scale,
        says=says,
    )


_ATTENTION = tuple(f"text_model.encoder.layers.{{i}}.self_attn.{leaf}_proj" for leaf in "qkv")


def untold_encoders(*prefixes: str) -> tuple[Rule, Rule]:
    """Return the rules of an encoder in kohya's names behind `prefixes` without a layer that tells whose names it has.

    A conversion gives the layers of attention and of an MLP names of two kinds. The pipeline renames those of both if
    it finds a layer of the attention's output, only those of the MLP otherwise, and fails if it finds neither.
    """

    def lacks(*parts: str) -> Callable[[Adapter], bool]:
        return lambda adapter: (
            not any(part in key for key in adapter.modules if key.startswith(prefixes) for part in parts)
        )

    return (
        Rule(
            prefixes=prefixes, layouts=(TEXT_ENCODERS,), where=lacks("out_proj", "mlp"), kinds=ALL_FAIL,
            says=CANNOT_INFER,
        ),
        Rule(prefixes=prefixes, paths=_ATTENTION, where=lacks("out_proj"), unfound=Strangers(WARNS, "UNEXPECTED")),
    )  # fmt: skip


# Names that PEFT is not asked for.
FOREIGN = (
    Rule(
        prefixes=(
            *("", "base_model.model.", "lycoris_", "lora_transformer_", "lora_unet_", "diffusion_model."),
            *UNDERSCORED_ENCODERS,
        )
    ),
)


def converted(
    families: str | tuple[str, ...], *marks: str, rules: Callable[[], tuple[Rule, ...]], **fields: object
) -> Loader:
    """Return the loader for other names; a conversion must use every key."""
    names = (families,) if isinstance(families, str) else families
    loader = Loader(
        families=names,
        marks=marks,
        rules=RulesByFamily(names, lambda asked: (rule._replace(parts=NO_CORE) for rule in rules())),
        strangers=Strangers(FAILS, LEFT_OVER),
        leaves=NO_SCALE,
        refuses=partial(config_fails, "unet" if names[0] in ("sdxl", "sd15", "sd2") else "transformer"),
        unsure=unsure,
    )
    return loader._replace(**fields)  # type: ignore[arg-type]
