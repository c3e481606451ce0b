"""The note on how the factors of all experts look packed: only where nothing says it, and only where it is clear."""

import random
import struct

import pytest

EXPERTS, RANK, HEIGHT = 6, 4, 40
CONFIG = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": 8,
    "target_parameters": ["mlp.experts.down_proj"],
    "auto_mapping": {"unsloth_fixed": True},
}
KEY = "base_model.model.model.layers.0.mlp.experts"
ENDS = {"F32": "f", "F16": "e"}


def columns(likeness, seed=0):
    """Columns by expert and number in it, those of one expert alike by so much."""
    numbers = random.Random(seed)
    noise = lambda: [numbers.gauss(0, 1) for _ in range(HEIGHT)]  # noqa: E731
    found = {}
    for expert in range(EXPERTS):
        own = noise()
        for number in range(RANK):
            found[expert, number] = [likeness * x + y for x, y in zip(own, noise(), strict=True)]
    return found


def data(values, packing, dtype="F32"):
    """B (HEIGHT, EXPERTS·RANK) as it is stored."""
    pairs = [(e, k) for e in range(EXPERTS) for k in range(RANK)]
    if packing == "rank_major":
        pairs = [(e, k) for k in range(RANK) for e in range(EXPERTS)]
    flat = [values[pair][row] for row in range(HEIGHT) for pair in pairs]
    if dtype == "BF16":
        return b"".join(struct.pack("<f", number)[2:] for number in flat)
    return struct.pack(f"<{len(flat)}{ENDS[dtype]}", *flat)


@pytest.fixture
def hints(read):
    def run(stored, config=CONFIG, dtype="F32", **settings):
        tensors = {
            f"{KEY}.lora_A.weight": ("F32", (EXPERTS * RANK, 16), 1),
            f"{KEY}.lora_B.weight": (dtype, (HEIGHT, EXPERTS * RANK), stored),
        }
        adapter = read(tensors, config=config, name="adapter_model.safetensors", **settings)
        return [problem.message for problem in adapter.problems if problem.code == "expert-hint"]

    return run


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("packing", ["rank_major", "grouped_by_expert"])
def test_columns_that_are_alike_tell_the_packing(packing, dtype, hints):
    (message,) = hints(data(columns(1.0), packing, dtype), dtype=dtype)
    assert f"--expert-packing {packing}" in message


UNCLEAR = {
    "drawn": data(columns(0.0), "rank_major"),
    "hardly alike": data(columns(0.3), "rank_major"),
    "all of them alike": data(dict.fromkeys(columns(0.0), [1.0] * HEIGHT), "rank_major"),
    "fresh": bytes(4 * HEIGHT * EXPERTS * RANK),
    "not finite": struct.pack("<f", float("nan")) * (HEIGHT * EXPERTS * RANK),
    "too large to square": struct.pack("<f", 3e38) * (HEIGHT * EXPERTS * RANK),
}


@pytest.mark.parametrize("stored", UNCLEAR.values(), ids=UNCLEAR)
def test_nothing_is_said_where_it_is_not_clear(stored, hints):
    assert hints(stored) == []


def test_nothing_is_said_where_the_packing_is_known(hints):
    stored = data(columns(1.0), "grouped_by_expert")
    assert hints(stored, {**CONFIG, "lora_B_layout": "rank_major"}) == []
    assert hints(stored, {**CONFIG, "auto_mapping": None}) == []
    assert hints(stored, expert_packing="rank_major") == []
