"""Alphas and flags as they are stored: rounded ones, and of types that hold them badly."""

import math
import struct
from collections.abc import Iterable, Iterator, Mapping

from lora_inspect.checking.subject import Draft, Subject
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import decode_number
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.scaling import to_float32
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.evidence import RawProblem, network_args, requested_alpha
from lora_inspect.sentences import counted, some

_HALVES = ("F16", "BF16")


class _Rounded(NamedTuple):
    """An alpha that was asked as `asked` and stored as `stored`."""

    info: TensorInfo
    stored: float
    asked: float


def alpha_rounded(subject: Subject) -> Iterator[RawProblem]:
    """Find alphas that are the half-precision rounding of the requested one in the metadata."""
    if rounded := _rounded(subject):
        first = rounded[0]
        message = (
            f"{counted(len(rounded), 'alpha')} stored as {first.stored:g} in {first.info.dtype}, but "
            f"{first.asked:g} was asked for"
        )
        yield RawProblem("alpha-rounded", message, tuple(one.info.name for one in rounded[:5]))


def alpha_half(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for half-precision alphas that use the last bit, so that they are probably rounded ones."""
    known = {one.info.name for one in _rounded(subject)}
    odd = [
        info
        for info in _half_alphas(subject)
        if info.name not in known and _uses_last_bit(subject.alphas[info.name], info.dtype)
    ]
    if odd:
        first = odd[0]
        message = (
            f"{counted(len(odd), 'alpha')} in {first.dtype} that look like rounded numbers ({first.name} is "
            f"{subject.alphas[first.name]:g})"
        )
        yield RawProblem("alpha-half", message, tuple(info.name for info in odd[:5]))


def alpha_negative(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for alphas below zero."""
    if negative := [name for name, alpha in subject.alphas.items() if alpha < 0]:
        message = f"{counted(len(negative), 'alpha')} below 0 ({some(negative, 1)}), so programs subtract the change"
        yield RawProblem("alpha-negative", message, tuple(negative[:5]))


def flag_type(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for flags that are stored as numbers."""
    if odd := _numeric_flags(subject):
        message = f"a yes-or-no flag is stored as a number: {some([f'{info.name} ({info.dtype})' for info in odd], 2)}"
        yield RawProblem("flag-type", message, tuple(info.name for info in odd[:5]))


def restore_alphas(subject: Subject, draft: Draft) -> Iterator[str]:
    """Store rounded alphas with their requested value, in F32."""
    rounded = _rounded(subject)
    for one in rounded:
        draft.put(one.info.name, "F32", one.info.shape, struct.pack("<f", one.asked))
    if rounded:
        first = rounded[0]
        yield f"stored {counted(len(rounded), 'alpha')} in F32 ({first.asked:.9g} instead of {first.stored:g})"


def restore_flags(subject: Subject, draft: Draft) -> Iterator[str]:
    """Store flags as BOOL if their number means yes or no."""
    odd = _numeric_flags(subject)
    for info in odd:
        number = subject.checkpoint.numbers([info.name])[info.name]
        draft.put(info.name, "BOOL", info.shape, b"\x01" if number else b"\x00")
    if odd:
        yield f"stored {some([info.name for info in odd], 2)} as BOOL"


def _numeric_flags(subject: Subject) -> list[TensorInfo]:
    """Return the flags of whole networks and of modules that are no BOOL and mean yes or no."""
    tensors = subject.checkpoint.tensors
    flags = [tensors[key] for key in subject.adapter.flags if key.endswith("_flag")]
    flags += [module.rslora_flag for module in subject.adapter.modules.values() if module.rslora_flag]
    odd = [info for info in flags if info.dtype != "BOOL"]
    numbers = subject.checkpoint.numbers(info.name for info in odd)
    return [info for info in odd if numbers[info.name] in (0, 1)]


def _half_alphas(subject: Subject) -> Iterable[TensorInfo]:
    infos = (module.alpha for module in subject.adapter.modules.values())
    return (info for info in infos if info and info.dtype in _HALVES and info.name in subject.alphas)


def _rounded(subject: Subject) -> list[_Rounded]:
    found: dict[str, _Rounded] = {}
    for module, contribution in subject.ranked:
        info = module.alpha
        if info is None or info.dtype not in _HALVES or info.name not in subject.alphas:
            continue
        stored = subject.alphas[info.name]
        asked = _requested_alphas(module, contribution, subject.metadata)
        if asked and all(to_float32(one) != stored for one in asked):
            for one in asked:
                if _rounds_to(one, stored, info.dtype):
                    found[info.name] = _Rounded(info, stored, to_float32(one))
    return list(found.values())


def _requested_alphas(module: Module, contribution: Contribution, metadata: Mapping[str, str]) -> set[float]:
    """Return the alphas that trainers store for the requested one: itself, or times sqrt(rank), as LyCORIS does.

    For a requested alpha of 0 these are the neutral alphas of both rules.
    """
    asked = requested_alpha(metadata)
    rank = contribution.known_rank if contribution.formula.rank(contribution.shapes) else None
    if asked is None or rank is None or not contribution.is_linear or "ss_alpha_pattern" in metadata:
        return set()
    if any("alpha" in name for name in network_args(metadata) if name != "conv_alpha"):
        return set()
    return {asked, asked * math.sqrt(rank)} if asked else {float(rank), math.sqrt(rank)}


def _rounds_to(number: float, stored: float, dtype: str) -> bool:
    try:
        if dtype == "F16":
            return decode_number("F16", struct.pack("<e", number)) == stored
        (word,) = struct.unpack("<I", struct.pack("<f", number))
    except OverflowError:
        return False
    nearest = (word + 0x7FFF + ((word >> 16) & 1)) >> 16
    return nearest <= 0xFFFF and decode_number("BF16", struct.pack("<H", nearest)) == stored


def _uses_last_bit(alpha: float, dtype: str) -> bool:
    """Return True if a number that is no multiple of an eighth needs every bit of the type."""
    if not math.isfinite(alpha) or alpha * 8 == int(alpha * 8):
        return False
    mantissa, _ = math.frexp(alpha)
    return bool(int(abs(mantissa) * (1 << (11 if dtype == "F16" else 8))) & 1)
