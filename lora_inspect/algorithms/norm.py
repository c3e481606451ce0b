"""Differences of the weight and the bias of a norm layer. Source: the `NormModule` of lycoris-lora."""

from lora_inspect.algorithms.full import difference_of
from lora_inspect.algorithms.record import BIAS, WEIGHT

ALGORITHMS = (
    difference_of(WEIGHT, ".w_norm", "norm", "a norm difference"),
    difference_of(BIAS, ".b_norm", "norm_bias", "a norm bias difference"),
)
