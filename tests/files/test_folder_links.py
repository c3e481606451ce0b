"""Links in the folder of a checkpoint: files in it and in the Hub's cache are read, and no link out of it is."""

import json
import os
import shutil

import pytest

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
STEM = "diffusion_pytorch_model"
SHARD, INDEX = f"{STEM}-00001-of-00002.safetensors", f"{STEM}.safetensors.index.json"


@pytest.fixture
def place(fixtures, tmp_path, monkeypatch):
    """The working folder, with `peft`, `shards`, and copies of both in `outside`."""
    for target in (tmp_path, tmp_path / "outside"):
        shutil.copytree(fixtures / "minilm-peft-lora-r8", target / "peft")
        shutil.copytree(fixtures / "synthetic" / "base_sharded", target / "shards")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put_link(path, target):
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def refuses(shown, path, target, how):
    sentence = f"{path}: it is a link to {target}, which {how}; put the file itself there or remove the link."
    assert sentence in shown.stdout + shown.stderr
    assert shown.status == 1


# By name: the link's target, which `{at}` in the folder of the copies stands for.
TARGETS = {
    "relative": "../outside/{at}",
    "absolute": "{place}/outside/{at}",
    "chain": "../chain",
    "linked folder": "away/{name}",
}


@pytest.mark.parametrize("at", [f"peft/{WEIGHTS}", f"peft/{CONFIG}", f"shards/{SHARD}", f"shards/{INDEX}"])
@pytest.mark.parametrize("kind", TARGETS)
def test_info_refuses_link_out_of_folder(kind, at, place, run):
    folder, name = at.split("/")
    target = TARGETS[kind].format(at=at, name=name, place=place)
    (place / "chain").symlink_to(f"outside/{at}")
    (place / folder / "away").symlink_to(f"../outside/{folder}")
    put_link(place / at, target)
    refuses(run("info", folder), at, target, "leads outside the folder")


COMMANDS = [
    ["info", "peft", "--json"],
    ["check", "peft"],
    ["compat", "peft", "--for", "peft"],
    ["convert", "peft", "-o", "out"],
    ["metadata", "show", "peft"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_refuses_link_out_of_folder(words, place, run):
    put_link(place / "peft" / CONFIG, f"../outside/peft/{CONFIG}")
    shown = run(*words)
    assert shown.status == 1
    assert f"it is a link to ../outside/peft/{CONFIG}, which leads outside the folder" in shown.stdout + shown.stderr
    assert not (place / "out").exists()


def test_link_in_folder_of_adapters_is_duplicate(place, run):
    (place / "adapters").mkdir()
    (place / "peft").rename(place / "adapters" / "linked")
    shutil.copytree(place / "outside" / "peft", place / "adapters" / "plain")
    put_link(place / "adapters" / "linked" / WEIGHTS, f"../../outside/peft/{WEIGHTS}")
    rows = {line.split()[0]: line for line in run("info", "adapters").stdout.splitlines()}
    assert rows["linked/"].endswith("duplicate of plain/")


@pytest.mark.parametrize(
    ("target", "how"), [("gone", "leads nowhere"), ("../outside/peft", "leads to a folder")], ids=["broken", "folder"]
)
def test_info_refuses_link_to_no_file(target, how, place, run):
    put_link(place / "peft" / WEIGHTS, target)
    refuses(run("info", "peft"), f"peft/{WEIGHTS}", target, how)


@pytest.fixture
def described(run):
    """Return what `info --json` says of a path, without the path."""

    def describe(path):
        record = run("info", path, "--json").json
        return {key: record[key] for key in ("tensors", "ranks", "scales", "rslora", "bytes")}

    return describe


def test_links_inside_folder_are_read(place, described):
    expected = described("outside/peft")
    (place / "peft" / "sub").mkdir()
    for name in (WEIGHTS, CONFIG):
        (place / "peft" / name).rename(place / "peft" / "sub" / name)
        put_link(place / "peft" / name, place / "peft" / "second")
        put_link(place / "peft" / name, f"sub/{name}")
    assert described("peft") == expected


def test_chain_that_returns_into_folder_is_read(place, described):
    expected = described("outside/peft")
    (place / "peft" / WEIGHTS).rename(place / "peft" / "own")
    (place / "back").symlink_to("peft/own")
    put_link(place / "peft" / WEIGHTS, "../back")
    assert described("peft") == expected


def test_hard_links_are_read(place, described):
    expected = described("outside/peft")
    for name in (WEIGHTS, CONFIG):
        (place / "peft" / name).unlink()
        os.link(place / "outside" / "peft" / name, place / "peft" / name)
    assert described("peft") == expected


def test_folder_named_by_link_is_read(place, described):
    (place / "parent").symlink_to("outside")
    (place / "linked").symlink_to("outside/peft")
    assert described("linked") == described("parent/peft") == described("peft")


@pytest.mark.parametrize("at", [f"peft/{WEIGHTS}", f"shards/{SHARD}", f"shards/{INDEX}"])
def test_file_named_itself_may_be_link(at, place, run):
    put_link(place / at, f"../outside/{at}")
    assert run("info", at).status == 0


def test_shard_beside_named_one_may_not_be_link(place, run):
    second = SHARD.replace("00001", "00002")
    put_link(place / "shards" / second, f"../outside/shards/{second}")
    refuses(
        run("info", f"shards/{SHARD}"), f"shards/{second}", f"../outside/shards/{second}", "leads outside the folder"
    )


def test_index_beside_named_shard_may_not_be_link(place, run):
    put_link(place / "shards" / INDEX, f"../outside/shards/{INDEX}")
    shown = run("info", f"shards/{SHARD}")
    refuses(shown, f"shards/{INDEX}", f"../outside/shards/{INDEX}", "leads outside the folder")


def test_only_weights_with_name_of_pickle_may_not_be_link(place, run):
    (place / "peft" / WEIGHTS).unlink()
    put_link(place / "peft" / "adapter_model.bin", f"../outside/peft/{WEIGHTS}")
    shown = run("info", "peft")
    refuses(shown, "peft/adapter_model.bin", f"../outside/peft/{WEIGHTS}", "leads outside the folder")


def test_sidecar_link_out_of_folder_is_ignored(place, run):
    (place / "outside" / "peft" / "secret").write_text(json.dumps({"activation text": "secret words"}))
    sidecar = place / "peft" / "adapter_model.json"
    sidecar.symlink_to("../outside/peft/secret")
    shown = run("info", "peft")
    assert "secret words" not in shown.stdout
    assert "adapter_model.json is ignored: it is a link to ../outside/peft/secret" in shown.stdout
    sidecar.unlink()
    shutil.copy(place / "outside" / "peft" / "secret", sidecar)
    assert "secret words" in run("info", "peft").stdout


@pytest.fixture
def snapshot(place):
    """Make a snapshot of the Hub's cache below `home`: links into the blobs of its repository."""

    def make(folder, below=""):
        repository = place / "home" / "hub" / "models--owner--name"
        inner = repository / "snapshots" / "0f1e2d" / below
        (repository / "blobs").mkdir(parents=True)
        inner.mkdir(parents=True)
        for number, name in enumerate(sorted(os.listdir(place / "outside" / folder))):
            shutil.copy(place / "outside" / folder / name, repository / "blobs" / f"{number:040x}")
            put_link(inner / name, os.path.relpath(repository / "blobs" / f"{number:040x}", inner))
        return inner

    return make


@pytest.mark.parametrize("folder", ["peft", "shards"])
@pytest.mark.parametrize("below", ["", "transformer", "a/b"])
def test_snapshot_of_hub_cache_is_read(folder, below, snapshot, described):
    assert described(snapshot(folder, below)) == described(f"outside/{folder}")


def test_hub_cache_below_linked_home_is_read(place, snapshot, described):
    inner = snapshot("peft").relative_to(place / "home")
    (place / "other disk").mkdir()
    (place / "home").rename(place / "other disk" / "home")
    (place / "home").symlink_to("other disk/home")
    (place / "mine").symlink_to(place / "home" / inner)
    assert described(place / "home" / inner) == described("mine") == described("outside/peft")


@pytest.mark.parametrize("change", ["other repository", "linked blobs", "linked blob", "other folder"])
def test_other_links_of_hub_cache_are_refused(change, place, snapshot, run):
    inner = snapshot("peft")
    repository = inner.parents[1]
    target = place / "outside" / "peft" / WEIGHTS
    if change == "other repository":
        other = repository.with_name("models--other--name") / "blobs"
        other.mkdir(parents=True)
        target = shutil.copy(target, other / "0")
        put_link(inner / WEIGHTS, target)
    elif change == "linked blobs":
        (repository / "blobs").rename(place / "moved")
        (repository / "blobs").symlink_to(place / "moved")
    elif change == "linked blob":
        put_link(inner / WEIGHTS, repository / "blobs" / "evil")
        (repository / "blobs" / "evil").symlink_to(target)
    else:
        put_link(inner / WEIGHTS, target)
    shown = run("info", inner)
    assert shown.status == 1
    assert "which leads outside the folder; put the file itself there or remove the link." in shown.stderr


def test_cache_without_links_is_read(place, snapshot, described):
    # Where the system makes no links, the Hub's library puts the files themselves into the snapshot.
    inner = snapshot("peft")
    for name in os.listdir(inner):
        (inner / name).unlink()
        shutil.copy(place / "outside" / "peft" / name, inner / name)
    assert described(inner) == described("outside/peft")
