"""`lora-inspect metadata`: what it prints, what it takes, and how it refuses."""

import base64
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors import safe_open

from lora_inspect.editing.edit import NAMED
from lora_inspect.files.safetensors.edit_in_place import read_headed
from lora_inspect.files.safetensors.header_recovery import JOURNAL_ENDING, Journal

PICTURES = {
    "image/jpeg": b"\xff\xd8\xff\xe0" + bytes(20),
    "image/png": b"\x89PNG\r\n\x1a\n" + bytes(20),
    "image/webp": b"RIFF\x14\0\0\0WEBP" + bytes(20),
}


@pytest.fixture
def path(fixtures, tmp_path):
    return shutil.copy(fixtures / "synthetic" / "rslora_flag.safetensors", tmp_path / "a.safetensors")


def metadata_of(path):
    with safe_open(path, "np") as file:
        return file.metadata()


def test_what_is_set_is_told_and_shown(path, run):
    shown = run("metadata", "set", path, "note=a = b", "--title", "Ink", "--trigger-words", "ink drawing")
    assert (shown.status, shown.stderr) == (0, "")
    assert shown.stdout.splitlines() == [
        f"{path}: 3 set",
        "set  modelspec.title           Ink",
        "set  modelspec.trigger_phrase  ink drawing",
        "set  note                      a = b",
    ]
    lines = run("metadata", "show", path).stdout.splitlines()
    assert lines[0].startswith(f"{path}: 8 entries, room for ")
    assert "note                      a = b" in lines
    shown = run("metadata", "unset", path, "modelspec.*", "note")
    assert shown.stdout.splitlines()[0] == f"{path}: 3 removed"
    shown = run("metadata", "unset", path, "ss_network_dim", "--json").json
    assert shown["changes"] == [{"key": "ss_network_dim", "before": "4", "after": None}]


def test_the_json_of_show_has_every_value_whole(path, run):
    value = "x" * 50_000 + "\x7f\x1b"
    (path.parent / "value").write_text(value)
    run("metadata", "set", path, f"k=@{path.parent / 'value'}")
    shown = run("metadata", "show", path, "--json", "--hashes")
    assert shown.json["metadata"]["k"] == value
    assert shown.json["hashes"].keys() >= {"SHA256", "AutoV2", "AutoV3", "sshs_model_hash"}
    assert not set(shown.stdout) & {"\x7f", "\x1b"}


@pytest.mark.slow
@pytest.mark.parametrize("value", ["plain", "", "a\r\nb\n", "日本 \x1b[31m\0", "@@at", "=x"])
def test_get_gives_every_byte_to_a_pipe(value, path, tmp_path):
    (tmp_path / "value").write_bytes(value.encode())
    words = [sys.executable, "-m", "lora_inspect", "metadata"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run([*words, "set", path, f"k=@{tmp_path / 'value'}"], check=True, capture_output=True, env=environment)
    shown = subprocess.run([*words, "get", path, "k"], capture_output=True, env=environment)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, value.encode(), b"")


def test_a_terminal_is_given_nothing_that_it_obeys(path, run, monkeypatch):
    (path.parent / "value").write_text("one\ntwo\x1b[31m")
    run("metadata", "set", path, f"k=@{path.parent / 'value'}")
    monkeypatch.setattr("lora_inspect.cli.terminal.sys.stdout.isatty", lambda: True, raising=False)
    assert run("metadata", "get", path, "k").stdout == "one\ntwo\\x1b[31m\n"


def test_a_key_that_is_not_there_is_refused_with_the_nearest(path, run):
    refusal = run("metadata", "get", path, "ss_network_dims").refusal
    assert refusal == f"{path}: its metadata has no ss_network_dims; name another key (did you mean ss_network_dim?)."
    refusal = run("metadata", "get", path, "zzz").refusal
    assert refusal == f"{path}: its metadata has no zzz; name another key that `lora-inspect metadata show` lists."
    run("metadata", "strip", "--all", path)
    assert run("metadata", "get", path, "zzz").refusal == f"{path}: it has no metadata, so no zzz; set it first."


def test_a_value_that_begins_with_an_at_sign_has_it_twice(path, run):
    run("metadata", "set", path, "k=@@me")
    assert metadata_of(path)["k"] == "@me"
    refusal = run("metadata", "set", path, "k=@nowhere").failure
    assert refusal.startswith("nowhere: it cannot be read (No such file or directory)")
    (path.parent / "bytes").write_bytes(b"\xff")
    assert "it is no text in UTF-8" in run("metadata", "set", path, f"k=@{path.parent / 'bytes'}").refusal


@pytest.mark.parametrize("name", [name for name in NAMED if name != "thumbnail"])
def test_an_option_writes_every_key_that_programs_would_show(name, path, run):
    named = NAMED[name]
    run("metadata", "set", path, *(f"{key}=old" for key in named.others[-1:]))
    run("metadata", "set", path, f"--{name.replace('_', '-')}", "new")
    found = metadata_of(path)
    assert found[named.key] == found[named.others[-1]] == "new"
    assert named.others[0] not in found


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_is_told_by_its_bytes_and_stored_as_a_uri(kind, path, run):
    picture = path.parent / "picture.gif"
    picture.write_bytes(PICTURES[kind])
    assert run("metadata", "set", path, "--thumbnail", picture).status == 0
    start, _, content = metadata_of(path)["modelspec.thumbnail"].partition(",")
    assert start == f"data:{kind};base64"
    assert base64.b64decode(content) == PICTURES[kind]
    assert f"modelspec.thumbnail    {kind}, {len(PICTURES[kind])} bytes" in run("metadata", "show", path).stdout


@pytest.mark.parametrize("content", [b"", b"GIF89a" + bytes(20), b"RIFF\x14\0\0\0WAVE" + bytes(20), b"<svg/>"])
def test_what_is_no_picture_of_these_is_refused(content, path, run):
    (path.parent / "picture.png").write_bytes(content)
    refusal = run("metadata", "set", path, "--thumbnail", path.parent / "picture.png").refusal
    assert refusal.endswith("picture.png: it is no JPEG, PNG or WebP; save the picture as one of these, 256 by 256.")


def test_a_large_picture_is_refused(path, run):
    (path.parent / "picture.png").write_bytes(PICTURES["image/png"] + bytes(1 << 20))
    refusal = run("metadata", "set", path, "--thumbnail", path.parent / "picture.png").refusal
    assert refusal.endswith(
        "but lora-inspect reads at most 1,048,576 of such a file; save the picture smaller, 256 by 256."
    )
    refusal = run("metadata", "set", path, "k=@").failure
    assert refusal == "the empty name: it cannot be read (No such file or directory); check the path and its rights."


@pytest.mark.parametrize("value", ["no", "{'a': 1}", "3", '{"a": 1', "NaN"])
def test_text_under_a_key_that_holds_json_is_refused(value, path, run):
    refusal = run("metadata", "set", path, f"ss_tag_frequency={value}").refusal
    assert refusal.startswith(f"{path}: ss_tag_frequency holds JSON, but ")
    assert run("metadata", "set", path, 'ss_tag_frequency={"a": {"b": 1}}').status == 0


def test_what_is_no_unicode_is_refused(path, run):
    refusal = run("metadata", "set", path, "k=" + os.fsdecode(b"\xff")).refusal
    assert refusal == f"{path}: the value of k is no text in UTF-8; give it as @FILE."


@pytest.mark.parametrize("words", [
    ["set", "PATH"], ["set", "PATH", "no pair"], ["set", "PATH", "a=1", "a=2"], ["unset", "PATH"], ["copy", "PATH"],
    ["set", "PATH", "a=1", "--in-place", "-o", "out.safetensors"], ["get", "PATH"], ["put", "PATH"],
], ids=" ".join)  # fmt: skip
def test_wrong_usage_ends_with_two_and_writes_nothing(words, path, run):
    before = os.stat(path).st_mtime_ns, Path(path).read_bytes()
    shown = run("metadata", *[path if word == "PATH" else word for word in words])
    assert (shown.status, shown.stdout) == (2, "")
    assert (os.stat(path).st_mtime_ns, Path(path).read_bytes()) == before


def test_what_decides_is_refused_in_one_sentence(path, run):
    refusal = run("metadata", "set", path, "lora_inspect.scale=standard").refusal
    assert refusal.startswith(f"{path}: lora_inspect.scale decides how the file is read, and the edit would change ")
    shown = run("metadata", "set", path, "lora_inspect.scale=standard", "--allow-meaning-change")
    assert shown.status == 0
    assert shown.stderr.startswith(
        f"Note: {path}: the edit changes how the file is read: RS-LoRA from yes (stated) to unknown"
    )


def test_strip_says_what_it_keeps(run, write_safetensors):
    tensors = {"lora_unet_a.lora_down.weight": ("F32", (4, 8), 1.0), "lora_unet_a.lora_up.weight": ("F32", (8, 4), 1.0)}
    path = write_safetensors({**tensors, "lora_unet_a.alpha": ("F32", (), 2.0)}, {"lora_inspect.scale": "alpha/rank"})
    run("metadata", "set", path, "a=b")
    shown = run("metadata", "strip", path)
    assert shown.stdout.splitlines() == [
        f"{path}: 1 removed",
        "removed  a  b",
        "kept, as they decide how the file is read: lora_inspect.scale",
    ]


def test_the_hashes_of_a_real_file_are_shown_as_it_states_them(fixtures, run):
    shown = run("metadata", "show", fixtures / "hashed" / "smart_falcon_8_lokr.safetensors", "--hashes")
    lines = [line for line in shown.stdout.splitlines() if line.endswith("  as stated")]
    assert [line.split()[0] for line in lines] == ["sshs_model_hash", "sshs_legacy_hash"]


def test_a_stale_hash_is_shown_beside_the_true_one(path, run):
    run("metadata", "set", path, "sshs_model_hash=1234")
    assert "but the file states 1234" in run("metadata", "show", path, "--hashes").stdout


@pytest.fixture
def torn(path):
    """A file of which a run that was killed has left the header in parts."""
    headed = read_headed(str(path))
    content = path.read_bytes()
    old = content[: headed.data_start]
    new = old.replace(b"wan2.1", b"wan9.9").replace(b"lora_wan", b"lora_xxx")
    assert len(new) == len(old) and new != old  # noqa: PT018
    half = (old.index(b"wan2.1") + old.index(b"lora_wan")) // 2
    path.write_bytes(new[:half] + old[half:] + content[len(old) :])
    (path.parent / (path.name + JOURNAL_ENDING)).write_bytes(Journal(old, new).encoded())
    return path, content


@pytest.mark.parametrize("verb", ["info", "check", "compat"])
def test_every_reader_refuses_a_torn_header_and_names_what_mends_it(verb, torn, run):
    shown = run(verb, torn[0])
    assert shown.status == 1
    assert "run `lora-inspect metadata show` on the file to repair it" in shown.stderr + shown.stdout
    assert run("metadata", "show", torn[0]).status == 0
    assert torn[0].read_bytes() == torn[1]
    assert os.listdir(torn[0].parent) == [torn[0].name]


@pytest.mark.parametrize("words", [["get", "PATH", "ss_network_dim"], ["set", "PATH", "a=b"], ["strip", "PATH"],
                                   ["set", "PATH", "a=b", "--in-place"], ["set", "PATH", "a=b", "--dry-run"],
                                   ["copy", "PATH", "--from", "PATH"]], ids=" ".join)  # fmt: skip
def test_every_verb_of_metadata_mends_one_first(words, torn, run):
    path, _ = torn
    shown = run("metadata", *[path if word == "PATH" else word for word in words])
    assert shown.status == 0 or "has room for" in shown.stderr, shown.stderr
    assert metadata_of(path).get("ss_base_model_version") != "wan9.9"
    assert os.listdir(path.parent) == [path.name]


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(kilobytes)`: the folder of a file system of its own, of that size; then `remount(options)`."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size, options="rw"):
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}k,{options}", "none", place]
        if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        return place

    yield mount
    subprocess.run(["umount", place], capture_output=True)


def test_a_full_disk_keeps_the_file_and_nothing_else(path, small_disk, run):
    place = small_disk(64)
    file = shutil.copy(path, place / "a.safetensors")
    before = file.read_bytes()
    with open(place / "fills", "wb", buffering=0) as handle, suppress(OSError):
        while handle.write(bytes(4096)):
            pass
    for options in ([], ["--in-place"]):
        refusal = run("metadata", "unset", file, "ss_network_module", *options).failure
        assert refusal.startswith(
            f"{file}: lora-inspect cannot write it (No space left on device); free space or choose"
        )
        assert file.read_bytes() == before
        assert sorted(os.listdir(place)) == ["a.safetensors", "fills"]


def test_a_disk_that_is_only_read_is_one_sentence(path, small_disk, run):
    place = small_disk(64)
    file = shutil.copy(path, place / "a.safetensors")
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    for options in ([], ["--in-place"]):
        refusal = run("metadata", "set", file, "a=b", *options).failure
        assert refusal == f"{file}: lora-inspect cannot write it (Read-only file system); choose another place."
    assert run("metadata", "show", file).status == 0
    assert run("metadata", "set", file, "a=b", "-o", path.parent / "b.safetensors").status == 0


def test_the_metadata_of_a_set_is_a_list(fixtures, run):
    records = run("metadata", "show", fixtures / "synthetic" / "base_sharded", "--json").json
    assert [os.path.basename(one["path"]) for one in records] == [
        "diffusion_pytorch_model-00001-of-00002.safetensors",
        "diffusion_pytorch_model-00002-of-00002.safetensors",
    ]


def test_a_configuration_alone_has_none(tmp_path, run):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    assert "a configuration but no weights" in run("metadata", "set", tmp_path, "a=b").refusal
    assert run("metadata", "show", tmp_path).stdout == ""
