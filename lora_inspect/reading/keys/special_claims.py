"""Claims on tensors that no module's path names, and names that need a repair.

- Tensors that all modules share go to each of them. PEFT registers them on its model and not on a layer:
  `base_model.vera_A` next to `base_model.model.PATH.vera_lambda_b`. Source: the methods of PEFT with
  `uses_shared_state`, and RandLoRA.
- Stacked factors of all experts get the algorithm of as many experts as their shapes show.
- The alpha in the header of llama.cpp's adapters goes to each of their modules. llama.cpp multiplies by alpha/rank with
  the rank of each tensor, and by 1 if alpha is 0 or missing. Such a file cannot state RS-LoRA, or settings of single
  modules as in PEFT's config. Source: `llama_adapter_lora_weight` there.
- musubi-tuner's `convert_lora.py --target other` guesses dots. It takes every underscore for a dot, and some words of
  Wan and HunyuanVideo back, so that the attention of FLUX is `img_attn_qkv` and Kandinsky's blocks are
  `visual.transformer.blocks`. The metadata stay, and name the family; only one layer of it has that spelling with
  underscores.
"""

from collections.abc import Mapping, Sequence

from lora_inspect import algorithms
from lora_inspect.algorithms.record import Algorithm
from lora_inspect.algorithms.stacked_experts import ALGORITHM, stacked_experts
from lora_inspect.architectures import by_name
from lora_inspect.architectures.patterns import pattern_of, patterns_of
from lora_inspect.architectures.stated_families import METADATA_KEYS, named_by
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.keys.claims import Claims
from lora_inspect.reading.keys.suffixes import ROOT, Table, canonical_path, table_of
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.evidence import Evidence, RawProblem
from lora_inspect.reading.state import Reading
from lora_inspect.schemes.dotted import DOTTED
from lora_inspect.schemes.peft import PEFT
from lora_inspect.schemes.record import MODEL, ModuleName

_MEND = "fetch the file again, or write it again with the program that trained it"


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
        """Return the shared tensors of a module at the dotted `path`, by role."""
        found: dict[str, TensorInfo] = {}
        for role, shared in algorithm.shared.items():
            parts = self._parts.get(shared.name, {})
            chosen = shared.part(path, parts.keys()) if shared.part else None
            info = parts.get(chosen or "") if shared.part else self._by_name.get(shared.name)
            if info:
                found[role] = info
        return found

    def of_name(self, name: str) -> list[TensorInfo]:
        """Return all shared tensors with a name."""
        return [*([self._by_name[name]] if name in self._by_name else []), *self._parts.get(name, {}).values()]


def claim_shared(reading: Reading) -> Reading:
    """Claim the tensors that modules share as factors of each; factors that do not match them stay unclaimed."""
    claims = reading.claims
    at_root = _AtRoot(claims, reading.checkpoint.tensors)
    if not at_root:
        return reading
    modules = {}
    taken: set[str] = set()
    left: list[str] = []
    findings: list[RawProblem] = []
    for name, module in claims.modules.items():
        kept: list[Contribution] = []
        for contribution in module.contributions:
            given = at_root.of(contribution.algorithm, contribution.module.body)
            whole = contribution._replace(factors={**contribution.factors, **given}) if given else contribution
            if given and (wrong := whole.formula.check(whole.shapes)):
                keys = tuple(info.name for info in contribution.factors.values())
                findings.append(RawProblem("shape-mismatch", f"{name}: {wrong}; {_MEND}", keys))
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
    findings = [*claims.findings, *findings]
    return reading._replace(claims=claims._replace(modules=modules, unclaimed=unclaimed, findings=tuple(findings)))


def _alone(claims: Claims, at_root: _AtRoot) -> list[RawProblem]:
    """Return problems of shared tensors in a file without a module that shares them."""
    present = {c.algorithm.name for module in claims.modules.values() for c in module.contributions}
    findings: list[RawProblem] = []
    for algorithm in tuple(algorithms.ALGORITHMS.values()):  # another thread may add one meanwhile
        found = [info.name for shared in algorithm.shared.values() for info in at_root.of_name(shared.name)]
        if found and algorithm.name not in present:
            why = next(shared.alone for shared in algorithm.shared.values() if at_root.of_name(shared.name))
            message = f"the modules of {algorithm.title} share {found[0]}, but the file has no such module; {why}"
            findings.append(RawProblem("incomplete", message, tuple(found[:5])))
    return findings


def claim_stacked(reading: Reading) -> Reading:
    """Compute the layers with stacked factors; factors that do not match each other stay unclaimed, with a problem."""
    claims = reading.claims
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
                findings.append(RawProblem("shape-mismatch", f"{key}: {wrong}; {_MEND}", keys))
                unclaimed += keys
            else:
                kept.append(contribution)
        if kept:
            modules[key] = module._replace(contributions=tuple(kept))
    claims = claims._replace(modules=modules, unclaimed=tuple(unclaimed), findings=tuple(findings))
    return reading._replace(claims=claims)


def claim_alpha_of_all(reading: Reading) -> Reading:
    """Give each module the alpha that a header has once for all."""
    alpha, modules = reading.checkpoint.alpha, reading.claims.modules
    own = {name: module._replace(alpha=alpha) for name, module in modules.items()}
    return reading._replace(claims=reading.claims._replace(modules=own))


def about_alpha_of_all(reading: Reading) -> Reading:
    """Add the header's statement about the scale to the evidence."""
    from lora_inspect.files.gguf.gguf_format import ALPHA_KEY

    says = "llama.cpp divides the alpha of all modules by the rank of each"
    return reading.with_evidence([Evidence("scale", says, ALPHA_KEY)])


def restore_dots(reading: Reading) -> Reading:
    """Rename modules with other names than the family's to the family's paths, and add evidence of that."""
    claims, metadata = reading.claims, reading.checkpoint.metadata
    layouts = [layout for name in named_by(metadata) for layout in by_name(name).layouts]
    known = patterns_of((path for layout in layouts for path in layout.paths), ".")
    tables = [[table_of(layout.paths)] for layout in layouts]
    modules: dict[str, Module] = {}
    told: dict[str, str] = {}
    for key, module in claims.modules.items():
        name = module.name
        is_own = name.flat or name.component != MODEL or name.scheme == PEFT.name
        if not is_own and pattern_of(name.body, ".") not in known and (found := _found(name, tables)):
            told[key] = found.body
            module = _called(module, found)
        modules[module.name.key] = module
    if not told or len(modules) < len(claims.modules):
        return reading
    (key, path), *_ = told.items()
    says = f"the dots of {len(told)} names are those that musubi-tuner guesses: {key} is {path}"
    about = Evidence("names", says, f"metadata {METADATA_KEYS[0]}")
    return reading._replace(claims=claims._replace(modules=modules)).with_evidence([about])


def _found(name: ModuleName, tables: Sequence[Sequence[Table]]) -> ModuleName | None:
    """Return the name with the dots of the only family layer with its spelling, or None."""
    # Without a prefix of its own, `transformer.blocks.0` begins as names of diffusers do.
    for one in (name, ModuleName(DOTTED.name, MODEL, "", name.key, flat=False)):
        if path := canonical_path(one._replace(body=one.body.replace(".", "_"), flat=True), *tables):
            return one._replace(body=path)
    return None


def _called(module: Module, name: ModuleName) -> Module:
    contributions = tuple(contribution._replace(module=name) for contribution in module.contributions)
    return module._replace(name=name, contributions=contributions)
