"""Which verb a command line means: a verb's name, `info` for whatever begins with a file, or a word that is neither."""

import shutil

import pytest

from lora_inspect.cli.verb import VERBS
from lora_inspect.sentences import listed


@pytest.fixture
def folder(fixtures, tmp_path, monkeypatch):
    """The current folder: a.safetensors, b.safetensors, a folder of two adapters, and a file called as a verb is."""
    synthetic = fixtures / "synthetic"
    (tmp_path / "loras").mkdir()
    for source, *names in (
        ("split.safetensors", "a.safetensors", "loras/one.safetensors", "info"),
        ("i64_alpha.safetensors", "b.safetensors", "loras/two.safetensors", "-x.safetensors"),
    ):
        for name in names:
            shutil.copy(synthetic / source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# a command line without its verb, and the same with it
MEANT = {
    "a file": (["a.safetensors"], ["info", "a.safetensors"]),
    "options behind it": (["a.safetensors", "--json", "--modules"], ["info", "a.safetensors", "--json", "--modules"]),
    "options before it": (["--json", "a.safetensors"], ["info", "--json", "a.safetensors"]),
    "several files": (["a.safetensors", "b.safetensors"], ["info", "a.safetensors", "b.safetensors"]),
    "a folder": (["loras"], ["info", "loras"]),
    "a folder with its slash": (["loras/", "--json"], ["info", "loras/", "--json"]),
    "settings": (["b.safetensors:rslora=yes"], ["info", "b.safetensors:rslora=yes"]),
    "a file called as a verb is": (["./info"], ["info", "./info"]),
    "a file that begins like an option": (["--", "-x.safetensors"], ["info", "--", "-x.safetensors"]),
    "a file behind a dash": (["--", "a.safetensors"], ["info", "a.safetensors"]),
    "its help": (["a.safetensors", "--help"], ["info", "--help"]),
    "an option that info lacks": (["a.safetensors", "--force"], ["info", "a.safetensors", "--force"]),
    "a missing file": (["c.safetensors"], ["info", "c.safetensors"]),
    "a missing file in a folder": (["loras/three"], ["info", "loras/three"]),
    "what is no setting": (["a.safetensors:abc"], ["info", "a.safetensors:abc"]),
    "an option alone": (["--json"], ["info", "--json"]),
}  # fmt: skip


@pytest.mark.parametrize(("without", "with_verb"), MEANT.values(), ids=MEANT)
def test_a_command_line_that_begins_with_a_file_is_infos(without, with_verb, folder, run):
    assert run(*without) == run(*with_verb)


def test_it_is_so_under_the_modules_name_too(folder, run, run_process):
    assert (
        run_process("-m", "lora_inspect", "a.safetensors", "--json").json == run("info", "a.safetensors", "--json").json
    )


def test_a_verb_goes_before_a_file_of_its_name(folder, run):
    assert "Missing argument" in run("info").stderr
    assert run("info", "info", "--json").json["path"] == "info"


# words that are neither a verb nor a path, and what is said of them
NEITHER = {
    "mrege": "There is no command 'mrege'; did you mean merge?",
    "Convert": "There is no command 'Convert'; did you mean convert?",
    "inof": "There is no command 'inof'; did you mean info?",
    "lroas": "There is no command or file 'lroas'; did you mean loras?",
    "melt": f"There is no command or file 'melt'; the commands are {listed(list(VERBS))}.",
    "": f"There is no command or file ''; the commands are {listed(list(VERBS))}.",
}


@pytest.mark.parametrize(("word", "says"), NEITHER.items(), ids=repr)
def test_a_word_that_is_neither_gets_the_nearest_name(word, says, folder, run):
    shown = run(word, "a.safetensors", "-o", "out.safetensors")
    assert (shown.status, shown.stdout) == (2, "")
    assert shown.stderr.splitlines()[-1] == f"Error: {says}"


def test_an_option_that_nobody_has_is_wrong_usage_of_the_group(folder, run):
    for words in (["--nope", "a.safetensors"], ["--json", "merge", "a.safetensors"], ["--json", "--", "merge"]):
        shown = run(*words)
        assert shown.status == 2
        assert "No such option" in shown.stderr
        assert "Usage: lora-inspect [OPTIONS]" in shown.stderr


# A path argument of every verb, mistyped, and the near path that is there.
MISTYPED = {
    "info": (["info", "a.safetensor"], "a.safetensors"),
    "info in a folder": (["info", "loras/oen.safetensors"], "loras/one.safetensors"),
    "info, without its ending": (["info", "loras/two"], "loras/two.safetensors"),
    "info, a file as a folder": (["info", "a.safetensors/"], "a.safetensors"),
    "info, in another case": (["info", "B.safetensors"], "b.safetensors"),
    "a file alone": (["loras/tow.safetensors"], "loras/two.safetensors"),
    "merge's base": (["merge", "base.safetensor", "a.safetensors", "-o", "out"], "base.safetensors"),
    "merge's adapter": (["merge", "base.safetensors", "loras/ones.sft:0.5", "-o", "out"], "loras/one.safetensors"),
    "convert's adapter": (["convert", "loras/ones.safetensors", "-o", "out"], "loras/one.safetensors"),
    "convert's base": (
        ["convert", "dora.safetensors", "--base", "bsae.safetensors", "--rank", "2", "-o", "out"], "base.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "near"), MISTYPED.values(), ids=MISTYPED)
def test_a_mistyped_path_gets_the_nearest_name_of_its_folder(words, near, folder, run, fixtures):
    shutil.copy(fixtures / "synthetic" / "base_f32.safetensors", folder / "base.safetensors")
    shutil.copy(fixtures / "synthetic" / "dora_without_flag.safetensors", folder / "dora.safetensors")
    assert run(*words).failure.endswith(f"there is no such file or folder; check the path (did you mean {near}?).")


def test_a_link_that_leads_nowhere_is_named_as_one(folder, run):
    (folder / "loras" / "link.safetensors").symlink_to("nowhere")
    assert "it is a link that leads nowhere" in run("info", "loras/link.safetensors").failure


def test_the_empty_name_is_named(folder, run):
    assert run("info", "").failure.startswith("the empty name: there is no such file or folder")


def test_a_neighbour_with_a_hostile_name_is_shown_with_escapes(folder, run):
    (folder / "style\x1b[31m\u202e.safetensors").touch()
    shown = run("info", "style.safetensors")
    assert "did you mean style\\x1b[31m\\u202e.safetensors?" in shown.failure
    assert "did you mean style\\x1b[31m\\u202e" in run("style").stderr
