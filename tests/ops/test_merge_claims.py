"""Different merges into one output at once, shards that lose bytes, and parts beside an output that is done."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from bases import SHARDS, content, write_adapter, write_base
from forked_runs import jobs_with_kills, race

from lora_inspect.errors import LoraInspectError
from lora_inspect.files import shard_staging, system, temp_files
from lora_inspect.files.shard_staging import PartsFolder
from lora_inspect.merging.jobs import shards as shared_merge
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.ops.merge_jobs import ProcessShare, finish_merge, merge_shard

RACES, SLOW_RACES, KILLS = 6, 200, 100


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_base("base")
    write_adapter("lora")
    write_adapter("other", seed=2, size=0.05, modules=1)
    return tmp_path


def planned(name, **options):
    return plan_merge("base", [(name, 1.0)], MergeOptions(**options))


def job(text, name="lora", force=False):
    return merge_shard(planned(name), "out", ProcessShare.parse(text), force)


def one_process(name):
    shutil.rmtree("one", ignore_errors=True)
    merge(planned(name), "one")
    return content("one")


def flip(file, position=-1):
    held = bytearray(Path(file).read_bytes())
    held[position] ^= 1
    Path(file).write_bytes(held)


def test_the_first_merge_claims_the_parts_before_it_writes(place, monkeypatch):
    """Another merge ends before it writes anything, however early it comes."""
    seen = []

    def at_the_first_shard(*arguments, **options):
        before = content("out.parts")
        with pytest.raises(
            LoraInspectError, match=r"^out\.parts: it belongs to another merge: the adapters are lora there"
        ):
            job("2/2", "other")
        assert content("out.parts") == before
        seen.append(before)
        monkeypatch.setattr(shared_merge.OutputFiles, "write", write)
        return write(*arguments, **options)

    write = shared_merge.OutputFiles.write
    monkeypatch.setattr(shared_merge.OutputFiles, "write", at_the_first_shard)
    job("1/2")
    assert seen
    assert job("2/2").merged
    assert content("out") == one_process("lora")


def test_a_claim_alone_keeps_others_away(place, monkeypatch):
    """The process that claimed died before it made a shard."""
    with monkeypatch.context() as patched:
        patched.setattr(shared_merge.OutputFiles, "write", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job("1/1")
    with pytest.raises(LoraInspectError, match="it belongs to another merge"):
        job("1/1", "other")
    assert job("1/1").merged
    assert content("out") == one_process("lora")


def test_a_damaged_claim_is_named(place):
    job("1/2")
    flip("out.parts/merge.json")
    with pytest.raises(
        LoraInspectError, match=r"^out\.parts/merge\.json: it does not say which merge it is of; remove it\.$"
    ):
        job("2/2")
    os.remove("out.parts/merge.json")
    assert job("2/2").merged


@pytest.mark.parametrize("count", [RACES, pytest.param(SLOW_RACES, marks=pytest.mark.slow)])
def test_two_merges_at_once_make_one_of_them_and_refuse_the_other(count, place):
    expected = {name: one_process(name) for name in ("lora", "other")}
    winners = set()
    for _ in range(count):
        shutil.rmtree("out", ignore_errors=True)
        ended = race({name: partial(job, "1/1", name) for name in expected})
        (winner,) = (name for name, status in ended.items() if status == 0)
        winners.add(winner)
        assert content("out") == expected[winner]
        assert not os.path.exists("out.parts")
    assert winners


@pytest.mark.parametrize("count", [RACES, pytest.param(SLOW_RACES, marks=pytest.mark.slow)])
def test_halves_of_two_merges_at_once_are_halves_of_one_of_them(count, place):
    expected = {name: one_process(name) for name in ("lora", "other")}
    for number in range(count):
        shutil.rmtree("out", ignore_errors=True)
        second = "2/2" if number % 2 else "1/2"
        ended = race({"lora": partial(job, "1/2"), "other": partial(job, second, "other")})
        (winner,) = (name for name, status in ended.items() if status == 0)
        for text in ("1/2", "2/2"):
            if not os.path.exists("out"):
                job(text, winner)
        assert content("out") == expected[winner]
        assert not os.path.exists("out.parts")


DAMAGE = {
    "a bit of the last byte": lambda file: flip(file),
    "half of it is zeros": lambda file: Path(file).write_bytes(
        (held := Path(file).read_bytes())[: len(held) // 2] + bytes(len(held) - len(held) // 2)
    ),
}


@pytest.mark.parametrize("ending", ["the last job", "a job of its own"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_shard_that_lost_bytes_is_found_before_the_output_takes_its_name(damage, ending, place, monkeypatch):
    job("1/2")
    name = sorted(os.listdir("out.parts/shards"))[0]
    if ending == "a job of its own":
        with monkeypatch.context() as patched:
            patched.setattr(shared_merge.SharedMerge, "finish", lambda *arguments: None)
            job("2/2")
    damage(f"out.parts/shards/{name}")
    with pytest.raises(LoraInspectError) as refused:
        job("2/2") if ending == "the last job" else finish_merge(planned("lora"), "out")
    assert str(refused.value) == (
        f"out.parts: 1 shard ({name}) lost bytes after the job wrote them; repeat, with --shard, each job that makes "
        "one of them."
    )
    assert not os.path.exists("out")
    assert job("1/2").merged
    assert content("out") == one_process("lora")


def test_shards_of_this_process_are_read_once(place, monkeypatch):
    job("1/2")
    read = []
    real = shared_merge.ShardEntry.holds
    monkeypatch.setattr(
        shared_merge.ShardEntry,
        "holds",
        lambda self, file, *more: read.append(os.path.basename(file)) or real(self, file, *more),
    )
    made = job("2/2")
    assert sorted(read) == sorted(set(SHARDS) - set(made.made))


def test_a_shard_that_another_program_replaces_while_it_is_described_is_not_signed(place, monkeypatch):
    real = shared_merge.read_header

    def replaced(path):
        found = real(path)
        os.replace(shutil.copyfile(path, f"{path}.copy"), path)
        flip(path)
        monkeypatch.setattr(shared_merge, "read_header", real)
        return found

    monkeypatch.setattr(shared_merge, "read_header", replaced)
    result = job("1/2")
    assert len(result.left) == len(SHARDS) - len(result.made) + 1
    assert job("1/2").made == (next(iter(set(result.left) & set(result.made))),)


@pytest.mark.parametrize("again", ["--shard", "--finish"])
@pytest.mark.parametrize("left", ["all", "the claim"])
def test_parts_beside_the_output_of_their_merge_are_removed_by_its_next_run(left, again, place, monkeypatch):
    job("1/2")
    with monkeypatch.context() as patched:
        patched.setattr(PartsFolder, "remove", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job("2/2")
    if left == "the claim":
        for name in set(os.listdir("out.parts")) - {"merge.json"}:
            path = f"out.parts/{name}"
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    with pytest.raises(LoraInspectError, match=r"^out: it exists; choose another output or add --force\.$"):
        job("2/2") if again == "--shard" else finish_merge(planned("lora"), "out")
    assert not os.path.exists("out.parts")
    assert content("out") == one_process("lora")


def test_parts_of_a_merge_that_is_not_done_stay_beside_an_output(place):
    merge(planned("other"), "out")
    job("1/2", force=True)
    before = content("out.parts")
    for text in ("1/2", "2/2"):
        with pytest.raises(LoraInspectError, match=r"^out: it exists"):
            job(text)
    assert content("out.parts") == before
    assert job("2/2", force=True).merged
    assert content("out") == one_process("lora")


def test_a_claim_without_a_shard_stays_beside_another_output(place, monkeypatch):
    merge(planned("other"), "out")
    with monkeypatch.context() as patched:
        patched.setattr(shared_merge.OutputFiles, "write", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job("1/1", force=True)
    with pytest.raises(LoraInspectError, match=r"^out: it exists"):
        job("1/1")
    assert os.path.exists("out.parts/merge.json")


def without_features(monkeypatch):
    """As on a file system that has neither locks nor links nor a rename that replaces nothing."""
    monkeypatch.setattr(system, "_RENAMES", {})
    monkeypatch.setattr(system, "_link_new", lambda source, target: False)
    for module in (system, shard_staging, temp_files):
        if hasattr(module, "lock"):
            monkeypatch.setattr(module, "lock", lambda descriptor: None)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("has_features", [True, False])
def test_a_job_that_is_killed_at_any_moment_and_run_again_leaves_the_output_alone(has_features, place, monkeypatch):
    monkeypatch.setattr("lora_inspect.maths.torch_threads.computing_threads", lambda most: 1)
    expected = one_process("lora")
    if not has_features:
        without_features(monkeypatch)
    killed = 0
    for was_killed in jobs_with_kills(job, KILLS, has_features):
        assert content("out") == expected
        assert not os.path.exists("out.parts"), content("out.parts").keys()
        killed += was_killed
    assert killed > KILLS // 4
