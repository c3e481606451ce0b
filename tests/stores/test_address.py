"""Which paths are addresses, what of one is printed, and what the server is asked for."""

import pytest

from lora_inspect.errors import LoraInspectError
from lora_inspect.stores import address
from lora_inspect.stores.address import is_remote, join, printable_address, split, whole

SIGNED = "https://h.example/d/a.safetensors?X-Amz-Signature=abc123&X-Amz-Expires=60"


@pytest.fixture(autouse=True)
def nothing_was_named(monkeypatch):
    monkeypatch.setattr(address, "_of_files", {})
    monkeypatch.setattr(address, "_of_folders", {})


@pytest.mark.parametrize("path", ["https://h/a", "HTTPS://h/a", "http://h/a", "s3://b/k", "hf://o/r"])
def test_an_address_is_remote(path):
    assert is_remote(path)


@pytest.mark.parametrize(
    "path", ["", "a", "/a", "s3:/b/k", "C:\\a", "c://a", "ftp://h/a", "x/s3://b", "file:///a", "-"]
)
def test_any_other_path_is_not(path):
    assert not is_remote(path)


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        (SIGNED, "https://h.example/d/a.safetensors"),
        ("https://me:pw@h/a", "https://h/a"),
        ("https://me:p@w@h/a?t=1#there", "https://h/a"),
        ("HTTPS://h?t=a/b", "https://h"),
        ("https://h/a#there", "https://h/a"),
        ("https://h/a%20b", "https://h/a%20b"),
        ("https://[::1]:80/a?x", "https://[::1]:80/a"),
        ("https://[bad/a?x", "https://[bad/a"),
        ("s3://b/k?versionId=1", "s3://b/k?versionId=1"),
        ("s3://b/k@2:0.8", "s3://b/k@2:0.8"),
        ("hf://o/r@refs/pr/1/a", "hf://o/r@refs/pr/1/a"),
        ("hf://gpt2@main/a", "hf://gpt2@main/a"),
    ],
)
def test_what_may_be_a_secret_is_not_printed(written, printed):
    assert printable_address(written) == printed
    assert printable_address(printed) == printed


@pytest.mark.parametrize("written", [SIGNED, "https://me:pw@h/a", "http://h/d/a?t=1/2?3", "https://h/a", "https://h?t"])
def test_the_server_is_asked_for_the_whole(written):
    assert whole(printable_address(written)) == written


def test_what_lies_beside_a_file_is_asked_for_with_the_same():
    printed = printable_address(SIGNED)
    beside = join(split(printed)[0], "adapter_config.json")
    assert printable_address(beside) == beside
    assert whole(beside) == SIGNED.replace("a.safetensors", "adapter_config.json")
    assert whole("https://h.example/other/a.safetensors") == "https://h.example/other/a.safetensors"
    assert whole("https://other.example/d/a.safetensors") == "https://other.example/d/a.safetensors"


def test_two_addresses_that_differ_in_what_is_hidden_are_two_files():
    one, two = "https://h/d/get?id=1", "https://h/d/get?id=2"
    first, second = printable_address(one), printable_address(two)
    assert first != second
    assert (whole(first), whole(second)) == (one, two)
    assert (printable_address(one), printable_address(two), printable_address(second)) == (first, second, second)
    assert whole(join(split(second)[0], "b")) == "https://h/d/b?id=2"
    assert "id" not in first + second


@pytest.mark.parametrize("written", ["s3://KEY:hidden-pass@b/k", "s3://hidden-pass@b/k", "hf://me:hidden-pass@o/r/a"])
def test_credentials_of_a_store_are_no_part_of_an_address(written):
    with pytest.raises(LoraInspectError) as refused:
        printable_address(written)
    assert "hidden-pass" not in str(refused.value)
    assert "an address cannot hold credentials" in str(refused.value)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("s3://b/d/k", ("s3://b/d", "k")),
        ("s3://b/d/", ("s3://b/d", "")),
        ("s3://b/k", ("s3://b", "k")),
        ("s3://b", ("s3://b", "")),
    ],
)
def test_an_address_has_a_folder_and_a_name(path, parts):
    assert split(path) == parts


def test_a_folder_and_names_make_an_address(monkeypatch):
    assert join("s3://b/d/", "k") == join("s3://b/d", "k") == "s3://b/d/k"
    monkeypatch.setattr("os.sep", "\\")
    assert join("s3://b/d", "sub\\k", "l") == "s3://b/d/sub/k/l"
