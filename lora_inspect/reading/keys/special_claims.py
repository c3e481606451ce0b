"""Tensors that all modules of a file have in common, given to each of them.

PEFT registers them on its model and not on a layer, so that their keys have no module's path: `base_model.vera_A`
beside `base_model.model.PATH.vera_lambda_b`. Source: the methods of PEFT with `uses_shared_state`, and RandLoRA.
"""

from collections.abc import Mapping

from lora_inspect import algorithms
from lora_inspect.algorithms.record import Algorithm
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.keys.claims import Claims
from lora_inspect.reading.keys.suffixes import ROOT
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.model.problem import Finding

_MEND = "fetch the file again, or write it anew with the program that trained it"


class _AtRoot:
    """The tensors without a module, by their names and by the parts of their names."""

    def __init__(self, claims: Claims, tensors: Mapping[str, TensorInfo]) -> None:
        self._by_name: dict[str, TensorInfo] = {}
        self._parts: dict[str, dict[str, TensorInfo]] = {}
        for key in claims.unclaimed:
            root, _, named = key.partition(".")
            name, _, part = named.partition(".")
            if root != ROOT:
                continue
            if part:
                self._parts.setdefault(name, {})[part] = tensors[key]
            else:
                self._by_name[name] = tensors[key]

    def __bool__(self) -> bool:
        return bool(self._by_name or self._parts)

    def of(self, algorithm: Algorithm, path: str) -> dict[str, TensorInfo]:
        """Those of a module at the dotted `path`, by role."""
        found: dict[str, TensorInfo] = {}
        for role, shared in algorithm.shared.items():
            parts = self._parts.get(shared.name, {})
            chosen = shared.part(path, parts.keys()) if shared.part else None
            info = parts.get(chosen or "") if shared.part else self._by_name.get(shared.name)
            if info:
                found[role] = info
        return found

    def named(self, name: str) -> list[TensorInfo]:
        """All of a name."""
        return [*([self._by_name[name]] if name in self._by_name else []), *self._parts.get(name, {}).values()]


def claim_shared(claims: Claims, tensors: Mapping[str, TensorInfo]) -> Claims:
    """The claims with what their modules share as factors of each; what does not fit them is left unclaimed."""
    at_root = _AtRoot(claims, tensors)
    if not at_root:
        return claims
    modules = {}
    taken: set[str] = set()
    left: list[str] = []
    findings: list[Finding] = []
    for name, module in claims.modules.items():
        kept: list[Contribution] = []
        for contribution in module.contributions:
            given = at_root.of(contribution.algorithm, contribution.module.body)
            whole = contribution._replace(factors={**contribution.factors, **given}) if given else contribution
            if given and (wrong := whole.formula.check(whole.shapes)):
                keys = tuple(info.name for info in contribution.factors.values())
                findings.append(Finding("shape", f"{name}: {wrong}; {_MEND}", keys))
                continue
            taken.update(info.name for info in given.values())
            kept.append(whole)
        rest = module._replace(contributions=tuple(kept))
        if kept:
            modules[name] = rest
        if len(kept) < len(module.contributions):
            held = {info.name for info in rest.tensors} if kept else set()
            left.extend(info.name for info in module.tensors if info.name not in held)
    findings += _alone(claims, at_root)
    unclaimed = (*(key for key in claims.unclaimed if key not in taken), *left)
    return claims._replace(modules=modules, unclaimed=unclaimed, findings=(*claims.findings, *findings))


def _alone(claims: Claims, at_root: _AtRoot) -> list[Finding]:
    """Shared tensors in a file that has no module to share them."""
    present = {c.algorithm.name for module in claims.modules.values() for c in module.contributions}
    findings: list[Finding] = []
    for algorithm in algorithms.ALGORITHMS.values():
        found = [info.name for shared in algorithm.shared.values() for info in at_root.named(shared.name)]
        if found and algorithm.name not in present:
            why = next(shared.alone for shared in algorithm.shared.values() if at_root.named(shared.name))
            message = f"{found[0]} is what the modules of {algorithm.title} share, but no module is there: {why}"
            findings.append(Finding("incomplete", message, tuple(found[:5])))
    return findings


def missing_shared(contribution: Contribution) -> str | None:
    """Why a contribution lacks a tensor that its algorithm shares, as the end of a sentence; None where it has all."""
    shared = contribution.algorithm.shared
    return next((shared[role].missing for role in shared if role not in contribution.factors), None)


def shared_tensors(contribution: Contribution) -> dict[str, TensorInfo]:
    """The factors that other modules have as well, by role."""
    return {role: contribution.factors[role] for role in contribution.algorithm.shared if role in contribution.factors}
