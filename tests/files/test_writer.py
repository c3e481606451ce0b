"""The atomic writer: bytes as the safetensors library reads them, and nothing left where it fails."""

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from strategies import metadata, tensor_plans

from lora_inspect.errors import LoraInspectError
from lora_inspect.files import input_file
from lora_inspect.files.safetensors.header import read_header
from lora_inspect.files.safetensors.writer import TensorPlan, Writer, encode_header, in_file_order

PLANS = [TensorPlan("a", "F32", (2,)), TensorPlan("b", "U8", (3,))]


def write(path, plans=PLANS, about=None):
    with Writer(str(path), plans, about or {}) as writer:
        for plan in plans:
            writer.write(plan.name, [bytes(plan.nbytes)])


@given(plans=tensor_plans, about=metadata, data=st.data())
def test_what_is_written_is_read_back_and_aligned(tmp_path_factory, plans, about, data):
    path = str(tmp_path_factory.mktemp("writer") / "a.safetensors")
    ordered = in_file_order(plans)
    contents = {plan.name: data.draw(st.binary(min_size=plan.nbytes, max_size=plan.nbytes)) for plan in plans}
    with Writer(path, ordered, about) as writer:
        for plan in ordered:
            half = plan.nbytes // 2
            writer.write(plan.name, [contents[plan.name][:half], memoryview(contents[plan.name])[half:]])
    found, read = read_header(path)
    assert read == about
    assert {info.name for info in found.values()} == {plan.name for plan in plans}
    with open(path, "rb") as handle:
        whole = handle.read()
    assert all(whole[info.start : info.stop] == contents[info.name] for info in found.values())
    widths = [info.nbytes // info.numel for info in found.values() if info.numel and info.dtype[:2] not in ("F4", "F6")]
    assert widths == sorted(widths, reverse=True)
    assert os.listdir(os.path.dirname(path)) == ["a.safetensors"]


def test_the_library_reads_it(tmp_path):
    write(tmp_path / "a.safetensors", about={"é": "日本"})
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        assert sorted(file.keys()) == ["a", "b"]
        assert file.metadata() == {"é": "日本"}
        assert file.get_tensor("a").tolist() == [0.0, 0.0]


def test_a_header_is_these_bytes():
    text = b'{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}'
    assert encode_header([TensorPlan("a", "F32", (2, 1))], {"k": "v"}) == b"\x58" + bytes(7) + text + b" " * 7


def test_copy_takes_the_bytes_of_a_range(write_safetensors, tmp_path):
    source = write_safetensors({"x": ("U8", (2,), b"no"), "y": ("U8", (3,), b"yes")})
    info = read_header(str(source))[0]["y"]
    with Writer(str(tmp_path / "o.safetensors"), [TensorPlan("z", "U8", (3,))], {}) as writer:
        writer.copy(info, "z")
    assert (tmp_path / "o.safetensors").read_bytes().endswith(b"yes")


def test_copy_works_where_the_system_cannot_copy_by_itself(write_safetensors, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EXDEV, "other device")

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    test_copy_takes_the_bytes_of_a_range(write_safetensors, tmp_path)


def test_copy_of_an_input_that_became_shorter_is_refused(write_safetensors, tmp_path):
    source = write_safetensors({"y": ("U8", (30,), 1)}, name="in/source.safetensors")
    info = read_header(str(source))[0]["y"]
    source.write_bytes(source.read_bytes()[:-1])
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(LoraInspectError, match=r"source\.safetensors: it changed while it was read; run the command"),
        Writer(str(tmp_path / "out" / "o"), [TensorPlan("y", "U8", (30,))], {}) as writer,
    ):
        writer.copy(info)
    assert os.listdir(tmp_path / "out") == []


def test_copy_opens_each_input_once_and_one_at_a_time(write_safetensors, tmp_path, monkeypatch):
    tensors = {name: ("U8", (3,), number) for number, name in enumerate("abcdef")}
    sources = [write_safetensors(tensors, name=name) for name in ("in/first", "in/second")]
    infos = [info for source in sources for info in read_header(str(source))[0].values()]
    plans = [TensorPlan(f"{info.file[-5:]}.{info.name}", "U8", (3,)) for info in infos]
    opened = []
    real = input_file.InputFile

    def counted(path, identity):
        assert all(earlier._handle.closed for earlier in opened)
        opened.append(real(path, identity))
        return opened[-1]

    monkeypatch.setattr(input_file, "InputFile", counted)
    with Writer(str(tmp_path / "o"), plans, {}) as writer:
        for plan, info in zip(plans, infos, strict=True):
            writer.copy(info, plan.name)
    assert [source.path for source in opened] == [str(source) for source in sources]
    assert all(source._handle.closed for source in opened)
    found = (tmp_path / "o").read_bytes()
    assert found.endswith(bytes(value for _ in sources for number in range(6) for value in (number,) * 3))


def test_an_existing_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_text("old")
    with Writer(str(path), PLANS, {}, force=True) as writer:
        writer.write("a", [bytes(8)])
        assert path.read_text() == "old"
        writer.write("b", [bytes(3)])
        assert path.read_text() == "old"
    assert read_header(str(path))[0].keys() == {"a", "b"}


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, Stop])
def test_whatever_ends_the_block_leaves_the_folder_as_it_was(error, tmp_path):
    (tmp_path / "a.safetensors").write_text("old")

    def half() -> None:
        with Writer(str(tmp_path / "a.safetensors"), PLANS, {}, force=True) as writer:
            writer.write("a", [bytes(8)])
            raise error

    with pytest.raises(error):
        half()
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_text() == "old"


MISTAKES = {
    "in the wrong order": lambda writer: writer.write("b", [bytes(3)]),
    "too few bytes": lambda writer: writer.write("a", [bytes(7)]),
    "too many bytes": lambda writer: writer.write("a", [bytes(9)]),
    "not everything": lambda writer: writer.write("a", [bytes(8)]),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_caller_that_breaks_its_plan_leaves_nothing(mistake, tmp_path):
    with pytest.raises(AssertionError), Writer(str(tmp_path / "a.safetensors"), PLANS, {}) as writer:
        mistake(writer)
    assert os.listdir(tmp_path) == []


# Which call of the system refuses, and how many calls of it succeed before: the first file is the lock's.
FAILING_CALLS = {"lock": ("open", 0), "mark": ("write", 0), "open": ("open", 1), "header": ("pwrite", 0),
                 "first tensor": ("pwrite", 1), "second tensor": ("pwrite", 2), "fsync": ("fsync", 0),
                 "close": ("close", 0), "link": ("link", 0)}  # fmt: skip


@pytest.mark.parametrize(("name", "succeed"), FAILING_CALLS.values(), ids=FAILING_CALLS)
def test_a_full_disk_at_any_moment_is_one_sentence_and_leaves_nothing(name, succeed, tmp_path, monkeypatch):
    real, calls = getattr(os, name), []

    def fail(*arguments, **options):
        calls.append(arguments)
        if len(calls) <= succeed:
            return real(*arguments, **options)
        if name == "close":
            real(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, name, fail)
        with pytest.raises(LoraInspectError, match="No space left on device"):
            write(tmp_path / "a.safetensors")
    assert calls
    assert os.listdir(tmp_path) == []
