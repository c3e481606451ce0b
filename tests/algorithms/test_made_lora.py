"""convert --algorithm lora, then merge: what the real library computes of the other algorithm, for each of them."""

import pytest
from safetensors.torch import load_file
from test_every_algorithm import EVERY, assert_close, merge_files, write

from lora_inspect.converting.asked_algorithm import becomes_lora, check_algorithm, is_saved_weight
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.merge import MergeOptions
from lora_inspect.reading.adapter import read_adapter

pytestmark = pytest.mark.numeric

# An approximation of full rank is off by singular values below 1e-7 of the largest, and by rounding.
FULL = 4e-7


@pytest.mark.parametrize("case", EVERY)
def test_what_is_made_of_each_algorithm_is_merged_as_the_library_computes_it(case, tmp_path):
    base, adapter = write(case, tmp_path)
    read = read_adapter(open_checkpoint(adapter))
    found = list(read.contributions)
    if any(is_saved_weight(c.algorithm, c.shapes) for c in found):
        with pytest.raises(LoraInspectError, match="of which only the weight that it replaces tells the change"):
            check_algorithm(read, ConvertOptions(algorithm="lora"))
        return
    if not any(becomes_lora(c.algorithm, c.shapes) for c in found):
        (note,) = check_algorithm(read, ConvertOptions(algorithm="lora"))
        assert "it holds nothing that --algorithm lora changes" in note
        return
    turned = any(becomes_lora(c.algorithm, c.shapes) and c.algorithm.transposed for c in found)
    biased = any(becomes_lora(c.algorithm, c.shapes) and c.algorithm.bias for c in found)
    output = tmp_path / ("made" if case.config is not None else "made.safetensors")
    options = ConvertOptions(base=base, max_error=0.0, algorithm="lora")
    if turned or (biased and "layer.bias" in case.base):
        says = "no plain LoRA says that" if turned else "changes the bias of its layer as well"
        with pytest.raises(LoraInspectError, match=says):
            convert_to_standard(adapter, str(output), options)
        return
    result = convert_to_standard(adapter, str(output), options)
    assert result.verified is not None
    assert result.verified.max_relative_error <= 1e-5
    names = {c.algorithm.name for c in read_adapter(open_checkpoint(str(output))).contributions}
    assert names & {"lora"}
    made = merge_files(base, str(output), 1.0, MergeOptions(), tmp_path / "merged.safetensors")
    assert load_file(base).keys() == made.keys()
    for name, expected in case.oracle(1.0).items():
        assert_close(made[name], expected, case.bound + FULL)
