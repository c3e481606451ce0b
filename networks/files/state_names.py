"""The names of other programs for the parts of a pipeline and the tensors of a network.

Trainers other than kohya's hold the models of a pipeline in one object and number its text encoders. Their name of a
tensor consists of those of the part, of the layer, and of the tensor in it.

Sources: `modules/modelSetup` and `modules/module/LoRAModule.py` of OneTrainer, `toolkit/lora_special.py` and
`toolkit/network_mixins.py` of ai-toolkit.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from lora_inspect.converting.output.configs import BARE, standard_config
from lora_inspect.maths.scaling import scale_of
from lora_inspect.schemes.diffusers import DIFFUSERS
from lora_inspect.schemes.kohya import KOHYA
from lora_inspect.schemes.peft import PEFT

from .file_names import DORA_SCALE, module_name

UNET, TRANSFORMER = "unet", "transformer"
_UNET_PREFIX = "lora_unet"


class Part(NamedTuple):
    """A model of a pipeline, with the pipeline's name for it and kohya's prefix of its modules."""

    name: str
    prefix: str
    model: nn.Module


# The attributes that hold the model that is trained: OneTrainer's, ai-toolkit's and those of pipelines of diffusers.
_MODELS = {TRANSFORMER: TRANSFORMER, UNET: UNET, "prior_prior": "prior"}
# Those that hold its text encoders. ai-toolkit has a list of them in the first.
_ENCODERS = {
    "text_encoder": 1,
    "text_encoder_1": 1,
    "prior_text_encoder": 1,
    "text_encoder_2": 2,
    "text_encoder_3": 3,
    "text_encoder_4": 4,
}


def parts_of(holder: Any) -> list[Part]:
    """Return the model of a trainer's or pipeline's object, and its text encoders.

    A module is itself the model. Raises ValueError for an object without such a model.
    """
    if isinstance(holder, nn.Module):
        return [Part(part_name(holder), _UNET_PREFIX, holder)]
    for attribute, name in _MODELS.items():
        if isinstance(model := getattr(holder, attribute, None), nn.Module):
            name = part_name(model) if name in (TRANSFORMER, UNET) else name
            return [Part(name, _UNET_PREFIX, model), *_encoders(holder)]
    raise ValueError(
        f"model is a {type(holder).__name__}, but a torch.nn.Module was expected, or an object that has one as "
        f"{' or '.join(_MODELS)}"
    )


def part_name(model: nn.Module) -> str:
    """Return the name that pipelines of diffusers have for a model."""
    return UNET if "UNet" in type(model).__name__ else TRANSFORMER


def _encoders(holder: Any) -> list[Part]:
    found: dict[int, nn.Module] = {}
    for attribute, number in _ENCODERS.items():
        held = getattr(holder, attribute, None)
        for at, model in enumerate(held if isinstance(held, list | tuple) else [held], number):
            if isinstance(model, nn.Module):
                found.setdefault(at, model)
    # sd-scripts numbers the one encoder of a model that has several.
    several = len(found) > 1 or hasattr(holder, "text_encoder_1")
    return [
        Part(
            "text_encoder" if number == 1 else f"text_encoder_{number}",
            f"lora_te{number}" if several else "lora_te",
            model,
        )
        for number, model in sorted(found.items())
    ]


class Spelling(NamedTuple):
    """A program's names of tensors: `prefix` with the part's own names, and the suffixes by role.

    `alpha` says where the scale is: a tensor "beside" the factors, in the "config", or "folded" into up. `others` says
    whether the program has names for the factors of algorithms other than LoRA; these are LyCORIS' names.
    """

    prefix: str
    suffixes: Mapping[str, str]
    alpha: str
    others: bool = False
    is_flat: bool = False


SPELLINGS = {
    "kohya": Spelling("{prefix}_", KOHYA.suffixes, "beside", others=True, is_flat=True),
    "peft": Spelling("base_model.model.", PEFT.suffixes, "config"),
    "diffusers": Spelling("{part}.", DIFFUSERS.suffixes, "folded"),
    "onetrainer": Spelling("{part}.", KOHYA.suffixes, "beside", others=True),
    "ai-toolkit": Spelling("{part}.", DIFFUSERS.suffixes, "folded"),
}
_ROLES = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha", DORA_SCALE: "magnitude"}


class StateNames:
    """Conversion between a network's standard form and the names of a program.

    `paths` has the dotted path of each module by name, `parts` a pipeline's name of its model by kohya's prefix. Raises
    ValueError for an unknown program, and for several models if the program names only the layers of one.
    """

    def __init__(self, program: str, paths: Mapping[str, str], parts: Mapping[str, str]) -> None:
        if program not in SPELLINGS:
            raise ValueError(f"names={program!r}: one of {', '.join(SPELLINGS)} was expected")
        self._program, self._spelling = program, SPELLINGS[program]
        prefixes = {
            name: next(prefix for prefix in parts if module_name(prefix, path) == name) for name, path in paths.items()
        }
        if "{" not in self._spelling.prefix and len(set(prefixes.values())) > 1:
            raise ValueError(f"names={program!r}: a wrapper of one model has no names for text encoders; use diffusers")
        self._modules = {
            name: self._spelling.prefix.format(prefix=prefix, part=parts[prefix])
            + (paths[name].replace(".", "_") if self._spelling.is_flat else paths[name])
            for name, prefix in prefixes.items()
        }

    def key(self, key: str) -> str | None:
        """Return the program's name of a tensor in standard form; None for an alpha stored elsewhere.

        Raises ValueError for a tensor that the program has no name for.
        """
        name, _, tail = key.partition(".")
        role = _ROLES.get(tail)
        if role == "alpha" and self._spelling.alpha != "beside":
            return None
        if role is None and not (self._spelling.others and (tail, self._program) != ("oft_blocks", "onetrainer")):
            raise ValueError(f"names={self._program!r} has no name for {key}; save the weights and convert the file")
        return self._modules[name] + (self._spelling.suffixes[role] if role else f".{tail}")

    def to_program(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the program's state dict: copies of the tensors in standard form."""
        named: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            if (other := self.key(key)) is not None:
                named[other] = self._valued(key, tensor.detach(), tensors, 1).clone().contiguous()
        return named

    def from_program(self, named: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the standard form of a program's state dict, for a network with the standard form `own`.

        Raises ValueError for keys that are not in it.
        """
        keys = {other: key for key in own if (other := self.key(key)) is not None}
        if foreign := [key for key in named if key not in keys]:
            raise ValueError(
                f"{len(foreign)} keys are no tensors of this network in the names of {self._program}: "
                f"{', '.join(foreign[:3])}"
            )
        found = {keys[other]: self._valued(keys[other], tensor, own, -1) for other, tensor in named.items()}
        given = {key.partition(".")[0] for key in found}
        alphas = {key: tensor for key, tensor in own.items() if key.endswith(".alpha")}
        return {**{key: tensor for key, tensor in alphas.items() if key.partition(".")[0] in given}, **found}

    def _valued(self, key: str, tensor: Tensor, own: Mapping[str, Tensor], power: int) -> Tensor:
        """Return a tensor as the program holds it, or (power -1) as the network does."""
        name, _, tail = key.partition(".")
        role = _ROLES.get(tail)
        if role == "up" and self._spelling.alpha == "folded":
            scale = scale_of(float(own[f"{name}.alpha"]), tensor.shape[1], rslora=False)
            return tensor if scale == 1 else tensor.float() * scale**power
        if role == "magnitude" and self._spelling.alpha != "beside":
            # PEFT has that of a Linear as (out,), and that of a convolution as it multiplies outputs.
            sizes = own[key].shape if power < 0 else (-1,) if tensor.dim() == 2 else (1, -1, *tensor.shape[2:])
            return tensor.reshape(sizes)
        return tensor


def peft_config(tensors: Mapping[str, Tensor], paths: Mapping[str, str]) -> dict[str, Any]:
    """Return PEFT's `adapter_config.json` for tensors in standard form.

    `paths` has the dotted path of each module by name.
    """
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    has_magnitudes = False
    for key, tensor in tensors.items():
        name, _, tail = key.partition(".")
        role = _ROLES.get(tail)
        has_magnitudes = has_magnitudes or role == "magnitude"
        if role == "down":
            ranks[paths[name]] = tensor.shape[0]
        elif role == "alpha":
            alphas[paths[name]] = float(tensor)
    return standard_config(BARE, ranks, alphas, has_magnitudes)
