"""What `--json` prints is as docs/schemas has it, of every verb and every fixture."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "docs" / "schemas").glob("*.json")}
SYNTHETIC = ROOT / "fixtures" / "synthetic"
FILES = sorted(path for path in (ROOT / "fixtures").rglob("*") if path.suffix in (".safetensors", ".gguf"))
BASE, RSLORA, DORA, OTHER = (
    str(SYNTHETIC / f"{name}.safetensors") for name in ("base_f32", "rslora_flag", "dora_without_flag", "comfyui_alpha")
)
KINDS = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}
WORDS = {
    *("$schema", "title", "$ref", "anyOf", "const", "enum", "type"),
    *("properties", "required", "additionalProperties", "items"),
}


def wrong(value, schema, at=""):
    """What of a value is not as a schema has it, by its place; of the words of JSON Schema it knows WORDS."""
    if schema is True:
        return
    assert schema.keys() <= WORDS
    if "$ref" in schema:
        yield from wrong(value, SCHEMAS[schema["$ref"].removesuffix(".json")], at)
    if "anyOf" in schema and all(list(wrong(value, one, at)) for one in schema["anyOf"]):
        yield f"{at}: it is none of them"
    if value not in schema.get("enum", [value]) or schema.get("const", value) != value:
        yield f"{at}: {value!r}"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    is_one = any(isinstance(value, KINDS[kind]) and (kind == "boolean" or value is not True) for kind in kinds)
    if kinds and not is_one and not (isinstance(value, bool) and "boolean" in kinds):
        yield f"{at}: {value!r} is no {kinds}"
    if isinstance(value, dict):
        known = schema.get("properties", {})
        yield from (f"{at}: {name} is missing" for name in schema.get("required", ()) if name not in value)
        for name, inner in value.items():
            others = schema.get("additionalProperties", True)
            if name not in known and others is False:
                yield f"{at}: {name} is not known"
            else:
                yield from wrong(inner, known.get(name, others), f"{at}.{name}")
    if isinstance(value, list) and "items" in schema:
        for number, inner in enumerate(value):
            yield from wrong(inner, schema["items"], f"{at}[{number}]")


def held(stdout):
    """The names of the schemas of all records that are printed, each of which is as it says; `schema` stands first."""
    printed = json.loads(stdout)
    names = []
    for record in printed if isinstance(printed, list) else [printed]:
        name = "error"
        if "schema" in record:
            assert next(iter(record)) == "schema"
            name = record["schema"].split("/")[1]
        assert list(wrong(record, SCHEMAS[name])) == []
        names.append(name)
    return names


def test_the_words_of_a_schema_find_what_is_wrong():
    schema = {
        "type": "object",
        "properties": {"a": {"type": ["integer", "null"]}, "b": {"type": "array", "items": {"enum": ["x"]}}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert list(wrong({"a": None, "b": ["x"]}, schema)) == []
    for value in ({}, {"a": "1"}, {"a": True}, {"a": 1.5}, {"a": 1, "b": ["y"]}, {"a": 1, "c": 1}, []):
        assert len(list(wrong(value, schema))) == 1, value
    assert list(wrong({"a": 1}, {"anyOf": [{"type": "null"}, schema]})) == []
    assert list(wrong(1, {"anyOf": [{"type": "null"}, schema]}))


@pytest.mark.parametrize("verb", ["info", "compat", "check", "metadata show"])
def test_every_fixture_is_told_as_the_schema_has_it(verb, run):
    options = ["--modules"] if verb == "info" else []
    told = {name for file in FILES for name in held(run(*verb.split(), file, *options, "--json").stdout)}
    assert verb.removesuffix(" show") in told
    assert told <= {verb.removesuffix(" show"), "error"}


COMMANDS = {
    "sizes of changes": (["info", RSLORA, "--norms"], {"info"}),
    "sizes of changes on a base": (["info", DORA, "--norms", "--base", BASE], {"info"}),
    "a folder": (["info", str(SYNTHETIC)], {"info"}),
    "a folder that is checked": (["check", str(SYNTHETIC)], {"check"}),
    "what is missing beside a file": (["check", "nowhere", RSLORA], {"check", "error"}),
    "hashes": (["metadata", "show", RSLORA, "--hashes"], {"metadata"}),
    "an edit": (["metadata", "set", RSLORA, "a=b", "-o", "a.safetensors"], {"metadata-edit"}),
    "a fix": (["check", str(SYNTHETIC / "bf16_alpha_and_flags.safetensors"), "--fix", "-o", "fixed.safetensors"],
              {"check"}),
    "a conversion": (["convert", RSLORA, "--to", "comfyui", "-o", "a.safetensors"], {"convert"}),
    "a folder that is converted": (["convert", str(SYNTHETIC), "-o", "all"], {"convert", "convert-skipped", "error"}),
    "a lossy conversion": (["convert", DORA, "--drop-magnitude", "--allow-loss", "-o", "a.safetensors"], {"convert"}),
    "a merge": (["merge", BASE, f"{RSLORA}:model=0.5", OTHER, "-o", "a.safetensors"], {"merge"}),
    "a DoRA": (["merge", BASE, f"{DORA}:0.5", "--dora-multiplier", "inside", "-o", "a.safetensors"], {"merge"}),
    "a plan": (["merge", BASE, DORA, "--dry-run"], {"merge-plan"}),
    "a job's plan": (["merge", str(SYNTHETIC / "base_sharded"), str(SYNTHETIC / "split.safetensors"),
                      "--shard", "1/2", "--dry-run"], {"merge-plan"}),
    "a job": (["merge", str(SYNTHETIC / "base_sharded"), str(SYNTHETIC / "split.safetensors"),
               "--shard", "1/2", "-o", "out"], {"merge-shard"}),
    "all jobs": (["merge", str(SYNTHETIC / "base_sharded"), str(SYNTHETIC / "split.safetensors"),
                  "--shard", "1/1", "-o", "out"], {"merge-shard"}),
    "a sum": (["combine", RSLORA, f"{OTHER}:0.5", "--rank", "2", "-o", "a.safetensors"], {"combine"}),
    "a planned sum": (["combine", RSLORA, f"{OTHER}:0.5", "--dry-run"], {"combine"}),
    "one adapter at a multiplier": (["combine", f"{RSLORA}:0.5", "-o", "a.safetensors"], {"combine"}),
    "a sum that depends on a base": (["combine", RSLORA, DORA, "--base", BASE, "-o", "a.safetensors"], {"combine"}),
    "a new rank": (["resize", RSLORA, "--rank", "2", "-o", "a.safetensors"], {"resize"}),
    "a folder that is resized": (["resize", str(SYNTHETIC), "--rank", "2", "-o", "all"],
                                 {"resize", "resize-skipped", "error"}),
    "an average": (["average", RSLORA, f"{RSLORA}:step=2", "-o", "a.safetensors"], {"average"}),
    "an average of factors": (["average", RSLORA, RSLORA, "--of", "factors", "-o", "a.safetensors"], {"average"}),
    "an extraction": (["extract", "merged.safetensors", BASE, "--rank", "4", "-o", "a.safetensors"], {"extract"}),
    "an extraction that writes nothing": (["extract", "merged.safetensors", BASE, "--energy", "0.99", "--dry-run"],
                                          {"extract"}),
    "a proof": (["verify", "merged.safetensors", BASE, RSLORA], {"verify"}),
    "no proof": (["verify", BASE, BASE, RSLORA], {"verify"}),
    "a comparison": (["compare", RSLORA, f"{OTHER}:0.5"], {"compare"}),
    "a comparison of three": (["compare", RSLORA, OTHER, f"{OTHER}:-1"], {"compare"}),
    "a page": (["report", RSLORA, "-o", "page.html"], {"report"}),
    "a folder that is compared": (["compare", str(SYNTHETIC)], {"compare"}),
    "taken back": (["unmerge", "merged.safetensors", RSLORA, "--base", BASE, "-o", "a.safetensors"], {"unmerge"}),
    "nearest": (["unmerge", "merged.safetensors", RSLORA, "--allow-ambiguous", "-o", "a.safetensors"], {"unmerge"}),
    "to be taken back": (["unmerge", "merged.safetensors", RSLORA, "--dry-run"], {"unmerge-plan"}),
    **{f"{' '.join(words)} of nothing": ([*words, "nothing", *more], {"error"}) for words, more in (
        (["info"], []), (["check"], []), (["compat"], []), (["metadata", "show"], []), (["convert"], ["-o", "a"]),
        (["merge"], [RSLORA, "-o", "a"]), (["combine"], ["-o", "a"]), (["resize"], ["--rank", "2", "-o", "a"]),
        (["average"], [RSLORA, "-o", "a"]), (["unmerge"], ["-o", "a"]), (["verify"], [BASE, RSLORA]),
        (["compare"], [RSLORA]))},
}  # fmt: skip


@pytest.mark.parametrize(("command", "names"), COMMANDS.values(), ids=COMMANDS)
def test_what_a_command_prints_is_as_the_schema_has_it(command, names, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "merged.safetensors" in command:
        run("merge", BASE, RSLORA, "-o", "merged.safetensors")
    shown = run(*command, "--json")
    assert set(held(shown.stdout)) == names
    if names == {"error"}:
        record = json.loads(shown.stdout)
        assert (shown.status, record["path"], record["code"]) == (3, "nothing", "not-found")
        assert shown.stderr == f"Error: {record['error']}\n"


def test_every_schema_has_a_command():
    told = set().union(*(names for _, names in COMMANDS.values()))
    assert told | {"compat"} == SCHEMAS.keys()


def test_a_full_disk_is_told_once(run, monkeypatch):
    from lora_inspect.cli import terminal

    def fail(value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(terminal, "json_text", fail)
    shown = run("compat", RSLORA, "--json")
    assert (shown.status, shown.stdout, shown.stderr.count("Error: ")) == (3, "", 1)


@pytest.mark.parametrize("words", [["--json"], ["--format", "json"], ["--format=json"]])
def test_both_spellings_ask_for_json(words, run):
    assert json.loads(run("check", "nothing", *words).stdout)["code"] == "not-found"
    assert run("check", *words, "--", "nothing").stdout
    assert not run("check", "nothing").stdout
