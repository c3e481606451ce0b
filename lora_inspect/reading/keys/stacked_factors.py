"""Layers of all experts whose factors are stacked, given the algorithm of as many experts as their shapes tell."""

from typing import TYPE_CHECKING

from lora_inspect.algorithms.stacked_experts import ALGORITHM, stacked_experts
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.problem import Finding

if TYPE_CHECKING:
    from lora_inspect.reading.keys.claims import Claims

_MEND = "fetch the file again, or write it anew with the program that trained it"


def claim_stacked(claims: "Claims") -> "Claims":
    """The claims with those layers computed; what does not fit together is left unclaimed and said."""
    modules: dict[str, Module] = {}
    unclaimed, findings = list(claims.unclaimed), list(claims.findings)
    for key, module in claims.modules.items():
        if not any(contribution.algorithm is ALGORITHM for contribution in module.contributions):
            modules[key] = module
            continue
        kept: list[Contribution] = []
        for contribution in module.contributions:
            if contribution.algorithm is ALGORITHM:
                contribution = contribution._replace(algorithm=stacked_experts(contribution.shapes["down"][0]))
            if wrong := contribution.formula.check(contribution.shapes):
                keys = tuple(info.name for info in contribution.factors.values())
                findings.append(Finding("shape", f"{key}: {wrong}; {_MEND}", keys))
                unclaimed += keys
            else:
                kept.append(contribution)
        if kept:
            modules[key] = module._replace(contributions=tuple(kept))
    return claims._replace(modules=modules, unclaimed=tuple(unclaimed), findings=tuple(findings))
