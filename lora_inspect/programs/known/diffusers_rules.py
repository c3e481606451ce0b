"""What the rules of all pipelines of diffusers share: its own names, and conversions from other ones."""

from collections.abc import Callable
from functools import partial

from lora_inspect.programs.known.diffusers_files import config_fails, stored, unsure, without_lora
from lora_inspect.programs.record import COMPUTES, FAILS, LEAVES, SILENT, WARNS, Loader, Rule, RulesByFamily, Strangers

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
    """Files in diffusers' own names, with every key of which PEFT has to do; other names find no layer."""
    loader = Loader(
        families=(family,),
        rules=RulesByFamily((family,), lambda asked: _own_rules(pipeline)),
        strangers=NO_KEYS,
        leaves=NO_SCALE,
        flags=Strangers(SILENT),
        refuses=partial(without_lora, pipeline),
        unsure=unsure,
    )
    return loader._replace(**fields)  # type: ignore[arg-type]


def _own_rules(pipeline: str) -> tuple[Rule, ...]:
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
    return peft, other, *FOREIGN


# Names that PEFT is not asked for.
FOREIGN = (Rule(prefixes=("", "base_model.model.", "lycoris_", "lora_transformer_", "lora_unet_", "diffusion_model.")),)


def converted(family: str, *marks: str, rules: Callable[[], tuple[Rule, ...]], **fields: object) -> Loader:
    """Files in other names, of which a conversion has to use every key."""
    loader = Loader(
        families=(family,),
        marks=marks,
        rules=RulesByFamily((family,), lambda asked: (rule._replace(parts=NO_CORE) for rule in rules())),
        strangers=Strangers(FAILS, LEFT_OVER),
        leaves=NO_SCALE,
        refuses=partial(config_fails, "unet" if family == "sdxl" else "transformer"),
        unsure=unsure,
    )
    return loader._replace(**fields)  # type: ignore[arg-type]
