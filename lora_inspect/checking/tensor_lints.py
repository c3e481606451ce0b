"""The lints of --tensors, on the numbers of the tensors."""

from collections.abc import Iterable, Iterator

from lora_inspect.checking.subject import Subject
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.model.evidence import RawProblem
from lora_inspect.sentences import counted, some

# The roles of which one that is zero leaves no change, in the algorithms where that is so.
_VANISHING = {
    "lora": ("up", "down", "mid"),
    "loha": ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"),
    "lokr": ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"),
    "full": ("difference",),
}
# Of a weight whose entries are a few hundredths.
_WILD = 1.0
# Of the numbers of a tensor in F16.
_MOSTLY = 0.5


def not_finite(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for NaN and infinities."""
    if bad := [name for name, one in subject.measured.items() if one.infinite]:
        first = subject.measured[bad[0]]
        where = f"{some(bad, 1)}: {first.infinite:,} of {first.numbers:,}"
        message = f"NaN or infinities in {counted(len(bad), 'tensor')} ({where})"
        yield RawProblem("not-finite", message, tuple(bad))


def untrained(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for modules that change nothing: all, some, or some with only zeros in every factor."""
    known = _of_known_algorithms(subject)
    still = [(c.module.key, c) for c in known if not c.magnitude and _vanishes(subject, c)]
    dead = [key for key, c in still if all(subject.measured[info.name].is_zero for info in _factors(c))]
    idle = [key for key, _ in still if key not in dead]
    if known and len(still) == len(list(subject.adapter.contributions)):
        message = f"each of its {counted(len(still), 'module')} has a factor of only zeros, so the file changes nothing"
        yield RawProblem("untrained", message, tuple(key for key, _ in still[:5]))
        return
    if dead:
        message = f"{counted(len(dead), 'module')} with only zeros in every factor ({some(dead, 1)})"
        yield RawProblem("module-dead", message, tuple(dead[:5]))
    if idle:
        message = f"{counted(len(idle), 'module')} without a change, as a factor is only zeros ({some(idle, 1)})"
        yield RawProblem("module-untrained", message, tuple(idle[:5]))


def modules_with_zeros(subject: Subject) -> frozenset[str]:
    """Return the keys of the modules that `untrained` reports."""
    known = _of_known_algorithms(subject)
    return frozenset(c.module.key for c in known if not c.magnitude and _vanishes(subject, c))


def sizes(subject: Subject) -> Iterable[RawProblem]:
    """Return the problems of spikes, changes near zero and small scales."""
    return subject.look_at_sizes(subject) if subject.look_at_sizes else ()


def half_overflow(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for numbers that F16 cannot hold."""
    large = [name for name, one in subject.measured.items() if one.large and subject.checkpoint.tensors[name].numel > 1]
    if large:
        message = (
            f"numbers beyond 65504, which are infinite in F16, in {counted(len(large), 'tensor')} ({some(large, 1)})"
        )
        yield RawProblem("half-overflow", message, tuple(large[:5]))


def half_subnormal(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for F16 factors with most numbers below the range that F16 holds in full precision."""
    small = [
        name
        for name, one in subject.measured.items()
        if subject.checkpoint.tensors[name].dtype == "F16" and one.nonzero and one.small > _MOSTLY * one.nonzero
    ]
    if small:
        message = (
            f"numbers mostly below 2^-14, where F16 loses bits, in {counted(len(small), 'tensor')} ({some(small, 1)})"
        )
        yield RawProblem("half-subnormal", message, tuple(small[:5]))


def magnitude_sign(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for magnitudes that are no lengths."""
    magnitudes = [c.magnitude.info.name for c in subject.adapter.contributions if c.magnitude]
    odd = [name for name in magnitudes if subject.measured[name].zeros or subject.measured[name].negative]
    if odd:
        first = subject.measured[odd[0]]
        where = f"{some(odd, 1)}: {first.zeros} of 0, {first.negative} negative"
        message = f"{counted(len(odd), 'magnitude')} with numbers that are no lengths ({where})"
        yield RawProblem("magnitude-sign", message, tuple(odd[:5]))


def change_large(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for changes that no weight survives."""
    sizes = {c.module.key: size for c in subject.adapter.contributions if (size := _size(subject, c)) > _WILD}
    if sizes:
        most = max(sizes, key=lambda key: sizes[key])
        about = f"about {sizes[most]:.3g} in every entry of the weight"
        message = f"{counted(len(sizes), 'module')} with a change of {about} ({most})"
        yield RawProblem("change-large", message, tuple(sizes)[:5])


def _of_known_algorithms(subject: Subject) -> list[Contribution]:
    return [c for c in subject.adapter.contributions if c.algorithm.name in _VANISHING]


def _factors(contribution: Contribution) -> list[TensorInfo]:
    roles = _VANISHING[contribution.algorithm.name]
    return [info for role, info in contribution.factors.items() if role in roles]


def _vanishes(subject: Subject, contribution: Contribution) -> bool:
    return any(subject.measured[info.name].is_zero for info in _factors(contribution))


def _size(subject: Subject, contribution: Contribution) -> float:
    """Return the root mean square of the change of a LoRA; 0 if it is unknown."""
    factors = contribution.factors
    if contribution.algorithm.name != "lora" or "mid" in factors or contribution.magnitude:
        return 0.0
    if any(subject.measured[factors[role].name].infinite for role in ("up", "down")):
        return 0.0
    from lora_inspect.checking.measured import product_rms

    return abs(contribution.scale or 0.0) * (product_rms(factors["up"], factors["down"]) or 0.0)
