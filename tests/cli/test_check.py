"""`lora-inspect check`: what it prints, its exit status, its formats, and what it loads."""

import hashlib
import json
import math
import pickle
import re
from urllib.parse import unquote

import pytest
from adapters import loras

from lora_inspect.checking.rules import RULES

CLEAN = {"ss_network_dim": "4"}
NOTE, WARNING = {"ss_x": ""}, {"ss_network_dim": "8"}
DORA_MISSING = {"use_dora_flag": ("BOOL", (), 1)}


@pytest.fixture
def adapter(write_safetensors):
    def write(metadata=None, name="adapter.safetensors", **tensors):
        return write_safetensors({**loras(rank=4), **tensors}, metadata, name)

    return write


def test_a_clean_file_is_one_line(run, adapter):
    outcome = run("check", path := adapter(CLEAN))
    said = f"{path}: no problem in the header; --tensors reads the numbers\n"
    assert (outcome.status, outcome.stdout, outcome.stderr) == (0, said, "")
    assert run("check", path, "--tensors").stdout.startswith(f"{path}: no problems\n")


def test_a_problem_is_a_line_and_a_summary_follows(run, adapter):
    outcome = run("check", path := adapter({**WARNING, **NOTE}, **DORA_MISSING))
    lines = outcome.stdout.splitlines()
    assert [line.split(": ")[:2] for line in lines[:-1]] == [
        [str(path), "error dora-missing"],
        [str(path), "warning dim-contradicts"],
        [str(path), "note metadata-empty"],
    ]
    assert lines[-1] == "1 file: 1 error, 1 warning and 1 note; --fix -o OUT fixes 2 of them"
    assert (outcome.status, outcome.stderr) == (1, "")


@pytest.mark.parametrize(
    ("metadata", "tensors", "failing"),
    [
        (CLEAN, {}, ()),
        (NOTE, {}, ("note",)),
        (WARNING, {}, ("note", "warning")),
        (CLEAN, DORA_MISSING, ("note", "warning", "error")),
    ],
)
def test_the_status_is_that_of_the_most_serious_problem(metadata, tensors, failing, run, adapter):
    path = adapter(metadata, **tensors)
    for severity in ("note", "warning", "error"):
        assert run("check", path, "--fail-on", severity).status == int(severity in failing)
    assert run("check", path).status == int("warning" in failing)


def test_a_folder_is_all_that_is_in_it(run, adapter, tmp_path):
    adapter(CLEAN, "folder/a.safetensors")
    adapter(WARNING, "folder/b.safetensors")
    (tmp_path / "folder" / "c.safetensors").write_bytes(b"\0")
    outcome = run("check", tmp_path / "folder")
    lines = outcome.stdout.splitlines()
    # The worst first.
    assert [re.sub(r".*folder.", "", line).split(": ")[0] for line in lines[:2]] == ["c.safetensors", "b.safetensors"]
    assert ": error unreadable: it has 1 bytes" in lines[0]
    assert lines[1].endswith(" --fix mends it.")
    assert lines[2] == "1 without problems in the header; --tensors reads the numbers"
    assert lines[3].startswith("3 files: 1 error and 1 warning;")
    assert "\n1 without problems\n" in run("check", tmp_path / "folder", "--tensors").stdout


def test_pickles_are_problems_of_a_folder(run, adapter, tmp_path):
    adapter(CLEAN, "folder/a.safetensors")
    (tmp_path / "folder" / "peft").mkdir()
    (tmp_path / "folder" / "peft" / "adapter_config.json").write_text("{}")
    content = pickle.dumps({"a": 1})
    for name in ("b.pt", "c.ckpt", "optimizer.pt", "peft/adapter_model.bin"):
        (tmp_path / "folder" / name).write_bytes(content)
    outcome = run("check", tmp_path / "folder")
    lines = outcome.stdout.splitlines()
    assert outcome.status == 1
    named = [line.split(": ")[0].removeprefix(f"{tmp_path / 'folder'}/") for line in lines[:-3]]
    assert named == ["b.pt", "c.ckpt", "peft/adapter_model.bin"]
    assert all(": error unreadable: it is a pickle" in line for line in lines[:-3])
    assert lines[-3].startswith("for each of these: save it as .safetensors")
    assert lines[-2:] == ["1 without problems in the header; --tensors reads the numbers", "4 files: 3 errors"]


def test_pickles_beside_one_adapter_are_problems_but_for_copies_of_it(run, adapter, tmp_path):
    adapter(CLEAN, "folder/a.safetensors")
    (tmp_path / "folder" / "a.pt").write_bytes(pickle.dumps({}))
    assert run("check", tmp_path / "folder").status == 0
    (tmp_path / "folder" / "b.pt").write_bytes(pickle.dumps({}))
    assert run("check", tmp_path / "folder").status == 1


def test_of_many_problems_of_a_code_the_first_ones_are_told(run, write_safetensors):
    path = write_safetensors({f"lora_unet_{i}.lora_up.weight": ("F32", (2, 2), 1.0) for i in range(1234)})
    lines = run("check", path).stdout.splitlines()
    assert [": error incomplete: " in line for line in lines] == [True] * 6 + [False]
    assert lines[5].endswith(": error incomplete: 1,229 more of these; --json lists all.")
    assert lines[6] == "1 file: 1,234 errors"
    assert len(json.loads(run("check", path, "--json").stdout)["problems"]) == 1234


def test_a_path_that_leads_to_no_file_is_refused(run, tmp_path):
    (tmp_path / "folder").mkdir()
    assert "folder" in run("check", tmp_path / "folder").refusal
    assert "missing.safetensors" in run("check", tmp_path / "missing.safetensors").failure


def test_other_files_are_checked_beside_one_that_is_missing(run, adapter, tmp_path):
    outcome = run("check", tmp_path / "missing.safetensors", adapter(CLEAN))
    assert outcome.status == 3
    assert outcome.stdout.endswith("adapter.safetensors: no problem in the header; --tensors reads the numbers\n")
    assert outcome.stderr.startswith("Error: ")


def test_hashes_that_are_to_be_skipped_are_not_compared(run, adapter):
    stated = {"sshs_model_hash": "1" * 64, "modelspec.hash_sha256": "0x" + "1" * 64, "sshs_legacy_hash": "1" * 8}
    path = adapter({**CLEAN, **stated})
    assert run("check", path).stdout.count("hash-stale") == len(stated)
    assert run("check", path, "--skip-hashes").stdout == run("check", adapter(CLEAN)).stdout
    assert "hash-empty" in run("check", adapter({**CLEAN, "sshs_model_hash": ""}), "--skip-hashes").stdout


def test_a_fix_compares_hashes(run, adapter, tmp_path):
    outcome = run("check", adapter(WARNING), "--fix", "-o", tmp_path / "fixed.safetensors", "--skip-hashes")
    assert outcome.status == 2
    assert "--skip-hashes cannot be combined with --fix" in outcome.stderr


def test_settings_on_the_path_count(run, write_safetensors):
    tensors = {f"base_model.model.{key}": tensor for key, tensor in loras(1, alpha=None, spelling="peft").items()}
    path = write_safetensors(tensors)
    assert "scale-unknown" in run("check", path).stdout
    assert "scale-unknown" not in run("check", f"{path}:alpha=8,rslora=no").stdout
    assert run("check", f"{path}:0.5").status == 2


class TestJson:
    def test_is_a_record(self, run, adapter):
        outcome = run("check", path := adapter(WARNING), "--format", "json")
        assert outcome.status == 1
        record = json.loads(outcome.stdout)
        (problem,) = record.pop("problems")
        assert record == {"schema": "lora-inspect/check/1", "path": str(path), "numbers_read": False}
        assert problem.pop("message").startswith("ss_network_dim is 8")
        assert problem == {
            "code": "dim-contradicts", "severity": "warning", "keys": ["ss_network_dim"], "fixable": True
        }  # fmt: skip
        assert run("check", path, "--json").stdout == outcome.stdout
        assert run("check", path, "--json", "--format", "sarif").status == 2

    def test_record_with_tensors_states_numbers_read(self, run, adapter, tmp_path):
        adapter(CLEAN, "folder/a.safetensors")
        adapter(CLEAN, "folder/nan.safetensors", **{"lora_unet_x.diff": ("F32", (1,), math.nan)})
        for options, is_read, codes in (([], False, []), (["--tensors"], True, ["not-finite"])):
            records = json.loads(run("check", tmp_path / "folder", "--json", *options).stdout)
            assert [record["numbers_read"] for record in records] == [is_read] * 2
            assert [problem["code"] for problem in records[1]["problems"]] == codes

    @pytest.mark.parametrize("options", [[], ["--tensors"]])
    def test_fixed_copy_states_numbers_read(self, options, run, adapter, tmp_path):
        words = ["check", adapter(WARNING), "--fix", "-o", tmp_path / "out.safetensors", "--force", *options]
        clean = "no problems" if options else "no problem in the header; --tensors reads the numbers"
        assert f"out.safetensors: {clean}\n" in run(*words).stdout
        assert run(*words, "--json").json["numbers_read"] is bool(options)

    def test_record_of_unreadable_file_states_no_numbers_read(self, run, tmp_path):
        (tmp_path / "a.safetensors").write_bytes(b"\0")
        ended = run("check", tmp_path / "a.safetensors", "--json", "--tensors")
        assert json.loads(ended.stdout)["numbers_read"] is False

    def test_of_a_mended_file_says_what_is_left(self, run, adapter, tmp_path):
        out = tmp_path / "out.safetensors"
        record = run("check", adapter(WARNING, **DORA_MISSING), "--fix", "-o", out, "--json").json
        assert record["output"] == str(out)
        assert record["fixed"] == ["wrote ss_network_dim 4 instead of '8'"]
        assert [problem["code"] for problem in record["left"]] == ["dora-missing"]
        assert [problem["code"] for problem in record["problems"]] == ["dora-missing", "dim-contradicts"]


class TestSarif:
    """The structure that the schema of SARIF 2.1.0 asks for."""

    @pytest.fixture
    def log(self, run, adapter, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        adapter(WARNING, "of a b/ä#%.safetensors", **DORA_MISSING)
        adapter(CLEAN, "of a b/clean.safetensors")
        return json.loads(run("check", "of a b", "--format", "sarif").stdout)

    def test_has_one_run_with_every_rule(self, log):
        assert (log["version"], len(log["runs"])) == ("2.1.0", 1)
        assert re.fullmatch(r"https://.*sarif-schema-2\.1\.0\.json", log["$schema"])
        driver = log["runs"][0]["tool"]["driver"]
        assert [rule["id"] for rule in driver["rules"]] == [rule.code for rule in RULES]
        for rule in driver["rules"]:
            assert rule["defaultConfiguration"]["level"] in ("error", "warning", "note")
            assert all(rule[key]["text"] for key in ("shortDescription", "fullDescription", "help"))

    def test_has_a_result_for_each_problem(self, log):
        run = log["runs"][0]
        assert [result["ruleId"] for result in run["results"]] == ["dora-missing", "dim-contradicts"]
        for result in run["results"]:
            assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
            assert result["level"] in ("error", "warning", "note")
            assert result["message"]["text"].endswith(".")
        assert run["results"][1]["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "ss_network_dim"

    @pytest.mark.parametrize("options", [[], ["--tensors"]])
    def test_run_states_numbers_read(self, options, run, adapter, tmp_path):
        adapter(CLEAN, "folder/a.safetensors")
        (tmp_path / "folder" / "b.safetensors").write_bytes(b"\0")
        log = json.loads(run("check", tmp_path / "folder", "--format", "sarif", *options).stdout)
        assert log["runs"][0]["properties"] == {"numbers_read": bool(options)}

    def test_run_of_unreadable_files_states_no_numbers_read(self, run, tmp_path):
        (tmp_path / "a.safetensors").write_bytes(b"\0")
        log = json.loads(run("check", tmp_path / "a.safetensors", "--format", "sarif", "--tensors").stdout)
        assert log["runs"][0]["properties"] == {"numbers_read": False}

    def test_names_files_by_relative_addresses(self, log):
        for result in log["runs"][0]["results"]:
            uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
            assert uri == "of%20a%20b/%C3%A4%23%25.safetensors"
            assert unquote(uri) == "of a b/ä#%.safetensors"

    @pytest.mark.parametrize(
        ("names", "file"),
        [
            (["adapter.safetensors"], "adapter.safetensors"),
            (["adapter_model.safetensors", "a.safetensors"], "adapter_model.safetensors"),
            (["adapter_config.json"], "adapter_config.json"),
        ],
    )
    def test_names_a_file_for_the_folder_of_one_adapter(self, names, file, run, tmp_path, monkeypatch):
        (tmp_path / "own").mkdir()
        for name in names:
            (tmp_path / "own" / name).write_text("{}")
        for folder, path, uri in ((tmp_path, "own", f"own/{file}"), (tmp_path / "own", ".", file)):
            monkeypatch.chdir(folder)
            (result,) = json.loads(run("check", path, "--format", "sarif").stdout)["runs"][0]["results"]
            assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == uri

    def test_fingerprints_tell_problems_apart_and_stay(self, log):
        found = [result["partialFingerprints"]["lora-inspect/v1"] for result in log["runs"][0]["results"]]
        about = "of%20a%20b/%C3%A4%23%25.safetensors\0dim-contradicts\0ss_network_dim"
        assert found[1] == hashlib.sha256(about.encode()).hexdigest()
        assert len(set(found)) == 2


class TestFix:
    def test_says_what_it_did_and_what_is_left(self, run, adapter, tmp_path):
        out = tmp_path / "out.safetensors"
        outcome = run("check", path := adapter(WARNING, **DORA_MISSING), "--fix", "-o", out)
        first, second, last = outcome.stdout.splitlines()
        assert first == f"{path}: fixed: wrote ss_network_dim 4 instead of '8'."
        assert second.startswith(f"{out}: error dora-missing: ")
        assert last == f"wrote {out}"
        assert outcome.status == 0

    def test_ends_well_where_nothing_is_left(self, run, adapter, tmp_path):
        outcome = run("check", adapter(WARNING), "--fix", "-o", tmp_path / "out.safetensors")
        assert outcome.status == 0
        assert run("check", tmp_path / "out.safetensors", "--fail-on", "note").status == 0

    def test_never_overwrites_an_input(self, run, adapter):
        path = adapter(WARNING)
        before = path.read_bytes()
        assert "input" in run("check", path, "--fix", "-o", path, "--force").refusal
        assert path.read_bytes() == before

    def test_overwrites_an_output_only_where_it_may(self, run, adapter, tmp_path):
        (out := tmp_path / "out.safetensors").write_bytes(b"mine")
        path = adapter(WARNING)
        assert "--force" in run("check", path, "--fix", "-o", out).refusal
        assert out.read_bytes() == b"mine"
        assert run("check", path, "--fix", "-o", out, "--force").status == 0

    def test_with_nothing_to_mend_writes_nothing(self, run, adapter, tmp_path):
        out = tmp_path / "out.safetensors"
        assert "its header has no problem" in run("check", adapter(CLEAN), "--fix", "-o", out).refusal
        refusal = run("check", adapter(CLEAN), "--tensors", "--fix", "-o", out).refusal
        assert "it has no problems, so there is nothing to fix; use it as it is" in refusal
        assert not out.exists()

    @pytest.mark.parametrize(
        "words",
        [["--fix"], ["-o", "x.safetensors"], ["--force"], ["--fix", "-o", "x.safetensors", "--fail-on", "error"]],
    )
    def test_needs_an_output_and_that_needs_it(self, words, run, adapter):
        assert run("check", adapter(WARNING), *words).status == 2

    def test_mends_one_file(self, run, adapter):
        two = adapter(WARNING), adapter(WARNING, "b.safetensors")
        assert run("check", *two, "--fix", "-o", "x.safetensors").status == 2


def test_on_a_terminal_lines_fit_below_the_file_and_severities_have_colours(adapter, tmp_path):
    pytest.importorskip("pty")
    from pseudo_terminal import on_a_terminal

    adapter({**WARNING, **NOTE}, "a.safetensors", **DORA_MISSING)
    adapter(CLEAN, "b.safetensors")
    words = ["check", "a.safetensors", "b.safetensors"]
    clean = ["check", "b.safetensors", "--tensors"]
    (_, coloured), (_, clear) = on_a_terminal([words, clean], tmp_path, COLUMNS="60", TERM="xterm")
    lines = coloured.decode().split("\r\n")
    assert lines[0] == "\x1b[1ma.safetensors\x1b[0m"
    assert lines[1].startswith("  \x1b[1;31merror\x1b[0m dora-missing: ")
    assert lines[2].startswith("    ")
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert max(map(len, plain)) <= 60 + len("; --fix -o OUT fixes 2 of them")
    assert [line.split(":")[0] for line in plain if re.match("  [a-z]", line)] == [
        "  error dora-missing", "  warning dim-contradicts", "  note metadata-empty"
    ]  # fmt: skip
    assert plain[-3:-1] == [
        "1 without problems in the header; --tensors reads the numbers",
        "2 files: 1 error, 1 warning and 1 note; --fix -o OUT fixes 2 of them",
    ]
    assert b"b.safetensors: \x1b[32mno problems" in clear


PICKLE = b"\x80\x02}q\x00."
PICKLED = "it is a pickle, which can run code, so lora-inspect never reads one"
SAVED = "save it as .safetensors with torch 2.10 or newer, which does not run its code: "


@pytest.fixture
def pickles(adapter, tmp_path):
    """A folder of an adapter with a warning, three pickles, and two files that are cut short."""
    adapter(WARNING, "in/a.safetensors")
    for name in ("one.pt", "two.bin", "sub/three.ckpt"):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(PICKLE)
    for name in ("cut.safetensors", "short.safetensors"):
        (tmp_path / "in" / name).write_bytes(b"\x10" + bytes(11))
    return tmp_path / "in"


def test_a_way_out_of_several_files_of_a_folder_is_told_once(pickles, run):
    lines = run("check", pickles).stdout.splitlines()
    rows = [line for line in lines if PICKLED in line]
    assert [row.removeprefix(f"{pickles}/") for row in rows] == [
        f"{name}: error unreadable: {PICKLED}." for name in ("one.pt", "two.bin", "sub/three.ckpt")
    ]
    (told,) = (line for line in lines if SAVED in line)
    assert lines.index(told) == lines.index(rows[-1]) + 1
    assert told.startswith(f"for each of these: {SAVED}`python -c ")
    assert told.endswith(" FILE NEW.safetensors`.")
    assert "one.pt" not in told
    cut = [line for line in lines if "unreadable" in line and PICKLED not in line]
    assert len(cut) == 2
    assert lines.count("for each of these: fetch it again.") == 1
    assert not any("fetch it again" in line for line in cut)


def test_a_single_unreadable_file_has_its_whole_way_out(pickles, run):
    for name in ("cut.safetensors", "one.pt", "two.bin"):
        (pickles / name).unlink()
    lines = run("check", pickles).stdout.splitlines()
    (row,) = (line for line in lines if PICKLED in line)
    assert row.startswith(f"{pickles}/sub/three.ckpt: error unreadable: {PICKLED}; {SAVED}")
    assert row.endswith(f" {pickles}/sub/three.ckpt {pickles}/sub/three.safetensors`.")
    assert not any(line.startswith("for each of these") for line in lines)


def test_json_has_the_way_out_of_every_file(pickles, run):
    records = json.loads(run("check", pickles, "--json").stdout)
    found = {one["path"].removeprefix(f"{pickles}/"): one["problems"] for one in records}
    for name in ("one.pt", "two.bin", "sub/three.ckpt"):
        (problem,) = found[name]
        assert f"{PICKLED}; {SAVED}" in problem["message"]
        assert f" {pickles}/{name} " in problem["message"]


def test_rows_of_folders_fit_80_columns_on_a_terminal_and_are_whole_in_a_pipe(pickles, run):
    pytest.importorskip("pty")
    from pseudo_terminal import on_a_terminal

    long = f"{'a_style_of_many_words_' * 5}.safetensors"
    (pickles / "a.safetensors").rename(pickles / long)
    commands = [
        *(["info", "in"], ["info", "in", "--all"], ["compat", "in", "--for", "comfyui"], ["check", "in"]),
        ["convert", "in", "-o", "out", "--allow-partial-dora"],
    ]
    for words, (_, output) in zip(commands, on_a_terminal(commands, pickles.parent, COLUMNS="80"), strict=True):
        plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", output.decode())
        rows = [line.rpartition("\r")[2] for line in plain.split("\r\n")]
        assert any("pickle" in row for row in rows), words
        assert max(map(len, rows)) <= 80, words
        assert words[0] not in ("check", "convert") or long[:70] in plain, words
    piped = run("check", pickles).stdout.splitlines()
    assert any(row.startswith(f"{pickles}/{long}: ") for row in piped)
    assert any(PICKLED in row and row.startswith(f"{pickles}/sub/three.ckpt: ") for row in piped)


def test_names_that_a_terminal_obeys_are_shown_as_escapes(run, adapter, tmp_path):
    tensors = {"evil\x1b[2J": ("F32", (1,), 1.0)}
    outcome = run("check", adapter({**WARNING, "\x1b]0;x": "\x1b"}, **tensors))
    assert "\x1b" not in outcome.stdout + outcome.stderr
    assert "\\x1b[2J" in outcome.stdout


def test_neither_torch_nor_numpy_is_loaded_without_the_numbers(run_process, adapter, write_safetensors):
    code = (
        "import sys\n"
        "from lora_inspect.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'safetensors') if name in sys.modules])"
    )
    path = adapter({**WARNING, "sshs_model_hash": "0" * 64}, "a.safetensors")
    assert run_process("-c", code, "check", path, "--json").stdout.endswith("\n[]\n")
    assert run_process("-c", code, "check", path, "--tensors").stdout.endswith("\n['numpy']\n")
    # Only torch computes this change.
    names = {"lora_A": (4, 6), "lora_B": (5, 4), "lora_E": (4, 1)}
    tensors = {f"base_model.model.q.{name}": ("F32", shape, 0.5) for name, shape in names.items()}
    torchs = write_safetensors(tensors, name="adapter_model.safetensors")
    config = {"peft_type": "ADALORA", "r": 8, "init_r": 4, "target_r": 4, "lora_alpha": 8, "target_modules": ["q"]}
    (path.parent / "adapter_config.json").write_text(json.dumps(config))
    assert run_process("-c", code, "check", torchs, "--tensors").stdout.endswith("\n['numpy']\n")
    assert run_process("-c", code, "check", path, "--fix", "-o", "b.safetensors").stdout.endswith("\n[]\n")
