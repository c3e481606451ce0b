"""Short names of blocks, as programs that weigh them one by one have them, and what they stand for.

Sources: sd-scripts' `svd_merge_lora.py` (BASE, IN00, MID, OUT00), sd-webui-lora-block-weight (the same with M00, and
for FLUX D00, S00, IN and OUT). Nodes of ComfyUI name blocks by their paths.
"""

import re

# The text encoders together: what stands before the blocks of the model.
BASE = "BASE"
# The list that a numbered name is of.
_LISTS = {"IN": "input_blocks", "OUT": "output_blocks", "D": "double_blocks", "S": "single_blocks"}
# What stands alone.
_ALONE = {
    "MID": ("middle_block",),
    "M00": ("middle_block",),
    "IN": ("img_in", "txt_in", "time_in", "vector_in", "guidance_in"),
    "OUT": ("final_layer",),
}
_NUMBERED = re.compile(r"(IN|OUT|D|S)([0-9]{2})(?:-(IN|OUT|D|S)?([0-9]{2}))?")


def reversed_range(name: str) -> str | None:
    """The range of blocks that `IN08-IN01` would be from its first block on; None for any other name."""
    found = _NUMBERED.fullmatch(name)
    if found is None or found[3] not in (None, found[1]) or found[4] is None or found[2] <= found[4]:
        return None
    return f"{found[1]}{found[4]}-{found[1]}{found[2]}"


def of_two_lists(name: str) -> bool:
    """Whether it begins in one list of blocks and ends in another, as `IN08-OUT03`, which is no range."""
    found = _NUMBERED.fullmatch(name)
    return found is not None and found[3] not in (None, found[1])


def meanings(name: str) -> tuple[str, ...]:
    """The paths that a short name stands for: `IN04` for `input_blocks.4`, `D00-D09` for `double_blocks.0-9`.

    None for a name that is not short.
    """
    if name in _ALONE:
        return _ALONE[name]
    found = _NUMBERED.fullmatch(name)
    if found is None or found[3] not in (None, found[1]):
        return ()
    numbers = [str(int(number)) for number in (found[2], found[4]) if number is not None]
    return (f"{_LISTS[found[1]]}.{'-'.join(numbers)}",)
