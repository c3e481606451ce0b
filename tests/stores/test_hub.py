"""Repositories of a hub on this machine: each is read at one commit, and its login goes to the hub alone."""

import random

import pytest
from hubs import COMMIT, answer_as_hub

from lora_inspect.errors import LoraInspectError
from lora_inspect.stores.address import split
from lora_inspect.stores.remote_file import RemoteFile
from lora_inspect.stores.stat import below, exists, in_folder, is_folder, look, one_look

CONTENT = random.Random(9).randbytes(200_000)


@pytest.fixture
def repository(folder, hub):
    (folder / "sub").mkdir()
    (folder / "a.safetensors").write_bytes(CONTENT)
    (folder / "sub" / "b.safetensors").write_bytes(CONTENT[::-1])
    (folder / "adapter_config.json").write_bytes(b"{}")
    return "hf://owner/name"


def read(remote, start, count):
    memory = bytearray(count)
    remote.read_into(start, memory)
    return bytes(memory)


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}", "@refs/pr/1", "@refs%2Fpr%2F1"])
def test_a_file_is_read_at_the_commit_of_its_revision(revision, repository):
    opened = RemoteFile(f"{repository}{revision}/sub/b.safetensors")
    assert opened.address == f"{repository}@{COMMIT}/sub/b.safetensors"
    assert read(opened, 100_000, 50) == CONTENT[::-1][100_000:100_050]


def test_the_login_goes_to_the_hub_alone(repository, hub):
    read(RemoteFile(f"{repository}/a.safetensors"), 100_000, 8)
    sent = {one.path.partition("?")[0]: one.headers.get("authorization") for one in hub.asked}
    assert sent[f"/owner/name/resolve/{COMMIT}/a.safetensors"] == "Bearer hf_hidden"
    assert sent["/a.safetensors"] is None


def test_a_range_is_one_request_after_the_first(repository, hub):
    opened = RemoteFile(f"{repository}/a.safetensors")
    read(opened, 100_000, 8)
    hub.asked.clear()
    assert read(opened, 120_000, 8) == CONTENT[120_000:120_008]
    assert [one.path for one in hub.asked] == ["/a.safetensors?sig=hidden"]


def test_a_repository_has_files_and_folders(repository):
    for folder in ("", "/", "/sub", "@main/sub/"):
        assert is_folder(repository + folder)
    assert not is_folder(f"{repository}/a.safetensors")
    assert not exists(f"{repository}/su")
    listed = {split(one.address)[1]: one.is_folder for one in in_folder(repository)}
    assert listed == {"a.safetensors": False, "adapter_config.json": False, "sub": True}
    assert [one.address for one in below(f"{repository}/sub")] == [f"{repository}@{COMMIT}/sub/b.safetensors"]


def test_at_a_commit_the_hub_is_asked_once(repository, hub):
    with one_look():
        found = look(repository)
        for one in in_folder(found.address):
            assert look(one.address) == one
    assert look(f"{found.address}/adapter_config.json").answer.bytes == 2
    assert sum(one.path.startswith("/api/models") for one in hub.asked) == 1


def test_a_file_of_another_size_is_an_error(repository, folder):
    opened = RemoteFile(f"{repository}/a.safetensors")
    (folder / "a.safetensors").write_bytes(CONTENT[:-1])
    with pytest.raises(LoraInspectError, match="it changed while it was read"):
        read(opened, 100_000, 8)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "the server does not give it to you (status 401); run `hf auth login` or set HF_TOKEN"),
        (403, "the server does not give it to you (status 403); run `hf auth login` or set HF_TOKEN"),
        (404, "there is no such file or folder; check the address"),
        (500, "lora-inspect cannot read it (status 500, 6 times); try again later"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(status, says, repository, hub):
    hub.misdo = lambda handler, asked: handler.answer(status) or True
    with pytest.raises(LoraInspectError) as refused:
        RemoteFile(f"{repository}/a.safetensors")
    assert str(refused.value).startswith(f"{repository}/a.safetensors: {says}")
    assert "hidden" not in str(refused.value)


def test_what_may_pass_is_tried_again(repository, hub):
    fails = iter([True])

    def misdo(handler, asked):
        if "/api/models" in asked.path and next(fails, False):
            handler.answer(503)
            return True
        return answer_as_hub(hub, handler, asked)

    hub.misdo = misdo
    assert look(f"{repository}/a.safetensors").answer.bytes == len(CONTENT)


@pytest.mark.parametrize("address", ["hf://", "hf://name", "hf://datasets/name", "hf://buckets/owner/name/a"])
def test_what_names_no_repository_is_a_sentence(address, hub):
    with pytest.raises(
        LoraInspectError, match="it does not name a repository of Hugging Face; write hf://OWNER/NAME/PATH"
    ):
        look(address)


def test_who_is_offline_is_told(repository, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LoraInspectError, match="HF_HUB_OFFLINE is set; unset it"):
        look(repository)
