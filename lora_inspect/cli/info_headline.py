"""The first lines of a file's screen: what it is, for which model, at which rank and scale."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lora_inspect.maths.dora import OF_BASE
from lora_inspect.reading.file_info import ADAPTER, BASE, FileInfo
from lora_inspect.sentences import listed, some

# How many families or algorithms a line names.
_MOST = 3
_UNKNOWN = "unknown"
_METHOD = "method"
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def headline(info: FileInfo, record: Mapping[str, Any]) -> str:
    """What the file is, in one sentence."""
    if info.kind == BASE:
        return f"Base model: {_model(info)}" if info.candidates else "Base model of a family that is not known here"
    if info.kind != ADAPTER:
        if info.adapter.embeddings:
            from lora_inspect.reading.embeddings import in_words

            return f"No adapter: {in_words(info.adapter.embeddings)}"
        names = list(info.checkpoint.tensors)
        tensors = f"{len(names):,} tensor{'s' if len(names) != 1 else ''}"
        return f"No adapter, and no model that is known here: {tensors}" + (f" ({some(names, 3)})" if names else "")
    if not info.adapter.modules:
        return _without_modules(info)
    told = [part for part in (_ranks(record["ranks"]), _scale(record)) if part]
    return f"{_algorithm(info)} for {_model(info)}" + (f" - {', '.join(told)}" if told else "")


def file_line(record: Mapping[str, Any]) -> str:
    """The file's name, how large it is, what it is stored in, and who wrote it."""
    path = os.path.normpath(record["path"])
    dtypes: dict[str, None] = {}
    for part in record["components"].values():
        dtypes |= dict.fromkeys(part["dtypes"])
    stored = ", ".join(dtypes or record["dtypes"])
    trainer, scheme = record["trainer"] or "", record["scheme"] or ""
    # Some programs have names of their own.
    names = f"{scheme} keys" if scheme and not trainer.lower().startswith(scheme) else ""
    by = ", ".join(word for word in (trainer, names) if word)
    sized = ", ".join(word for word in (size_in_words(record["bytes"]), stored) if word)
    return " - ".join(word for word in (os.path.basename(path) or path, sized, by) if word)


def size_in_words(count: int) -> str:
    """A number of bytes as people say it: `23 kB`, `1.2 GB`."""
    size, unit = float(count), 0
    while size >= 999.5 and unit + 1 < len(_UNITS):
        size, unit = size / 1000, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit and size < 9.95 else f"{size:.0f} {_UNITS[unit]}"


def span(counts: Mapping[str, int]) -> str:
    """The values that are counted, as a cell of a table has them: `4`, `4 to 16`, `unknown`."""
    numbers = sorted((value for value in counts if value != _UNKNOWN), key=float)
    if not numbers:
        return _UNKNOWN if counts else "-"
    known = numbers[0] if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"{known} or {_UNKNOWN}" if _UNKNOWN in counts else known


def _without_modules(info: FileInfo) -> str:
    """What is known of an adapter of which no module can be told: its method, where a config names one."""
    method = next((item.says for item in info.adapter.evidence if item.about == _METHOD), "")
    return f"{method.partition(', ')[0].partition(' (')[0] or 'An adapter'}, of which no module can be told"


def _model(info: FileInfo) -> str:
    """The families that the file may be of, with the expert of a pipeline that has several."""
    titles = few([str(candidate) for candidate in info.candidates], "or")
    if info.expert and info.expert.name:
        family = info.candidates[0].architecture
        titles = titles.replace(family.title, family.experts_title or family.title)
        return f"{titles} ({info.expert.name} expert)"
    return titles or "a model that is not known here"


def few(names: Sequence[str], word: str = "and", most: int = _MOST) -> str:
    """The first names as a sentence lists them, with the number of the others."""
    if len(names) <= most + 1:
        return listed(names, word)
    return f"{', '.join(names[:most])} {word} {len(names) - most} more"


def _algorithm(info: FileInfo) -> str:
    """The algorithms by their titles, the commonest first, with what is done to them: RS-LoRA, DoRA."""
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
    """The scale, and how it comes about where it is the same in all modules."""
    scales = record["scales"]
    if len(scales) != 1:
        return f"scales {span(scales)}" if scales else ""
    scale = next(iter(scales))
    return f"scale {scale}{'' if scale == _UNKNOWN else _how(record, float(scale))}"


def _how(record: Mapping[str, Any], scale: float) -> str:
    """The numbers that the scale is made of, where these are the same in all modules and make it."""
    if len(record["ranks"]) != 1 or len(record["alphas"]) != 1:
        return ""
    [rank], [alpha] = record["ranks"], record["alphas"]
    if alpha == "absent":
        return " (no alpha)" if scale == 1 else ""
    if alpha == _UNKNOWN:
        return ""
    rules = ((f"sqrt {rank}", float(rank) ** 0.5), (f"rank {rank}", float(rank)))
    by = (said for said, divisor in rules if abs(float(alpha) / divisor - scale) <= 1e-5 * abs(scale))
    said = next(by if record["rslora"]["value"] else reversed(list(by)), None)
    return f" (alpha {alpha} / {said})" if said else ""
