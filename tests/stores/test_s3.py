"""Files and folders of S3, of a store that speaks its language and of a server that does wrong."""

import random
from itertools import permutations

import pytest
from range_servers import etag_of
from s3_server import listing

from lora_inspect.errors import LoraInspectError
from lora_inspect.stores.address import split
from lora_inspect.stores.client import file_system, forget_file_systems
from lora_inspect.stores.remote_file import RemoteFile
from lora_inspect.stores.stat import START, below, exists, in_folder, is_folder, look, one_look

CONTENT = random.Random(8).randbytes(300_000)


def read(remote, start, count):
    memory = bytearray(count)
    remote.read_into(start, memory)
    return bytes(memory)


@pytest.mark.slow
def test_any_range_is_read_as_it_is_stored(bucket):
    opened = RemoteFile(bucket.put("d/a b+ü.safetensors", CONTENT))
    assert opened.answer.bytes == len(CONTENT)
    for start, count in ((0, 8), (100, START), (250_000, 50_000), (0, len(CONTENT))):
        assert read(opened, start, count) == CONTENT[start : start + count]
    assert opened.read_each([(5, 3), (200_000, 4)]) == [CONTENT[5:8], CONTENT[200_000:200_004]]
    assert b"".join(opened.stream(7, 299_000)) == CONTENT[7:299_000]


def test_a_store_has_files_and_folders(bucket):
    for key in ("d/a", "d/sub/b", "d/sub/deep/c", "e"):
        bucket.put(key, b"123")
    assert look(bucket.url("d/a")).answer.bytes == 3
    for folder in ("", "d", "d/sub", "d/"):
        assert is_folder(bucket.url(folder))
    assert not is_folder(bucket.url("d/a"))
    assert look(bucket.url("d/s")) is None
    assert not exists(bucket.url("d/s"))
    listed = {split(one.address)[1]: one.is_folder for one in in_folder(bucket.url("d"))}
    assert listed == {"a": False, "sub": True}
    assert sorted(one.address for one in below(bucket.url("d"))) == [
        bucket.url(key) for key in ("d/a", "d/sub/b", "d/sub/deep/c")
    ]


def test_a_listing_has_the_pages_that_it_takes(bucket, monkeypatch):
    keys = [f"d/{number}" for number in range(7)]
    for key in keys:
        bucket.put(key, b"")
    store = file_system("s3://")
    call = store._call_s3

    def three_at_a_time(method, **options):
        return call(method, **options, **({"MaxKeys": 3} if method == "list_objects_v2" else {}))

    monkeypatch.setattr(store, "_call_s3", three_at_a_time)
    assert [one.address for one in below(bucket.url("d"))] == [bucket.url(key) for key in keys]


def test_the_listing_knows_the_files_as_they_are_read(bucket):
    bucket.put("d/a", CONTENT)
    with one_look():
        (listed,) = in_folder(bucket.url("d"))
        assert read(RemoteFile(bucket.url("d/a"), listed.answer), 9, 9) == CONTENT[9:18]
    assert look(bucket.url("d/a")) == listed


def test_an_object_that_changes_is_an_error(bucket):
    opened = RemoteFile(bucket.put("a", CONTENT))
    bucket.put("a", CONTENT[::-1])
    with pytest.raises(LoraInspectError, match=f"{bucket.url('a')}: it changed while it was read"):
        read(opened, 5, 5)


def test_a_version_is_read_as_it_was(bucket):
    store = file_system("s3://")
    store.call_s3("put_bucket_versioning", Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
    first = store.call_s3("put_object", Bucket=bucket.name, Key="a", Body=b"first")["VersionId"]
    address = bucket.put("a", b"second, and longer")
    assert read(RemoteFile(f"{address}?versionId={first}"), 0, 5) == b"first"
    assert read(RemoteFile(address), 0, 6) == b"second"


@pytest.mark.parametrize("key", ["a", "d/a"])
def test_a_bucket_that_is_not_there_is_a_sentence(key, bucket):
    with pytest.raises(LoraInspectError, match=r"s3://nobody/.*: there is no such file or folder; check the address"):
        RemoteFile(f"s3://nobody/{key}")


def test_nothing_is_in_a_bucket_that_is_not_there(bucket):
    assert not exists("s3://nobody/a")


def error(code):
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>hidden</Message></Error>".encode()


@pytest.fixture
def served(folder, server, s3_settings):
    """A server that has one object, and does no more of S3 than sending it."""
    s3_settings(server.address)
    (folder / "bucket").mkdir()
    (folder / "bucket" / "a").write_bytes(CONTENT)
    yield server
    forget_file_systems()


SPELLINGS = {"quoted": '"{}"'.format, "bare": str, "weak": 'W/"{}"'.format, "weak and bare": "W/{}".format}


@pytest.fixture
def listed(served, folder):
    """`listed(spelled)`: the server lists its one object as well, with the ETag spelled so."""

    def use(spelled):
        files = [folder / "bucket" / "a"]

        def misdo(handler, asked):
            if "list-type=2" in asked.path:
                handler.answer(200, {"Content-Type": "application/xml"}, listing(files, spelled, etag_of))
                return True
            return False

        served.misdo = misdo

    return use


@pytest.mark.parametrize(("listed_as", "read_as"), list(permutations(SPELLINGS, 2)))
def test_a_listing_may_spell_etags_in_another_way(listed_as, read_as, listed, served):
    served.spelled = SPELLINGS[read_as]
    listed(SPELLINGS[listed_as])
    (found,) = in_folder("s3://bucket")
    assert read(RemoteFile("s3://bucket/a", found.answer), 100_000, 9) == CONTENT[100_000:100_009]


@pytest.mark.parametrize("spelled", SPELLINGS.values(), ids=SPELLINGS)
def test_another_etag_is_another_file_however_it_is_spelled(spelled, listed, served):
    listed(lambda tag: spelled(f"{tag}1"))
    (found,) = in_folder("s3://bucket")
    with pytest.raises(LoraInspectError, match="it changed while it was read"):
        read(RemoteFile("s3://bucket/a", found.answer), 100_000, 9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "misdo",
    [
        lambda handler, asked: handler.answer(500, body=error("InternalError")),
        lambda handler, asked: handler.answer(503, body=error("ServiceUnavailable")),
        lambda handler, asked: handler.answer(429, body=error("Throttling")),
        lambda handler, asked: handler.serve(asked, truncated=0),
        lambda handler, asked: handler.serve(asked, truncated=70_000),
        lambda handler, asked: handler.reset(),
    ],
    ids=["500", "503", "429", "no body", "short body", "reset"],
)
def test_what_may_pass_is_tried_again(misdo, served):
    opened = RemoteFile("s3://bucket/a")
    first = iter([True])
    served.misdo = lambda handler, asked: next(first, False) and misdo(handler, asked) is not False
    assert read(opened, 100_000, 150_000) == CONTENT[100_000:250_000]


def test_what_does_not_pass_is_a_sentence(served, pauses):
    opened = RemoteFile("s3://bucket/a")
    served.misdo = lambda handler, asked: handler.answer(500, body=error("InternalError")) or True
    with pytest.raises(
        LoraInspectError, match=r"lora-inspect cannot read it \(the store says InternalError, 6 times\)"
    ):
        read(opened, 100_000, 8)
    assert len(pauses) == 5


def test_what_is_not_given_is_a_sentence_without_secrets(served):
    served.misdo = lambda handler, asked: handler.answer(403, body=error("AccessDenied")) or True
    with pytest.raises(LoraInspectError) as refused:
        RemoteFile("s3://bucket/a")
    assert str(refused.value).startswith(
        "s3://bucket/a: the server does not give it to you (status 403); check AWS_ACCESS_KEY_ID"
    )
    assert "hidden" not in str(refused.value)


def test_a_store_without_ranges_is_a_sentence(served):
    opened = RemoteFile("s3://bucket/a")
    served.misdo = lambda handler, asked: handler.answer(200, body=CONTENT) or True
    with pytest.raises(LoraInspectError, match="sends only whole files"):
        read(opened, 100_000, 8)


def test_without_credentials_nobody_is_asked(served, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    forget_file_systems()
    with pytest.raises(LoraInspectError, match="there are no credentials for the store; check AWS_ACCESS_KEY_ID"):
        RemoteFile("s3://bucket/a")
    assert not served.asked
