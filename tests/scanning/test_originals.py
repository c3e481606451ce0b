"""The copy among equal files is called the duplicate, wherever it stands in the list."""

import json
import os
import shutil

import pytest
from adapters import lora, loras

from lora_inspect.ops.scan import scan
from lora_inspect.scanning import originals
from lora_inspect.scanning.originals import original_name


@pytest.fixture
def duplicates(write_safetensors, tmp_path):
    """`duplicates({name: second of its last change})`: the name of the original of each of these equal files."""

    def found(modified, metadata=None):
        for name, second in modified.items():
            own = (metadata or {}).get(name, {})
            file = write_safetensors(loras(), metadata=own, name=f"many/{name}.safetensors")
            os.utime(file, (second, second))
        stem = {str(tmp_path / "many" / f"{name}.safetensors"): name for name in modified}
        return {stem[one.path]: one.duplicate_of and stem[one.duplicate_of] for one in scan([tmp_path / "many"])}

    return found


@pytest.mark.parametrize(
    "copy",
    ["style (1)", "style(2)", "style - Copy", "style - Copy (3)", "style_copy", "style copy 2", "Copy of style"],
)
def test_the_name_of_a_copy_makes_the_duplicate_though_it_is_older(copy, duplicates):
    assert duplicates({copy: 1, "style": 2}) == {copy: "style", "style": None}


def test_an_older_copy_of_another_name_is_a_duplicate_too(duplicates):
    assert duplicates({"a (1)": 1, "other": 2}) == {"a (1)": "other", "other": None}


def test_the_newer_file_is_the_duplicate(duplicates):
    assert duplicates({"a": 3, "b": 1, "c": 2}) == {"a": "b", "b": None, "c": "b"}


def test_of_one_time_the_later_in_the_list_is_the_duplicate(duplicates):
    assert duplicates({"b": 5, "a": 5}) == {"a": None, "b": "a"}


def test_the_name_counts_where_metadata_make_files_of_other_sizes(duplicates):
    metadata = {"style (1)": {"note": "x" * 100}}
    assert duplicates({"style (1)": 1, "style": 2}, metadata) == {"style (1)": "style", "style": None}


def test_a_copied_folder_of_peft_is_the_duplicate(write_safetensors, tmp_path):
    file = write_safetensors(loras(), name="many/style/adapter_model.safetensors")
    shutil.copytree(file.parent, tmp_path / "many" / "style (1)")
    os.utime(tmp_path / "many" / "style (1)" / "adapter_model.safetensors", (1, 1))
    found = {one.path: one.duplicate_of for one in scan([tmp_path / "many"])}
    assert found[str(file)] is None
    assert found[str(tmp_path / "many" / "style (1)" / "adapter_model.safetensors")] == str(file)


@pytest.mark.parametrize("name", ["style", "copycat", "style (final)", "(1)", "photocopy", "copy", "style v(1)x"])
def test_other_names_are_no_copies(name):
    assert original_name(name) is None


def test_files_appear_in_their_order_and_wait_only_for_a_possible_original(write_safetensors, tmp_path):
    for number, name in enumerate(["a (1)", "a", "b", "c"]):
        tensors = {key: (*one[:2], 1.0 if name[0] == "a" else number + 1.0) for key, one in loras().items()}
        file = write_safetensors(tensors, name=f"many/{name}.safetensors")
        os.utime(file, (9 - number, 9 - number))  # so that of equal files each would be a copy of the next one
    read = []
    scanned = scan([tmp_path / "many"], progress=read.append)
    shown = [(os.path.basename(one.path)[:-12], len(read)) for one in scanned]
    assert shown == [("a (1)", 2), ("a", 2), ("b", 3), ("c", 4)]


def test_links_to_a_copy_are_duplicates_of_its_original(write_safetensors, tmp_path):
    files = [write_safetensors(loras(), name=f"{name}.safetensors") for name in "ab"]
    os.link(files[1], tmp_path / "c.safetensors")
    os.symlink(files[1], tmp_path / "d.safetensors")
    assert [one.duplicate_of for one in scan([tmp_path])] == [None, *[str(files[0])] * 3]


def test_a_link_is_a_duplicate_of_the_file_that_it_leads_to(write_safetensors, tmp_path):
    file = write_safetensors(loras(), name="many/style (1).safetensors")
    link = tmp_path / "many" / "a.safetensors"
    link.symlink_to(file)
    assert {one.path: one.duplicate_of for one in scan([tmp_path / "many"])} == {str(link): str(file), str(file): None}


def test_one_file_that_the_list_has_twice_is_no_copy_of_itself(write_safetensors, tmp_path):
    files = [write_safetensors(loras(), name=f"many/in/{name}.safetensors") for name in "ab"]
    (tmp_path / "link").symlink_to(tmp_path / "many", target_is_directory=True)
    found = scan([tmp_path / "many", files[0].parent, files[0], tmp_path / "link"])
    copies = [(one.path.rpartition("/")[2], one.duplicate_of) for one in found]
    assert copies == [("a.safetensors", None), ("b.safetensors", str(files[0]))] * 2 + [
        ("a.safetensors", None),
        ("a.safetensors", None),
        ("b.safetensors", str(files[0])),
    ]


def test_the_table_and_json_lines_name_the_original(write_safetensors, tmp_path, run):
    for name in ("style (1)", "style"):
        write_safetensors(loras(), name=f"many/{name}.safetensors")
    rows = run("info", tmp_path / "many").stdout.splitlines()[1:-1]
    assert [row.endswith("  duplicate of style") for row in rows] == [True, False]
    copies = run("info", tmp_path / "many", "--where", "duplicate=style").stdout.splitlines()[1:-1]
    assert [row.startswith("style (1) ") for row in copies] == [True]
    lines = run("info", tmp_path / "many", "--jsonl").stdout.splitlines()
    original = str(tmp_path / "many" / "style.safetensors")
    assert [json.loads(line)["duplicate_of"] for line in lines] == [original, None]


@pytest.mark.parametrize(("seconds", "looked_at"), [((1, 2, 3), 0), ((1, 1, 1), 0), ((1, 3, 2), 3)])
def test_only_files_of_one_size_in_another_order_are_looked_at(seconds, looked_at, write_safetensors, monkeypatch):
    paths = []
    for number, second in enumerate(seconds):
        paths.append(str(write_safetensors(loras(), name=f"{number}.safetensors")))
        os.utime(paths[-1], (second, second))
    asked = []
    real = originals._tail
    monkeypatch.setattr(originals, "_tail", lambda *one: asked.append(one) or real(*one))
    originals.Originals(paths)
    assert len(asked) == looked_at


# Alpha and rank of a file of diffusers' names, in its metadata; None for a file without them, which has the scale 1.
EMBEDDED = {
    "alpha 4": {"transformer.r": 2, "transformer.lora_alpha": 4},
    "alpha 4 in bf16 training": {"transformer.r": 2, "transformer.lora_alpha": 4, "transformer.lora_dropout": 0.1},
    "alpha 2": {"transformer.r": 2, "transformer.lora_alpha": 2},
    "no config": None,
}


@pytest.mark.parametrize(
    ("first", "second", "is_duplicate"),
    [
        ("alpha 4", "no config", False),
        ("no config", "alpha 4", False),
        ("alpha 4", "alpha 2", False),
        ("alpha 2", "no config", True),
        ("alpha 4", "alpha 4", True),
        ("alpha 4", "alpha 4 in bf16 training", True),
        ("no config", "no config", True),
    ],
)
def test_same_tensors_are_duplicates_at_same_scale(first, second, is_duplicate, write_safetensors, tmp_path):
    tensors = lora("transformer.transformer_blocks.0.attn.to_q", rank=2, alpha=None, spelling="peft")
    for name, case in (("a", first), ("b", second)):
        config = EMBEDDED[case]
        metadata = {"note": name} | ({} if config is None else {"lora_adapter_metadata": json.dumps(config)})
        write_safetensors(tensors, metadata, f"many/{name}.safetensors")
    original = str(tmp_path / "many" / "a.safetensors")
    assert [one.duplicate_of for one in scan([tmp_path / "many"])] == [None, original if is_duplicate else None]


@pytest.mark.parametrize(("alphas", "is_duplicate"), [((8, 8), True), ((8, 4), False), ((8, None), False)])
def test_same_tensors_of_peft_are_duplicates_at_same_alpha(alphas, is_duplicate, write_safetensors, tmp_path):
    tensors = lora("base_model.model.blocks.0.attn.q", rank=4, alpha=None, spelling="peft")
    for name, alpha in zip("ab", alphas, strict=True):
        folder = write_safetensors(tensors, name=f"many/{name}/adapter_model.safetensors").parent
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": alpha, "target_modules": ["q"]}
        if alpha is not None:
            (folder / "adapter_config.json").write_text(json.dumps(config))
    assert [one.duplicate_of is not None for one in scan([tmp_path / "many"])] == [False, is_duplicate]


def test_same_tensors_with_one_other_module_alpha_are_no_duplicates(write_safetensors, tmp_path):
    modules = ("base_model.model.blocks.0.attn.q", "base_model.model.blocks.1.attn.q")
    tensors = {key: t for module in modules for key, t in lora(module, rank=4, alpha=None, spelling="peft").items()}
    for name, pattern in (("a", {}), ("b", {"blocks.0.attn.q": 8}), ("c", {"blocks.1.attn.q": 8}), ("d", {})):
        folder = write_safetensors(tensors, name=f"many/{name}/adapter_model.safetensors").parent
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "alpha_pattern": pattern, "target_modules": ["q"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    first = str(tmp_path / "many" / "a" / "adapter_model.safetensors")
    assert [one.duplicate_of for one in scan([tmp_path / "many"])] == [None, None, None, first]


def test_files_with_other_shares_of_scales_are_no_duplicates(write_safetensors, tmp_path):
    modules = [f"base_model.model.blocks.{number}.attn.q" for number in range(3)]
    tensors = {key: t for module in modules for key, t in lora(module, rank=4, alpha=None, spelling="peft").items()}
    for name, count in (("a", 1), ("b", 2), ("c", 1)):
        folder = write_safetensors(tensors, name=f"many/{name}/adapter_model.safetensors").parent
        pattern = {f"blocks.{number}.attn.q": 8 for number in range(count)}
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "alpha_pattern": pattern, "target_modules": ["q"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    first = str(tmp_path / "many" / "a" / "adapter_model.safetensors")
    assert [one.duplicate_of for one in scan([tmp_path / "many"])] == [None, None, first]
