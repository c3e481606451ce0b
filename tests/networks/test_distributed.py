"""Two processes on one model: the losses of one process with the whole batch, or an error that says what to do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

import lora_inspect

SCRIPT = Path(__file__).with_name("distributed_run.py")
WORLD = 2

pytestmark = [
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch has no gloo"
    ),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(lora_inspect.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    logs = [folder / f"log{rank}" for rank in range(WORLD)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("wb") as output:
            command = [sys.executable, str(SCRIPT), str(rank), str(WORLD), str(folder)]
            processes.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment))
    try:
        for process in processes:
            process.wait(timeout=120)
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * WORLD, "\n".join(log.read_text() for log in logs)
    return json.loads((folder / "results.json").read_text())


def of(results, case, kind):
    if f"{case}-{kind}" not in results:
        pytest.skip("this torch has no fully_shard")
    return results[f"{case}-{kind}"]


@pytest.mark.parametrize("kind", ["lora", "rslora+dora", "frozen"])
@pytest.mark.parametrize(
    "case",
    ["ddp_never_called", "ddp_called", "fsdp_of_an_adapted_base", "fsdp_before_the_network", "fsdp_of_both"],
)
def test_the_losses_are_those_of_one_process(results, case, kind):
    expected = of(results, "reference", kind)
    assert expected[-1] < 0.99 * expected[0]
    assert of(results, case, kind) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["lora", "rslora+dora"])
@pytest.mark.parametrize(
    ("case", "advice"),
    [
        ("fsdp_of_the_network", "lora_unet_blocks_0_into: .*shard only the base"),
        ("merge_into_shards", "merge before"),
        ("save_shards", r"call full_tensor\(\)"),
    ],
)
def test_what_cannot_work_in_parts_says_so(results, case, kind, advice):
    assert re.search(advice, of(results, case, kind))
