"""The evidence on DoRA in a file, its contradictions and gaps, and the norms of its magnitudes.

Magnitudes refer to the trainer's norms, or, if our metadata say so, to those of the base's rows. ComfyUI and Forge
divide a `dora_scale` of outputs by the norms of the base, and no tensor shows for which rule it was made. `convert`
writes such a scale with a record of it and of the base that it is for. Standard library only.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.strict_json import parse_json
from lora_inspect.maths.dora import OF_BASE, OF_SUM, OUTPUT, OVER_BASE
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.evidence import (
    DORA_FLAG,
    DoraClaim,
    DoraReading,
    Evidence,
    LoraFacts,
    RawProblem,
    names_of,
    network_args,
    read_switch,
)
from lora_inspect.reading.scale.scale_rules import Ruled
from lora_inspect.reading.state import Reading

# How many modules had a magnitude when the file was written, where that need not be all.
MAGNITUDES_KEY = "lora_inspect.magnitudes"


def dora_claims(
    ruled: Sequence[Ruled], facts: Sequence[LoraFacts], flags: Mapping[str, bool | None]
) -> list[DoraClaim]:
    """Return the flag's claim about all modules, and each config's claim about the modules with its rank."""
    found = [DoraClaim("flag", DORA_FLAG, flags[DORA_FLAG], facts)] if DORA_FLAG in flags else []
    theirs: dict[str, list[LoraFacts]] = {}
    configs = {config.where: config.config for one in ruled for config in one.configs}
    for one in ruled:
        for where in one.voice.configs:
            theirs.setdefault(where, []).append(one.facts)
    said = {where: read_switch(configs[where].get("use_dora")) for where in theirs}
    return [*found, *(DoraClaim("adapter_config", where, said[where], own) for where, own in theirs.items())]


def read_dora(
    facts: Sequence[LoraFacts], claims: Sequence[DoraClaim], metadata: Mapping[str, str]
) -> tuple[DoraReading, list[Evidence], list[RawProblem]]:
    """Return whether the file is DoRA, with its evidence, its contradictions and its missing parts.

    `claims` come strongest first; each speaks only of its own modules.
    """
    with_magnitude = [fact for fact in facts if fact.magnitude_axis]
    magnitudes = sum(fact.modules for fact in with_magnitude)
    axes = {fact.magnitude_axis for fact in with_magnitude}
    axis = axes.pop() if len(axes) == 1 else ("mixed" if axes else None)
    evidence = [Evidence("dora", _says(claim), claim.where) for claim in claims]
    if with_magnitude:
        evidence.insert(0, Evidence("dora", f"{magnitudes} modules have a magnitude", "key scan"))
    for claim in claims:
        if found := _contradiction(claim):
            value = None if found.code == "dora-conflict" else True
            source = "conflict" if value is None else claims[0].source
            return DoraReading(value, source, magnitudes, axis), evidence, [found]

    is_whole = metadata.get(MAGNITUDES_KEY) == str(magnitudes)
    if with_magnitude and is_whole:
        evidence.append(Evidence("dora", "as many were written", f"metadata {MAGNITUDES_KEY}"))
    findings = [] if is_whole else _partial(facts, claims)
    args = network_args(metadata)
    if not with_magnitude and any(read_switch(args.get(name)) for name in ("use_dora", "dora_wd")):
        message = (
            "ss_network_args asks for DoRA, but no module has a magnitude: dropout disabled it in training, "
            "or a converter lost it"
        )
        findings.append(RawProblem("dora-stripped", message))
        evidence.append(Evidence("dora", "DoRA was asked for", "metadata ss_network_args"))
    source = claims[0].source if claims else ("key-scan" if with_magnitude else "default")
    return DoraReading(bool(with_magnitude), source, magnitudes, axis), evidence, findings


def _says(claim: DoraClaim) -> str:
    if claim.says:
        return claim.says
    if claim.value is None:
        return "the flag is not a number" if claim.source == "flag" else "use_dora is neither yes nor no"
    return f"the flag is {claim.value}" if claim.source == "flag" else f"use_dora is {claim.value}"


def _contradiction(claim: DoraClaim) -> RawProblem | None:
    """Return the contradiction between a claim and the magnitudes of its own modules, or None."""
    with_magnitude = [fact for fact in claim.facts if fact.magnitude_axis]
    if claim.value is None:
        message = f"{claim.where} says neither yes nor no about DoRA; write true or false there"
        return RawProblem("dora-conflict", message, tuple(names_of(with_magnitude)[:5]))
    if with_magnitude and not claim.value:
        names = names_of(with_magnitude)
        message = (
            f"{claim.where} denies DoRA, but {len(names)} modules have a magnitude ({names[0]}); find "
            "the right one and remove the other from the file"
        )
        return RawProblem("dora-conflict", message, tuple(names[:5]))
    if claim.value and not with_magnitude:
        message = (
            f"{claim.where} says DoRA, but no module has a magnitude, so the file is not the whole "
            "adapter; fetch the file that the trainer saved"
        )
        return RawProblem("dora-missing", message)
    return None


def _partial(facts: Sequence[LoraFacts], claims: Sequence[DoraClaim]) -> list[RawProblem]:
    magnitudes = sum(fact.modules for fact in facts if fact.magnitude_axis)
    bare = [fact for fact in facts if fact.linear and not fact.split and not fact.magnitude_axis]
    if not magnitudes or not bare:
        return []
    # A component whose own config denies DoRA lacks nothing.
    without = {name for claim in claims if claim.value is False for fact in claim.facts for name in fact.places}
    missing = [name for name in names_of(bare) if name not in without]
    if not missing:
        return []
    message = (
        f"{magnitudes} modules have a magnitude but {len(missing)} Linear ones have none ({missing[0]}), "
        "and a DoRA file has one for all of them; give --allow-partial-dora if it was made so"
    )
    return [RawProblem("dora-partial", message, tuple(missing[:5]))]


NORMS_KEY = "lora_inspect.magnitude_norms"
_WHERE = f"metadata {NORMS_KEY}"
_PROGRAMS = "ComfyUI and Forge"


class NormsRecord(NamedTuple):
    """The base that magnitudes are for: its name, and the SHA-256 of the bytes of one of its weights."""

    base: str
    weight: str
    sha256: str

    def text(self) -> str:
        """Return the metadata value."""
        return json.dumps({"of": OF_BASE, **self._asdict()})


def norms_record(metadata: Mapping[str, str]) -> NormsRecord | None:
    """Return the record of a base; None if there is none, or it is unreadable."""
    try:
        found: Any = parse_json(metadata.get(NORMS_KEY, "null"))
    except ValueError:
        return None
    if not isinstance(found, dict) or found.get("of") != OF_BASE:
        return None
    values = [found.get(field) for field in NormsRecord._fields]
    return NormsRecord(*(value if isinstance(value, str) else "" for value in values))


def state_norms(reading: Reading) -> Reading:
    """Read from the metadata which norms the magnitudes of outputs refer to.

    Every program treats those of inputs the same way.
    """
    claims, metadata = reading.claims, reading.checkpoint.metadata
    own = [c for module in claims.modules.values() for c in module.contributions if _is_of_outputs(c)]
    if NORMS_KEY not in metadata or not own:
        return reading._replace(norms=OF_SUM if own else None)
    record = norms_record(metadata)
    other = next((c for c in own if c.magnitude and c.magnitude.spelling.suffix != OVER_BASE.suffix), None)
    if record is None or other:
        says = (
            f"says that magnitudes are over the norms of the base, but {other.magnitude.info.name} is spelled for "
            "programs that divide by those of the changed weight"
            if record and other and other.magnitude
            else "does not say in a known form which norms the magnitudes are over"
        )
        message = f"{_WHERE} {says}; find the right one, and leave out the key or the file"
        return reading._replace(wrong_norms=(RawProblem("dora-conflict", message),))
    modules = {key: _over_base(module) for key, module in claims.modules.items()}
    of = f" (those of {record.base})" if record.base else ""
    says = f"{len(own)} magnitudes of outputs are over the norms of the base's rows{of}, as {_PROGRAMS} divide them"
    about = (Evidence("dora", says, _WHERE),)
    return reading._replace(claims=claims._replace(modules=modules), norms=OF_BASE, about_norms=about)


def _is_of_outputs(contribution: Contribution) -> bool:
    return contribution.magnitude is not None and contribution.magnitude.axis == OUTPUT


def _over_base(module: Module) -> Module:
    own = tuple(
        c._replace(magnitude=c.magnitude._replace(spelling=OVER_BASE)) if c.magnitude and _is_of_outputs(c) else c
        for c in module.contributions
    )
    return module._replace(contributions=own)
