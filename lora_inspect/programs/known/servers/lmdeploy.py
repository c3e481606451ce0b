"""LMDeploy: PEFT's folders with one rank and one scale, `lora_alpha` over `r`.

Its reader only takes pairs of factors. It allocates the factors of a target in every block, and does not fill the
places that a file lacks. Of two targets with one end, the second also matches what it made for the first.

Sources: `add_adapters` in `pytorch/models/patch.py`, `pytorch/adapter/adapter.py` and `pytorch/nn/linear/lora.py` of
LMDeploy, run on a stand-in of its Llama; the product of its kernel was read.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

from lora_inspect.files.strict_json import json_number
from lora_inspect.programs.known.peft import config_of, is_of_blocks, leaf_of, names_in
from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    Finder,
    Given,
    Loader,
    OfKindInFile,
    Program,
    Rule,
    Strangers,
)
from lora_inspect.reading.adapter import Adapter

_PREFIX, _FACTORS = "base_model.model.", (".lora_A.weight", ".lora_B.weight")
_NO_FACTOR = "AssertionError: it is no factor of LoRA"
# The parts of fused layers, which it looks for under the names of these.
_PACKED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
# Layers without a place for adapters.
_EMBEDDINGS = ("embed_tokens", "tok_embeddings", "wte")
# PEFT's defaults for fields that a config leaves out.
_DEFAULT = 8


def _refused(adapter: Adapter) -> str | None:
    """Return the error that loading raises."""
    config = config_of(adapter)
    if isinstance(config, str):
        return config
    if config.get("peft_type") not in ("LORA", None):
        return "AttributeError: the config has no lora_alpha"
    for key in adapter.checkpoint.tensors:
        if not key.endswith(_FACTORS):
            return f"AssertionError: {key}"
    names = Counter(leaf_of(name) for name in names_in(config, "target_modules"))
    if twice := next((name for name in sorted(names) if names[name] > 1 and name not in _PACKED), None):
        return f"AssertionError: it finds the layers of {twice} again, as target_modules has paths"
    for module in adapter.modules.values():
        path = module.name.body
        # Targets are found behind a dot, and a head stands at the root.
        if "." not in path or leaf_of(path) not in names or not module.name.key.startswith(_PREFIX):
            return f"KeyError: '{path}.lora_adapters.{leaf_of(path)}.lora_A'"
    rank = config.get("r", _DEFAULT)
    for contribution in adapter.contributions:
        if contribution.rank not in (rank, None, 1):
            return f"RuntimeError: The size of tensor a ({rank}) must match the size of tensor b ({contribution.rank})"
    return None


def _unsure(adapter: Adapter) -> str | None:
    """Return the unknown change of layers with allocated but unfilled factors."""
    config = config_of(adapter)
    if isinstance(config, str):
        return None
    gaps = _gaps(_blocks_of(adapter), sorted({leaf_of(name) for name in names_in(config, "target_modules")}))
    if gap := next(gaps, None):
        return f"the change of {gap[0]} in block {gap[1]}, which the config names and the file does not have,"
    if config.get("layers_to_transform") is not None or config.get("exclude_modules"):
        return "the change of layers that the config leaves out"
    return None


def _never(adapter: Adapter) -> str | None:
    """Return the problem that no conversion solves."""
    if adapter.other_keys:
        return f"refuses a file with {adapter.other_keys[0]}"
    paths = [module.name.body for module in adapter.modules.values()]
    if head := next((name for name in paths if "." not in name), None):
        return f"refuses a file with {head}"
    if table := next((name for name in paths if leaf_of(name) in _EMBEDDINGS), None):
        return f"refuses a file with {table}"
    blocks = _blocks_of(adapter)
    if gap := next(_gaps(blocks, blocks), None):
        return f"fills no factors of {gap[0]} in block {gap[1]}, which the file does not have"
    return None


def _gaps(blocks: Mapping[str, set[str]], leaves: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each layer that some block lacks, with the first such block in text order."""
    numbers = {number for own in blocks.values() for number in own}
    numbers.update(map(str, range(max(map(int, numbers), default=-1) + 1)))
    for leaf in leaves:
        if missing := sorted(numbers - blocks.get(leaf, set())):
            yield leaf, missing[0]


def _blocks_of(adapter: Adapter) -> dict[str, set[str]]:
    """Return the numbers of the blocks that have a layer, by the layer's own name."""
    found: dict[str, set[str]] = defaultdict(set)
    for module in adapter.modules.values():
        path = module.name.body
        if is_of_blocks(path):
            found[leaf_of(path)].add(next((part for part in path.split(".") if part.isdigit()), "0"))
    return found


def _finds(adapter: Adapter) -> Finder:
    """Return a finder of the dense layers of blocks.

    A factor of rank 1 fills all rows; nobody tried that.
    """
    config = config_of(adapter)
    rank = None if isinstance(config, str) else config.get("r", _DEFAULT)

    def finds(given: Given) -> bool | None:
        is_ranked = given.contribution.rank == rank
        return True if is_of_blocks(given.module.name.body) and is_ranked else None

    return finds


@OfKindInFile
def _scale(given: Given) -> float | None:
    """Return `lora_alpha` over `r`; the rest of the config does not count."""
    config = config_of(given.adapter)
    if isinstance(config, str):
        return None
    alpha, rank = (json_number(config.get(field, _DEFAULT)) for field in ("lora_alpha", "r"))
    return None if alpha is None or not rank else alpha / rank


_FILE = Rule(
    prefixes=(_PREFIX,),
    layouts=("hf",),
    dialects=("peft",),
    kinds={"lora": COMPUTES, "": FAILS},
    magnitudes={".lora_magnitude_vector output": FAILS},
    finds=_finds,
    scale=_scale,
    says=_NO_FACTOR,
)

PROGRAM = Program(
    name="lmdeploy",
    title="LMDeploy",
    version="2026-08-21",
    ran="2026-12-01",
    sets_multiplier=False,
    loaders=(
        Loader(
            families=("llm",),
            rules=(_FILE, Rule(kinds={"": FAILS}, says=_NO_FACTOR)),
            strangers=Strangers(FAILS, _NO_FACTOR),
            refuses=_refused,
            never=_never,
            unsure=_unsure,
            by_leaf=True,
        ),
    ),
    schemes={"": "peft"},
    uniform=True,
)
