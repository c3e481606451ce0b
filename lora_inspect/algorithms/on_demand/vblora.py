"""VB-LoRA: W' = W + B · A, where every piece of a row of A and of a column of B mixes a few vectors of one bank.

The largest logits of a piece choose its vectors, and their softmax mixes them. With `save_only_topk_weights` the chosen
ones and all but the last of their weights are saved. PEFT has no multiplier for it. Sources: Li et al. 2024; the
`VBLoRALayer` of PEFT.
"""

from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.lora import other_than
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Shared, Surroundings, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

# The logits of A (rank, pieces, vectors) and B (pieces, rank, vectors), or what is saved of them, by side.
_SIDES = ("A", "B")
_LOGITS = {f"logits_{side}": f".vblora_logits_{side}" for side in _SIDES}
_INDICES = {f"indices_{side}": f".vblora_logits_{side}_topk_indices" for side in _SIDES}
_WEIGHTS = {f"weights_{side}": f".vblora_logits_{side}_topk_weights" for side in _SIDES}
_MISSING = "its vblora_vector_bank is missing; fetch the file again, or write it again with PEFT"


def check(shapes: Shapes) -> str | None:
    """Return the problem with the logits, the chosen vectors and weights, or the bank (vectors, length), or None."""
    own = shapes.keys() - {"bank"}
    if own not in (set(_LOGITS), set(_INDICES) | set(_WEIGHTS)):
        return "it needs all of its logits, or all of the indices and weights saved from them, and nothing else"
    if odd := next((role for role in own if len(shapes[role]) != 3 or 0 in shapes[role][:2]), None):
        return f"{odd} {list(shapes[odd])} are not pieces of rows"
    if _rank(shapes, "A", 0) != _rank(shapes, "B", 1):
        return f"A of rank {_rank(shapes, 'A', 0)} and B of rank {_rank(shapes, 'B', 1)} cannot be multiplied"
    for side in _SIDES:
        chosen, weights = shapes.get(f"indices_{side}", ()), shapes.get(f"weights_{side}", ())
        if chosen[:2] != weights[:2] or sum(chosen[2:]) != sum(weights[2:]) + bool(chosen):
            return (
                f"indices {list(chosen)} of {side} do not match weights {list(weights)}, which leave out the last one"
            )
    bank = shapes.get("bank")
    if bank is None:
        return None
    vectors = {shapes[role][2] for role in own & set(_LOGITS)} or set(bank[:1])
    return None if len(bank) == 2 and vectors == {bank[0]} else f"vblora_vector_bank {list(bank)} does not match them"


def _rank(shapes: Shapes, side: str, axis: int) -> int:
    return _pieces(shapes, side)[axis]


def _pieces(shapes: Shapes, side: str) -> tuple[int, ...]:
    return shapes[f"logits_{side}"] if f"logits_{side}" in shapes else shapes[f"indices_{side}"]


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (out, in), from pieces with the length of the vectors on each side."""
    if "bank" not in shapes:
        return None, None
    length = shapes["bank"][1]
    return _pieces(shapes, "B")[0] * length, _pieces(shapes, "A")[1] * length


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape or of a lower rank than the factors, or None."""
    length, rank = shapes["bank"][1], _rank(shapes, "A", 0)
    changed = _pieces(shapes, "B")[0] * length, _pieces(shapes, "A")[1] * length
    # A few bytes of indices make a whole row of a factor.
    return f"is of rank {rank}, above that of any weight of it," if rank > min(changed) else other_than(changed, weight)


def settings(around: Surroundings) -> dict[str, Any] | str:
    """Return `topk`, the number of mixed vectors: as many as were saved, or as the config says; or an error text."""
    saved = around.shapes.get("indices_A")
    said = around.config.get("topk") if around.config else None
    if saved is None and (isinstance(said, bool) or not isinstance(said, int)):
        return (
            "PEFT keeps the number of mixed vectors (topk) in adapter_config.json, but nothing gives it here; put it "
            "next to the file"
        )
    most = (saved or around.shapes["logits_A"])[2]
    count = said if isinstance(said, int) else most
    if not 0 < count <= most or (saved and count != most):
        return (
            f"its adapter_config.json says that PEFT mixes {count} vectors of the bank (topk), but the tensors allow "
            f"{most}; put the config next to the file that belongs to it"
        )
    return {"topk": count}


def outside(tensors: Tensors, weight: tuple[int, ...], *, topk: int) -> str | None:
    """Return an error for a chosen vector that the bank does not have, or None."""
    last = tensors["bank"].shape[0] - 1
    for role in _INDICES.keys() & tensors.keys():
        if int(tensors[role].min()) < 0 or int(tensors[role].max()) > last:
            return f"chooses vectors beyond the {last + 1} of its bank"
    return None


def change(tensors: Tensors, scale: float, alpha: float | None, *, topk: int) -> "Change":
    """Return the product of the two factors that the pieces make."""
    from lora_inspect.maths.change import LowRank

    a, b = _mixed(tensors, "A", topk), _mixed(tensors, "B", topk)
    return LowRank(b.transpose(1, 2).flatten(0, 1), a.flatten(1), 1.0)


def _mixed(tensors: Tensors, side: str, topk: int) -> Any:
    """Return the pieces of a factor (·, ·, length)."""
    import torch

    if f"logits_{side}" in tensors:
        largest, chosen = tensors[f"logits_{side}"].topk(topk, dim=-1)
        weights = largest.softmax(-1)
    else:
        chosen, weights = tensors[f"indices_{side}"], tensors[f"weights_{side}"]
        weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], dim=-1)
    mixed = torch.nn.functional.embedding_bag(
        chosen.flatten(0, 1), tensors["bank"], per_sample_weights=weights.flatten(0, 1), mode="sum"
    )
    return mixed.view(*chosen.shape[:2], -1)


ALGORITHM = Algorithm(
    name="vblora",
    title="VB-LoRA",
    equation="W + B · A, of vectors of one bank",
    writers="PEFT",
    dialects={"peft": _LOGITS | _INDICES | _WEIGHTS},
    formula=Formula(
        check,
        shape,
        misfit,
        rank=lambda shapes: None,
        change=change,
        outside=outside,
        inner=lambda shapes: _rank(shapes, "A", 0),
    ),
    shared={"bank": Shared("vblora_vector_bank", _MISSING)},
    positions=tuple(_INDICES),
    settings=settings,
    blends=False,
    has_alpha=False,
    peft_type="VBLORA",
)
