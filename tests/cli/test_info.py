"""`info`: the fields that scripts rely on, lists and objects, tables, and broken files beside good ones."""

import json
import os
import shutil

import pytest
from adapters import base, lora, loras

FIELDS = {
    "schema", "path", "bytes", "tensors", "dtypes", "kind", "algorithms", "scheme", "architecture", "trainer",
    "modules", "parameters", "ranks", "alphas", "scales", "rslora", "dora", "evidence", "metadata", "unclaimed",
    "problems", "read_by",
}  # fmt: skip


@pytest.fixture
def synthetic(fixtures):
    return fixtures / "synthetic"


# What the fixtures' script made, counted by hand: 10 Linear layers a block, rank 4.
EXPECTED = {
    "rslora_flag.safetensors": {
        "kind": "adapter", "tensors": 61, "dtypes": {"F32": 60, "BOOL": 1}, "algorithms": {"lora": 20},
        "scheme": "kohya", "architecture": "wan", "trainer": "blissful-tuner", "modules": 20, "parameters": 4096,
        "ranks": {"4": 20}, "alphas": {"3": 20}, "scales": {"1.5": 20},
        "rslora": {"value": True, "source": "flag", "hint": None},
        "dora": {"value": False, "source": "default", "modules": 0, "axis": None, "norms": None},
        "unclaimed": [], "problems": [],
    },
    "dora_and_rslora_flags.safetensors": {
        "tensors": 42, "modules": 10, "parameters": 2048 + 9 * 24 + 40, "scales": {"1.5": 10},
        "rslora": {"value": True, "source": "flag", "hint": None},
        "dora": {"value": True, "source": "flag", "modules": 10, "axis": "output", "norms": "sum"}, "problems": [],
    },
    "dora_without_flag.safetensors": {
        "scales": {"1": 10}, "trainer": None,
        "dora": {"value": True, "source": "key-scan", "modules": 10, "axis": "output", "norms": "sum"}, "problems": [],
    },
    "bf16_alpha_and_flags.safetensors": {
        "dtypes": {"F32": 20, "BF16": 12}, "alphas": {"3": 10}, "scales": {"1.5": 10},
        "rslora": {"value": True, "source": "flag", "hint": None},
        "dora": {"value": False, "source": "flag", "modules": 0, "axis": None, "norms": None}, "problems": [],
    },
    "i64_alpha.safetensors": {"alphas": {"8": 10}, "scales": {"2": 10}, "problems": []},
    "split.safetensors": {"modules": 1, "algorithms": {"lora": 2}, "parameters": 2 * 4 * 24 + 40 * 4},
    "comfyui_alpha.safetensors": {
        "scheme": "comfyui", "scales": {"0.5": 10},
        "rslora": {"value": False, "source": "default", "hint": {"share": 1.0, "modules": 10}},
    },
    "diffusers_without_alpha.safetensors": {
        "scheme": "diffusers", "alphas": {"absent": 10}, "scales": {"1": 10}, "metadata": {"format": "pt"},
    },
    "base_f32.safetensors": {
        "kind": "base", "tensors": 65, "dtypes": {"F32": 65}, "modules": 0, "algorithms": {}, "architecture": "wan",
        "parameters": 3 * (8 * 24 * 24 + 2 * 24 * 40 + 9 * 24 + 40 + 24) + 24 * 16 + 24, "unclaimed": [],
    },
    "base_sharded": {"kind": "base", "tensors": 65, "dtypes": {"F32": 65}, "metadata": {"format": "pt"}},
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_the_record_of_every_synthetic_fixture(name, run, synthetic):
    record = run("info", synthetic / name, "--json").json
    assert record.keys() >= FIELDS
    assert record["schema"] == "lora-inspect/info/1"
    assert record["path"] == str(synthetic / name)
    expected = EXPECTED[name]
    assert {key: record[key] for key in expected} == expected


# Rank, alpha and options of their training. LyCORIS was asked for alpha 6 with rs_lora, and stores 6·sqrt(16).
TRAINED = {
    "minilm-peft-rslora-r16": ("peft", {"16": 8}, {"24": 8}, {"6": 8}, True, False),
    "minilm-lycoris-lora-rslora-r16": ("lycoris", {"16": 8}, {"24": 8}, {"1.5": 8}, False, False),
    "minilm-peft-dora-r8": ("peft", {"8": 8}, {"20": 8}, {"2.5": 8}, False, True),
    "minilm-peft-lora-r8": ("peft", {"8": 12}, {"32": 12}, {"4": 12}, False, False),
}


@pytest.mark.parametrize("name", TRAINED)
def test_the_record_of_trained_adapters(name, run, fixtures):
    scheme, ranks, alphas, scales, rslora, dora = TRAINED[name]
    (file,) = (path for path in (fixtures / name).glob("*.safetensors") if not path.name.startswith("oracle"))
    record = run("info", file, "--json").json
    assert (record["scheme"], record["rslora"]["value"], record["dora"]["value"]) == (scheme, rslora, dora)
    assert (record["ranks"], record["alphas"], record["scales"]) == (ranks, alphas, scales)
    assert [item for item in record["problems"] if item["severity"] == "error"] == []


def test_problems_have_code_severity_message_and_keys(run, write_safetensors):
    file = write_safetensors({**loras(1, alpha=0.0), "stray": ("F32", (1,), 0)})
    record = run("info", file, "--json").json
    assert [set(item) for item in record["problems"]] == [{"code", "severity", "message", "keys"}] * 2
    assert {item["code"]: item["severity"] for item in record["problems"]} == {
        "scale-unknown": "error",
        "unclaimed": "warning",
    }
    assert record["unclaimed"] == ["stray"]
    assert record["scales"] == {"unknown": 1}


def test_the_evidence_says_about_what_and_where(run, synthetic):
    evidence = run("info", synthetic / "rslora_flag.safetensors", "--json").json["evidence"]
    assert all(set(item) == {"about", "says", "where"} for item in evidence)
    assert ("rslora", "use_rslora_flag") in {(item["about"], item["where"]) for item in evidence}


def test_modules_are_listed_on_demand(run, synthetic):
    record = run("info", synthetic / "split.safetensors", "--json", "--modules").json
    assert [module["rows"] for module in record["module_list"]] == [[0, 16], [16, 40]]
    assert "module_list" not in run("info", synthetic / "split.safetensors", "--json").json
    shown = run("info", synthetic / "i64_alpha.safetensors", "--modules").stdout
    assert all(f"lora_unet_blocks_0_self_attn_{leaf} " in shown for leaf in "qkvo")


def test_metadata_is_shown_on_demand(run, synthetic):
    file = synthetic / "rslora_flag.safetensors"
    assert "ss_network_alpha" in run("info", file, "--metadata").stdout
    assert "ss_network_alpha" not in run("info", file).stdout


def test_json_is_a_list_if_and_only_if_several_files_are_meant(run, synthetic, tmp_path):
    one, two = synthetic / "split.safetensors", synthetic / "i64_alpha.safetensors"
    assert isinstance(run("info", one, "--json").json, dict)
    assert [record["path"] for record in run("info", one, two, "--json").json] == [str(one), str(two)]
    assert isinstance(run("info", synthetic / "base_sharded", "--json").json, dict)
    (tmp_path / "many" / "inner").mkdir(parents=True)
    shutil.copy(one, tmp_path / "many" / "inner")
    assert len(run("info", tmp_path / "many", "--json").json) == 1
    shutil.copy(two, tmp_path / "many")
    assert len(run("info", tmp_path / "many", "--json").json) == 2


def test_a_folder_gives_a_line_per_file(run, synthetic, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    shown = run("info", synthetic, "--all")
    assert shown.status == 0
    names = [path.stem for path in synthetic.glob("*.safetensors")]
    names.append("base_sharded/diffusion_pytorch_model")
    assert [line.split()[0] for line in shown.stdout.splitlines()[1:-1]] == sorted(
        names, key=lambda one: ("/" in one, one)
    )


# Arguments, and the JSON that is printed of them: a list or an object, each record good or broken by its path.
SHAPES = {
    "a file": (["good"], "good"),
    "a broken file": (["broken"], "!broken"),
    "a missing file": (["missing"], "!missing"),
    "a checkpoint folder": (["sharded"], "sharded"),
    "an empty folder": (["empty"], "!empty"),
    "a folder with a broken file alone": (["poor"], "!poor"),
    "a folder of pickles": (["pickles"], "!pickles"),
    "a folder of adapters": (["many"], ["many/a.safetensors", "many/b.safetensors"]),
    "a folder of one adapter, deeper": (["deep"], ["deep/inner/a.safetensors"]),
    "a folder with good and broken files": (
        ["mixed"], ["!mixed/a.safetensors", "mixed/b.safetensors", "!mixed/c.safetensors"]),
    "two files": (["good", "sharded"], ["good", "sharded"]),
    "the same file twice": (["good", "good"], ["good", "good"]),
    "good and broken files": (
        ["broken", "good", "missing", "empty", "many"],
        ["!broken", "good", "!missing", "!empty", "many/a.safetensors", "many/b.safetensors"]),
    "broken files alone": (["broken", "empty"], ["!broken", "!empty"]),
    "what is no setting": (["good:abc", "good:rslora=yes"], ["!good:abc", "good"]),
    "what is no setting, alone": (["good:abc"], "!good:abc"),
    "settings on a folder": (["many:rslora=yes"], ["many/a.safetensors", "many/b.safetensors"]),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "expected"), SHAPES.values(), ids=SHAPES)
def test_json_has_an_entry_per_path_and_is_a_list_where_several_are_meant(
    arguments, expected, run, synthetic, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    good, second = synthetic / "i64_alpha.safetensors", synthetic / "comfyui_alpha.safetensors"
    for folder in ("empty", "poor", "pickles", "many", "deep/inner", "mixed"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copytree(synthetic / "base_sharded", tmp_path / "sharded")
    for name in ("good", "many/a.safetensors", "deep/inner/a.safetensors", "mixed/b.safetensors"):
        shutil.copy(good, name)
    shutil.copy(second, "many/b.safetensors")
    for name in ("broken", "poor/a.safetensors", "pickles/a.bin", "mixed/a.safetensors", "mixed/c.safetensors"):
        (tmp_path / name).write_bytes(b"{}")

    shown = run("info", *arguments, "--json")
    printed = json.loads(shown.stdout)
    records = printed if isinstance(printed, list) else [printed]
    names = [("!" if "error" in record else "") + record["path"] for record in records]
    assert (names if isinstance(printed, list) else names[0]) == expected
    broken = [record for record in records if "error" in record]
    assert all(record.keys() == {"path", "error", "code"} for record in broken)
    assert all(record.keys() >= FIELDS for record in records if record not in broken)
    assert shown.stderr.splitlines() == [f"Error: {record['error']}" for record in broken]
    assert shown.status == max((3 if record["code"] == "not-found" else 1 for record in broken), default=0)


def test_one_broken_file_does_not_hide_the_others(run, synthetic, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"{}")
    good = synthetic / "split.safetensors"
    shown = run("info", tmp_path / "broken.safetensors", good, tmp_path / "missing.safetensors")
    assert shown.status == 3
    assert [" 4   0.5 1.9 kB " in line for line in shown.stdout.splitlines()[1:-1]] == [True]
    assert shown.stdout.endswith("\n1 adapter: 1 need convert; 2 broken\n")
    assert [name in line for name, line in zip(("broken", "missing"), shown.stderr.splitlines(), strict=True)] == [
        True,
        True,
    ]


def test_a_folder_that_cannot_be_read_does_not_hide_the_others(run, synthetic, tmp_path, monkeypatch):
    def refuse(folder="."):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr("os.listdir", refuse)  # root may read every folder
    good = synthetic / "split.safetensors"
    shown = run("info", tmp_path, good, "--json")
    assert [("error" in record, record["path"]) for record in json.loads(shown.stdout)] == [
        (True, str(tmp_path)),
        (False, str(good)),
    ]
    assert shown.stderr == f"Error: {tmp_path}: Permission denied; check the path and its rights.\n"


def test_a_folder_in_the_folder_that_cannot_be_read_has_its_entry(run, synthetic, tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir()
    shutil.copy(synthetic / "split.safetensors", tmp_path)

    def unless_shut(listing):
        def list_folder(folder="."):
            if str(folder).endswith("shut"):
                raise PermissionError(13, "Permission denied", str(folder))
            return listing(folder)

        return list_folder

    for function in (os.scandir, os.listdir):
        monkeypatch.setattr(os, function.__name__, unless_shut(function))  # root may read every folder
    shown = run("info", tmp_path, "--json")
    good, broken = json.loads(shown.stdout)
    assert good["path"] == str(tmp_path / "split.safetensors")
    assert (shown.status, broken["path"]) == (3, str(tmp_path / "shut"))
    assert broken["error"].endswith("Permission denied; check the path and its rights.")


def test_a_broken_file_alone_prints_nothing_on_stdout(run, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"{}")
    shown = run("info", tmp_path / "broken.safetensors")
    assert "broken.safetensors" in shown.refusal
    assert shown.stdout == ""


def test_files_that_are_neither_adapter_nor_base_are_other(run, write_safetensors):
    assert run("info", write_safetensors({"a": ("F32", (3,), 1)}), "--json").json["kind"] == "other"
    assert run("info", write_safetensors({}), "--json").json["kind"] == "other"
    assert run("info", write_safetensors(base()), "--json").json["kind"] == "base"


@pytest.mark.parametrize("setting", ["alpha=16", "rslora=yes"])
def test_a_setting_does_not_make_an_adapter_of_a_base(setting, run, write_safetensors):
    record = run("info", f"{write_safetensors(base())}:{setting}", "--json").json
    assert (record["kind"], record["rslora"]["value"], record["rslora"]["source"]) == ("base", False, "default")
    (problem,) = record["problems"]
    assert (problem["code"], problem["severity"]) == ("setting-contradicts", "error")
    assert problem["message"] == f"{setting} cannot apply, as no module has a rank; leave it out"


def test_a_setting_on_a_base_with_a_name_like_an_adapters_is_not_lost(run, write_safetensors):
    tensors = {**base(), "blocks.0.attn.diff": ("F32", (6, 5), 1)}
    record = run("info", f"{write_safetensors(tensors)}:alpha=16", "--json").json
    assert (record["kind"], [item["code"] for item in record["problems"]]) == ("base", ["setting-contradicts"])


def test_an_adapter_with_nothing_but_broken_modules_is_still_an_adapter(run, write_safetensors):
    tensors = lora("lora_unet_a", alpha=None)
    del tensors["lora_unet_a.lora_up.weight"]
    record = run("info", write_safetensors(tensors), "--json").json
    assert record["kind"] == "adapter"
    assert record["unclaimed"] == ["lora_unet_a.lora_down.weight"]


def test_names_in_other_scripts_and_control_characters_are_shown(run, write_safetensors):
    file = write_safetensors(lora("lora_unet_日本\x1b[31m"), {"ключ": "значение\n"}, name="é.safetensors")
    shown = run("info", file, "--modules", "--metadata")
    assert shown.status == 0
    assert "lora_unet_日本\\x1b[31m" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert run("info", file, "--json").json["metadata"] == {"ключ": "значение\n"}


def test_the_programs_that_read_a_file_as_it_means_are_named(synthetic, run):
    plain = run("info", synthetic / "comfyui_alpha.safetensors")
    assert any(line.startswith("  works in") and "ComfyUI" in line for line in plain.stdout.splitlines())
    assert "ComfyUI" in run("info", synthetic / "comfyui_alpha.safetensors", "--json").json["read_by"]
    assert "ComfyUI" not in run("info", synthetic / "rslora_flag.safetensors", "--json").json["read_by"]
    assert run("info", synthetic / "base_f32.safetensors", "--json").json["read_by"] is None


def test_a_file_whose_meaning_is_open_is_read_by_nobody_in_particular(write_safetensors, run):
    file = write_safetensors(lora("base_model.model.q_proj", spelling="peft", alpha=None))
    assert run("info", file, "--json").json["read_by"] is None
    assert "works in" not in run("info", file).stdout


def test_json_names_a_program_of_two_versions_once(run, fixtures):
    told = run("info", fixtures / "synthetic" / "comfyui_alpha.safetensors", "--json").json
    assert {told["verdicts"]["comfyui"], told["verdicts"]["comfyui-0.3.64"]} == {"same meaning"}
    assert told["read_by"].count("ComfyUI") == 1
