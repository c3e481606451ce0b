"""Constructed adapters with known directions, as files of a small model, and the commands that `compare` prints."""

import os
import shlex

import numpy
from safetensors.numpy import save_file

BLOCKS, LEAVES = range(4), ("self_attn_q", "self_attn_k", "self_attn_v")
LAYERS = [f"lora_unet_blocks_{block}_{leaf}" for block in BLOCKS for leaf in LEAVES]
ROWS, COLUMNS = 96, 80
VALUES = (2.0, 1.8, 1.6, 1.4)
SPIKED = "lora_unet_blocks_2_self_attn_k"


def directions(size, count, numbers):
    return numpy.linalg.qr(numbers.standard_normal((size, count)))[0]


def drawn(seed, layers=LAYERS, values=VALUES):
    """Factors of changes with these singular values in drawn directions."""
    numbers = numpy.random.default_rng(seed)
    return {
        name: (
            directions(ROWS, len(values), numbers) * numpy.array(values),
            directions(COLUMNS, len(values), numbers).T,
        )
        for name in layers
    }


def plus(*terms):
    """The sum of adapters times numbers, with the factors of all side by side."""
    return {
        name: (
            numpy.hstack([factor * own[name][0] for factor, own in terms]),
            numpy.vstack([own[name][1] for _, own in terms]),
        )
        for name in terms[0][1]
    }


def with_direction(own, value, seed):
    """The adapter with the first direction of one layer drawn by a seed of its own, and of this value."""
    numbers = numpy.random.default_rng(seed)
    up, down = (factor.copy() for factor in own[SPIKED])
    up[:, 0], down[0] = value * directions(ROWS, 1, numbers)[:, 0], directions(COLUMNS, 1, numbers)[:, 0]
    return {**own, SPIKED: (up, down)}


def write(name, own):
    tensors = {}
    for layer, (up, down) in own.items():
        tensors |= {
            f"{layer}.lora_up.weight": numpy.ascontiguousarray(up, numpy.float32),
            f"{layer}.lora_down.weight": numpy.ascontiguousarray(down, numpy.float32),
            f"{layer}.alpha": numpy.array(len(down), numpy.float32),
        }
    save_file(tensors, f"{name}.safetensors", {"ss_base_model_version": "wan2.1"})


def dense(*owns):
    """The sum of changes as matrices, by layer."""
    return {
        name: sum(own[name][0] @ own[name][1] for own in owns if name in own) for own in owns for name in own
    }  # fmt: skip


def command_of(shown):
    """The last line of the result: the command, as it is printed."""
    return shown.stdout.splitlines()[-1].strip()


def run_command(command, run):
    """Run a command as a shell would, and return its output; fails unless it ends with 0 and writes what it names."""
    program, *words = shlex.split(command)
    assert program == "lora-inspect"
    ended = run(*words)
    assert ended.status == 0, ended.stderr
    assert os.path.exists(words[words.index("-o") + 1])
    return words[words.index("-o") + 1]


A, B = drawn(1), drawn(2)
IN_BLOCK_1 = [name for name in LAYERS if "blocks_1" in name]
NEARLY_OPPOSITE = {**B, **{name: own for name, own in plus((-1.0, A), (0.2, B)).items() if name in IN_BLOCK_1}}
# The cosine of a and -0.35 a + b is about -0.35 / √(1 + 0.35²) = -0.33.
PARTLY_OPPOSITE = plus((-0.35, A), (1.0, drawn(3)))
