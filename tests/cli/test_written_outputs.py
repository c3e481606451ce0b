"""Every verb that writes: what killed runs left beside its output, and a standard output that refuses its result."""

import errno
import io
import os
import shutil
import sys

import click
import pytest
import torch
from adapters import drawn_lora
from safetensors.torch import save_file

from lora_inspect.cli import main
from lora_inspect.cli.group import cli
from lora_inspect.files import temp_files

WIDTH = 8
MODULES = [f"lora_unet_blocks_{number}_q" for number in range(2)]
RANDOM = "0123456789abcdef"
# By verb: the words before `-o OUT`. merged.safetensors is the merge of base.safetensors and a.safetensors.
WRITING = {
    ("check",): ["check", "stale.safetensors", "--fix"],
    ("merge",): ["merge", "base.safetensors", "a.safetensors"],
    ("unmerge",): ["unmerge", "merged.safetensors", "a.safetensors", "--base", "base.safetensors"],
    ("convert",): ["convert", "a.safetensors"],
    ("combine",): ["combine", "a.safetensors", "b.safetensors"],
    ("resize",): ["resize", "a.safetensors", "--rank", "1"],
    ("extract",): ["extract", "merged.safetensors", "base.safetensors", "--rank", "2"],
    ("average",): ["average", "a.safetensors", "b.safetensors"],
    ("report",): ["report", "a.safetensors"],
    ("metadata", "set"): ["metadata", "set", "a.safetensors", "title=T"],
    ("metadata", "unset"): ["metadata", "unset", "stale.safetensors", "sshs_model_hash"],
    ("metadata", "copy"): ["metadata", "copy", "a.safetensors", "--from", "stale.safetensors"],
    ("metadata", "strip"): ["metadata", "strip", "stale.safetensors"],
}


def iter_commands(group=cli, words=()):
    """Yield the words and the command of each verb below a group."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from iter_commands(command, (*words, name))
        else:
            yield (*words, name), command


def test_table_has_every_verb_with_an_output():
    with_output = {
        words for words, command in iter_commands() if "output" in [option.name for option in command.params]
    }
    assert set(WRITING) == with_output


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with the files that WRITING names."""
    folder = tmp_path_factory.mktemp("inputs")
    for seed, name in enumerate("ab"):
        adapter = {}
        for module in MODULES:
            adapter |= drawn_lora(module, seed=seed, rank=2, alpha=2.0, out=WIDTH, inputs=WIDTH)
        save_file(adapter, folder / f"{name}.safetensors")
    save_file(adapter, folder / "stale.safetensors", {"sshs_model_hash": "0" * 64})
    generator = torch.Generator().manual_seed(0)
    base = {f"blocks.{number}.q.weight": torch.randn(WIDTH, WIDTH, generator=generator) for number in range(2)}
    save_file(base, folder / "base.safetensors")
    with pytest.raises(SystemExit, match="0"):
        main(
            ["merge", *(f"{folder}/{name}.safetensors" for name in ("base", "a")), "-o", f"{folder}/merged.safetensors"]
        )
    return folder


@pytest.fixture
def place(inputs, tmp_path, monkeypatch):
    """The working folder, a copy of the inputs."""
    folder = tmp_path / "place"
    shutil.copytree(inputs, folder)
    monkeypatch.chdir(folder)
    return folder


def output_of(verb):
    return {("report",): "out.html", ("extract",): "out"}.get(verb, "out.safetensors")


def leave_partial(output):
    """Write the temporary names of a killed run next to an output."""
    partial = f"{output}.{RANDOM}.partial"
    with open(f"{partial}.lock", "wb") as handle:
        handle.write(temp_files._LOCKED)
    if output == "out":
        os.mkdir(partial)
    shutil.copy("a.safetensors", partial)


@pytest.mark.parametrize("verb", WRITING, ids=" ".join)
def test_verb_removes_leftovers_of_killed_run(verb, place, run):
    output, before = output_of(verb), set(os.listdir())
    leave_partial(output)
    assert run(*WRITING[verb], "-o", output).status == 0
    assert set(os.listdir()) - before == {output}


def test_check_names_leftover_without_lock(place, run):
    leave_partial("out.safetensors")
    os.unlink(f"out.safetensors.{RANDOM}.partial.lock")
    shown = run(*WRITING["check",], "-o", "out.safetensors", "--json")
    assert shown.json["notes"] == [
        f"out.safetensors.{RANDOM}.partial: a run that died may have left it; remove it if no run is writing there."
    ]
    assert shown.stderr == f"Note: {shown.json['notes'][0]}\n"


class FullStream(io.StringIO):
    """A standard output on a full disk."""

    def flush(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def run_unprinted(monkeypatch, capsys):
    """Run a command whose standard output is full; returns its status and its standard error."""

    def run_command(*words):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", FullStream())
            with pytest.raises(SystemExit) as ended:
                main(list(words))
        return ended.value.code, capsys.readouterr().err

    return run_command


COMPLETE = (
    "but the standard output does not take the result (No space left on device); send the standard output elsewhere.\n"
)


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("verb", WRITING, ids=" ".join)
def test_full_stdout_names_complete_output(verb, options, place, run_unprinted):
    output, before = output_of(verb), set(os.listdir())
    status, error = run_unprinted(*WRITING[verb], "-o", output, *options)
    assert (status, error) == (3, f"Error: {output}: it is complete, {COMPLETE}")
    assert set(os.listdir()) - before == {output}


def test_full_stdout_after_edit_names_edited_file(place, run, run_unprinted):
    status, error = run_unprinted("metadata", "set", "a.safetensors", "title=T")
    assert (status, error) == (3, f"Error: a.safetensors: it is complete, {COMPLETE}")
    assert run("metadata", "get", "a.safetensors", "title").stdout == "T"


@pytest.mark.parametrize("words", [["convert"], ["resize", "--rank", "1"]], ids=" ".join)
def test_full_stdout_counts_complete_outputs_of_folder(words, place, run_unprinted):
    os.mkdir("adapters")
    for name in ("a.safetensors", "b.safetensors"):
        os.rename(name, os.path.join("adapters", name))
    status, error = run_unprinted(*words, "adapters", "-o", "out")
    assert (status, error) == (3, f"Error: out/a.safetensors: it and 1 more are complete, {COMPLETE}")
    assert sorted(os.listdir("out")) == ["a.safetensors", "b.safetensors"]


def test_full_stdout_of_one_job_names_its_shards(place, fixtures, run_unprinted):
    base, adapter = (str(fixtures / "synthetic" / name) for name in ("base_sharded", "split.safetensors"))
    status, error = run_unprinted("merge", base, adapter, "--shard", "1/2", "-o", "out")
    assert (status, error.count("\n")) == (3, 1)
    shard = error.removeprefix("Error: ").partition(":")[0]
    assert os.path.isfile(shard)
    assert error.endswith(f"complete, {COMPLETE}")


WRITING_NOTHING = [
    ["combine", "a.safetensors", "b.safetensors", "--dry-run"],
    ["metadata", "set", "a.safetensors", "title=T", "--dry-run"],
    ["merge", "base.safetensors", "a.safetensors", "--dry-run"],
    ["info", "a.safetensors"],
]


@pytest.mark.parametrize("words", WRITING_NOTHING, ids=lambda words: words[0])
def test_full_stdout_without_output_claims_none(words, place, run_unprinted):
    # The earlier command of this process has completed one.
    run_unprinted("convert", "b.safetensors", "-o", "out.safetensors")
    status, error = run_unprinted(*words)
    assert (status, error) == (3, "Error: No space left on device; free space, or send the output elsewhere.\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_process_with_full_stdout_prints_one_sentence(place, run_process):
    code = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); from lora_inspect.start import main; main()"
    words = ["convert", place / "a.safetensors", "-o", place / "out.safetensors", "--json"]
    shown = run_process("-c", code, *words)
    assert (shown.status, shown.stderr) == (3, f"Error: {place}/out.safetensors: it is complete, {COMPLETE}")
