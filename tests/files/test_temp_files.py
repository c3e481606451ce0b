"""What a run that writes leaves beside its output while it lives, after it died, and what others put there."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lora_inspect.files import temp_files as partial_module
from lora_inspect.files.temp_files import claimed, is_leftover, remove_leftovers

ROOT = Path(__file__).parents[2]
RANDOM = "0123456789abcdef"

# Says when it has claimed a name and put something there, and waits for the end of its input.
CLAIMING = """
import os, sys
from lora_inspect.files.temp_files import claimed
with claimed(sys.argv[1]) as partial:
    if sys.argv[2] == "file":
        open(partial, "w").close()
    else:
        os.makedirs(partial + "/sub")
        open(partial + "/sub/a", "w").close()
    print(partial, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def start():
    """`start(output, kind)`: a process that writes `output`, and the path where it writes."""
    started = []

    def start_process(output, kind="file"):
        command = [sys.executable, "-c", CLAIMING, str(output), kind]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True)
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start_process
    for process in started:
        process.kill()
        process.communicate()


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


def names(folder):
    return sorted(os.listdir(folder))


def leave(folder, name="out", content=partial_module._LOCKED):
    """What a dead run of the output `name` has left: its lock file, without anything yet."""
    partial = folder / f"{name}.{RANDOM}.partial"
    Path(f"{partial}.lock").write_bytes(content)
    return partial


def test_a_claim_has_a_random_name_and_leaves_nothing(tmp_path):
    output, seen = str(tmp_path / "out"), set()
    for _ in range(3):
        with claimed(output) as partial:
            assert names(tmp_path) == [os.path.basename(f"{partial}.lock")]
            assert is_leftover(os.path.basename(partial))
            assert str(os.getpid()) not in partial
            assert os.stat(f"{partial}.lock").st_mode & 0o777 == 0o600
            Path(partial).write_text("half")
            seen.add(partial)
        assert names(tmp_path) == []
    assert len(seen) == 3


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_dead_run_left_goes_and_what_a_living_one_writes_stays(kind, start, tmp_path):
    dead, partial_of_dead = start(tmp_path / "out", kind)
    living, partial_of_living = start(tmp_path / "out", kind)
    both = names(tmp_path)
    assert len(both) == 4
    assert remove_leftovers(str(tmp_path / "out")) == ()
    assert names(tmp_path) == both
    kill(dead)
    assert names(tmp_path) == both
    assert remove_leftovers(str(tmp_path / "out")) == ()
    assert names(tmp_path) == sorted(os.path.basename(f"{partial_of_living}{end}") for end in ("", ".lock"))
    assert partial_of_dead != partial_of_living
    living.communicate("")
    assert names(tmp_path) == []


def test_only_leftovers_of_the_same_output_go(start, tmp_path):
    for name in ("out", "out.safetensors", "other", "ou"):
        kill(start(tmp_path / name)[0])
    before = names(tmp_path)
    assert remove_leftovers(str(tmp_path / "out")) == ()
    assert names(tmp_path) == [name for name in before if not name.startswith(f"out.{name.split('.')[1]}.partial")]
    assert len(names(tmp_path)) == len(before) - 2


def test_a_run_whose_names_were_taken_for_leftovers_takes_others(tmp_path, monkeypatch):
    real, output, taken = partial_module.lock, str(tmp_path / "out"), []

    def lock(descriptor):
        if not taken:
            taken.extend(os.listdir(tmp_path))
            monkeypatch.setattr(partial_module, "lock", real)
            assert remove_leftovers(output) == ()
            assert os.listdir(tmp_path) == []
            monkeypatch.setattr(partial_module, "lock", lock)
        return real(descriptor)

    monkeypatch.setattr(partial_module, "lock", lock)
    with claimed(output) as partial:
        assert taken[0] != os.path.basename(f"{partial}.lock")
        assert names(tmp_path) == [os.path.basename(f"{partial}.lock")]
        assert remove_leftovers(output) == ()
        assert names(tmp_path) == [os.path.basename(f"{partial}.lock")]
    assert names(tmp_path) == []


def test_a_run_whose_lock_another_one_has_just_taken_takes_another_name(tmp_path, monkeypatch):
    real, held = partial_module.create, []

    def create(path, mode):
        descriptor = real(path, mode)
        if not held:
            held.append(os.open(path, os.O_RDWR))
            fcntl.flock(held[0], fcntl.LOCK_EX)
        return descriptor

    monkeypatch.setattr(partial_module, "create", create)
    with claimed(str(tmp_path / "out")):
        assert len(names(tmp_path)) == 1
    os.close(held[0])
    assert names(tmp_path) == []


@pytest.mark.parametrize("step", ["create", "lock", "is_at"])
def test_a_signal_while_the_lock_file_is_made_leaves_nothing(step, tmp_path, monkeypatch):
    taken = getattr(partial_module, step)

    def interrupted(*arguments):
        found = taken(*arguments)
        signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr(partial_module, step, interrupted)
    with pytest.raises(KeyboardInterrupt), claimed(str(tmp_path / "out.safetensors")):
        pytest.fail("the signal is answered before anything is written")
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_name_of_which_every_one_is_taken_is_an_error_and_not_a_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(partial_module, "lock", lambda descriptor: False)
    with pytest.raises(FileExistsError), claimed(str(tmp_path / "out")):
        pass
    assert names(tmp_path) == []


def state(folder):
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "file" if path.is_file() else "other"
        found[str(path.relative_to(folder))] = (kind, path.read_text() if kind == "file" else None)
    return found


def plant_file(partial, victim):
    partial.write_text("a user's")


def plant_folder(partial, victim):
    partial.mkdir()
    (partial / "model.safetensors").write_text("a user's")


def plant_link_to_folder(partial, victim):
    partial.symlink_to(victim)


def plant_link_to_file(partial, victim):
    partial.symlink_to(victim / "kept")


def plant_lock_that_is_a_link(partial, victim):
    partial.write_text("a user's")
    Path(f"{partial}.lock").symlink_to(victim / "kept")


def plant_lock_that_is_a_pipe(partial, victim):
    partial.write_text("a user's")
    os.mkfifo(f"{partial}.lock")


def plant_lock_of_another_program(partial, victim):
    partial.write_text("a user's")
    Path(f"{partial}.lock").write_text("1234\n")


def plant_lock_that_is_a_folder(partial, victim):
    Path(f"{partial}.lock").mkdir()


PLANTED = [plant_file, plant_folder, plant_link_to_folder, plant_link_to_file, plant_lock_that_is_a_link,
           plant_lock_that_is_a_pipe, plant_lock_of_another_program, plant_lock_that_is_a_folder]  # fmt: skip


@pytest.fixture
def victim(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "kept").write_text("kept")
    (tmp_path / "place").mkdir()
    return tmp_path / "victim"


@pytest.mark.parametrize("plant", PLANTED)
def test_what_no_run_of_ours_has_left_stays_and_is_named(plant, victim, tmp_path):
    place = tmp_path / "place"
    partial = place / f"out.{RANDOM}.partial"
    plant(partial, victim)
    before = state(tmp_path)
    (note,) = remove_leftovers(str(place / "out"))
    assert state(tmp_path) == before
    assert all(str(place / name) in note for name in os.listdir(place))
    assert note.endswith(" if no run is writing there.")


@pytest.mark.parametrize("plant", [plant_link_to_folder, plant_link_to_file])
@pytest.mark.parametrize("end", ["", ".old", ".gone"])
def test_a_link_beside_the_lock_of_a_dead_run_is_not_followed(plant, end, victim, tmp_path):
    partial = leave(tmp_path / "place")
    plant(Path(f"{partial}{end}"), victim)
    (tmp_path / "place" / "out").write_text("there")
    before = state(tmp_path)
    (note,) = remove_leftovers(str(tmp_path / "place" / "out"))
    assert f"{partial}{end}" in note
    assert state(tmp_path) == before


def test_a_link_in_the_folder_of_a_dead_run_is_removed_and_not_followed(victim, tmp_path):
    partial = leave(tmp_path / "place")
    partial.mkdir()
    (partial / "folder").symlink_to(victim)
    (partial / "file").symlink_to(victim / "kept")
    os.link(victim / "kept", partial / "hard")
    assert remove_leftovers(str(tmp_path / "place" / "out")) == ()
    assert names(tmp_path / "place") == []
    assert (victim / "kept").read_text() == "kept"


NOT_OURS = ["out.partial", "out.1234.partial", "out.partial.old", "x.partial", f"out.{RANDOM.upper()}.partial",
            f"out.{RANDOM}.partial.bak", f"out.{RANDOM}0.partial", f"out.{RANDOM}.part",
            f".{RANDOM}.partial"]  # fmt: skip


@pytest.mark.parametrize("name", NOT_OURS)
def test_a_name_that_no_run_of_ours_gives_is_not_looked_at(name, tmp_path):
    (tmp_path / name).write_text("a user's")
    Path(f"{tmp_path / name}.lock").write_bytes(partial_module._LOCKED)
    before = state(tmp_path)
    assert remove_leftovers(str(tmp_path / "out")) == ()
    assert state(tmp_path) == before
    assert not is_leftover(name)


def test_where_no_lock_can_be_had_the_next_run_names_what_is_left(tmp_path, monkeypatch):
    output = str(tmp_path / "out")
    with monkeypatch.context() as without:
        without.setattr(partial_module, "lock", lambda descriptor: None)
        with claimed(output) as partial:
            Path(partial).write_text("half")
            both = names(tmp_path)
            marks = {name: (tmp_path / name).read_bytes() for name in both}
            (note,) = remove_leftovers(output)
            assert names(tmp_path) == both
            assert all(str(tmp_path / name) in note for name in both)
        assert names(tmp_path) == []
    for name, mark in marks.items():  # a machine that has locks, on the same volume
        (tmp_path / name).write_bytes(mark)
    assert len(remove_leftovers(output)) == 1
    assert names(tmp_path) == both


def test_a_lock_that_cannot_be_tested_names_what_is_left(start, tmp_path, monkeypatch):
    kill(start(tmp_path / "out")[0])
    both = names(tmp_path)
    monkeypatch.setattr(partial_module, "lock", lambda descriptor: None)
    assert len(remove_leftovers(str(tmp_path / "out"))) == 1
    assert names(tmp_path) == both


def test_what_cannot_be_removed_is_named_and_the_next_run_tries_again(start, tmp_path, monkeypatch):
    kill(start(tmp_path / "out", "folder")[0])

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(partial_module.shutil, "rmtree", refuse)
        (note,) = remove_leftovers(str(tmp_path / "out"))
        assert [name.split(".", 2)[2] for name in names(tmp_path)] == ["partial.gone", "partial.lock"]
        assert all(name in note for name in names(tmp_path))
    assert remove_leftovers(str(tmp_path / "out")) == ()
    assert names(tmp_path) == []


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_that_a_dead_run_had_moved_comes_back_if_there_is_no_other(is_there, tmp_path):
    partial = leave(tmp_path)
    for end, text in (("", "new"), (".old", "old")):
        Path(f"{partial}{end}").mkdir()
        Path(f"{partial}{end}/a").write_text(text)
    if is_there:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "a").write_text("another")
    assert remove_leftovers(f"{tmp_path / 'out'}/") == ()
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == ("another" if is_there else "old")


def test_a_folder_that_cannot_come_back_stays_where_it_is_with_the_complete_one(tmp_path, monkeypatch):
    partial = leave(tmp_path)
    for end in ("", ".old"):
        Path(f"{partial}{end}").mkdir()
    before = names(tmp_path)

    def refuse(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(partial_module, "rename_new", refuse)
    (note,) = remove_leftovers(str(tmp_path / "out"))
    assert names(tmp_path) == before
    assert all(name in note for name in before)


@pytest.mark.parametrize("name", ["n" * 255, "日本" * 42, "x" * 201, "x" * 200])
def test_an_output_of_the_longest_name_can_be_written(name, start, tmp_path):
    kill(start(tmp_path / name)[0])
    kill(start(tmp_path / (name[:-1] + "y"))[0])
    assert len(names(tmp_path)) == 4
    assert remove_leftovers(str(tmp_path / name)) == ()
    assert len(names(tmp_path)) == 2
    assert all(is_leftover(entry) for entry in names(tmp_path))
    with claimed(str(tmp_path / name)) as partial:
        Path(partial).write_text("new")
        os.rename(partial, tmp_path / name)
    assert (tmp_path / name).read_text() == "new"
