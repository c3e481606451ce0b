"""Whose norms a file's magnitudes are over: the trainer's, or, where our metadata say so, those of the base's rows.

ComfyUI and Forge divide a `dora_scale` of outputs by the norms of the base, and no tensor tells for which rule one was
made. `convert` writes such a one with a record of it and of the base that it is for.
"""

import json
from collections.abc import Mapping
from typing import Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.strict_json import parse_json
from lora_inspect.maths.dora import OF_BASE, OF_SUM, OUTPUT, OVER_BASE
from lora_inspect.reading.keys.claims import Claims
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.evidence import Evidence
from lora_inspect.reading.model.problem import Finding

NORMS_KEY = "lora_inspect.magnitude_norms"
_WHERE = f"metadata {NORMS_KEY}"
_PROGRAMS = "ComfyUI and Forge"


class NormsRecord(NamedTuple):
    """The base that magnitudes are for: what it was called, and the SHA-256 of the bytes of one of its weights."""

    base: str
    weight: str
    sha256: str

    def text(self) -> str:
        """The metadata value."""
        return json.dumps({"of": OF_BASE, **self._asdict()})


class StatedNorms(NamedTuple):
    """The claims with magnitudes as their file means them, whose norms these are over, and what is said of that.

    `norms` is None where there is no magnitude of outputs.
    """

    claims: Claims
    norms: str | None
    evidence: tuple[Evidence, ...] = ()
    findings: tuple[Finding, ...] = ()


def norms_record(metadata: Mapping[str, str]) -> NormsRecord | None:
    """The record of a base; None where there is none, or none that can be read."""
    try:
        found: Any = parse_json(metadata.get(NORMS_KEY, "null"))
    except ValueError:
        return None
    if not isinstance(found, dict) or found.get("of") != OF_BASE:
        return None
    values = [found.get(field) for field in NormsRecord._fields]
    return NormsRecord(*(value if isinstance(value, str) else "" for value in values))


def with_stated_norms(claims: Claims, metadata: Mapping[str, str]) -> StatedNorms:
    """What the metadata say of magnitudes of outputs; those of inputs every program takes alike."""
    own = [c for module in claims.modules.values() for c in module.contributions if _is_of_outputs(c)]
    if NORMS_KEY not in metadata or not own:
        return StatedNorms(claims, OF_SUM if own else None)
    record = norms_record(metadata)
    other = next((c for c in own if c.magnitude and c.magnitude.spelling.suffix != OVER_BASE.suffix), None)
    if record is None or other:
        says = (
            f"says that magnitudes are over the norms of the base, but {other.magnitude.info.name} is spelled for "
            "programs that divide by those of the changed weight"
            if record and other and other.magnitude
            else "says nothing that is known here of whose norms the magnitudes are over"
        )
        message = f"{_WHERE} {says}; find out which it is, and leave out the key, or the file"
        return StatedNorms(claims, None, findings=(Finding("dora-conflict", message),))
    modules = {key: _over_base(module) for key, module in claims.modules.items()}
    of = f" (those of {record.base})" if record.base else ""
    says = f"{len(own)} magnitudes of outputs are over the norms of the base's rows{of}, as {_PROGRAMS} divide them"
    return StatedNorms(claims._replace(modules=modules), OF_BASE, (Evidence("dora", says, _WHERE),))


def _is_of_outputs(contribution: Contribution) -> bool:
    return contribution.magnitude is not None and contribution.magnitude.axis == OUTPUT


def _over_base(module: Module) -> Module:
    own = tuple(
        c._replace(magnitude=c.magnitude._replace(spelling=OVER_BASE)) if c.magnitude and _is_of_outputs(c) else c
        for c in module.contributions
    )
    return module._replace(contributions=own)
