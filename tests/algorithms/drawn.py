"""Torch's `randperm` written out: Fisher and Yates's shuffle by the numbers of the Mersenne Twister."""

import random

import torch


def drawn(count: int, entries: int, seed: int) -> list[int]:
    """The first `count` of a random order of the numbers below `entries`."""
    # That of the generator, whose seeds the tests may shift.
    twister = _twister(torch.Generator().manual_seed(seed).initial_seed())
    order = list(range(entries))
    for at in range(entries - 1):
        other = at + twister.getrandbits(32) % (entries - at)
        order[at], order[other] = order[other], order[at]
    return order[:count]


def _twister(seed: int) -> random.Random:
    """Begun as Matsumoto and Nishimura begin it with one number; Python's own begins with a list of them."""
    state = [seed % 2**32]
    for at in range(1, 624):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + at) % 2**32)
    found = random.Random()
    found.setstate((3, (*state, 624), None))
    return found
