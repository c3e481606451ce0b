"""Scales that are unknown, what settles them, and what settings say against what is known."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from lora_inspect import schemes
from lora_inspect.maths.scaling import RANK_STABILISED, STANDARD
from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.model.evidence import close
from lora_inspect.reading.model.problem import Finding
from lora_inspect.reading.scale.scales import WAYS_OUT
from lora_inspect.sentences import counted, some

# What a setting is against evidence that it cannot change.
REPEATS, CONTRADICTS = "setting-repeats", "setting-contradicts"
# Modules whose scale is 1, as they have no alpha, among others that have one.
ALPHA_MISSING = "alpha-missing"
# The options that settle what a scale waits for.
_OPTIONS = {"alpha": "--alpha N", "rslora": "--rslora yes|no"}


def open_settings(contributions: Iterable[Contribution]) -> tuple[str, ...]:
    """The settings that the scales of contributions wait for: "alpha", "rslora", both or neither."""
    unknown = [c for c in contributions if c.rank is not None and c.scale is None]
    alpha = any(contribution.alpha is None for contribution in unknown)
    rule = any(contribution.rslora is None and contribution.rank != 1 for contribution in unknown)
    return (*(("alpha",) if alpha else ()), *(("rslora",) if rule else ()))


def unknown_scales(reading: FileReading) -> Iterator[Finding]:
    """Modules whose scale is unknown, by the reason, and all that settles them."""
    by_reason: dict[str, list[str]] = {}
    unknown = [contribution for contribution in reading.contributions if contribution.scale is None]
    for contribution in unknown:
        if contribution.algorithm.formula and not contribution.algorithm.beside:
            by_reason.setdefault(contribution.why, []).append(contribution.module.key)
    way_out = " and ".join(_OPTIONS[name] for name in open_settings(unknown))
    for why, keys in by_reason.items():
        mend = WAYS_OUT.get(why, f"give {way_out}")
        yield Finding(
            "scale-unknown", f"the scale of {keys[0]}{_and_more(keys)} is unknown: {why}; {mend}", tuple(keys[:5])
        )


def _and_more(keys: list[str]) -> str:
    return f" and {len(keys) - 1} more modules" if len(keys) > 1 else ""


def rule_setting(reading: FileReading) -> Iterator[Finding]:
    """What the rslora setting says against the evidence: it settles what the file leaves open, and no more."""
    rslora = reading.settings.rslora
    if rslora is None:
        return
    setting = f"rslora={'yes' if rslora else 'no'}"
    ranked = [contribution for contribution in reading.contributions if contribution.rank is not None]
    read = [contribution for contribution in ranked if contribution.formula.rslora]
    contradicting = next((stated for stated in reading.stated if stated.value != rslora), None)
    if not read:
        what = "has RS-LoRA's rule" if ranked else "has a rank"
        yield Finding(CONTRADICTS, f"{setting} cannot apply, as no module {what}; leave it out")
    elif all(contribution.alpha is None and contribution.scale is not None for contribution in read):
        message = f"{setting} cannot apply to {read[0].module.key}, which has {read[0].why}; leave it out"
        yield Finding(CONTRADICTS, message)
    elif any(not stated.settled for stated in reading.stated):
        return
    elif contradicting is None:
        yield Finding(REPEATS, f"{setting} repeats what its {reading.stated[0].source.replace('_', ' ')} says")
    else:
        rule, source = RANK_STABILISED if contradicting.value else STANDARD, contradicting.source.replace("_", " ")
        yield Finding(CONTRADICTS, f"its {source} says {rule}, which {setting} contradicts; leave it out")


def alpha_setting(reading: FileReading) -> Iterator[Finding]:
    """What the alpha setting says against alphas that are known without it."""
    alpha = reading.settings.alpha
    if alpha is None:
        return
    without = reading.scaled(reading.settings._replace(alpha=None)).values()
    known = [c for module in without for c in module.contributions if c.rank is not None]
    if any(contribution.alpha is None and contribution.scale is None for contribution in known):
        return
    others = [c.alpha for c in known if c.alpha is not None and not close(c.alpha, alpha)]
    absent = next((contribution for contribution in known if contribution.alpha is None), None)
    if others:
        message = f"it says alpha {others[0]:g}, which alpha={alpha:g} contradicts; leave it out"
        yield Finding(CONTRADICTS, message)
    elif absent:
        message = f"alpha={alpha:g} cannot apply to {absent.module.key}, which has {absent.why}; leave it out"
        yield Finding(CONTRADICTS, message)
    elif not known:
        yield Finding(CONTRADICTS, f"alpha={alpha:g} cannot apply, as no module has a rank; leave it out")
    else:
        yield Finding(REPEATS, f"alpha={alpha:g} repeats the alpha that it has")


def missing_alphas(reading: FileReading) -> Iterator[Finding]:
    """Modules without an alpha among others that have one, in schemes where none means scale 1."""
    having: Counter[str] = Counter()
    missing: dict[str, list[str]] = defaultdict(list)
    for module in reading.modules.values():
        scheme = module.name.scheme
        if schemes.by_name(scheme).absent_alpha != "one" or not any(map(_takes_alpha, module.contributions)):
            continue
        if module.alpha:
            having[scheme] += 1
        else:
            missing[scheme].append(module.name.key)
    for scheme, keys in missing.items():
        if scheme in having:
            message = (
                f"{counted(len(keys), 'module')} without an alpha ({some(keys, 1)}), which is taken as scale 1, "
                f"beside {counted(having[scheme], 'module')} with one"
            )
            yield Finding(ALPHA_MISSING, message, tuple(keys[:5]))


def _takes_alpha(contribution: Contribution) -> bool:
    """Whether it is a change of its own whose alpha is divided by a rank."""
    algorithm = contribution.algorithm
    is_own = algorithm.formula is not None and not algorithm.beside
    return is_own and algorithm.has_alpha and contribution.rank is not None


def rslora_hint(reading: FileReading) -> Iterator[Finding]:
    """The hint, which is a note and never applied."""
    if reading.rslora.hint:
        read = "it is read as plain LoRA: should it be too weak as such, give --rslora yes"
        yield Finding("rslora-hint", f"{reading.rslora.hint.sentence()}; {read}")
