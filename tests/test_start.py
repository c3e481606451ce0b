"""Signals from the first moment of a process to its last: one sentence at most, no traceback, nothing half-done."""

import os
import signal
import sys

import pytest
from adapters import base, loras

from lora_inspect.interrupt import WORDS

# Sends itself a signal, twice if told so, at the first import of a module, or at the end.
SIGNALLED = """
import atexit, os, signal, sys
number, times, moment = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
def send():
    for _ in range(times):
        os.kill(os.getpid(), number)
class Watch:
    sent = False
    def find_spec(self, name, path=None, target=None):
        if name == moment and not self.sent:
            self.sent = True
            send()
        elif name == "torch.nn" and self.sent and number == signal.SIGINT:
            os.write(2, b"torch is loaded all the same")
if moment == "the end":
    atexit.register(send)
sys.meta_path.insert(0, Watch())
sys.argv[1:] = sys.argv[4:]
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from lora_inspect.start import main
main()
"""


@pytest.fixture
def merge(run_process, write_safetensors, tmp_path):
    pair = write_safetensors(base(), name="base.safetensors"), write_safetensors(loras(), name="adapter.safetensors")

    def merge_with(number, times, moment):
        words = ["merge", *pair, "-o", "out.safetensors"]
        shown = run_process("-c", SIGNALLED, str(int(number)), str(times), moment, *words)
        return shown, sorted({*os.listdir(tmp_path)} - {"base.safetensors", "adapter.safetensors"})

    return merge_with


@pytest.mark.parametrize(("moment", "times"), [("click", 2), ("lora_inspect.ops.merge", 1), ("torch", 1),
                                               ("torch._C", 2)])  # fmt: skip
def test_an_interrupt_is_one_sentence_at_any_moment(moment, times, merge):
    shown, left = merge(signal.SIGINT, times, moment)
    assert (shown.status, shown.stdout, left) == (130, "", [])
    assert shown.stderr.strip() == f"Error: {WORDS}"


@pytest.mark.parametrize(
    ("number", "times", "status"), [(signal.SIGTERM, 2, 143), (signal.SIGHUP, 1, 129)], ids=["TERM", "HUP"]
)
@pytest.mark.slow
def test_an_end_from_outside_waits_for_torch(number, times, status, merge):
    shown, left = merge(number, times, "torch._C")
    assert (shown.status, shown.stdout, shown.stderr, left) == (status, "", "", [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
@pytest.mark.slow
def test_a_signal_at_the_end_changes_nothing(number, merge):
    shown, left = merge(number, 2, "the end")
    assert (shown.status, shown.stderr, left) == (0, "", ["out.safetensors"])
    assert "merged 3 modules" in shown.stdout


def test_a_missing_click_is_one_sentence(run_process):
    code = "import sys; sys.modules['click'] = None; from lora_inspect.start import main; main()"
    shown = run_process("-c", code, "--help")
    assert (shown.status, shown.stdout, shown.stderr.count("\n")) == (3, "", 1)
    assert shown.stderr.startswith("Error: a library that lora-inspect needs cannot be loaded (")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_too_few_files_to_load_the_commands_is_one_sentence(run_process):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))"
    shown = run_process("-c", f"from lora_inspect.start import main; {limit}; main()", "--help")
    assert (shown.status, shown.stdout) == (3, "")
    assert shown.stderr == (
        "Error: a part of lora-inspect cannot be loaded (Too many open files); check its installation and limits.\n"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="a folder that is in use cannot be removed there")
def test_a_working_folder_that_is_gone_is_named(run_process, write_safetensors, tmp_path):
    names = "base.safetensors", "adapter.safetensors"
    files = [write_safetensors(tensors, name=name) for tensors, name in zip((base(), loras()), names, strict=True)]
    (tmp_path / "gone").mkdir()
    code = "import os; os.chdir('gone'); os.rmdir('../gone'); from lora_inspect.start import main; main()"
    shown = run_process("-c", code, "merge", *files, "-o", tmp_path / "out.safetensors")
    assert (shown.status, shown.stdout, sorted(os.listdir(tmp_path))) == (3, "", sorted(names))
    assert shown.stderr == "Error: the working folder no longer exists; change to another one.\n"
