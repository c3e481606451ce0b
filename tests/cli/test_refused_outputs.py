"""Outputs that would overwrite something, bases that do not fit, and disks that refuse: nothing is left behind."""

import errno
import json
import os
import shutil

import pytest
from adapters import IN, OUT, base, lora, loras

Q = "blocks.0.attn.q.weight"
MODULE = "lora_unet_blocks_0_attn_q"


def state(folder):
    found = {}
    for path in sorted(folder.rglob("*")):
        link = os.readlink(path) if path.is_symlink() else None
        found[str(path.relative_to(folder))] = (link, path.read_bytes() if path.is_file() else None)
    return found


@pytest.fixture
def place(tmp_path, write_safetensors, fixtures):
    """base.safetensors, a.safetensors (an adapter of it), links to both, a sharded base and its adapter."""
    write_safetensors(base(), name="base.safetensors")
    write_safetensors(loras(), name="a.safetensors")
    (tmp_path / "folder").mkdir()
    for name in ("other", "other.safetensors"):
        (tmp_path / name).write_text("other")
    for name in ("base", "a"):
        (tmp_path / f"symbolic_{name}").symlink_to(tmp_path / f"{name}.safetensors")
        os.link(tmp_path / f"{name}.safetensors", tmp_path / f"hard_{name}")
    shutil.copytree(fixtures / "synthetic" / "base_sharded", tmp_path / "shards")
    shutil.copy(fixtures / "synthetic" / "split.safetensors", tmp_path / "shards" / "split.sft")
    shutil.copy(fixtures / "synthetic" / "split.safetensors", tmp_path / "split.safetensors")
    return tmp_path


@pytest.fixture
def refuse(run, place, monkeypatch):
    monkeypatch.chdir(place)

    def refuse_command(*command, words=(), status=1):
        before = state(place)
        shown = run(*command)
        sentence = shown.refusal if status == 1 else shown.failure
        assert [word for word in words if word not in sentence] == [], sentence
        assert state(place) == before

    return refuse_command


MERGE, SHARDED = ("merge", "base.safetensors", "a.safetensors"), ("merge", "shards", "split.safetensors")
CONVERT = ("convert", "a.safetensors", "--to-standard")
INPUT = ["it is an input of the command", "choose another output"]

# command, output, with --force, words of the refusal
OUTPUTS = [
    *[(MERGE, name, force, INPUT) for force in (False, True) for name in (
        "base.safetensors", "./folder/../base.safetensors", "symbolic_base", "hard_base",
        "a.safetensors", "symbolic_a", "hard_a")],
    *[(CONVERT, name, force, INPUT) for force in (False, True) for name in ("a.safetensors", "symbolic_a", "hard_a")],
    *[(SHARDED, name, force, INPUT) for force in (False, True) for name in ("shards", "shards/", ".", "shards/..")],
    *[(command, f"nowhere/{name}", force, ["nowhere", "does not exist", "make it first"])
      for force in (False, True)
      for command, name in ((MERGE, "out.safetensors"), (CONVERT, "out.safetensors"), (SHARDED, "out"))],
    *[(command, "other.safetensors", False, ["other.safetensors: it exists", "--force"])
      for command in (MERGE, CONVERT)],
    (SHARDED, "other", False, ["other: it exists", "--force"]),
    (SHARDED, "other", True, ["other: it is a file", "remove it first"]),
    (MERGE, "other/out.safetensors", True, ["other is not a folder", "choose another place"]),
    (MERGE, "n" * 300 + ".safetensors", True, ["File name too long"]),
]  # fmt: skip


@pytest.mark.parametrize(("command", "output", "force", "words"), OUTPUTS, ids=lambda value: str(value)[:24])
def test_an_output_that_may_not_be_written_is_refused(command, output, force, words, refuse):
    status = 3 if {"does not exist", "File name too long"} & set(words) else 1
    refuse(*command, "-o", output, *(["--force"] if force else []), words=words, status=status)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_the_config_of_an_adapter_is_an_input_too(name, refuse, place, fixtures):
    shutil.copytree(fixtures / "minilm-peft-lora-r8", place / "peft")
    refuse("convert", "peft", "--to-standard", "-o", f"peft/{name}", "--force", words=INPUT)
    shutil.copy(place / "peft" / "adapter_config.json", place / "adapter_config.json")
    refuse(*MERGE, "-o", "adapter_config.json", "--force", words=INPUT)


@pytest.mark.parametrize("about", [None, [], {"total_size": 1, "kept": 2}])
def test_an_index_with_odd_metadata_is_merged_and_its_size_is_right(about, run, place, monkeypatch):
    monkeypatch.chdir(place)
    (index,) = (place / "shards").glob("*.index.json")
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "metadata": about}))
    assert run(*SHARDED, "-o", "out").status == 0
    written = json.loads((place / "out" / index.name).read_text())
    assert written["weight_map"] == content["weight_map"]
    assert written["metadata"]["total_size"] == content["metadata"]["total_size"]
    assert ("kept" in written["metadata"]) == ("kept" in (about or []))


@pytest.mark.parametrize("command", [MERGE, CONVERT])
def test_force_replaces_a_file(command, run, place, monkeypatch):
    monkeypatch.chdir(place)
    assert run(*command, "-o", "other.safetensors", "--force").status == 0
    assert run("info", "other.safetensors").status == 0


# adapter, base, words
MISFITS = {
    "another model": (
        loras(),
        {"other.weight": ("F32", (4, 4), 1)},
        ["no module matches", MODULE, "use a base of the adapter's model"]),
    "another width": (loras(1), base(1, out=9), [MODULE, Q, "[6, 5]", "[9, 5]"]),
    "some have no target": (loras(4), base(3), ["1 of 4 modules", "blocks_3_attn_q", "--allow-unmatched"]),
    "swapped": (base(), loras(), ["is an adapter and", "name the base first"]),
    "two bases": (base(), base(), ["belongs to a known adapter", "name an adapter"]),
    "two adapters": (loras(), loras(), ["adapter itself, not a base"]),
    "beyond fp8": (
        loras(1, alpha=16e5), {Q: ("F8_E5M2", (OUT, IN), bytes(30))},
        [Q, "F8_E5M2", "lower the multiplier", "--dtype"]),
    "packed integers": (loras(1), {"blocks.0.attn.q.qweight": ("I32", (1, OUT), 1)}, ["qweight", "merge into"]),
    "NaN in the factors": (
        {**loras(1), f"{MODULE}.lora_down.weight": ("F32", (16, IN), float("nan"))}, base(1),
        [MODULE, Q, "nan", "repair the file"]),
    "infinity in the base": (loras(1), {Q: ("F32", (OUT, IN), float("inf"))}, [MODULE, Q, "inf"]),
    "beyond float16": (
        loras(1, alpha=16e5), {Q: ("F16", (OUT, IN), 1)}, [MODULE, Q, "inf", "F16", "lower the multiplier", "--dtype"]),
}  # fmt: skip


@pytest.mark.parametrize(("adapter", "weights", "words"), MISFITS.values(), ids=MISFITS)
def test_a_base_and_an_adapter_that_do_not_fit_are_refused(adapter, weights, words, refuse, write_safetensors):
    write_safetensors(adapter, name="x.safetensors")
    write_safetensors(weights, name="y.safetensors")
    refuse("merge", "y.safetensors", "x.safetensors", "-o", "out.safetensors", words=words)


def test_a_cast_that_overflows_is_refused_by_the_tensors_name(refuse, write_safetensors):
    write_safetensors({**base(1), "head.weight": ("F32", (2, 2), 1e6)}, name="y.safetensors")
    write_safetensors(loras(1), name="x.safetensors")
    words = ["y.safetensors", "head.weight", "inf", "F16", "--dtype"]
    refuse("merge", "y.safetensors", "x.safetensors", "-o", "out.safetensors", "--dtype", "float16", words=words)


def test_the_second_of_two_adapters_is_checked_like_the_first(refuse, write_safetensors):
    write_safetensors(lora("lora_unet_elsewhere"), name="x.safetensors")
    refuse(
        "merge",
        "base.safetensors",
        "a.safetensors",
        "x.safetensors:0.5",
        "-o",
        "out.safetensors",
        words=["x.safetensors"],
    )
    refuse(
        "merge",
        "base.safetensors",
        "a.safetensors",
        "gone.safetensors",
        "-o",
        "out.safetensors",
        words=["gone.safetensors"],
        status=3,
    )
    refuse(
        "merge",
        "base.safetensors",
        "a.safetensors:one",
        "-o",
        "out.safetensors",
        words=["a.safetensors:one", "no such file"],
    )


# Which call of the system refuses, and how many calls of it succeed before.
DISK = {"open": ("open", 0), "mark": ("write", 0), "first write": ("pwrite", 0), "second write": ("pwrite", 1),
        "third write": ("pwrite", 2), "fsync": ("fsync", 0), "link": ("link", 0)}  # fmt: skip


@pytest.mark.parametrize("moment", DISK)
@pytest.mark.parametrize("command", [MERGE, CONVERT, SHARDED], ids=["merge", "convert", "merge sharded"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_refuses_leaves_nothing(moment, command, code, refuse, monkeypatch):
    name, succeed = DISK[moment]
    real, calls = getattr(os, name), []

    def fail(target, *arguments, **options):
        other = (name == "open" and not arguments[0] & os.O_CREAT) or (name == "write" and target <= 2)
        if other:
            return real(target, *arguments, **options)
        calls.append(target)
        if len(calls) <= succeed:
            return real(target, *arguments, **options)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, name, fail)
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    output = "out" if command is SHARDED else "out.safetensors"
    refuse(*command, "-o", output, words=["out", os.strerror(code), "choose another place"], status=3)
    assert len(calls) > succeed


def test_a_folder_that_cannot_be_made_is_one_sentence(refuse, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "mkdir", fail)
    refuse(*SHARDED, "-o", "out", words=["out: lora-inspect cannot write it (Permission denied)"], status=3)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_one_sentence(refuse, place):
    (place / "folder").chmod(0o500)
    refuse(
        *MERGE,
        "-o",
        "folder/out.safetensors",
        words=["folder/out.safetensors: lora-inspect cannot write it (Permission denied)"],
        status=3,
    )


def test_an_input_that_cannot_be_read_is_one_sentence(refuse, monkeypatch):
    real = open

    def fail(file, *arguments, **options):
        if str(file).endswith("a.safetensors"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), file)
        return real(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", fail)
    refuse(
        *MERGE,
        "-o",
        "out.safetensors",
        words=["a.safetensors", "Permission denied", "check the path and its rights"],
        status=3,
    )
    refuse("info", "a.safetensors", words=["a.safetensors", "Permission denied"], status=3)
