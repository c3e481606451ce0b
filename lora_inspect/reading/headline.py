"""A one-sentence summary of a file: its algorithm, model, rank and scale."""

from collections.abc import Mapping
from typing import Any

from lora_inspect.maths.dora import OF_BASE
from lora_inspect.reading.file_info import ADAPTER, BASE, FileInfo
from lora_inspect.sentences import counted, few, some

UNKNOWN_VALUE = "unknown"
_METHOD = "method"


def headline(info: FileInfo, record: Mapping[str, Any]) -> str:
    """Describe the file in one sentence."""
    if info.other_model and not info.adapter.embeddings:
        kind = f"{_article(info.other_model)} {info.other_model}"
        return f"No adapter: {kind} of {counted(len(info.checkpoint.tensors), 'tensor')}"
    if info.kind == BASE:
        return f"Base model: {_model(info)}" if info.candidates else "Base model of an unknown family"
    if info.kind != ADAPTER:
        if info.adapter.embeddings:
            from lora_inspect.reading.embeddings import in_words

            return f"No adapter: {in_words(info.adapter.embeddings)}"
        names = list(info.checkpoint.tensors)
        tensors = f"{len(names):,} tensor{'s' if len(names) != 1 else ''}"
        return f"No adapter and no known model: {tensors}" + (f" ({some(names, 3)})" if names else "")
    if not info.adapter.modules:
        return _without_modules(info)
    told = [part for part in (_ranks(record["ranks"]), _scale(record)) if part]
    return f"{_algorithm(info)} for {_model(info)}" + (f" - {', '.join(told)}" if told else "")


def _article(word: str) -> str:
    return "an" if word[0].lower() in "aeiou" else "a"


def span(counts: Mapping[str, int]) -> str:
    """Return the counted values as a cell of a table: `4`, `4 to 16`, `unknown`."""
    numbers = sorted((value for value in counts if value != UNKNOWN_VALUE), key=float)
    if not numbers:
        return UNKNOWN_VALUE if counts else "-"
    known = numbers[0] if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"{known} or {UNKNOWN_VALUE}" if UNKNOWN_VALUE in counts else known


def _without_modules(info: FileInfo) -> str:
    """Describe an adapter without known modules: its method, if a config names one."""
    method = next((item.says for item in info.adapter.evidence if item.about == _METHOD), "")
    return f"{method.partition(', ')[0].partition(' (')[0] or 'An adapter'} without recognised modules"


def _model(info: FileInfo) -> str:
    """Return the families that the file may be of, with the expert of a pipeline that has several."""
    titles = few([str(candidate) for candidate in info.candidates], "or")
    if info.expert and info.expert.name:
        family = info.candidates[0].architecture
        titles = titles.replace(family.title, family.experts_title or family.title)
        return f"{titles} ({info.expert.name} expert)"
    return titles or "an unknown model"


def _algorithm(info: FileInfo) -> str:
    """Name the algorithms, the commonest first, with RS-LoRA and DoRA."""
    counts: dict[str, int] = {}
    for contribution in info.adapter.contributions:
        if not contribution.algorithm.beside:
            counts[contribution.algorithm.title] = counts.get(contribution.algorithm.title, 0) + 1
    # LoRA on an Embedding is LoRA, where there is LoRA on other layers.
    parts = [title for title in counts if any(title.startswith(f"{other} on ") for other in counts)]
    names = sorted((title for title in counts if title not in parts), key=lambda title: -counts[title])
    # Where the rank is 1 both rules are one.
    rules = {c.rslora for c in info.adapter.contributions if c.rank is not None and c.rank > 1}
    stabilised, decomposed = True in rules, bool(info.adapter.dora.modules)
    if names[0] == "LoRA" and stabilised:
        rule = "LoRA and RS-LoRA" if False in rules else "RS-LoRA"
        names[0] = f"{rule} with DoRA" if decomposed else rule
    elif decomposed:
        names[0] = "DoRA" if names[0] == "LoRA" else f"{names[0]} with DoRA"
    elif stabilised:
        names[0] = f"{names[0]} at the scale of RS-LoRA"
    if decomposed and info.adapter.dora.norms == OF_BASE:
        names[0] += " over the norms of the base"
    named = few(names)
    return named[:1].upper() + named[1:]


def _ranks(ranks: Mapping[str, int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {span(ranks)}" if ranks else ""


def _scale(record: Mapping[str, Any]) -> str:
    """Return the scale, and its derivation if that is the same in all modules."""
    scales = record["scales"]
    if len(scales) != 1:
        return f"scales {span(scales)}" if scales else ""
    scale = next(iter(scales))
    return f"scale {scale}{'' if scale == UNKNOWN_VALUE else _how(record, float(scale))}"


def _how(record: Mapping[str, Any], scale: float) -> str:
    """Return the numbers that make the scale, if these are the same in all modules."""
    if len(record["ranks"]) != 1 or len(record["alphas"]) != 1:
        return ""
    [rank], [alpha] = record["ranks"], record["alphas"]
    if alpha == "absent":
        return " (no alpha)" if scale == 1 else ""
    if alpha == UNKNOWN_VALUE:
        return ""
    rules = ((f"sqrt {rank}", float(rank) ** 0.5), (f"rank {rank}", float(rank)))
    by = (said for said, divisor in rules if abs(float(alpha) / divisor - scale) <= 1e-5 * abs(scale))
    said = next(by if record["rslora"]["value"] else reversed(list(by)), None)
    return f" (alpha {alpha} / {said})" if said else ""
