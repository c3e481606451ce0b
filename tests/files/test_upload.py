"""Outputs in an S3 store: the bytes of a local output, all of them or none, and nothing left behind."""

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from adapters import drawn
from bases import write_shards
from moto.s3 import models
from s3_server import KEY, LOST, RESET, SECRET, S3Server, always, once
from safetensors.torch import load_file, save_file

from lora_inspect import merge as api_merge
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.outputs import is_input
from lora_inspect.interrupt import RECORD
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.model.settings import parse_arguments
from lora_inspect.stores import client
from lora_inspect.stores.client import forget_file_systems

pytestmark = pytest.mark.slow

# So small that a file of the tests has several.
PART = 256 << 10
SHARDS, BLOCKS, OUT, IN = 2, 3, 384, 256
NAMES = [f"model-0000{shard + 1}-of-0000{SHARDS}.safetensors" for shard in range(SHARDS)]
BUCKETS = itertools.count()


def weight(block):
    return f"blocks.{block}.attn.q.weight"


def tensors(first=0):
    """786 kB of float16 and a vector: four parts."""
    found = {weight(block): drawn(block, OUT, IN).half() for block in range(first, first + BLOCKS)}
    return found | {f"norm.{first}": drawn(first, 7), f"large.{first}": drawn(first, OUT, IN).half()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A base in one file, one of shards and an adapter for both, and what the merges are on a disk."""
    folder = tmp_path_factory.mktemp("files")
    save_file(tensors(), folder / "base.safetensors", {"format": "pt"})
    (folder / "shards").mkdir()
    shards = {name: tensors(shard * BLOCKS) for shard, name in enumerate(NAMES)}
    write_shards(folder / "shards", shards, format="pt")
    (folder / "shards" / "config.json").write_text("{}")
    (folder / "shards" / "empty").mkdir()
    (folder / "shards" / "empty" / "__init__.py").write_text("")
    adapter = {}
    for block in (0, 1):
        adapter[f"lora_unet_blocks_{block}_attn_q.lora_down.weight"] = drawn(50 + block, 4, IN)
        adapter[f"lora_unet_blocks_{block}_attn_q.lora_up.weight"] = drawn(60 + block, OUT, 4)
        adapter[f"lora_unet_blocks_{block}_attn_q.alpha"] = torch.tensor(2.0)
    save_file(adapter, folder / "style.safetensors")
    for base, multiplier in itertools.product(("base.safetensors", "shards"), (0, 1)):
        merged(folder, base, folder / f"{multiplier}-{base}", multiplier)
    return folder


@pytest.fixture
def store(monkeypatch, tmp_path):
    with S3Server(f"bucket-{os.getpid()}-{next(BUCKETS)}").running() as server:
        for name, value in server.settings.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "temporary").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
        monkeypatch.setattr(client, "PART_BYTES", PART)
        monkeypatch.setattr(models, "S3_UPLOAD_PART_MIN_SIZE", PART)
        forget_file_systems()
        yield server
        server.trouble = lambda asked: None
        assert server.unfinished() == []
        assert list((tmp_path / "temporary").iterdir()) == []


def merged(folder, base, output, multiplier=1, force=False, **options):
    plan = plan_merge(
        str(folder / base), parse_arguments([f"{folder / 'style.safetensors'}:{multiplier}"]), MergeOptions(**options)
    )
    return merge(plan, str(output), force)


def contents(path):
    """All files of a local output by their names."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {one.relative_to(path).as_posix(): one.read_bytes() for one in path.rglob("*") if one.is_file()}


def below(store, key):
    """All objects of an output by their names."""
    found = store.objects()
    return {name[len(key) + 1 :]: found[name] for name in found if name == key or name.startswith(f"{key}/")}


@pytest.mark.parametrize("multiplier", [0, 1])
@pytest.mark.parametrize("base", ["base.safetensors", "shards"])
def test_an_output_in_a_store_has_the_bytes_of_one_on_a_disk(base, multiplier, files, store):
    result = merged(files, base, f"s3://{store.bucket}/some/{base}", multiplier)
    local = contents(files / f"{multiplier}-{base}")
    assert below(store, f"some/{base}") == local
    assert result.output == f"s3://{store.bucket}/some/{base}"
    assert result.bytes == sum(map(len, local.values()))


def test_programs_find_the_index_when_all_else_is_there(files, store):
    merged(files, "shards", f"s3://{store.bucket}/out")
    seen = [asked.path.rpartition("/")[2] for asked in store.asked if asked.verb in ("complete", "put")]
    assert seen[-2:] == ["config.json", "model.safetensors.index.json"]
    assert set(seen[:-2]) == {*NAMES, "__init__.py"}


def test_a_name_with_a_slash_at_its_end_is_that_of_a_folder(files, store):
    merged(files, "base.safetensors", f"s3://{store.bucket}/some/")
    assert store.objects().keys() == {"some/base.safetensors"}


VERBS = ["create", "part", "complete", "put", "list", "head"]


@pytest.mark.parametrize("trouble", [500, 503, RESET, LOST])
@pytest.mark.parametrize("verb", VERBS)
def test_what_passes_does_no_harm(verb, trouble, files, store):
    store.trouble = once(verb, trouble)
    merged(files, "shards", f"s3://{store.bucket}/out")
    store.trouble = lambda asked: None
    assert store.verbs().count(verb) > 1
    assert below(store, "out") == contents(files / "1-shards")


@pytest.mark.parametrize(("verb", "number"), [("create", 2), ("part", 1), ("part", 5), ("complete", 2), ("put", 2)])
def test_what_does_not_pass_leaves_nothing(verb, number, files, store):
    seen = 0

    def trouble(asked):
        nonlocal seen
        seen += asked.verb == verb
        return 403 if asked.verb == verb and seen >= number else None

    store.trouble = trouble
    with pytest.raises(LoraInspectError, match=r"does not allow to write it \(AccessDenied\)") as refused:
        merged(files, "shards", f"s3://{store.bucket}/out")
    assert str(refused.value).startswith(f"s3://{store.bucket}/out/")
    assert store.objects() == {}


def test_an_object_that_is_there_is_replaced_by_force_alone(files, store):
    output = f"s3://{store.bucket}/out.safetensors"
    store.client.put_object(Bucket=store.bucket, Key="out.safetensors", Body=b"old")
    with pytest.raises(LoraInspectError, match="it exists; choose another output or add --force"):
        merged(files, "base.safetensors", output)
    assert below(store, "out.safetensors") == {"": b"old"}
    merged(files, "base.safetensors", output, force=True)
    assert below(store, "out.safetensors") == contents(files / "1-base.safetensors")


def test_an_object_that_appears_meanwhile_is_not_replaced(files, store):
    def appear(asked):
        if asked.verb == "complete":
            store.trouble = lambda asked: None
            store.client.put_object(Bucket=store.bucket, Key="out.safetensors", Body=b"other")

    store.trouble = lambda asked: appear(asked)
    with pytest.raises(LoraInspectError, match="appeared while the command ran"):
        merged(files, "base.safetensors", f"s3://{store.bucket}/out.safetensors")
    assert below(store, "out.safetensors") == {"": b"other"}


def test_of_a_folder_in_which_an_object_appears_meanwhile_nothing_stays(files, store):
    def appear(asked):
        if asked.verb == "put":
            store.trouble = lambda asked: None
            store.client.put_object(Bucket=store.bucket, Key="out/model.safetensors.index.json", Body=b"other")

    store.trouble = appear
    with pytest.raises(LoraInspectError, match=r"out/.*index\.json: it appeared while the command ran"):
        merged(files, "shards", f"s3://{store.bucket}/out")
    assert below(store, "out") == {"model.safetensors.index.json": b"other"}


@pytest.mark.parametrize("conditions", [True, False])
def test_an_object_that_appears_while_parts_are_sent_is_not_replaced(conditions, files, store):
    def appear(asked):
        if asked.verb == "part":
            store.trouble = lambda asked: None
            store.client.put_object(Bucket=store.bucket, Key="out.safetensors", Body=b"other")

    store.trouble, store.conditions = appear, conditions
    with pytest.raises(LoraInspectError, match="appeared while the command ran"):
        merged(files, "base.safetensors", f"s3://{store.bucket}/out.safetensors")
    assert below(store, "out.safetensors") == {"": b"other"}


def test_a_merge_fails_where_another_run_replaces_one_of_its_files(files, store):
    def replace(asked):
        if asked.path.endswith("index.json") and asked.verb == "put":
            store.trouble = lambda asked: None
            store.client.put_object(Bucket=store.bucket, Key=f"out/{NAMES[0]}", Body=b"other")

    store.trouble, store.conditions = replace, False
    with pytest.raises(LoraInspectError, match=rf"out/{NAMES[0]}: it appeared while the command ran"):
        merged(files, "shards", f"s3://{store.bucket}/out")
    assert below(store, "out") == {NAMES[0]: b"other"}


def test_an_upload_of_another_run_goes_on(files, store):
    """It is to the same output, and was begun while this one was sent."""
    begun = {}

    def begin(asked):
        if asked.verb == "part" and not begun:
            begun["it"] = None
            begun["it"] = store.client.create_multipart_upload(Bucket=store.bucket, Key="out.safetensors")["UploadId"]
            where = {"Bucket": store.bucket, "Key": "out.safetensors", "UploadId": begun["it"]}
            store.client.upload_part(**where, PartNumber=1, Body=b"some")

    store.trouble = begin
    merged(files, "base.safetensors", f"s3://{store.bucket}/out.safetensors")
    assert store.unfinished() == ["out.safetensors"]
    store.client.abort_multipart_upload(Bucket=store.bucket, Key="out.safetensors", UploadId=begun["it"])


def test_what_a_store_does_not_give_up_is_named(files, store, monkeypatch):
    monkeypatch.setattr("lora_inspect.stores.multipart_upload._PATIENCE", 2)
    store.trouble = lambda asked: 403 if asked.verb == "complete" else 500 if asked.verb == "abort" else None
    with pytest.raises(
        LoraInspectError, match=r"\(AccessDenied\).*; abort the unfinished uploads of s3://.*/out/model"
    ):
        merged(files, "shards", f"s3://{store.bucket}/out")
    store.trouble = lambda asked: None
    for upload in store.client.list_multipart_uploads(Bucket=store.bucket)["Uploads"]:
        store.client.abort_multipart_upload(Bucket=store.bucket, Key=upload["Key"], UploadId=upload["UploadId"])


@pytest.mark.parametrize("base", ["base.safetensors", "shards"])
def test_an_input_that_changes_while_the_output_is_sent_is_an_error(base, files, store, tmp_path):
    copied = tmp_path / base
    if (files / base).is_dir():
        shutil.copytree(files / base, copied)
    else:
        shutil.copy(files / base, copied)
    shutil.copy(files / "style.safetensors", tmp_path)

    def change(asked):
        if asked.verb == "complete" or (asked.verb == "part" and NAMES[0] not in asked.path):
            os.utime(copied / NAMES[0] if copied.is_dir() else copied, ns=(1, 1))

    store.trouble = change
    with pytest.raises(LoraInspectError, match="it changed while it was read"):
        merged(tmp_path, base, f"s3://{store.bucket}/out{'' if copied.is_dir() else '.safetensors'}")
    assert store.objects() == {}


def test_a_folder_with_more_in_it_is_not_replaced(files, store):
    store.client.put_object(Bucket=store.bucket, Key="out/config.json", Body=b"old")
    merged(files, "shards", f"s3://{store.bucket}/out", force=True)
    store.client.put_object(Bucket=store.bucket, Key="out/else", Body=b"mine")
    before = store.objects()
    with pytest.raises(LoraInspectError, match="the folder holds else, which the command does not write"):
        merged(files, "shards", f"s3://{store.bucket}/out", force=True)
    assert store.objects() == before


def test_what_replaces_a_folder_takes_its_index_away_first(files, store):
    merged(files, "shards", f"s3://{store.bucket}/out", multiplier=0)
    store.trouble = always("complete", 403)
    with pytest.raises(LoraInspectError, match="may be replaced already"):
        merged(files, "shards", f"s3://{store.bucket}/out", force=True)
    store.trouble = lambda asked: None
    left = below(store, "out")
    assert "model.safetensors.index.json" not in left
    merged(files, "shards", f"s3://{store.bucket}/out", force=True)
    assert below(store, "out") == contents(files / "1-shards")


@pytest.mark.parametrize(
    ("base", "kind", "output", "taken"),
    [("base.safetensors", "a folder", "out.safetensors", "out.safetensors/x"), ("shards", "a file", "out", "out")],
)
def test_a_file_and_a_folder_do_not_replace_each_other(base, kind, output, taken, files, store):
    store.client.put_object(Bucket=store.bucket, Key=taken, Body=b"old")
    with pytest.raises(LoraInspectError, match=f"it is {kind}; remove it first"):
        merged(files, base, f"s3://{store.bucket}/{output}", force=True)


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("s3://{bucket}", "it is a whole bucket; name an output in it"),
        ("s3://{bucket}/out/../", "programs read such an address"),
        ("s3:///out", "it is a whole bucket"),
        ("s3://{bucket}/a//b.safetensors", "programs read such an address in different ways"),
        ("s3://{bucket}/../b.safetensors", "programs read such an address in different ways"),
        ("s3://{bucket}/b\x1b.safetensors", "programs read such an address in different ways"),
        ("s3://{bucket}/b.safetensors?versionId=1", "programs read such an address in different ways"),
        (f"s3://{{bucket}}/{'é' * 600}.safetensors", "a store takes names of at most 1,024 bytes"),
        ("s3://{bucket}-none/out.safetensors", "there is no such bucket; make it first"),
        ("s3://{bucket}/out", "name it s3://.*/out.safetensors"),
        (
            "hf://me/model/out.safetensors",
            "lora-inspect only reads addresses of hf://; write to a folder, and send it with `hf upload`",
        ),
        (
            "https://user:word@h.example/out.safetensors?sign=abc",
            "lora-inspect only reads addresses of https://; write a file or a folder here",
        ),
    ],
)
def test_what_cannot_be_an_output_is_refused(output, sentence, files, store):
    with pytest.raises(LoraInspectError, match=sentence) as refused:
        merged(files, "base.safetensors", output.format(bucket=store.bucket))
    assert not {"word", "sign", "abc"} & set(str(refused.value).replace("=", " ").replace(":", " ").split())
    assert store.objects() == {}


def test_a_merge_that_is_not_accepted_leaves_nothing(files, store, monkeypatch):
    def refuse(*_):
        raise LoraInspectError("too little is kept.")

    monkeypatch.setattr("lora_inspect.ops.merge.check_kept", refuse)
    with pytest.raises(LoraInspectError, match=r"too little is kept\."):
        merged(files, "shards", f"s3://{store.bucket}/out")
    assert "part" in store.verbs()
    assert store.objects() == {}


def test_an_upload_without_an_end_is_told_of(files, store):
    begun = store.client.create_multipart_upload(Bucket=store.bucket, Key="out.safetensors")
    result = merged(files, "base.safetensors", f"s3://{store.bucket}/out.safetensors")
    assert any(" is there, perhaps from a run that died" in note for note in result.notes)
    store.client.abort_multipart_upload(Bucket=store.bucket, Key="out.safetensors", UploadId=begun["UploadId"])


def merge_of_shards(files):
    """The arguments of a process that merges them; the output is the next one."""
    return ["merge", str(files / "shards"), f"{files / 'style.safetensors'}:1", "-o"]


@pytest.fixture(scope="module")
def made_by_process(files, tmp_path_factory):
    """The merge of shards on a disk, made by another process: products may round otherwise there than in this one."""
    output = tmp_path_factory.mktemp("made_by_process") / "shards"
    command = [sys.executable, "-m", "lora_inspect", *merge_of_shards(files), output]
    subprocess.run(command, check=True, capture_output=True)
    return contents(output)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("verb", "count", "seconds"),
    [("create", 1, 0), ("part", 2, 0), ("complete", 1, 0), pytest.param("create", 1, 1, id="a store that takes long")],
)
def test_a_signal_leaves_all_or_nothing(verb, count, seconds, number, files, made_by_process, store, tmp_path):
    seen = 0
    begun = []

    def end(asked):
        nonlocal seen
        seen += asked.verb == verb
        if asked.verb == verb and seen == count:
            begun[0].send_signal(number)
            time.sleep(seconds)

    store.trouble = end
    script = (
        f"from lora_inspect.start import main; from lora_inspect.stores import client; client.PART_BYTES = {PART}; "
    )
    script += "main()"
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    with subprocess.Popen(
        [sys.executable, "-c", script, *merge_of_shards(files), f"s3://{store.bucket}/out"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        begun.append(process)
        out, err = process.communicate()
    store.trouble = lambda asked: None
    assert process.returncode == (130 if number == signal.SIGINT else 128 + number), err
    assert below(store, "out") in ({}, made_by_process)
    assert SECRET.encode() not in out + err


def test_swallowed_signal_completes_no_upload(files, store, monkeypatch):
    def swallow(inputs):
        with suppress(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("lora_inspect.files.upload.check_unchanged", swallow)
    before = signal.signal(signal.SIGTERM, RECORD.unwind)
    try:
        with RECORD.command(lambda *_: None), pytest.raises(SystemExit, match="143"):
            merged(files, "shards", f"s3://{store.bucket}/out")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "part" in store.verbs()
    assert store.objects() == {}


@pytest.fixture
def there(files, store):
    """The prefix of the bases and the adapter in the store."""
    for path in files.rglob("*"):
        if path.is_file() and not path.relative_to(files).parts[0].startswith(("0-", "1-")):
            store.client.upload_file(str(path), store.bucket, f"in/{path.relative_to(files).as_posix()}")
    store.asked.clear()
    return f"s3://{store.bucket}/in"


def merged_there(there, base, output, multiplier=1, **options):
    plan = plan_merge(
        f"{there}/{base}", parse_arguments([f"{there}/style.safetensors:{multiplier}"]), MergeOptions(**options)
    )
    return merge(plan, output)


@pytest.mark.parametrize("multiplier", [0, 1])
@pytest.mark.parametrize("base", ["base.safetensors", "shards"])
def test_what_no_change_touches_is_copied_in_the_store(base, multiplier, files, store, there, tmp_path):
    merged_there(there, base, str(tmp_path / base), multiplier)
    store.asked.clear()
    result = merged_there(there, base, f"s3://{store.bucket}/out/{base}", multiplier)
    assert below(store, f"out/{base}") == contents(tmp_path / base)
    assert result.bytes == sum(map(len, contents(tmp_path / base).values()))
    copied = store.verbs().count("copy part")
    assert copied >= (2 if base != "shards" else 4) + (not multiplier)
    assert copied + store.verbs().count("part") == (4 if base != "shards" else 8)


def test_a_copy_is_of_the_etag_that_the_store_tells(store, there):
    merged_there(there, "shards", f"s3://{store.bucket}/out")
    told = {store.client.head_object(Bucket=store.bucket, Key=f"in/shards/{name}")["ETag"] for name in NAMES}
    assert {asked.copied_if for asked in store.asked if asked.verb == "copy part"} == told


@pytest.mark.parametrize("trouble", [403, 500])
def test_what_a_store_does_not_copy_is_fetched_and_sent(trouble, store, there, tmp_path):
    merged_there(there, "shards", str(tmp_path / "local"))
    store.trouble = always("copy part", trouble)
    merged_there(there, "shards", f"s3://{store.bucket}/out")
    store.trouble = lambda asked: None
    assert below(store, "out") == contents(tmp_path / "local")


def test_what_passes_does_no_harm_to_copies(store, there, tmp_path):
    merged_there(there, "shards", str(tmp_path / "local"))
    store.trouble = once("copy part", LOST)
    merged_there(there, "shards", f"s3://{store.bucket}/out")
    assert below(store, "out") == contents(tmp_path / "local")


def test_a_base_that_changes_before_it_is_copied_is_an_error(store, there, files):
    def replace(asked):
        if asked.verb == "copy part":
            store.trouble = lambda asked: None
            other = (files / "shards" / NAMES[0]).read_bytes()[:-1] + b"x"
            for name in NAMES:
                store.client.put_object(Bucket=store.bucket, Key=f"in/shards/{name}", Body=other)

    store.trouble = replace
    with pytest.raises(LoraInspectError, match=r"in/shards/model-.*: it changed while it was read"):
        merged_there(there, "shards", f"s3://{store.bucket}/out")
    assert not below(store, "out").keys() & {*NAMES, "config.json"}


def test_no_input_is_replaced_in_any_version(store, there):
    assert is_input("s3://b/base.safetensors", ["s3://b/base.safetensors?versionId=3"])
    assert not is_input("s3://b/base.safetensors", ["s3://b/base.safetensors2?versionId=3"])
    plan = plan_merge(f"{there}/shards", parse_arguments([f"{there}/style.safetensors"]), MergeOptions())
    for output in (there, f"{there}/shards", f"{there}/shards/"):
        with pytest.raises(LoraInspectError, match="it is an input of the command"):
            merge(plan, output, force=True)


def test_a_shard_that_waits_for_a_scale_of_another_one_is_sent_behind_that(store, tmp_path):
    """The scale of a weight in the second shard stands in the first one, and grows with the weight."""
    folder = tmp_path / "base"
    folder.mkdir()
    codes = (drawn(1, OUT, IN) * 10).to(torch.float8_e4m3fn)
    own = [
        {f"{weight(0)[:-7]}.weight_scale": torch.tensor(0.01), "large": drawn(2, 2 * OUT, IN).half()},
        {weight(0): codes},
    ]
    write_shards(folder, dict(zip(NAMES, own, strict=True)), format="pt")
    tensors = {"lora_unet_blocks_0_attn_q.lora_down.weight": 9 * drawn(3, 4, IN)}
    tensors |= {"lora_unet_blocks_0_attn_q.lora_up.weight": 9 * drawn(4, OUT, 4)}
    save_file(tensors | {"lora_unet_blocks_0_attn_q.alpha": torch.tensor(4.0)}, tmp_path / "style.safetensors")
    merged(tmp_path, "base", tmp_path / "local")
    assert not load_file(tmp_path / "local" / NAMES[0])[f"{weight(0)[:-7]}.weight_scale"].equal(torch.tensor(0.01))
    merged(tmp_path, "base", f"s3://{store.bucket}/out")
    assert below(store, "out") == contents(tmp_path / "local")


def test_what_is_told_of_the_progress_comes_to_an_end(files, store):
    told = []
    output = f"s3://{store.bucket}/out"
    api_merge(files / "shards", [files / "style.safetensors"], output, progress=lambda *both: told.append(both))
    sizes = {total for _, total in told}
    assert len(sizes) == 1
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1] > 2 * (files / "shards" / NAMES[0]).stat().st_size
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_disk_without_room_for_temporary_files_is_named(files, store, monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lora_inspect.files.safetensors.writer.write_all_at", refuse)
    with pytest.raises(LoraInspectError, match="set TMPDIR to a folder with room") as refused:
        merged(files, "shards", f"s3://{store.bucket}/out")
    assert str(refused.value).startswith(
        f"s3://{store.bucket}/out: lora-inspect first writes it into {tmp_path / 'temporary'}"
    )
    assert "(No space left on device)" in str(refused.value)
    assert store.objects() == {}


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_an_adapter_is_converted_into_a_store(name, files, store, tmp_path, run):
    adapter = files / "style.safetensors"
    if name == "out":
        adapter = tmp_path / "adapter"
        adapter.mkdir()
        at = "base_model.model.model.layers.0.self_attn.q_proj"
        factors = {f"{at}.lora_A.weight": drawn(1, 4, IN), f"{at}.lora_B.weight": drawn(2, IN, 4)}
        save_file(factors, adapter / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
    for output in (tmp_path / name, f"s3://{store.bucket}/{name}"):
        shown = run("convert", adapter, "-o", output, "--json").json
        assert shown["output"] == str(output)
        assert shown["to"]["bytes"] > 0
    assert below(store, name) == contents(tmp_path / name)


def test_a_folder_of_adapters_is_converted_into_a_store(files, store, tmp_path, run):
    for name in ("one", "two"):
        (tmp_path / "many" / name).mkdir(parents=True)
        (tmp_path / "many" / name / "style.safetensors").write_bytes((files / "style.safetensors").read_bytes())
    for output in (tmp_path / "out", f"s3://{store.bucket}/out"):
        assert run("convert", tmp_path / "many", "-o", output).status == 0
    assert below(store, "out") == contents(tmp_path / "out")
    assert len(below(store, "out")) == 2


def test_metadata_go_into_a_store_with_the_tensors(files, store, tmp_path, run):
    for output in (tmp_path / "out.safetensors", f"s3://{store.bucket}/out.safetensors"):
        assert run("metadata", "set", files / "style.safetensors", "note=x", "-o", output).status == 0
    assert below(store, "out.safetensors") == contents(tmp_path / "out.safetensors")


def test_no_credentials_are_shown_or_stored(files, store, run):
    store.trouble = always("part", 403)
    refused = run("merge", files / "shards", files / "style.safetensors", "-o", f"s3://{store.bucket}/out")
    store.trouble = lambda asked: None
    done = run("merge", files / "shards", files / "style.safetensors", "-o", f"s3://{store.bucket}/out", "--json")
    assert refused.status == 3
    assert done.json["output"] == f"s3://{store.bucket}/out"
    shown = "".join((refused.stdout, refused.stderr, done.stdout, done.stderr)).encode()
    for said in (shown, *store.objects().values()):
        assert SECRET.encode() not in said
        assert KEY.encode() not in said
    refused = run(
        "merge", files / "shards", files / "style.safetensors", "-o", f"s3://{KEY}:{SECRET}@{store.bucket}/out"
    )
    assert "an address cannot hold credentials" in refused.refusal
    assert SECRET not in refused.stderr


def test_without_the_libraries_a_sentence_names_the_command_that_brings_them(files, run_process, tmp_path):
    (tmp_path / "main.py").write_text(
        "import sys\nsys.modules['s3fs'] = sys.modules['botocore'] = None\nfrom lora_inspect.cli import main\nmain()"
    )
    for command in (
        ("merge", files / "base.safetensors", files / "style.safetensors"),
        ("convert", files / "style.safetensors"),
    ):
        refused = run_process(tmp_path / "main.py", *command, "-o", "s3://bucket/out.safetensors")
        assert "pip install 'lora-inspect[remote]'" in refused.failure


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the largest memory of a program by itself")
def test_sending_takes_150_mb_of_memory_beside_the_merge(store, tmp_path):
    """Of 450 MB in two files; programs for the store are among them."""
    folder = tmp_path / "large"
    folder.mkdir()
    numbers = torch.Generator().manual_seed(0)
    layers = [f"blocks.{block}.attn.q" for block in range(14)]
    for half, own in enumerate((layers[:7], layers[7:])):
        weights = {f"{layer}.weight": torch.randn(4096, 4000, generator=numbers).bfloat16() for layer in own}
        save_file(weights, folder / f"model-{half + 1:05}-of-00002.safetensors")
    factors = {}
    for layer in layers:
        name = f"lora_unet_{layer.replace('.', '_')}"
        factors[f"{name}.lora_down.weight"] = torch.randn(4, 4000, generator=numbers)
        factors[f"{name}.lora_up.weight"] = torch.randn(4096, 4, generator=numbers)
    save_file(factors, tmp_path / "lora.safetensors")

    # The largest memory of the program itself, not of the test that started it.
    script = (
        "import atexit, re; from lora_inspect.start import main; "
        "atexit.register(lambda: print(re.search('VmHWM:\\\\s+(\\\\d+)', open('/proc/self/status').read())[1])); main()"
    )

    def most_memory(output):
        words = ["merge", folder, tmp_path / "lora.safetensors", "-o", output]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        ended = subprocess.run([sys.executable, "-c", script, *words], env=environment, capture_output=True, check=True)
        return int(ended.stdout.split()[-1]) / 1000

    assert most_memory(f"s3://{store.bucket}/large") - most_memory(tmp_path / "on-disk") < 150
