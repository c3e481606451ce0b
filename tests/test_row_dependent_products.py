"""The products of `row_dependent_products`: they are those of torch, and their last bits show the shape."""

import threading
from fractions import Fraction
from operator import mul

import pytest
import torch
from row_dependent_products import rest_apart, rounded_once, row_dependent_products, term_by_term
from torch.nn import functional

N, K, M = 8, 60, 9


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


LEFT, RIGHT, LINE, OWN = random(N, K), random(K, M), random(K), random(N, M)
MANY, OTHERS, BATCH = random(2, N, K), random(2, K, M), random(2, N, M)
FORMS = {
    "@": lambda rows: LEFT[:rows] @ RIGHT,
    "matmul": lambda rows: torch.matmul(LEFT[:rows], RIGHT),
    "matmul, out": lambda rows: torch.matmul(LEFT[:rows], RIGHT, out=torch.empty(rows, M)),
    "matmul of a batch": lambda rows: torch.matmul(MANY[:, :rows], RIGHT),
    "mm": lambda rows: LEFT[:rows].mm(RIGHT),
    "mm, out": lambda rows: torch.mm(LEFT[:rows], RIGHT, out=torch.empty(rows, M)),
    "addmm": lambda rows: torch.addmm(OWN[:rows], LEFT[:rows], RIGHT, beta=0.5, alpha=2.0),
    "addmm_": lambda rows: OWN[:rows].clone().addmm_(LEFT[:rows], RIGHT, alpha=-1),
    "addmm, out": lambda rows: torch.addmm(OWN[:rows], LEFT[:rows], RIGHT, out=torch.empty(rows, M)),
    "bmm": lambda rows: torch.bmm(MANY[:, :rows], OTHERS),
    "baddbmm": lambda rows: torch.baddbmm(BATCH[:, :rows], MANY[:, :rows], OTHERS),
    "baddbmm_": lambda rows: BATCH[:, :rows].clone().baddbmm_(MANY[:, :rows], OTHERS),
    "addbmm": lambda rows: torch.addbmm(OWN[:rows], MANY[:, :rows], OTHERS),
    "einsum": lambda rows: torch.einsum("nk,km->nm", LEFT[:rows], RIGHT),
    "tensordot": lambda rows: torch.tensordot(LEFT[:rows], RIGHT, 1),
    "linear": lambda rows: functional.linear(LEFT[:rows], RIGHT.T),
    "linear with a bias": lambda rows: functional.linear(LEFT[:rows], RIGHT.T, random(M)),
    "mv": lambda rows: LEFT[:rows].mv(LINE),
    "addmv": lambda rows: torch.addmv(random(N)[:rows], LEFT[:rows], LINE),
    "addmv_": lambda rows: random(N)[:rows].addmv_(LEFT[:rows], LINE),
    "dot": lambda rows: torch.dot(LINE, RIGHT[:, 0]),
    "matmul of vectors": lambda rows: LINE @ RIGHT[:, 0],
}
# Whatever their rows, these have one column.
OF_ONE_COLUMN = ("mv", "addmv", "addmv_", "dot", "matmul of vectors")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_product_is_replaced(form):
    due = FORMS[form](N)
    with row_dependent_products() as mode:
        found = FORMS[form](N)
    assert mode.replaced == 1
    torch.testing.assert_close(found, due)


@pytest.mark.parametrize("form", [form for form in FORMS if form not in OF_ONE_COLUMN])
def test_few_rows_are_added_in_another_order_than_many(form):
    with row_dependent_products():
        whole, most, few = (FORMS[form](rows) for rows in (N, 4, 3))
        # The batch may come first.
        assert torch.equal(most, whole[..., :4, :])
        assert not torch.equal(few, whole[..., :3, :])
    torch.testing.assert_close(few, whole[..., :3, :])


@pytest.mark.parametrize("form", [form for form in FORMS if form not in OF_ONE_COLUMN])
def test_rows_that_are_left_over_are_added_in_another_order(form):
    with row_dependent_products(rest_apart):
        whole, most, rest = (FORMS[form](rows) for rows in (N, 4, 7))
    assert torch.equal(most, rest[..., :4, :])
    assert not torch.equal(rest[..., 4:, :], whole[..., 4:7, :])
    torch.testing.assert_close(rest, whole[..., :7, :])


def test_few_columns_are_added_in_another_order_too():
    with row_dependent_products():
        assert torch.equal(LEFT @ RIGHT[:, :4], (LEFT @ RIGHT)[:, :4])
        assert not torch.equal(LEFT @ RIGHT[:, :3], (LEFT @ RIGHT)[:, :3])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_replaced_in_inference_mode(form):
    with row_dependent_products():
        due = FORMS[form](N)
        with torch.inference_mode(), row_dependent_products() as mode:
            assert torch.equal(FORMS[form](N), due)
    assert mode.replaced == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_added_in_half_precision_is_rounded_with_the_sum(dtype):
    own, left, right = OWN.to(dtype), LEFT.to(dtype), RIGHT.to(dtype)
    with row_dependent_products():
        found = torch.addmm(own, left, right)
    exact = own.double() + left.double() @ right.double()
    assert ((found.double() - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact.abs() + 1e-5).all()


def test_gradients_go_through_them():
    weight = RIGHT.clone().requires_grad_()
    with row_dependent_products() as mode:
        (LEFT @ weight).sum().backward()
    assert mode.replaced == 2
    torch.testing.assert_close(weight.grad, LEFT.T @ torch.ones(N, M))


def test_all_threads_have_them():
    found = []
    with row_dependent_products() as mode:
        thread = threading.Thread(target=lambda: found.append(LEFT[:3] @ RIGHT))
        thread.start()
        thread.join()
        assert mode.replaced == 1
        assert torch.equal(found[0], LEFT[:3] @ RIGHT)


def test_behind_the_block_all_is_as_it_was():
    due = LEFT @ RIGHT
    with row_dependent_products(lambda rows, columns: lambda left, right: due + 1):
        assert torch.equal(LEFT @ RIGHT, due + 1)
    assert torch.equal(LEFT @ RIGHT, due)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_both_kernels_are_the_product_and_differ_in_its_last_bits(dtype):
    left, right = LEFT.to(dtype), RIGHT.to(dtype)
    numbers = [[[Fraction(number) for number in row] for row in one.tolist()] for one in (left, right.T)]
    exact = torch.tensor(
        [[float(sum(map(mul, row, column))) for column in numbers[1]] for row in numbers[0]], dtype=torch.float64
    )
    once, by_term = rounded_once(left, right), term_by_term(left, right)
    assert torch.equal(once, exact.to(dtype))
    assert not torch.equal(by_term, once)
    torch.testing.assert_close(by_term, once, rtol=8 * torch.finfo(dtype).eps, atol=K * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_exact_is_so_in_both(dtype):
    left, right = (100 * LEFT).round().to(dtype), (100 * RIGHT).round().to(dtype)
    assert torch.equal(rounded_once(left, right), term_by_term(left, right))


def test_two_terms_are_enough_to_tell_them_apart():
    for dtype in (torch.float32, torch.float64):
        left, right = random(N, 2).to(dtype) / 3, random(2, M).to(dtype) / 3
        assert not torch.equal(rounded_once(left, right), term_by_term(left, right))


def test_what_is_not_finite_stays_so():
    left = torch.tensor([[torch.inf, 1.0], [1e300, 1e300]], dtype=torch.float64)
    right = torch.tensor([[1.0], [1e300]], dtype=torch.float64)
    assert rounded_once(left, right).tolist() == term_by_term(left, right).tolist() == [[torch.inf], [torch.inf]]
