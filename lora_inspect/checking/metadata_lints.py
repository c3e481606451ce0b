"""Metadata that contradict the tensors, or that say nothing or nonsense."""

import math
from collections.abc import Iterator

from lora_inspect.architectures import by_name
from lora_inspect.architectures.stated_families import METADATA_KEYS, named_by
from lora_inspect.checking.subject import Draft, Subject
from lora_inspect.files.hashes import HASH_KEYS
from lora_inspect.files.strict_json import parse_json
from lora_inspect.reading.identify import described
from lora_inspect.reading.metadata.output_metadata import one_or_several
from lora_inspect.reading.model.evidence import RawProblem, close, network_args
from lora_inspect.sentences import counted, listed, shortened, some

DIM, ALPHA = "ss_network_dim", "ss_network_alpha"
# What sd-scripts writes as JSON, and programs read as such.
_JSON = (
    *("ss_network_args", "ss_datasets", "ss_dataset_dirs", "ss_reg_dataset_dirs"),
    *("ss_tag_frequency", "ss_bucket_info"),
)
_NONE = "None"
# Options with a rank in their name that set none.
_OTHER_MEANINGS = ("rank_dropout", "rank_dropout_scale", "network_dim")
# Tags of a large dataset take some hundred thousand characters.
_LARGE = 1_000_000


def metadata_number(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for a rank or an alpha that cannot be one."""
    for key in _absurd(subject):
        value = shortened(subject.metadata[key])
        yield RawProblem("metadata-number", f"{key} is '{value}', which no network can have", (key,))


def metadata_json(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for text in the place of JSON."""
    for key in _JSON:
        value = subject.metadata.get(key, "").strip()
        if value in ("", _NONE):
            continue
        try:
            parse_json(value)
        except ValueError:
            yield RawProblem("metadata-json", f"{key} is no JSON, so programs that read it find nothing", (key,))


def metadata_empty(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for entries without a value; an empty hash has a code of its own."""
    if empty := _empty(subject):
        yield RawProblem(
            "metadata-empty",
            f"{counted(len(empty), 'key')} of the metadata without a value ({some(empty, 2)})",
            tuple(empty[:5]),
        )


def metadata_large(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for large metadata, which every program reads whole before it knows the kind of file."""
    sizes = {key: len(key) + len(value) for key, value in subject.metadata.items()}
    if (total := sum(sizes.values())) > _LARGE:
        most = max(sizes, key=lambda key: sizes[key])
        message = f"the metadata have {total:,} characters, {sizes[most]:,} of them in {shortened(most)}"
        yield RawProblem("metadata-large", message, (most,))


def architecture_contradicts(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for a family in the metadata that contradicts the names and widths of the modules."""
    named = named_by(subject.metadata)
    families = {name for one in subject.families for name in _lineage(one.architecture.name)}
    if not named or not families or any(set(_lineage(name)) & families for name in named):
        return
    keys = tuple(key for key in METADATA_KEYS if subject.metadata.get(key) in named.values())
    values = listed([f"{key} is '{shortened(subject.metadata[key])}'" for key in keys])
    message = f"{values}, but its modules are those of {described(subject.families)}"
    yield RawProblem("architecture-contradicts", message, keys)


def dim_contradicts(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for a rank in the metadata that no module has."""
    stated = _whole(subject.metadata.get(DIM, ""))
    ranks = [contribution.rank for _, contribution in subject.ranked if contribution.rank]
    if stated is None or not ranks or _sets_more(subject, ("dim", "rank"), "conv_dim"):
        return
    # A layer that is smaller than the rank has its own size, and one that was saved in parts has several ranks.
    free = [
        c.rank
        for _, c in subject.ranked
        if c.rank and c.rank < min((size for size in c.features if size is not None), default=0)
    ]
    in_parts = "split_qkv" in subject.metadata.get("ss_network_args", "")
    if not free or any(rank == stated or (in_parts and rank % stated == 0) for rank in ranks):
        return
    yield RawProblem("dim-contradicts", f"{DIM} is {stated}, but the modules have rank {_or(ranks)}", (DIM,))


def alpha_contradicts(subject: Subject) -> Iterator[RawProblem]:
    """Yield a problem for an alpha in the metadata that no module has, in any form that trainers store."""
    stated = _number(subject.metadata.get(ALPHA, ""))
    stored = [
        (subject.alphas[module.alpha.name], contribution.rank)
        for module, contribution in subject.ranked
        if module.alpha and module.alpha.name in subject.alphas and contribution.rank
    ]
    if stated is None or not stored or _sets_more(subject, ("alpha",), "conv_alpha"):
        return
    dim = _whole(subject.metadata.get(DIM, ""))
    if any(_may_store(stated, alpha, rank, dim) for alpha, rank in stored):
        return
    alphas = _or([alpha for alpha, _ in stored])
    yield RawProblem("alpha-contradicts", f"{ALPHA} is {stated:g}, but the modules have alpha {alphas}", (ALPHA,))


def correct_dim(subject: Subject, draft: Draft) -> Iterator[str]:
    """Replace the rank in the metadata by that of the modules."""
    ranks = {float(contribution.rank) for _, contribution in subject.ranked if contribution.rank}
    if ranks:
        yield _corrected(draft, DIM, one_or_several(ranks))


def correct_alpha(subject: Subject, draft: Draft) -> Iterator[str]:
    """Replace the alpha in the metadata by that of the modules, if every module has a scale."""
    alphas = {subject.alphas[m.alpha.name] for m, c in subject.ranked if m.alpha and c.scale is not None}
    if alphas and all(contribution.scale is not None for _, contribution in subject.ranked):
        yield _corrected(draft, ALPHA, one_or_several(alphas))


def correct_numbers(subject: Subject, draft: Draft) -> Iterator[str]:
    """Replace impossible values of the rank and the alpha in the metadata by those of the modules."""
    for key in _absurd(subject):
        yield from (correct_dim if key == DIM else correct_alpha)(subject, draft)


def drop_empty(subject: Subject, draft: Draft) -> Iterator[str]:
    """Remove the metadata's entries without a value."""
    empty = _empty(subject)
    draft.drop(empty)
    if empty:
        yield f"left out {counted(len(empty), 'key')} of the metadata without a value ({some(empty, 2)})"


def _corrected(draft: Draft, key: str, value: str) -> str:
    before, draft.metadata[key] = draft.metadata[key], value
    return f"wrote {key} {value} instead of '{shortened(before)}'"


def _absurd(subject: Subject) -> list[str]:
    found = []
    for key in (DIM, ALPHA):
        try:
            number = float(subject.metadata[key])
        except (KeyError, ValueError):
            continue
        if not math.isfinite(number) or (key == DIM and (number < 1 or number != int(number))):
            found.append(key)
    return found


def _empty(subject: Subject) -> list[str]:
    return [key for key, value in subject.metadata.items() if not value.strip() and key not in HASH_KEYS]


def _sets_more(subject: Subject, words: tuple[str, ...], of_convolutions: str) -> bool:
    """Return True if options give some modules numbers of their own, so that the global one proves nothing."""
    args = network_args(subject.metadata)
    own = [
        name
        for name, value in args.items()
        if value is not None and name not in _OTHER_MEANINGS and any(word in name for word in words)
    ]
    patterns = any(f"ss_{word}_pattern" in subject.metadata for word in words)
    has_linear = any(contribution.is_linear for _, contribution in subject.ranked)
    return patterns or any(not (name == of_convolutions and has_linear) for name in own)


def _may_store(stated: float, alpha: float, rank: int, dim: int | None) -> bool:
    asked = stated or float(rank)
    forms = {asked, asked * math.sqrt(rank), math.sqrt(rank) if not stated else asked}
    if dim:  # whoever changes the rank and keeps the scale
        forms |= {asked / dim * rank, asked / math.sqrt(dim) * math.sqrt(rank)}
    return any(close(alpha, form) for form in forms)


def _whole(text: str) -> int | None:
    number = _number(text)
    return int(number) if number is not None and number >= 1 and number == int(number) else None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _or(numbers: list[float] | list[int]) -> str:
    distinct = [f"{number:g}" for number in sorted(set(numbers))]
    return listed(distinct, "or") if len(distinct) < 4 else f"{distinct[0]} to {distinct[-1]}"


def _lineage(name: str) -> list[str]:
    """Return the family and its ancestors."""
    above = by_name(name).descends_from
    return [name, *(_lineage(above) if above else ())]
