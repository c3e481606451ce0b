"""Products whose rows do not show how many of them there are, held to what each row is among many others."""

import pytest
import torch
from row_dependent_products import backwards, rounded_once, row_dependent_products, term_by_term

from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.change import ExpertProducts, LowRank, OnBlock, OnColumns, OnRows, Transposed
from lora_inspect.maths.dora import SPELLINGS
from lora_inspect.maths.dora_fold import DecomposedColumns, DecomposedRows, magnitude_of
from lora_inspect.maths.products import ROWS_AT_ONCE, add_product, by_rows, product
from lora_inspect.maths.tensors import cut

pytestmark = pytest.mark.numeric
N, K, M = 23, 40, 9


def random(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.fixture(autouse=True)
def row_dependent():
    with row_dependent_products():
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", range(1, N))
def test_a_row_of_a_product_is_the_same_among_any_others(count, dtype):
    left, right, own = random(N, K, dtype=dtype), random(K, M, dtype=dtype), random(N, M, dtype=dtype)
    whole, added = left @ right, own.addmm(left, right)
    torch.testing.assert_close(product(left[:count], right), whole[:count], rtol=0, atol=0)
    for first in range(0, N, count):
        rows = own[first : first + count].clone()
        add_product(rows, left[first : first + count], right)
        assert torch.equal(rows, added[first : first + count])


def test_a_batch_is_filled_up_in_its_rows():
    left, right = random(5, 7, K), random(5, K, M)
    assert product(left[:, 2:4], right).shape == (5, 2, M)
    assert torch.equal(product(left[:, 2:4], right), (left @ right)[:, 2:4])
    assert torch.equal(product(left[:, 2:4], right[0]), (left @ right[0])[:, 2:4])


def test_what_fills_up_is_of_the_device_and_type_of_the_rows_and_none_where_they_are_enough():
    seen = []
    for count in (1, 4, 6, 8):
        rows = torch.empty(count, K, dtype=torch.float16, device="meta")
        assert by_rows(lambda own: seen.append(own) or own, rows).shape == rows.shape
    assert [(len(own), own.dtype, own.device.type) for own in seen] == [
        (size, torch.float16, "meta") for size in (4, 4, 8, 8)
    ]


def test_rows_that_are_a_part_of_others_are_changed_in_their_place():
    rows, left, right = random(10, M), random(3, K), random(K, M)
    before = rows.clone()
    add_product(rows[4:7], left, right)
    assert torch.equal(rows[:4], before[:4])
    assert torch.equal(rows[7:], before[7:])
    torch.testing.assert_close(rows[4:7], before[4:7] + left @ right)


def low_rank(rows=N, columns=M):
    return LowRank(random(rows, K), random(K, columns), 0.3)


SPLIT = ((0, 5, 0), (8, 10, 9), (11, 20, 12))
CHANGES = {
    "a product": low_rank(),
    "a product on rows": OnRows(low_rank(), SPLIT),
    "a product on a block": OnBlock(low_rank(7), 6, 7),
    "a product on columns": OnColumns(low_rank(columns=4), [0, 2, 3, 7]),
    "a product, turned": Transposed(low_rank(M, N)),
    "products of experts": ExpertProducts(random(5, 5, K), random(5, K, M), 0.3),
    "DoRA of rows": DecomposedRows(low_rank(), magnitude_of(SPELLINGS[".dora_scale"], random(N).abs())),
    "DoRA of rows of rows": OnRows(
        DecomposedRows(low_rank(), magnitude_of(SPELLINGS[".magnitude"], random(N).abs())), SPLIT
    ),
    "DoRA of columns": DecomposedColumns(low_rank(), magnitude_of(SPELLINGS[".dora_scale"], random(M).abs())),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_the_same_in_blocks_of_any_size(change):
    weight = random(25, M) if isinstance(change, ExpertProducts) else random(N, M)

    def changed(count):
        rows = len(weight) if change.together == 0 else count
        blocks = [(first, weight[first : first + rows]) for first in range(0, len(weight), rows)]
        own = change.settled(lambda: ((first, block.clone()) for first, block in blocks), 0.5)
        found = [(first, block.clone()) for first, block in blocks]
        for first, block in found:
            own.fold(block, first, 0.5)
        return torch.cat([block for _, block in found])

    whole = changed(len(weight))
    assert not torch.equal(whole, weight)
    for count in range(1, 9):
        assert torch.equal(changed(count), whole), f"in blocks of {count} rows"


@pytest.mark.parametrize(
    ("elements", "together", "rows"),
    [
        (1, 1, 1),
        (30, 1, 3),  # a row has ten numbers
        (40, 1, 4),
        (79, 1, 4),
        (80, 1, 8),
        (100, 5, 10),  # twenty rows are the least that are whole groups and whole for a kernel
        (390, 5, 20),
        (390, 0, 60),
        (1000, 1, 60),
    ],
)
def test_rows_are_cut_so_that_nothing_is_filled_up_where_there_is_room_for_more(elements, together, rows):
    info = TensorInfo("weight", "F32", (60, 10), "", 0, 2400)
    assert ROWS_AT_ONCE == 4
    assert cut(info, elements, together).rows == rows


@pytest.mark.parametrize("kernel", [rounded_once, term_by_term, backwards])
@pytest.mark.parametrize("rank", [1, 2, 4, 16, 64, 250])
def test_a_lora_is_within_the_stated_bound_whatever_the_order_of_adding(rank, kernel):
    weight, up, down, scale = random(40, 30), random(40, rank), random(rank, 30), -0.7
    exact = weight.double() + scale * (up.double() @ down.double())
    largest = weight.double().abs() + abs(scale) * (up.double().abs() @ down.double().abs())
    with row_dependent_products(lambda rows, columns: kernel):
        LowRank(up, down, 2 * scale).fold(weight, 0, 0.5)
    # docs/merging.md has twice as much, for two processors.
    assert ((weight.double() - exact).abs() <= (rank + 2) * 2.0**-24 * largest).all()
