"""The description of a file: its reading as one flat record, for people and for scripts."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from lora_inspect.architectures.detection import Detection, settled_by
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.file_info import ADAPTER, BASE, FileInfo, inspect_adapter
from lora_inspect.reading.metadata.provenance import COMBINED_KEY, MERGED_KEY, provenance, training_facts
from lora_inspect.reading.metadata.sidecars import Sidecar, with_sidecars
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.evidence import ERROR
from lora_inspect.reading.pipeline import PipelinePart, adapter_parts, base_parts, elements
from lora_inspect.reading.scale.scale_records import FOLDED_KEY, FoldedScales
from lora_inspect.sentences import scale_in_words

if TYPE_CHECKING:
    from lora_inspect.converting.fixes import LoadingFix
    from lora_inspect.programs.verdict import Verdict

SCHEMA = "lora-inspect/info/1"
# Programs that write a config beside an adapter, which names the model that it was trained on.
_TRAINERS_WITH_CONFIGS = ("PEFT", "mlx-lm")


def verdicts_of(info: FileInfo) -> "tuple[Verdict, ...] | None":
    """Return every program's verdict; None if the file is no adapter or its own meaning is open."""
    if info.kind != ADAPTER or _errors(info):
        return None
    return _verdicts(info)


def _verdicts(info: FileInfo) -> "tuple[Verdict, ...]":
    from lora_inspect.programs import PROGRAMS
    from lora_inspect.programs.verdict import judge_each

    return tuple(judge_each(info.adapter, info.candidates, PROGRAMS.values()))


class Outlook(NamedTuple):
    """The verdicts on a file in the programs that it may be meant for, as a screen shows them.

    `decisive` is the verdict that calls for action, and `fix` makes the file right in its program. `is_open` is true if
    the scale is unknown; the verdicts then judge only the loading.
    """

    verdicts: "Sequence[Verdict]"
    decisive: "Verdict | None"
    fix: "LoadingFix | None"
    is_open: bool


def outlook_of(info: FileInfo, verdicts: "Sequence[Verdict] | None", fix: str | None) -> Outlook | None:
    """Return the outlook of a file with these `verdicts` and a `fix` of its scale; None without any verdict.

    If only the scale is open, the verdicts are on loading, which does not depend on it.
    """
    is_open = verdicts is None
    found = verdicts if verdicts is not None else _with_some_scale(info)
    if found is None:
        return None
    from lora_inspect.programs.verdict import concerned, decisive, needs_fix

    meant = concerned(found, info.candidates)
    first = decisive(meant)
    loading = None
    if first is not None and needs_fix(first) and not fix and not is_open:
        from lora_inspect.converting.fixes import loading_fix

        loading = loading_fix(info.adapter, first)
    return Outlook(meant, first, loading, is_open)


def _with_some_scale(info: FileInfo) -> "Sequence[Verdict] | None":
    """Judge the loading of a file with an open scale; None if more than that is wrong."""
    if info.kind != ADAPTER or not info.adapter.is_scale_open:
        return None
    some = info.adapter.settings_with(alpha=1.0, rslora=False)
    settled = inspect_adapter(info.checkpoint, some)._replace(candidates=info.candidates)
    if _errors(settled):
        return None
    from lora_inspect.programs.verdict import SAME, STRENGTH

    return [
        one._replace(verdict=SAME if one.verdict == STRENGTH else one.verdict, factor=None, factors={})
        for one in _verdicts(settled)
    ]


def _errors(info: FileInfo) -> set[str]:
    return {problem.code for problem in info.adapter.problems if problem.severity == ERROR}


_Names = TypeVar("_Names", dict[str, int], list[str])


def _several(names: _Names) -> _Names:
    """Return the names if there are several; a single one has a field of its own."""
    return names if len(names) > 1 else type(names)()


def as_json(info: FileInfo, modules: bool = False) -> dict[str, Any]:
    """Return the record that scripts rely on; `modules` adds `module_list`."""
    return record_of(info, verdicts_of(info), modules)


def record_of(
    info: FileInfo, verdicts: "Sequence[Verdict] | None", modules: bool = False, tensors: bool = False
) -> dict[str, Any]:
    """Return the record with given verdicts; `tensors` adds `tensor_list`."""
    adapter, checkpoint = info.adapter, info.checkpoint
    origin, sources = with_sidecars(provenance(checkpoint.metadata, _own_config(adapter)), info.sidecars.found)
    contributions = list(adapter.contributions)
    folded = FoldedScales(checkpoint.metadata)
    expert = info.expert
    parts = _parts(info)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "path": checkpoint.path,
        "bytes": checkpoint.bytes,
        "tensors": len(checkpoint.tensors),
        "dtypes": _counted(tensor.dtype for tensor in checkpoint.tensors.values()),
        "kind": info.kind,
        "other_model": info.other_model,
        "algorithms": _counted(contribution.algorithm.name for contribution in contributions),
        "scheme": adapter.scheme,
        "schemes": _several(_counted(module.name.scheme for module in adapter.modules.values())),
        "architecture": info.detection.architecture.name if info.detection else None,
        "candidates": _several([candidate.architecture.name for candidate in info.candidates]),
        "layout": _layout(info.candidates),
        "size": info.detection.size if info.detection else None,
        "expert": expert.name if expert else None,
        "trainer": adapter.trainer,
        "modules": len(adapter.modules),
        "parameters": _parameters(info, parts),
        "ranks": _ranks(contributions),
        "alphas": _counted(_alpha(contribution) for contribution in contributions if contribution.rank),
        "scales": _scales(contributions, folded),
        "components": {part.component: _part_record(part, folded) for part in parts},
        "rslora": {
            "value": adapter.rslora.value,
            "source": adapter.rslora.source,
            "hint": adapter.rslora.hint
            and {"share": adapter.rslora.hint.share, "modules": adapter.rslora.hint.modules},
        },
        "dora": {
            "value": adapter.dora.value,
            "source": adapter.dora.source,
            "modules": adapter.dora.modules,
            "axis": adapter.dora.axis,
            "norms": adapter.dora.norms,
        },
        "evidence": [{"about": item.about, "says": item.says, "where": item.where} for item in adapter.evidence],
        "metadata": checkpoint.metadata,
        "merged": _merged(checkpoint.metadata),
        "combined": _combined(checkpoint.metadata),
        "title": origin.title,
        "base": origin.base,
        "trigger_words": list(origin.trigger_words),
        "notes": list(origin.notes),
        "tags": dict(origin.tags),
        "training": training_facts(checkpoint.metadata, _own_config(adapter)),
        "sidecars": [_sidecar_record(one, sources) for one in info.sidecars.found],
        **_received(info, verdicts),
        "embeddings": [{"token": one.token, "keys": list(one.keys)} for one in adapter.embeddings],
        "unclaimed": list(adapter.unknown) if info.kind == ADAPTER else [],
        "problems": [
            {"code": item.code, "severity": item.severity, "message": item.message, "keys": list(item.keys)}
            for item in adapter.problems
        ],
    }
    says = [candidate.says for candidate in info.candidates]
    if len(says) > 1:
        says.append(settled_by(info.candidates))
    record["evidence"] += [{"about": "architecture", "says": one, "where": "module names"} for one in says]
    if info.named:
        record["evidence"].append({"about": "architecture", "says": info.named.says, "where": info.named.file})
    if expert:
        record["evidence"].append({"about": "expert", "says": expert.says, "where": expert.where})
    unscaled = (contribution.module.key for contribution in contributions if contribution.scale == 1.0)
    if folded.has_any and (inside := folded.says(unscaled)):
        record["evidence"].append({"about": "scale", "says": inside, "where": f"metadata {FOLDED_KEY}"})
    if modules:
        record["module_list"] = [
            module_record(module, contribution, folded)
            for module in adapter.modules.values()
            for contribution in module.contributions
        ]
    if tensors:
        record["tensor_list"] = [
            {"name": one.name, "dtype": one.dtype, "shape": list(one.shape), "bytes": one.nbytes, "offset": one.start,
             "file": one.file}
            for one in checkpoint.tensors.values()
        ]  # fmt: skip
    return record


def _sidecar_record(one: Sidecar, sources: Mapping[str, str]) -> dict[str, Any]:
    """Return the record of a file of another program next to the adapter: the fields that it fills, or its problem."""
    fields = [field for field, file in sources.items() if file == one.file]
    return {"file": one.file, "fields": fields, "problem": one.problem or None}


def _merged(metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the merges that made the file, the first of them first."""
    if MERGED_KEY not in metadata:
        return []
    from lora_inspect.reading.metadata.merge_record import as_record, merge_records

    return [as_record(one) for one in merge_records(metadata)]


def _combined(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the record of how the file was made from other adapters; None if the metadata have none."""
    if COMBINED_KEY not in metadata:
        return None
    from lora_inspect.reading.metadata.merge_record import combined_record

    return combined_record(metadata)


def _own_config(adapter: Adapter) -> dict[str, Any] | None:
    """Return the config next to the file if the adapter's trainer wrote it; None otherwise."""
    return adapter.checkpoint.config if adapter.trainer in _TRAINERS_WITH_CONFIGS else None


def _received(info: FileInfo, verdicts: "Sequence[Verdict] | None") -> dict[str, Any]:
    """Return the programs that read the file right, the verdicts, the scales, and the fixes."""
    if verdicts is None:
        return {"read_by": None, "verdicts": None, "factors": None, "fix": None}
    from lora_inspect.programs.verdict import SAME, STRENGTH, concerned

    fix = None
    meant = concerned(verdicts, info.candidates)
    if any(one.verdict == STRENGTH for one in meant):
        from lora_inspect.converting.standard_fix import standard_fix

        fix = standard_fix(info.adapter, meant)
    return {
        "read_by": list(dict.fromkeys(one.program.title for one in verdicts if one.verdict == SAME)),
        "verdicts": {one.program.name: one.verdict for one in verdicts},
        "factors": {one.program.name: one.factor for one in verdicts if one.factor is not None},
        "fix": fix,
    }


def _parts(info: FileInfo) -> list[PipelinePart]:
    if info.kind == ADAPTER:
        return adapter_parts(info.adapter, info.candidates)
    return base_parts(info.checkpoint, info.candidates) if info.kind == BASE else []


def _part_record(part: PipelinePart, folded: FoldedScales) -> dict[str, Any]:
    return {
        "title": part.title,
        "tensors": len(part.tensors),
        "modules": len(part.modules),
        "ranks": _ranks(part.contributions),
        "scales": _scales(part.contributions, folded),
        "parameters": elements(part.tensors),
        "dtypes": _counted(tensor.dtype for tensor in part.tensors),
    }


def module_record(module: Module, contribution: Contribution, folded: FoldedScales) -> dict[str, Any]:
    """Return the record of one change of a module, an item of `module_list`."""
    scale = contribution.scale
    if contribution.algorithm.has_alpha:
        scale = folded.scale_before(contribution.module.key, scale)
    return {
        "module": contribution.module.key,
        "path": module.path,
        "scheme": module.name.scheme,
        "component": contribution.module.component,
        "algorithm": contribution.algorithm.name,
        "shape": list(contribution.shape) if contribution.algorithm.formula else None,
        "rows": list(contribution.rows) if contribution.rows else None,
        "rank": contribution.rank,
        "alpha": contribution.alpha,
        "scale": scale,
        "why": contribution.why if scale == contribution.scale else "it is multiplied into the factors",
        "dora": contribution.magnitude.axis if contribution.magnitude else None,
    }


def _layout(candidates: tuple[Detection, ...]) -> str | None:
    """Return the naming that all candidates have in common."""
    names = {candidate.layout.name for candidate in candidates}
    return names.pop() if len(names) == 1 else None


def _parameters(info: FileInfo, parts: Iterable[PipelinePart]) -> int:
    """Return the number of parameters of an adapter's parts, shared tensors once, or of all tensors of another file."""
    if info.kind != ADAPTER:
        return elements(info.checkpoint.tensors.values())
    return elements({tensor.name: tensor for part in parts for tensor in part.tensors}.values())


def _ranks(contributions: Iterable[Contribution]) -> dict[str, int]:
    return _counted(str(contribution.rank) for contribution in contributions if contribution.rank)


def _scales(contributions: Iterable[Contribution], folded: FoldedScales) -> dict[str, int]:
    return _counted(_scale(c, folded) for c in contributions if c.has_scale)


def _alpha(contribution: Contribution) -> str:
    if contribution.alpha is not None:
        return f"{contribution.alpha:.6g}"
    return "absent" if contribution.scale is not None else "unknown"


def _scale(contribution: Contribution, folded: FoldedScales) -> str:
    scale = contribution.scale
    if folded.has_any:
        scale = folded.scale_before(contribution.module.key, scale)
    return scale_in_words(scale)


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())
