"""A base that several jobs merge together: the bytes of one process, whoever does what, when and how often."""

import errno
import itertools
import os
import random
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from adapters import drawn
from bases import SHARDS, content, shards, write_adapter, write_base
from forked_runs import calls_of, killed_at
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.files import shard_staging as parts_of_files
from lora_inspect.files import temp_files
from lora_inspect.files.system import create, lock
from lora_inspect.merging.jobs import shards as shared_merge
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.ops.merge_jobs import ProcessShare, finish_merge, merge_shard

ADAPTERS = {"lora": {}, "other": {"seed": 2, "size": 0.05, "modules": 1}, "dora": {"seed": 3, "dora": True}}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A base and adapters in the working folder."""
    monkeypatch.chdir(tmp_path)
    write_base("base")
    return tmp_path


def planned(adapters=("lora",), base="base", **options):
    pairs = []
    for name in adapters:
        name, _, multiplier = name.partition(":")
        if not os.path.exists(name):
            write_adapter(name, **ADAPTERS[name])
        pairs.append((name, float(multiplier or 1)))
    return plan_merge(base, pairs, MergeOptions(**options))


def job(text, *adapters, force=False, base="base", out="out", progress=lambda amount: None, **options):
    return merge_shard(planned(adapters or ("lora",), base, **options), out, ProcessShare.parse(text), force, progress)


def finish(*adapters, force=False, **options):
    return finish_merge(planned(adapters or ("lora",), **options), "out", force)


def one_process(*adapters, base="base", **options):
    result = merge(planned(adapters or ("lora",), base, **options), "one")
    return result, content("one")


def without_times(result):
    return {key: value for key, value in result.to_dict().items() if key not in ("seconds", "output")}


MERGES = {
    "plain": (("lora",), {}),
    "two adapters": (("lora:0.7", "other"), {}),
    "DoRA behind LoRA": (("lora", "dora:0.8"), {}),
    "cast": (("lora",), {"dtype": "F16"}),
    "touched": (("lora",), {"changed_dtype": "F32"}),
    "stochastic": (("lora",), {"seed": 7}),
    "base with its hash": (("lora",), {"hash_base": True}),
    "nothing": (("lora:0",), {}),
    "loss accepted": (("lora:1e-6",), {"allow_loss": True}),
}
ORDERS = [["1/1"], ["1/2", "2/2"], ["2/2", "1/2"], ["3/3", "1/3", "2/3"], ["4/5", "2/5", "1/5", "5/5", "3/5"]]


@pytest.mark.numeric
@pytest.mark.parametrize("name", MERGES)
def test_any_number_of_jobs_in_any_order_gives_what_one_process_gives(name, place):
    adapters, options = MERGES[name]
    expected, files = one_process(*adapters, **options)
    assert len(files) == len(SHARDS) + 4
    for order in ORDERS if name == "plain" else ORDERS[1:3]:
        for number, text in enumerate(order):
            result = job(text, *adapters, **options)
            is_last = number == len(order) - 1
            assert (result.merged is not None) == is_last == os.path.exists("out") == (not os.path.exists("out.parts"))
        assert content("out") == files
        assert without_times(result.merged) == without_times(expected)
        os.rename("out", f"kept-{'-'.join(text.replace('/', 'of') for text in order)}")


@pytest.fixture
def coded(place):
    """A base of which the one shard has the scale of the codes in the other, and an adapter of more than they reach."""
    weight = drawn(0, 48, 32)
    scale = weight.abs().max() / 448
    tensors = {
        "m-00001-of-00002.safetensors": {"blocks.0.q.weight": (weight / scale).to(torch.float8_e4m3fn)},
        "m-00002-of-00002.safetensors": {"blocks.0.q.weight_scale": scale, "blocks.0.norm.weight": torch.ones(48)},
    }
    write_base("coded", tensors)
    own = {"lora_unet_blocks_0_q.lora_down.weight": drawn(1, 4, 32)}
    own |= {"lora_unet_blocks_0_q.lora_up.weight": drawn(2, 48, 4), "lora_unet_blocks_0_q.alpha": torch.tensor(4.0)}
    save_file(own, "adapter.safetensors")

    def plan():
        return plan_merge("coded", [("adapter.safetensors", 1.0)], MergeOptions(allow_loss=True))

    merge(plan(), "one")
    assert load_file("one/m-00002-of-00002.safetensors")["blocks.0.q.weight_scale"] != scale
    return plan


@pytest.mark.numeric
@pytest.mark.parametrize("order", [("1/2", "2/2"), ("2/2", "1/2")])
def test_a_scale_in_another_shard_is_put_in_at_the_end(order, coded):
    for text in order:
        merge_shard(coded(), "out", ProcessShare.parse(text))
    assert content("out") == content("one")


@pytest.mark.numeric
def test_a_shard_holds_before_and_after_the_scale_is_put_in(coded, monkeypatch):
    merge_shard(coded(), "out", ProcessShare(1, 2))
    with monkeypatch.context() as patched:
        patched.setattr(parts_of_files.PartsFolder, "take_place", died)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                merge_shard(coded(), "out", ProcessShare(2, 2))
    done = merge_shard(coded(), "out", ProcessShare(1, 1))
    assert len(done.held) == 2
    assert content("out") == content("one")


def test_progress_is_told_of_every_byte_of_a_job(place):
    told = []
    job("1/2", progress=told.append)
    expected = sum(t.nbytes for name in (SHARDS[0], SHARDS[1], SHARDS[4]) for t in shards()[name].values())
    assert sum(told) == expected
    again = []
    job("1/2", progress=again.append)
    assert sum(again) == expected


SPOILED = {
    "a byte is another": lambda file: flip(file, -1),
    "it is shorter": lambda file: os.truncate(file, os.path.getsize(file) - 1),
    "it is away": os.unlink,
}


class TestARerun:
    """What holds is left as it is, what does not is made again, and what comes out is the same."""

    def files(self, name):
        return f"out.parts/shards/{name}", f"out.parts/entries/{name}.json"

    def test_skips_what_is_there(self, place):
        first = job("1/2")
        before = {path: os.stat(path).st_mtime_ns for path in self.files(SHARDS[0])}
        again = job("1/2")
        assert (first.made, first.held, again.made, again.held) == (again.held, (), (), first.made)
        assert before == {path: os.stat(path).st_mtime_ns for path in self.files(SHARDS[0])}
        assert again.left == tuple(SHARDS[2:4])

    @pytest.mark.parametrize("which", [0, 1])
    @pytest.mark.parametrize("spoiled", SPOILED)
    def test_makes_what_does_not_hold(self, spoiled, which, place):
        _, expected = one_process()
        job("1/2")
        SPOILED[spoiled](self.files(SHARDS[1])[which])
        assert job("1/2").made == (SHARDS[1],)
        job("2/2")
        assert content("out") == expected

    @pytest.mark.parametrize("spoiled", ["it is shorter", "it is away"])
    def test_of_another_job_does_not_finish_where_a_shard_lacks_a_part(self, spoiled, place):
        job("1/2")
        SPOILED[spoiled](self.files(SHARDS[1])[0])
        result = job("2/2")
        assert (result.merged, result.left) == (None, (SHARDS[1],))
        assert not os.path.exists("out")

    def test_puts_a_spoiled_header_right_at_the_end(self, place):
        _, expected = one_process()
        job("1/2")
        flip(self.files(SHARDS[0])[0], 20)
        job("2/2")
        assert content("out") == expected

    @pytest.mark.parametrize("text", ["", "[]", "{}", "nothing", '{"schema": 1}', "[" * 100_000, "\0"])
    def test_takes_what_is_no_entry_for_none(self, text, place):
        job("1/2")
        Path(self.files(SHARDS[0])[1]).write_text(text)
        assert job("1/2").made == (SHARDS[0],)

    def test_removes_what_dead_runs_left_of_a_shard(self, place):
        job("1/2")
        for path in self.files(SHARDS[0]):
            os.unlink(path)
            Path(f"{path}.0123456789abcdef.partial").write_bytes(b"half")
            Path(f"{path}.0123456789abcdef.partial.lock").touch()
        job("1/2")
        assert not any("partial" in name for name in content("out.parts"))

    def test_removes_what_dead_runs_left_at_the_end(self, place):
        job("1/2")
        os.mkdir("out.parts/beside.0123456789abcdef.partial")
        Path("out.parts/beside.0123456789abcdef.partial/config.json").touch()
        Path("out.parts/beside.0123456789abcdef.partial.lock").touch()
        assert job("2/2").merged.notes == ()
        assert not os.path.exists("out.parts")

    @pytest.mark.slow
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    def test_of_jobs_that_are_killed_at_any_moment_gives_the_same(self, place, monkeypatch):
        _, expected = one_process()
        monkeypatch.setattr("lora_inspect.maths.torch_threads.computing_threads", lambda most: 1)
        calls = [calls_of(partial(job, text)) for text in ("1/2", "2/2")]
        assert content("out") == expected
        os.rename("out", "whole")
        chance, killed = random.Random(0), 0
        for turn in range(30):
            last = chance.randint(1, calls[turn % 2])
            killed += killed_at(partial(job, f"{turn % 2 + 1}/2"), last)
            if os.path.exists("out"):
                assert content("out") == expected
                shutil.rmtree("out")
                shutil.rmtree("out.parts", ignore_errors=True)  # that one was killed while it removed them
        job("1/2")
        if not os.path.exists("out"):
            job("2/2")
        assert content("out") == expected
        assert not os.path.exists("out.parts")
        assert killed >= 10


def flip(file, position):
    content = bytearray(Path(file).read_bytes())
    content[position] ^= 1
    Path(file).write_bytes(content)


def test_a_run_that_goes_on_when_all_is_done_says_so(place, monkeypatch):
    """The scheduler took it for dead, and ran its job once more."""
    job("1/2")
    real = shared_merge.OutputFiles.write

    def late(self, *arguments, **options):
        monkeypatch.setattr(shared_merge.OutputFiles, "write", real)
        assert job("2/2").merged
        return real(self, *arguments, **options)

    monkeypatch.setattr(shared_merge.OutputFiles, "write", late)
    with pytest.raises(LoraInspectError, match=r"^out\.parts: it disappeared while this job made shards"):
        job("2/2")
    assert not os.path.exists("out.parts")


def test_a_run_that_begins_while_another_one_finishes_leaves_no_parts(place, monkeypatch):
    job("1/2")
    real = shared_merge.made_of

    def late(*arguments):
        monkeypatch.setattr(shared_merge, "made_of", real)
        assert job("2/2").merged
        return real(*arguments)

    monkeypatch.setattr(shared_merge, "made_of", late)
    with pytest.raises(LoraInspectError, match=r"^out: it exists; choose another output"):
        job("2/2")
    assert not os.path.exists("out.parts")


CASES = {
    "multiplier": (lambda: job("2/2", "lora:0.5"), "the multiplier of the adapter lora is 1.0 there and 0.5 here"),
    "more": (lambda: job("2/2", "lora", "other"), "the adapters are lora there and lora and other here"),
    "dtype": (lambda: job("2/2", dtype="F32"), "--dtype is not given there and F32 here"),
    "seed": (lambda: job("2/2", seed=3), "--rounding is not given there and stochastic here"),
    "hash": (lambda: job("2/2", hash_base=True), "the SHA-256 of the base is not given there and"),
}


class TestAnotherMerge:
    """Shards of another base, adapter or option are an error that names the difference."""

    def other_numbers(self):
        write_base("elsewhere/base", {**shards(), SHARDS[3]: shards(seed=1)[SHARDS[3]]})
        return job("2/2", base="elsewhere/base")

    def other_header(self):
        write_base("elsewhere/base", shards(dtype=torch.float16))
        return job("2/2", base="elsewhere/base")

    def other_adapter(self):
        write_adapter("elsewhere/lora", seed=9)
        return merge_shard(plan_merge("base", [("elsewhere/lora", 1.0)], MergeOptions()), "out", ProcessShare(2, 2))

    def other_version(self, monkeypatch):
        monkeypatch.setattr("lora_inspect.merging.record.__version__", "9.9")
        return job("2/2")

    @pytest.mark.parametrize("name", CASES)
    def test_is_named(self, name, place):
        do, said = CASES[name]
        self.refused(do, said)

    def test_of_a_base_with_other_numbers_is_named(self, place):
        self.refused(self.other_numbers, "the hash of samples of the numbers of the base is")

    def test_of_a_base_with_another_header_is_named(self, place):
        self.refused(self.other_header, "the size in bytes of the base is")

    def test_of_an_adapter_with_the_same_name_is_named(self, place):
        self.refused(self.other_adapter, "the SHA-256 of the adapter lora is")

    def test_of_another_version_is_named(self, place, monkeypatch):
        self.refused(lambda: self.other_version(monkeypatch), "the version of lora-inspect is")

    def refused(self, do, said):
        os.makedirs("elsewhere", exist_ok=True)
        job("1/2")
        before = content("out.parts")
        with pytest.raises(LoraInspectError) as error:
            do()
        assert str(error.value).startswith(f"out.parts: it belongs to another merge: {said}")
        assert content("out.parts") == before
        assert not os.path.exists("out")


class TestTheEnd:
    """The output comes when all is there, once, and is refused as that of one process would be."""

    def test_is_for_a_run_of_its_own_where_the_last_job_died(self, place, monkeypatch):
        _, expected = one_process()
        job("1/2")
        with monkeypatch.context() as patched:
            patched.setattr(shared_merge.SharedMerge, "finish", died)
            with pytest.raises(KeyboardInterrupt):
                job("2/2")
        assert finish().bytes == sum(len(held) for held in expected.values() if held is not None)
        assert content("out") == expected
        assert not os.path.exists("out.parts")

    @pytest.mark.parametrize("step", ["gather", "side_folder", "take_place", "remove"])
    def test_can_be_repeated_behind_each_of_its_steps(self, step, place, monkeypatch):
        _, expected = one_process(hash_base=True)
        job("1/2", hash_base=True)
        with monkeypatch.context() as patched:
            patched.setattr(parts_of_files.PartsFolder, step, died)
            with pytest.raises(KeyboardInterrupt):
                job("2/2", hash_base=True)
        assert os.path.exists("out") == (step == "remove")
        if step != "remove":
            assert job("1/2", hash_base=True).merged
        assert content("out") == expected

    @pytest.mark.slow
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    @pytest.mark.parametrize(("hash_base", "most"), [(False, 5), (True, 14)])
    def test_may_be_killed_at_each_call_that_removes_the_parts(self, hash_base, most, place, monkeypatch):
        _, expected = one_process(hash_base=hash_base)
        monkeypatch.setattr("lora_inspect.maths.torch_threads.computing_threads", lambda most: 1)
        first, last = (partial(job, text, hash_base=hash_base) for text in ("1/2", "2/2"))
        first()
        calls = calls_of(last)
        left = 0
        for number in range(calls, calls - most, -1):
            for folder in ("out", "out.parts"):
                shutil.rmtree(folder, ignore_errors=True)
            first()
            assert killed_at(last, number)
            left += os.path.exists("out.parts")
            with pytest.raises(LoraInspectError, match=r"^out: it exists"):
                last()
            assert content("out") == expected
            assert not os.path.exists("out.parts")
        assert left >= most - 4  # a few calls come after the last removal

    def test_claims_its_parts_where_a_run_before_it_removed_the_empty_folder(self, place, monkeypatch):
        write, empty = parts_of_files.PartsFolder._write, []

        def late(self, *arguments, **options):
            if not empty:
                empty.append(True)
                self.remove_empty()
            return write(self, *arguments, **options)

        monkeypatch.setattr(parts_of_files.PartsFolder, "_write", late)
        job("1/2")
        assert job("2/2").merged

    def test_comes_once(self, place):
        job("1/2")
        job("2/2")
        with pytest.raises(LoraInspectError, match=r"^out: it exists; choose another output or add --force\.$"):
            finish()
        with pytest.raises(LoraInspectError, match=r"^out\.parts: there is no such folder; make the shards with"):
            finish(force=True)

    def test_lacks_the_shards_of_other_jobs(self, place):
        job("1/2")
        with pytest.raises(
            LoraInspectError, match=rf"^out\.parts: 2 of 5 shards are missing \({SHARDS[2]}, {SHARDS[3]}\); run"
        ):
            finish()
        assert not os.path.exists("out")

    def test_is_left_to_who_has_the_lock(self, place):
        job("1/2")
        descriptor = create("out.parts/finish.lock")
        assert lock(descriptor)
        result = job("2/2")
        assert (result.merged, result.left) == (None, ())
        with pytest.raises(LoraInspectError, match=r"^out: another process is finishing it; wait for that process\.$"):
            finish()
        os.close(descriptor)
        assert finish().modules_merged
        assert not os.path.exists("out.parts")

    @pytest.mark.parametrize("step", ["finishing", "gather", "side_folder", "take_place"])
    def test_is_the_same_when_two_are_at_it_without_locks(self, step, place, monkeypatch):
        _, expected = one_process()
        job("1/2")
        monkeypatch.setattr(parts_of_files, "lock", lambda descriptor: None)
        real, others = getattr(parts_of_files.PartsFolder, step), []

        def after_another(self, *arguments):
            if not others:
                others.append(None)
                others[0] = finish()
            return real(self, *arguments)

        monkeypatch.setattr(parts_of_files.PartsFolder, step, after_another)
        # The other one finds all shards only when this job has made its own.
        assert job("2/2").merged is None
        assert others[0].modules_merged
        assert content("out") == expected
        assert not os.path.exists("out.parts")

    def test_is_no_more_where_another_process_was_faster_to_the_lock(self, place, monkeypatch):
        _, expected = one_process()
        job("1/2")
        others = []

        def lock_late(descriptor):
            if not others:
                others.append(None)
                others[0] = finish()
            return lock(descriptor)

        monkeypatch.setattr(parts_of_files, "lock", lock_late)
        assert job("2/2").merged is None
        assert others[0].modules_merged
        assert content("out") == expected
        assert not os.path.exists("out.parts")

    def test_puts_the_old_output_back_where_it_died_between_two_renames(self, place, monkeypatch):
        """Where two folders cannot change names in one step."""
        _, expected = one_process()
        for text in ("1/2", "2/2"):
            job(text, "lora:0.5")
        old = content("out")
        monkeypatch.setattr(temp_files, "exchange", lambda one, other: False)
        job("1/2", force=True)
        with monkeypatch.context() as patched:
            patched.setattr(temp_files, "rename_new", died)
            with pytest.raises(KeyboardInterrupt):
                job("2/2", force=True)
        assert not os.path.exists("out")
        assert content("out.parts/whole.old") == old
        with pytest.raises(LoraInspectError, match=r"^out: it appeared while the command ran; choose another"):
            finish()
        assert content("out") == old
        finish(force=True)
        assert content("out") == expected
        assert not os.path.exists("out.parts")

    def test_is_refused_for_a_full_disk_and_comes_when_there_is_room(self, place, monkeypatch):
        _, expected = one_process()
        job("1/2")

        def full(*arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr("lora_inspect.files.base_folder.copy_bytes", full)
            with pytest.raises(OSError, match="No space left"):
                job("2/2")
        assert not os.path.exists("out")
        finish()
        assert content("out") == expected

    @pytest.mark.numeric
    def test_is_refused_where_too_little_is_kept_of_all_shards_together(self, place):
        with pytest.raises(LoraInspectError) as expected:
            one_process("lora:1e-5")
        assert "the output would keep" in str(expected.value)
        job("1/2", "lora:1e-5")
        with pytest.raises(LoraInspectError) as found:
            job("2/2", "lora:1e-5")
        assert str(found.value) == str(expected.value)
        assert not os.path.exists("out")
        accepted, files = one_process("lora:1e-5", allow_loss=True)
        done = finish("lora:1e-5", allow_loss=True)
        assert {**without_times(done), "bytes": 0} == {**without_times(accepted), "bytes": 0}
        for name in SHARDS:  # the header has as many blanks less as its text is longer
            assert load_file(f"out/{name}").keys() == load_file(f"one/{name}").keys()
            assert all(torch.equal(t, load_file(f"one/{name}")[key]) for key, t in load_file(f"out/{name}").items())
            assert Path(f"out/{name}").read_bytes().rstrip(b" ")[8:3000] == files[name].rstrip(b" ")[8:3000]

    @pytest.mark.parametrize("first", [True, False])
    def test_may_accept_a_loss_or_not_whatever_the_jobs_did(self, first, place):
        """The record of it is longer or shorter then, and the header has as many blanks less or more."""
        one_process(allow_loss=not first)
        job("1/2", allow_loss=first)
        assert job("2/2", allow_loss=not first).merged
        for name in SHARDS:
            with safe_open(f"out/{name}", "pt") as found, safe_open(f"one/{name}", "pt") as expected:
                assert found.metadata() == expected.metadata()
            one, other = load_file(f"out/{name}"), load_file(f"one/{name}")
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one)

    def test_replaces_an_output_where_that_is_asked_for(self, place):
        _, expected = one_process()
        for text in ("1/2", "2/2"):
            job(text, "lora:0.5")
        old = content("out")
        assert old != expected
        with pytest.raises(LoraInspectError, match=r"^out: it exists"):
            job("1/2")
        for text in ("1/2", "2/2"):
            assert content("out") == old
            job(text, force=True)
        assert content("out") == expected
        assert not os.path.exists("out.parts")

    def test_never_replaces_a_folder_with_something_else_in_it(self, place):
        os.mkdir("out")
        Path("out/notes.txt").touch()
        with pytest.raises(LoraInspectError, match=r"^out: the folder holds notes\.txt, which the command does not"):
            job("1/2", force=True)

    def test_leaves_nothing_else_in_the_folder(self, place):
        job("1/2")
        os.makedirs("out.parts/whole")
        Path("out.parts/whole/strange").touch()
        with pytest.raises(LoraInspectError, match=r"out\.parts/whole: the folder holds strange"):
            job("2/2")
        assert not os.path.exists("out")


def died(*arguments):
    raise KeyboardInterrupt


class TestRefused:
    """What cannot be shared, and where it cannot go."""

    def refusal(self, *arguments, **options):
        with pytest.raises(LoraInspectError) as error:
            job(*arguments, **options)
        assert not os.path.exists("out.parts")
        return str(error.value)

    def test_a_base_of_one_file(self, place):
        save_file(shards()[SHARDS[0]], "base.safetensors")
        plan = plan_merge(
            "base.safetensors", [(write_adapter("small", modules=9), 1.0)], MergeOptions(allow_unmatched=True)
        )
        with pytest.raises(LoraInspectError, match=r"^base\.safetensors: it is one file, but several"):
            merge_shard(plan, "out", ProcessShare(1, 2))

    def test_more_jobs_than_shards(self, place):
        assert self.refusal("1/6") == "base: it has 5 shards, so no more jobs than that can share it; give --shard I/5."

    def test_an_output_in_the_folder_of_the_base(self, place):
        assert self.refusal("1/2", out="base/out").startswith("base/out: it is in the folder of the base")

    def test_an_output_in_a_store(self, place):
        assert self.refusal("1/2", out="s3://bucket/out").startswith("s3://bucket/out: jobs find each other by files")

    @pytest.mark.parametrize("name", ["shards", "entries", "whole", "finish.lock"])
    @pytest.mark.parametrize("kind", ["link", "other"])
    def test_something_else_in_the_place_of_one_of_them(self, name, kind, place):
        os.mkdir("out.parts")
        if kind == "link":  # which leads to files of the same names that are not to be written to
            os.symlink(place / "base", f"out.parts/{name}")
        elif name == "finish.lock":
            os.mkdir(f"out.parts/{name}")
        else:
            Path("out.parts", name).touch()
        before = content("base")
        with pytest.raises(LoraInspectError, match=rf"^out\.parts: it holds {name}, which does not belong to a merge"):
            job("1/2")
        assert content("base") == before

    def test_something_else_in_the_place_of_the_parts(self, place):
        os.mkdir("out.parts")
        Path("out.parts/notes.txt").touch()
        with pytest.raises(
            LoraInspectError, match=r"^out\.parts: it holds notes\.txt, which does not belong to a merge"
        ):
            job("1/2")
        os.unlink("out.parts/notes.txt")
        os.rmdir("out.parts")
        Path("out.parts").touch()
        with pytest.raises(LoraInspectError, match=r"^out\.parts: it is a file; remove it first\.$"):
            job("1/2")


def test_an_ordinary_merge_tells_of_the_parts_beside_it(place):
    job("1/2")
    result = merge(planned(), "out")
    (note,) = [note for note in result.notes if note.startswith("out.parts")]
    assert note.startswith(
        "out.parts: it holds 3 shards of an unfinished merge by several jobs; repeat the missing jobs, or remove it"
    )


@pytest.mark.parametrize("order", list(itertools.permutations(["1/3", "2/3", "3/3"])))
def test_who_is_last_does_not_matter(order, place):
    assert [job(text).merged is not None for text in order] == [False, False, True]
