"""The names of a standard file, which are those of the input, and the place of the scale under them.

A standard file states its scale where the readers of its names look for it: in an alpha tensor, in the config of PEFT
or of mlx-lm, in llama.cpp's header, or nowhere, so that the factors carry it themselves.
"""

from collections.abc import Mapping

from lora_inspect import schemes
from lora_inspect.algorithms.record import Algorithm, Role
from lora_inspect.converting.options import LORA
from lora_inspect.errors import RefusedError
from lora_inspect.maths.dora import INPUT, OF_STORED_ROWS
from lora_inspect.reading.keys.suffixes import MODELS, parse_key
from lora_inspect.reading.model.contribution import Contribution, Magnitude, Module
from lora_inspect.schemes.diffusers import DIFFUSERS
from lora_inspect.schemes.peft import PEFT

# The config is one of PEFT, which has an alpha for each module, or of mlx-lm, which has one scale for all.
ALPHA, CONFIG, ONE_SCALE, FACTORS, HEADER = "alpha", "config", "one scale", "factors", "header"

# How PEFT and diffusers spell a magnitude.
PEFT_MAGNITUDES = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")
# The spellings whose readers expect one of every module as soon as one has it.
OF_ALL_MODULES = (*PEFT_MAGNITUDES, OF_STORED_ROWS)
# diffusers hands files of text encoders to transformers, which has no use for the shorter spelling.
_OF_ENCODERS = PEFT_MAGNITUDES[1]


def carrier_of(module: Module) -> str:
    """Return the carrier that gives the scale of `module` to every reader of its names.

    Readers of kohya's and LyCORIS's names expect an alpha. If dotted names come without one, some programs ignore or
    refuse it, so only the factors reach all of them.
    """
    scheme = schemes.by_name(module.name.scheme)
    if scheme.absent_alpha != "one":
        return CONFIG if scheme.absent_alpha == "config" else ONE_SCALE
    if scheme.alpha_of_all:
        return HEADER
    return ALPHA if scheme.carries_alpha and (scheme.flat or module.alpha or module.respelled) else FACTORS


def alpha_key(module: Module) -> str:
    """Return the key of the module's alpha."""
    return f"{module.name.key}.alpha"


def factor_key(module: Module, origin: Contribution, algorithm: Algorithm, role: Role) -> str:
    """Return the key of a factor in `module`: that of `origin` without PEFT's adapter name and slice number.

    One of another `algorithm` than that of the origin has the suffix that the scheme has for it.

    A module that is called otherwise keeps the suffix, but for that of another scheme, which has a dialect of its own.
    """
    if role not in origin.factors or algorithm is not origin.algorithm:
        return new_factor_key(module, algorithm, role)
    source = origin.factors[role].name
    # Factors of a parameter stand under the layer that holds it, which no suffix tells; and so does what is in that.
    is_held = algorithm.experts or (module.name.scheme == PEFT.name and not source.startswith(module.name.key))
    if module.name == origin.module and (not module.respelled or is_held):
        owner, suffix = _parts_of(source, origin)
        return source if source.endswith(suffix) else owner + suffix
    dialect = _spellings(module, origin.algorithm)
    is_other = module.respelled or module.name.scheme != origin.module.scheme
    if is_other and role in dialect:
        return module.name.key + dialect[role]
    _, tail = _parts_of(source, origin)
    if tail not in origin.algorithm.suffixes:
        tail = next((own[role] for own in (dialect, *origin.algorithm.dialects.values()) if role in own), tail)
    return module.name.key + tail


def _parts_of(source: str, origin: Contribution) -> tuple[str, str]:
    """Return the module and the suffix in a key of a factor, without an adapter name and a slice number."""
    key = origin.module.key
    suffix = source.removeprefix(key)
    if suffix in origin.algorithm.suffixes:  # as in most files, so that their keys are not parsed again
        return key, suffix
    parsed = parse_key(source)
    return (parsed.module, parsed.suffix) if parsed else (key, suffix)


def new_factor_key(module: Module, algorithm: Algorithm, role: Role) -> str:
    """Return the key of a factor in a new `module`, with the suffix of its scheme for the algorithm."""
    own = _spellings(module, algorithm) or next(iter(algorithm.dialects.values()))
    return module.name.key + own[role]


def _spellings(module: Module, algorithm: Algorithm) -> Mapping[Role, str]:
    """Return the suffixes by role that the scheme of `module` has for an algorithm, or an empty mapping."""
    scheme = schemes.by_name(module.name.scheme)
    return (algorithm.name == LORA and scheme.own_factors) or algorithm.dialects.get(scheme.dialect, {})


def magnitude_place(
    module: Module, contribution: Contribution, magnitude: Magnitude, rows: int | None = None
) -> tuple[str, str, tuple[int, ...]]:
    """Return (key, suffix, shape) of a magnitude for readers of the module's names, of `rows` if they were moved.

    `dora_scale` is (out, 1, …), or (1, in, …) for inputs; PEFT's vector is (out,), or (1, out, 1, …) of a convolution;
    mlx-lm's is (out,), and (in,) of an Embedding. Raises LoraInspectError if PEFT's spelling is due and the magnitude
    is one of inputs, or mlx-lm's and it is not of the rows of the weight as that is stored.
    """
    scheme = schemes.by_name(module.name.scheme)
    own, due = magnitude.spelling.suffix, scheme.suffixes["magnitude"]
    if scheme.name == DIFFUSERS.name and module.name.component not in MODELS:
        own = due = _OF_ENCODERS
    if due == OF_STORED_ROWS:
        if (magnitude.axis == INPUT) != (contribution.algorithm.transposed is True):
            raise RefusedError(
                magnitude.info.file,
                f"{magnitude.info.name} is a magnitude of the columns of its weight, but mlx-lm supports only "
                "magnitudes of rows",
                "choose --base BASE or --drop-magnitude",
            )
        return module.name.key + due, due, (rows or magnitude.info.numel,)
    if own in PEFT_MAGNITUDES and carrier_of(module) != ALPHA:
        return module.name.key + own, own, (rows,) if rows else magnitude.info.shape
    key, shape = module.name.key + due, (rows, 0) if rows else contribution.known_shape
    # Where the factors' kernel is flattened, the magnitude still tells that there is one.
    ones = (1,) * (max(len(shape), len(magnitude.info.shape)) - 2)
    if due not in PEFT_MAGNITUDES:
        return key, due, (1, magnitude.info.numel, *ones) if magnitude.axis == INPUT else (shape[0], 1, *ones)
    if magnitude.axis == INPUT:
        raise RefusedError(
            magnitude.info.file,
            f"{magnitude.info.name} is a magnitude of inputs, which programs that read {scheme.name} names do "
            "not support",
            "choose --base BASE or --drop-magnitude",
        )
    return key, due, (1, shape[0], *ones) if ones else (shape[0],)
