"""The rows of a module that a base has in any arrangement, orientation, codec and number of tensors."""

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lora_inspect.architectures.rows import INPUTS, Interleaved, Stacked, Swapped
from lora_inspect.converting.steps import dora_delta
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.matching.placement import Place
from lora_inspect.reading.base.base_codecs import BaseCodecs

COLUMNS = 4
ARRANGED = {
    "equal shares": (Stacked((1, 1, 1)), 12),
    "other shares": (Stacked((1, 1, 4)), 12),
    "fewer heads of key and value": (Stacked((INPUTS, 1, 1)), 8),
    "rows that take turns": (Interleaved(2), 10),
    "heads that take turns": (Interleaved(3, 2), 12),
    "halves": (Swapped(), 10),
}


def opened(folder, tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "base.safetensors")
    base = open_checkpoint(str(folder / "base.safetensors"))
    return lambda name, runs, transposed=False: (
        Place(base.tensors[name], runs, transposed),
        BaseCodecs(base).of(base.tensors[name]),
    )


@settings(deadline=None)
@given(
    case=st.sampled_from(sorted(ARRANGED)),
    elements=st.integers(1, 50),
    transposed=st.booleans(),
    kernel=st.sampled_from([(), (3,), (2, 2)]),
)
def test_a_part_has_its_rows_and_a_whole_those_of_its_parts(tmp_path_factory, case, elements, transposed, kernel):
    arrangement, rows = ARRANGED[case]
    folder = tmp_path_factory.mktemp("rows")
    kernel = () if transposed else kernel
    whole = torch.arange(float(rows * COLUMNS * prod(kernel))).reshape(rows, COLUMNS, *kernel)
    runs = arrangement.runs(rows, COLUMNS)
    parts = []
    for own in runs:
        part = torch.empty(own.rows, COLUMNS, *kernel)
        for row in range(own.rows):
            # Row by row, from the definition of the runs.
            run, inner = divmod(row, own.length)
            part[own.source + run * own.source_stride + inner] = whole[own.start + run * own.stride + inner]
        parts.append(part)
    stored = {"whole": whole, **{f"part{number}": part for number, part in enumerate(parts)}}
    place = opened(folder, {name: tensor.T if transposed else tensor for name, tensor in stored.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dora_delta, "BLOCK_ELEMENTS", elements)
        for own, part in zip(runs, parts, strict=True):
            assert torch.equal(dora_delta.own_weight([place("whole", own, transposed)]), part.flatten(1))
        split = [place(f"part{number}", own.inverted, transposed) for number, own in enumerate(runs)]
        assert torch.equal(dora_delta.own_weight(split), whole.flatten(1))
        assert torch.equal(dora_delta.own_weight([place("whole", None, transposed)]), whole.flatten(1))


@pytest.mark.parametrize("elements", [1, 9, 1000])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize(
    ("suffix", "shape"),
    [
        (None, ()),
        ("scale_weight", (12, 1)),
        ("scale_weight", (12, 2, 1)),
        ("weight_scale", (12,)),
        ("weight_scale", ()),
    ],
)
def test_codes_are_decoded_by_their_own_rows_of_the_scale(suffix, shape, dtype, elements, tmp_path, monkeypatch):
    monkeypatch.setattr(dora_delta, "BLOCK_ELEMENTS", elements)
    generator = torch.Generator().manual_seed(0)
    codes = (8 * torch.randn(12, COLUMNS, generator=generator)).to(dtype)
    scale = torch.rand(shape, generator=generator) + 0.5
    place = opened(tmp_path, {"a.weight": codes} | ({f"a.{suffix}": scale} if suffix else {}))
    blocks = scale.reshape(len(scale) if shape else 1, -1)
    each = blocks.repeat_interleave(COLUMNS // blocks.shape[1], 1) if suffix else torch.ones(1, 1)
    expected = (codes.double() * each.double()).float()
    for own in Stacked((1, 2)).runs(12, COLUMNS):
        found = dora_delta.own_weight([place("a.weight", own)])
        assert torch.equal(found, expected[own.start : own.start + own.length])


def test_parts_of_which_one_is_stored_in_float64(tmp_path):
    stored = {"a": torch.rand(2, 3, dtype=torch.float64), "b": torch.rand(1, 3)}
    place = opened(tmp_path, stored)
    runs = [own.inverted for own in Stacked((2, 1)).runs(3, 3)]
    found = dora_delta.own_weight([place(name, own) for name, own in zip(stored, runs, strict=True)])
    assert torch.equal(found, torch.cat([tensor.double() for tensor in stored.values()]))
