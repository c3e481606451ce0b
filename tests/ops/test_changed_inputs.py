"""An input that does not stay what it was while a command reads it: an error that names it, and no output."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bases import write_shards
from pairs import crossed
from safetensors.torch import save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

MODULES = 4
SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def save_adapter(path, seed, dora=False):
    new = tensors(seed)
    factors = {}
    for index in range(MODULES):
        factors |= {
            f"base_model.model.blocks.{index}.q.lora_A.weight": new(2, 6),
            f"base_model.model.blocks.{index}.q.lora_B.weight": new(8, 2),
        }
        if dora:
            factors[f"base_model.model.blocks.{index}.q.lora_magnitude_vector"] = new(8).abs() + 1
    path.mkdir(exist_ok=True)
    save_file(factors, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "use_dora": dora}
    (path / "adapter_config.json").write_text(json.dumps(config))


def save_base(path, seed):
    new = tensors(seed)
    weights = {f"blocks.{index}.q.weight": new(8, 6) for index in range(MODULES)}
    weights |= {f"blocks.{index}.norm.weight": new(8) for index in range(MODULES)}
    names = sorted(weights)
    path.mkdir(exist_ok=True)
    halves = {SHARDS[0]: names[: len(names) // 2], SHARDS[1]: names[len(names) // 2 :]}
    write_shards(path, {shard: {name: weights[name] for name in part} for shard, part in halves.items()})
    (path / "config.json").write_text('{"model_type": "toy"}')
    (path / "1_Pooling").mkdir(exist_ok=True)
    (path / "1_Pooling" / "config.json").write_text('{"pooling": "mean"}')
    save_file(weights, path.with_suffix(".safetensors"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A base (`base.safetensors`, and in shards `base`) and adapters (`peft`, `dora`); `new` holds others of them."""
    (tmp_path / "new").mkdir()
    for root, seed in ((tmp_path, 1), (tmp_path / "new", 2)):
        save_base(root / "base", seed)
        save_adapter(root / "peft", seed)
        save_adapter(root / "dora", seed, dora=True)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def overwrite(path):
    content = (Path("new") / path).read_bytes()
    with path.open("r+b") as handle:
        handle.write(content)


# The same header and another content of the same size where the file is made of tensors.
CHANGES = {
    "replaced by rename": lambda path: (Path("new") / path).replace(path),
    "rewritten in place": overwrite,
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 8),
    "grown": lambda path: os.truncate(path, path.stat().st_size + 8),
    "touched": lambda path: os.utime(path),
    "removed": os.unlink,
    "turned into a pipe": lambda path: (os.unlink(path), os.mkfifo(path)),
}
MOMENTS = ["before the first byte", "in the middle", "before the end"]


class Interference:
    """Changes a file once, at a moment of a command: at its first progress, or just before the output is renamed.

    That is when `total` was told to the progress; where a command tells less than all, when it sends its output to the
    disk.
    """

    def __init__(self, moment, change, path, monkeypatch, total=None):
        self.change, self.path, self.done = change, Path(path), False
        self.moment, self.left = moment, total
        if moment == "before the end" and total is None:
            real = os.fsync
            monkeypatch.setattr(os, "fsync", lambda descriptor: (self.act(), real(descriptor))[1])

    def act(self):
        if not self.done:
            self.change(self.path)
            self.done = True

    def progress(self, count):
        if self.left is not None:
            self.left -= count
        if self.moment == "in the middle" or (self.moment == "before the end" and self.left == 0):
            self.act()


def refused(path, action):
    with pytest.raises(LoraInspectError) as error:
        action()
    assert str(error.value) == f"{path}: it changed while it was read; run the command again."
    assert os.listdir("out") == []


OUTPUT = {"base.safetensors": "out/merged.safetensors", "base": "out/merged"}
MERGED_FILES = [
    ("base.safetensors", "peft", "base.safetensors"),
    ("base.safetensors", "peft", "peft/adapter_model.safetensors"),
    ("base.safetensors", "peft", "peft/adapter_config.json"),
    ("base.safetensors", "peft/adapter_model.safetensors", "peft/adapter_config.json"),
    ("base", "peft", f"base/{SHARDS[0]}"),
    ("base", "peft", f"base/{SHARDS[1]}"),
    ("base", "peft", "base/model.safetensors.index.json"),
    ("base", "peft", "base/config.json"),
    ("base", "peft", "base/1_Pooling/config.json"),
    ("base", "peft", "peft/adapter_model.safetensors"),
]


@crossed(files={"-".join(files): files for files in MERGED_FILES}, change=CHANGES, moment=MOMENTS)
def test_merge_refuses_an_input_that_changes(files, change, moment, place, monkeypatch):
    base, adapter, path = files
    plan = plan_merge(base, [(adapter, 1.0)], MergeOptions())
    interference = Interference(moment, change, path, monkeypatch, plan.bytes)
    if moment == "before the first byte":
        interference.act()
    refused(path, lambda: merge(plan, OUTPUT[base], progress=interference.progress))
    assert interference.done


CONVERTED_FILES = [
    ("peft", {}, "peft/adapter_model.safetensors"),
    ("peft", {}, "peft/adapter_config.json"),
    ("dora", {"base": "base.safetensors", "rank": 4}, "base.safetensors"),
    ("dora", {"base": "base", "rank": 4}, f"base/{SHARDS[1]}"),
    ("dora", {"base": "base", "rank": 4}, "base/model.safetensors.index.json"),
    ("dora", {"base": "base", "rank": 4}, "dora/adapter_model.safetensors"),
    ("dora", {"keep_dora": True}, "dora/adapter_model.safetensors"),
]


@crossed(files={" ".join(map(str, files)): files for files in CONVERTED_FILES}, change=CHANGES, moment=MOMENTS[1:])
def test_convert_refuses_an_input_that_changes(files, change, moment, place, monkeypatch):
    adapter, options, path = files
    interference = Interference(moment, change, path, monkeypatch)
    converting = ConvertOptions(allow_loss=True, **options)
    refused(path, lambda: convert_to_standard(adapter, "out/converted", converting, progress=interference.progress))
    assert interference.done


@pytest.mark.parametrize("base", ["base.safetensors", "base"])
def test_nothing_is_wrong_where_only_other_files_change(base, place):
    plan = plan_merge(base, [("peft", 1.0)], MergeOptions())

    def elsewhere(count):
        os.utime("dora/adapter_model.safetensors")
        os.utime("base" if base != "base" else "base.safetensors")
        Path("peft/README.md").write_text("about the adapter")

    merge(plan, OUTPUT[base], progress=elsewhere)
    assert os.listdir("out") == [os.path.basename(OUTPUT[base])]


def test_the_old_output_stays_where_an_input_changes(place):
    Path("out/merged.safetensors").write_text("old")
    plan = plan_merge("base.safetensors", [("peft", 1.0)], MergeOptions())
    os.utime("base.safetensors")
    with pytest.raises(LoraInspectError, match="it changed while it was read"):
        merge(plan, "out/merged.safetensors", force=True)
    assert Path("out/merged.safetensors").read_text() == "old"
    assert os.listdir("out") == ["merged.safetensors"]


def test_a_file_that_comes_back_is_no_mixture(place, monkeypatch):
    """Another file for a moment only: its bytes are never read, so the output is that of the first one."""
    plan = plan_merge("base.safetensors", [("peft", 1.0)], MergeOptions())
    merge(plan, "out/undisturbed.safetensors")
    started = []

    def there_and_back(count):
        if not started:
            started.append(count)
            os.rename("peft/adapter_model.safetensors", "aside")
            os.rename("new/peft/adapter_model.safetensors", "peft/adapter_model.safetensors")

    refused_by = "peft/adapter_model.safetensors"
    with pytest.raises(LoraInspectError, match=refused_by):
        merge(plan, "out/merged.safetensors", progress=there_and_back)
    os.rename("aside", refused_by)
    merge(plan, "out/merged.safetensors")
    assert Path("out/merged.safetensors").read_bytes() == Path("out/undisturbed.safetensors").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit of descriptors to set")
@pytest.mark.slow
def test_two_hundred_shards_are_opened_one_at_a_time(tmp_path):
    count, module = 200, "base_model.model.blocks.{}.q"
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    for index in range(count):
        save_file({f"blocks.{index}.q.weight": torch.ones(4, 4)}, base / f"m-{index + 1:05}-of-{count:05}.safetensors")
    factors = {f"{module.format(i)}.lora_{side}.weight": torch.ones(4, 4) for i in range(count) for side in "AB"}
    save_file(factors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "from lora_inspect.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, "merge", str(base), str(adapter), "-o", str(tmp_path / "out"), "--json"]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["modules_merged"] == count
    assert len(os.listdir(tmp_path / "out")) == count


class TestInputsThatAreNoFiles:
    """Pipes, devices and what is gone: one sentence, and never a command that waits."""

    @pytest.mark.parametrize("argument", ["base", "adapter"])
    def test_a_pipe_is_refused(self, argument, place, run):
        os.mkfifo("pipe.safetensors")
        paths = {"base": "base.safetensors", "adapter": "peft", argument: "pipe.safetensors"}
        refusal = run("merge", paths["base"], paths["adapter"], "-o", "out/merged.safetensors").refusal
        assert refusal == "pipe.safetensors: it is neither a file nor a folder; name a file on a disk."

    @pytest.mark.parametrize("name", [f"base/{SHARDS[1]}", "base/model.safetensors.index.json"])
    def test_a_pipe_in_a_folder_is_refused(self, name, place, run):
        os.unlink(name)
        os.mkfifo(name)
        assert run("merge", "base", "peft", "-o", "out/merged").refusal.startswith(f"{name}: it is neither a file")

    def test_a_pipe_on_stdin_is_refused(self, place):
        root = Path(__file__).parents[2]
        command = [sys.executable, "-m", "lora_inspect", "merge", "/dev/stdin", "peft", "-o", "out/merged.safetensors"]
        content = Path("base.safetensors").read_bytes()
        ended = subprocess.run(command, input=content, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True)
        assert ended.returncode == 1
        assert ended.stderr.decode() == (
            "Error: /dev/stdin: it is neither a file nor a folder; name a file on a disk.\n"
        )
        assert os.listdir("out") == []

    @pytest.mark.parametrize("name", ["base.safetensors", "peft/adapter_model.safetensors"])
    def test_a_file_that_vanishes_between_look_and_opening_is_one_sentence(self, name, place, run, monkeypatch):
        real = os.path.isfile

        def look(path):
            found = real(path)
            if str(path) == name and found:
                os.unlink(path)
            return found

        monkeypatch.setattr(os.path, "isfile", look)
        refusal = run(
            "merge", "base.safetensors", "peft/adapter_model.safetensors", "-o", "out/merged.safetensors"
        ).failure
        assert refusal == f"{name}: it cannot be read (No such file or directory); check the path and its rights."
