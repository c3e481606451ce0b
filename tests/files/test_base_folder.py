"""What lies beside the weights of a base: what is copied, what is left behind, and which links are refused."""

import json
import os
import socket

import pytest
from adapters import base, loras
from make_synthetic import encode

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.base_folder import find_side_files
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

WEIGHTS = "model.safetensors"


def stored(tensors):
    from make_synthetic import element

    numbers = {name: (dtype, shape, element(dtype, value)) for name, (dtype, shape, value) in tensors.items()}
    counts = {name: shape[0] * shape[1] if len(shape) == 2 else 1 for name, (_, shape, _) in tensors.items()}
    return encode({name: (dtype, shape, data * counts[name]) for name, (dtype, shape, data) in numbers.items()})


@pytest.fixture
def folder(tmp_path):
    """A base of one file in `base`, with its configuration; a secret lies beside the folder."""
    root = tmp_path / "base"
    root.mkdir()
    (root / WEIGHTS).write_bytes(stored(base()))
    (root / "config.json").write_text('{"model_type": "toy"}')
    (tmp_path / "secret").write_text("of another user")
    (tmp_path / "adapter.safetensors").write_bytes(stored(loras()))
    return root


@pytest.fixture
def merged(tmp_path):
    """Merges into `out` and returns the result and every path below it with its content."""

    def run(root, force=False):
        adapter = str(tmp_path / "adapter.safetensors")
        result = merge(plan_merge(str(root), [(adapter, 1.0)], MergeOptions()), str(tmp_path / "out"), force)
        return result, contents(tmp_path / "out")

    return run


def contents(root):
    return {
        os.path.relpath(path, root): None if path.is_dir() else path.read_bytes() for path in sorted(root.rglob("*"))
    }


def put(root, **files):
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_subfolders_come_with_all_of_their_files(folder, merged):
    put(folder, **{"1_Pooling__config_dot_json": "{}", "2_Dense__pytorch_model_dot_bin": "a layer of its own"})
    put(folder, vae__diffusion_pytorch_model_dot_safetensors="another component", a__b__c__deep_dot_txt="deep")
    (folder / "2_Normalize").mkdir()
    result, found = merged(folder)
    assert found.pop(WEIGHTS) != (folder / WEIGHTS).read_bytes()
    expected = contents(folder)
    del expected[WEIGHTS]
    assert found == expected
    assert found["2_Normalize"] is None
    assert found["vae/diffusion_pytorch_model.safetensors"] == b"another component"
    files = [name for name, content in expected.items() if content is not None]
    assert sorted(result.files_copied) == sorted(files)
    assert result.left_behind == ()
    assert result.bytes == sum(path.stat().st_size for path in (folder.parent / "out").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.fp16.SAFETENSORS.gguf", "tf_model.h5", "flax_model.msgpack", "rust_model.ot",
     "model.onnx", "pytorch_model.bin.index.json", "optimizer.pt", "consolidated.00.pth", "weights.npz"],
)  # fmt: skip
def test_other_weights_at_the_top_are_left_behind_and_named(name, folder, merged):
    (folder / name).write_text("unmerged")
    result, found = merged(folder)
    assert sorted(found) == ["config.json", WEIGHTS]
    assert result.left_behind == (name,)


@pytest.mark.parametrize("name", ["onnx", "openvino", "original", "coreml", "checkpoint-500", ".git", ".cache"])
def test_folders_with_the_model_in_another_form_are_left_behind_and_named(name, folder, merged):
    put(folder / name, **{"model_dot_bin": "unmerged", "deeper__more_dot_bin": "unmerged"})
    result, found = merged(folder)
    assert sorted(found) == ["config.json", WEIGHTS]
    assert result.left_behind == (f"{name}/",)


@pytest.mark.parametrize("name", ["onnx_config", "vae/onnx", "original_sizes", "checkpoint-best", ".github"])
def test_folders_that_are_only_called_alike_are_copied(name, folder, merged):
    put(folder / name, file_dot_txt="kept")
    result, found = merged(folder)
    assert found[f"{name}/file.txt"] == b"kept"
    assert result.left_behind == ()


@pytest.mark.parametrize("below", ["", "vae/"])
@pytest.mark.parametrize("end", ["", ".lock", ".old", ".gone"])
def test_what_a_dead_run_has_left_in_the_folder_is_left_behind_and_named(end, below, folder, merged):
    (folder / "vae").mkdir()
    file, other = (f"{below}{name}.0123456789abcdef.partial{end}" for name in ("model.safetensors", "merged"))
    (folder / file).write_text("half")
    put(folder / other, model_dot_safetensors="half")
    result, found = merged(folder)
    assert sorted(found) == ["config.json", WEIGHTS, "vae"]
    assert sorted(result.left_behind) == sorted([file, f"{other}/"])


@pytest.mark.parametrize("name", ["x.partial", "x.1234.partial", "0123456789abcdef.partial"])
def test_a_file_that_no_run_of_ours_has_left_is_copied(name, folder, merged):
    (folder / name).write_text("a user's")
    result, found = merged(folder)
    assert found[name] == b"a user's"
    assert result.left_behind == ()


@pytest.mark.parametrize("kind", ["pipe", "socket", "pipe below"])
def test_what_is_no_file_is_left_behind_and_named(kind, folder, merged, monkeypatch):
    name = "sub/pipe" if "below" in kind else "pipe"
    (folder / "sub").mkdir()
    monkeypatch.chdir(folder)
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(name)
    else:
        os.mkfifo(name)
    result, found = merged(folder)
    assert sorted(found) == ["config.json", WEIGHTS, "sub"]
    assert result.left_behind == (name,)


def link(folder, name, target):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.unlink()
    path.symlink_to(target)


# name, target, how the sentence ends
REFUSED_LINKS = {
    "to a file of the system": ("tokenizer.json", "/etc/hostname", "leads outside the folder"),
    "by a relative path": ("tokenizer.json", "../secret", "leads outside the folder"),
    "in a subfolder": ("1_Pooling/config.json", "../../secret", "leads outside the folder"),
    "through another link": ("tokenizer.json", "second", "leads outside the folder"),
    "to a folder outside": ("vae", "/etc", "leads to a folder"),
    "to a folder inside": ("vae", "sub", "leads to a folder"),
    "to the folder itself": ("vae", ".", "leads to a folder"),
    "to the folder above": ("sub/loop", "..", "leads to a folder"),
    "to itself": ("tokenizer.json", "tokenizer.json", "leads nowhere"),
    "to nothing": ("tokenizer.json", "gone", "leads nowhere"),
    "to a device": ("tokenizer.json", "/dev/zero", "leads outside the folder"),
    "to a folder whose name begins alike": ("tokenizer.json", "../base2/secret", "leads outside the folder"),
}


@pytest.mark.parametrize(("name", "target", "how"), REFUSED_LINKS.values(), ids=REFUSED_LINKS)
def test_a_link_out_of_the_folder_is_refused(name, target, how, folder, run, tmp_path):
    (folder / "sub").mkdir()
    if target == "second":
        link(folder, "second", "../secret")
    put(tmp_path / "base2", secret="of another model")
    link(folder, name, target)
    before = sorted(os.listdir(tmp_path))
    for extra in ([], ["--dry-run"]):
        refusal = run("merge", folder, tmp_path / "adapter.safetensors", "-o", tmp_path / "out", *extra).refusal
        at = folder / ("second" if target == "second" else name)
        assert refusal.startswith(f"{at}: it is a link to "), refusal
        assert f"which {how}; put the file itself there or remove the link." in refusal
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("name", [WEIGHTS, "model-00002-of-00002.safetensors", "model.safetensors.index.json"])
def test_weights_and_index_that_are_links_follow_the_same_rule(name, folder, run, tmp_path):
    if name != WEIGHTS:
        (folder / WEIGHTS).unlink()
        whole = base()
        names = sorted(whole)
        shards = {f"model-0000{number}-of-00002.safetensors": part for number, part in ((1, names[:1]), (2, names[1:]))}
        for shard, part in shards.items():
            (folder / shard).write_bytes(stored({tensor: whole[tensor] for tensor in part}))
        weight_map = {tensor: shard for shard, part in shards.items() for tensor in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    arguments = ["merge", folder, tmp_path / "adapter.safetensors", "-o", tmp_path / "out"]
    assert run(*arguments, "--dry-run").status == 0
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to("../elsewhere")
    refusal = run(*arguments).refusal
    assert refusal.startswith(f"{folder / name}: it is a link to ../elsewhere, which leads outside the folder; ")
    assert not (tmp_path / "out").exists()


def test_a_base_that_is_named_by_its_file_may_be_a_link(folder, run, tmp_path):
    (tmp_path / "linked.safetensors").symlink_to(folder / WEIGHTS)
    arguments = ["merge", tmp_path / "linked.safetensors", tmp_path / "adapter.safetensors"]
    assert run(*arguments, "-o", tmp_path / "out.safetensors").status == 0


def test_a_folder_that_is_named_by_a_link_is_that_folder(folder, merged, tmp_path):
    (tmp_path / "linked").symlink_to("base")
    _, found = merged(tmp_path / "linked")
    assert sorted(found) == ["config.json", WEIGHTS]


def test_a_link_inside_the_folder_becomes_its_file(folder, merged):
    put(folder, sub__vocab_dot_txt="words")
    link(folder, "vocab.txt", "sub/vocab.txt")
    link(folder, "sub/again.txt", folder / "vocab.txt")
    _, found = merged(folder)
    assert found["vocab.txt"] == found["sub/vocab.txt"] == found["sub/again.txt"] == b"words"


def test_the_merged_weights_under_a_second_name_are_left_behind(folder, merged):
    link(folder, "latest", WEIGHTS)
    result, found = merged(folder)
    assert sorted(found) == ["config.json", WEIGHTS]
    assert result.left_behind == ("latest",)


def test_a_link_that_would_be_left_behind_anyway_is_not_followed(folder, merged):
    link(folder, "pytorch_model.bin", "/etc/hostname")
    link(folder, ".cache", "/etc")
    result, _ = merged(folder)
    assert result.left_behind == (".cache/", "pytorch_model.bin")


class TestHubCache:
    """models--x/snapshots/y links into models--x/blobs, and nowhere else."""

    @pytest.fixture
    def snapshot(self, folder, tmp_path):
        repository = tmp_path / "hub" / "models--org--toy"
        blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abcd"
        (snapshot / "1_Pooling").mkdir(parents=True)
        blobs.mkdir()
        for number, (name, source) in enumerate(
            {WEIGHTS: folder / WEIGHTS, "config.json": folder / "config.json", "1_Pooling/config.json": None}.items()
        ):
            (blobs / str(number)).write_bytes(source.read_bytes() if source else b'{"pooling_mode": "mean"}')
            (snapshot / name).symlink_to(os.path.relpath(blobs / str(number), (snapshot / name).parent))
        return snapshot

    def test_links_into_its_own_blobs_are_files(self, snapshot, merged, tmp_path):
        _, found = merged(snapshot)
        assert found["config.json"] == b'{"model_type": "toy"}'
        assert found["1_Pooling/config.json"] == b'{"pooling_mode": "mean"}'
        assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))

    def test_a_subfolder_of_a_snapshot_is_a_base_too(self, snapshot, merged):
        (snapshot / "unet").mkdir()
        (snapshot / "unet" / WEIGHTS).symlink_to("../../../blobs/0")
        (snapshot / "unet" / "config.json").symlink_to("../../../blobs/1")
        _, found = merged(snapshot / "unet")
        assert sorted(found) == ["config.json", WEIGHTS]

    @pytest.mark.parametrize(
        "target", ["../../../models--org--other/blobs/0", "../../refs/main", "../other/config.json", "/etc/hostname"]
    )
    def test_links_to_anything_else_are_refused(self, target, snapshot, merged, tmp_path):
        put(tmp_path / "hub", **{"models--org--other__blobs__0": "x", "models--org--toy__refs__main": "x"})
        put(tmp_path / "hub", **{"models--org--toy__snapshots__other__config_dot_json": "x"})
        (snapshot / "tokenizer.json").symlink_to(target)
        with pytest.raises(LoraInspectError, match="which leads outside the folder"):
            merged(snapshot)

    def test_blobs_that_lead_elsewhere_are_no_blobs(self, snapshot, merged, tmp_path):
        blobs = snapshot.parents[1] / "blobs"
        (blobs / "1").unlink()
        (blobs / "1").symlink_to(tmp_path / "secret")
        with pytest.raises(LoraInspectError, match="which leads outside the folder"):
            merged(snapshot)
        blobs.rename(tmp_path / "moved")
        blobs.symlink_to(tmp_path / "moved")
        with pytest.raises(LoraInspectError, match="which leads outside the folder"):
            merged(snapshot)

    def test_folders_of_those_names_elsewhere_are_not_the_cache(self, folder, merged, tmp_path):
        put(tmp_path / "x", **{"blobs__0": "secret"})
        (tmp_path / "x" / "snapshots").mkdir()
        folder.rename(tmp_path / "x" / "snapshots" / "y")
        (tmp_path / "x" / "snapshots" / "y" / "a.txt").symlink_to("../../blobs/0")
        with pytest.raises(LoraInspectError, match="which leads outside the folder"):
            merged(tmp_path / "x" / "snapshots" / "y")


def test_a_file_that_becomes_a_link_while_the_weights_are_merged_is_an_error(folder, tmp_path):
    plan = plan_merge(str(folder), [(str(tmp_path / "adapter.safetensors"), 1.0)], MergeOptions())
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("../secret")
    with pytest.raises(LoraInspectError, match=r"config\.json: it changed while it was read"):
        merge(plan, str(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path)) == ["adapter.safetensors", "base", "secret"]


def test_a_subfolder_that_cannot_be_read_is_an_error(folder, tmp_path, monkeypatch):
    (folder / "sub").mkdir()
    real = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(LoraInspectError, match=r"sub: it cannot be read \(Permission denied\)"):
        find_side_files(open_checkpoint(str(folder)))


def test_an_interrupt_between_side_files_leaves_nothing(folder, tmp_path):
    put(folder, sub__a="a", sub__b="b")
    plan = plan_merge(str(folder), [(str(tmp_path / "adapter.safetensors"), 1.0)], MergeOptions())
    told = []

    def progress(count):
        told.append(count)
        if len(told) == len(base()) + 2:
            raise KeyboardInterrupt

    before = sorted(os.listdir(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        merge(plan, str(tmp_path / "out"), progress=progress)
    assert sorted(os.listdir(tmp_path)) == before


def test_progress_is_told_every_byte(folder, tmp_path):
    put(folder, sub__a="a" * 1000, sub__b="")
    plan = plan_merge(str(folder), [(str(tmp_path / "adapter.safetensors"), 1.0)], MergeOptions())
    told = []
    merge(plan, str(tmp_path / "out"), progress=told.append)
    assert sum(told) == plan.bytes


def test_an_output_with_the_same_subfolders_may_be_replaced(folder, merged, tmp_path):
    put(folder, sub__a_dot_txt="new")
    (folder / "2_Normalize").mkdir()
    merged(folder)
    (tmp_path / "out" / "sub" / "a.txt").write_text("old")
    _, found = merged(folder, force=True)
    assert found["sub/a.txt"] == b"new"
    assert sorted(os.listdir(tmp_path)) == ["adapter.safetensors", "base", "out", "secret"]


@pytest.mark.parametrize("extra", ["sub/thesis.txt", "other/thesis.txt", "other/", "sub/link", "2_Normalize/x"])
def test_an_output_whose_subfolders_hold_something_else_is_never_replaced(extra, folder, merged, tmp_path):
    put(folder, sub__a_dot_txt="new")
    (folder / "2_Normalize").mkdir()
    merged(folder)
    path = tmp_path / "out" / extra
    path.parent.mkdir(exist_ok=True)
    if extra.endswith("/"):
        path.mkdir()
    elif extra.endswith("link"):
        path.symlink_to("/etc")
    else:
        path.write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(LoraInspectError, match=f"the folder holds {extra.split('/')[0]}"):
        merged(folder, force=True)
    assert contents(tmp_path) == before


def test_a_subfolder_of_the_base_is_never_the_output(folder, run, tmp_path):
    put(folder, sub__a_dot_txt="kept")
    arguments = ["merge", folder, tmp_path / "adapter.safetensors", "-o", folder / "sub", "--force"]
    assert "it is an input of the command" in run(*arguments).refusal
    assert (folder / "sub" / "a.txt").read_text() == "kept"


def test_the_summary_says_what_was_copied_and_what_was_left_behind(folder, run, tmp_path):
    put(folder, sub__a_dot_txt="a", pytorch_model_dot_bin="unmerged")
    (folder / "bad\x1b[2Jname.bin").write_text("unmerged")
    arguments = ["merge", folder, tmp_path / "adapter.safetensors", "-o", tmp_path / "out"]
    planned = run(*arguments, "--dry-run")
    assert "2 other files would be copied" in planned.stdout
    assert "left behind in the base's folder: bad\\x1b[2Jname.bin, pytorch_model.bin" in planned.stderr
    done = run(*arguments, "-v")
    assert "2 other files copied" in done.stdout
    assert "pytorch_model.bin" in done.stderr
    record = run(*arguments, "--force", "--json").json
    assert record["files_copied"] == ["config.json", "sub/a.txt"]
    assert record["left_behind"] == ["bad\x1b[2Jname.bin", "pytorch_model.bin"]


def test_a_single_file_has_nothing_beside_it(folder, tmp_path, run):
    arguments = ["merge", folder / WEIGHTS, tmp_path / "adapter.safetensors", "-o", tmp_path / "out.safetensors"]
    record = run(*arguments, "--json").json
    assert (record["files_copied"], record["left_behind"]) == ([], [])
