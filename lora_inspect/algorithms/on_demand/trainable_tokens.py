"""Trainable tokens: some rows of an embedding, or of a head, are replaced whole.

`trainable_tokens_delta` (count, dim) are the new rows, in spite of its name; their numbers are only in the config:
`token_indices` of the method itself, `trainable_token_indices` if a LoRA has it next to its factors. A head that shares
the weight of the embedding takes part. PEFT has no multipliers for them. Source: the `TrainableTokensLayer` of PEFT.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

ROWS = "rows"


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shape of the rows (count, dim), or None."""
    rows = shapes[ROWS]
    return None if len(rows) == 2 and 0 not in rows else f"trainable_tokens_delta {list(rows)} are not rows of a matrix"


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (num, dim) as the base stores it, with None for num; the rows give dim."""
    return None, shapes[ROWS][1]


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    width = shapes[ROWS][1]
    return None if len(weight) == 2 and weight[1] == width else f"replaces rows of {width} numbers"


def outside(tensors: Tensors, weight: tuple[int, ...], *, tokens: Sequence[int]) -> str | None:
    """Return an error if a row is not inside a weight of this shape, or None."""
    largest = max(tokens)
    return None if largest < weight[0] else f"replaces the row of token {largest}"


def change(tensors: Tensors, scale: float, alpha: float | None, *, tokens: Sequence[int]) -> "Change":
    """Return the rows of the tokens, in their order, which replace the weight's own."""
    from lora_inspect.maths.change import ReplacedRows

    return ReplacedRows(tokens, tensors[ROWS])


def settings(around: Surroundings) -> dict[str, Any] | str:
    """Return the tokens of the method itself, or an error text if they are unknown."""
    return _tokens(around, "token_indices", [(around.config or {}).get("token_indices")])


def settings_beside_lora(around: Surroundings) -> dict[str, Any] | str:
    """Return the tokens of a LoRA, from one list for the embedding or lists by the ends of the modules' paths."""
    field = "trainable_token_indices"
    said = (around.config or {}).get(field)
    return _tokens(around, field, _lists_for(around.key, said) if isinstance(said, Mapping) else [said])


def _lists_for(key: str, lists: Mapping[str, Any]) -> list[Any]:
    return [tokens for name, tokens in lists.items() if name and key.endswith(name)]


def _tokens(around: Surroundings, field: str, lists: list[Any]) -> dict[str, Any] | str:
    """Return the one list with as many different tokens as there are rows, or an error text."""
    if around.config is None:
        return (
            "PEFT names the tokens of its rows in adapter_config.json, but this module has none; put it next to the "
            "file"
        )
    count = around.shapes[ROWS][0]
    tokens = lists[0] if len(lists) == 1 else None
    if not isinstance(tokens, list) or not all(map(_is_token, tokens)) or len(tokens) != count:
        return (
            f"the {field} in its adapter_config.json does not list {count} tokens for this module, which has that "
            "many rows; put the config next to the file that it was saved with"
        )
    if len(set(tokens)) < count:
        return f"the {field} in its adapter_config.json names a token twice, and either row may count; remove one"
    return {"tokens": tuple(tokens)}


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


ALGORITHM = Algorithm(
    name="trainable_tokens",
    title="trainable tokens",
    equation="rows of W replaced",
    writers="PEFT",
    dialects={"peft": {ROWS: ".trainable_tokens_delta"}},
    marks=(ROWS,),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change, outside=outside),
    transposed=False,
    multiplies=True,
    blends=False,
    has_alpha=False,
    peft_type="TRAINABLE_TOKENS",
    ties=True,
    settings=settings,
)
ALGORITHMS = (
    ALGORITHM,
    ALGORITHM._replace(
        name="lora_tokens",
        title="trainable tokens beside LoRA",
        equation="rows of W replaced",
        writers="PEFT (trainable_token_indices)",
        dialects={"peft": {ROWS: ".token_adapter.trainable_tokens_delta"}},
        peft_type="LORA",
        settings=settings_beside_lora,
    ),
)
