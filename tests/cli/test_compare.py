"""What `compare` prints of two adapters, of several and of a folder, and how it ends."""

import sys

import numpy
import pytest
from safetensors.numpy import save_file
from test_schemas import held

NAMES = (
    "lora_unet_blocks_0_self_attn_q",
    "lora_unet_blocks_1_self_attn_q",
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
)


def write(path, up, names=NAMES, dtype=numpy.float32):
    """A rank of 1 on square layers: column `up`, row (1, 0, 0, 0)."""
    tensors = {}
    for name in names:
        tensors[f"{name}.lora_up.weight"] = numpy.array(up, dtype)[:, None]
        tensors[f"{name}.lora_down.weight"] = numpy.array([[1, 0, 0, 0]], dtype)
        tensors[f"{name}.alpha"] = numpy.array(1, dtype)
    save_file(tensors, path)


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("a.safetensors", [3, 4, 0, 0])
    write("b.safetensors", [4, 3, 0, 0], NAMES[:2])


def test_two_adapters_are_a_line_for_each_fact_and_a_row_for_each_block(run):
    ended = run("compare", "a.safetensors", "b.safetensors:2")
    assert (ended.status, ended.stderr) == (0, "")
    # ‖A‖² is 3 · 25, ‖B‖² 2 · 100 and ⟨A, B⟩ 2 · 48. In the left singular vectors of √5 (0.6, 0.8) and √10 (0.8, 0.6)
    # the columns (3, 4) and (8, 6) are (4.91, 0.946) and (9.96, -0.933): 0.933 of 4.91 + 0.933 is opposed.
    # The sum times √(275 / 467) has 0.7674 (75 + 96) / 75 of A, and 0.7674 (200 + 96) / 200 of B.
    assert ended.stdout.splitlines() == [
        "a.safetensors and b.safetensors:2",
        "modules              2 in both",
        "norm                 8.66 and 14.14",
        "relative difference  1.052",
        "cosine               0.7838",
        "best multiplier      1.28, which leaves 0.621",
        "overlap              0.9608",
        "sign conflict        0.1597",
        "a.safetensors: 1 module that the other one lacks (lora_te_text_model_encoder_layers_0_mlp_fc1)",
        "together they have 1.7 times the energy of independent adapters: they push the same direction",
        "",
        "block                                     norm 1  norm 2  difference  cosine  overlap  sign conflict",
        "----------------------------------------  ------  ------  ----------  ------  -------  -------------",
        "blocks.0                                  5       10      1.077       0.9600  0.9608   0.1597",
        "blocks.1                                  5       10      1.077       0.9600  0.9608   0.1597",
        "text_encoder.text_model.encoder.layers.0  5       0       1           -       -        -",
        "",
        "spikes: none",
        "conflict: none",
        "carried by the command below:",
        "  a.safetensors    175.0%",
        "  b.safetensors:2  113.6%",
        "recommended: they push the same direction: give the sum the energy of independent adapters",
        "  lora-inspect combine a.safetensors b.safetensors:2 --calibrate energy -o combined.safetensors",
    ]


def test_three_adapters_are_matrices(run):
    ended = run("compare", "a.safetensors", "b.safetensors", "a.safetensors:-1")
    assert ended.status == 0
    assert ended.stderr == "Note: a.safetensors: it is named 2 times, and each of them counts.\n"
    lines = ended.stdout.splitlines()
    assert lines[:4] == ["1  a.safetensors", "2  b.safetensors", "3  a.safetensors:-1", "2 modules in all of them"]
    at = next(number for number, line in enumerate(lines) if line.startswith("cosine"))
    assert lines[at : at + 5] == [
        "cosine  1        2        3",
        "------  -------  -------  -------",
        "1       1.0000   0.7838   -1.0000",
        "2       0.7838   1.0000   -0.7838",
        "3       -1.0000  -0.7838  1.0000",
    ]
    assert "together they have 0.3 times the energy of independent adapters: they work against each other" in lines
    at = next(number for number, line in enumerate(lines) if line.startswith("block "))
    assert [line.split("  ")[0] for line in lines[at + 2 : at + 4]] == ["blocks.0", "blocks.1"]
    assert lines[at].split()[-5:] == ["overlap", "of", "sign", "conflict", "of"]
    # Opposite ones share all directions, and all of their signs differ.
    assert lines[at + 2].split()[-6:] == ["1.0000", "1,", "3", "1.0000", "1,", "3"]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            "a.safetensors",
            "together they have 2.0 times the energy of independent adapters: they push the same direction",
        ),
        ("c.safetensors", "together they have 1.0 times the energy of independent adapters: they are independent"),
        ("a.safetensors:0", "together they have 1.0 times the energy of independent adapters: they are independent"),
    ],
)
def test_a_sentence_says_what_the_sum_is(other, says, run):
    write("c.safetensors", [-4, 3, 0, 0])
    assert says in run("compare", "a.safetensors", other).stdout


def test_nothing_changes_nothing(run):
    shown = run("compare", "a.safetensors:0", "b.safetensors:0")
    assert "none of them changes anything" in shown.stdout
    assert "cosine               -" in shown.stdout


@pytest.mark.parametrize(("limit", "status"), [("1.05", 1), ("1.06", 0)])
def test_a_difference_above_the_limit_ends_with_1(limit, status, run):
    ended = run("compare", "a.safetensors", "b.safetensors:2", "--max-difference", limit)
    assert (ended.status, ended.stderr) == (status, "")
    assert "relative difference  1.052" in ended.stdout


WRONG = {
    "one adapter": (["a.safetensors"], 2, "a.safetensors: one adapter cannot be compared; name another"),
    "none": ([], 2, "Missing argument"),
    "a limit below 0": (["a.safetensors", "b.safetensors", "--max-difference", "-1"], 2, "is below 0"),
    "a limit that is no number": (["a.safetensors", "a.safetensors", "--max-difference", "nan"], 2, "nan is not"),
    "a limit of a folder": ([".", "--max-difference", "1"], 2, "is for adapters that are named, not for a folder"),
    "weights of a folder": ([".", "--weights", "w.toml"], 2, "is for adapters that are named, not for a folder"),
    "a missing file": (["a.safetensors", "c.safetensors"], 3, "c.safetensors: there is no such file"),
    "a missing file alone": (["c.safetensors"], 3, "c.safetensors: there is no such file"),
    "a number apart": (["a.safetensors", "0.5"], 1, "write a.safetensors:0.5"),
    "a pattern of no module": (["a.safetensors", "b.safetensors", "--include", "none"], 1, "matches no module"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_a_sentence(case, run):
    words, status, says = WRONG[case]
    ended = run("compare", *words)
    assert (ended.status, ended.stdout) == (status, "")
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_model_is_an_error_that_names_the_verbs_for_models(run, fixtures):
    ended = run("compare", "a.safetensors", fixtures / "synthetic" / "base_f32.safetensors")
    assert ended.status == 1
    assert "it is no adapter; compare models with `lora-inspect verify`, or" in ended.stderr
    assert "`lora-inspect extract`" in ended.stderr


def test_a_folder_is_its_groups(run, tmp_path):
    (tmp_path / "loras").mkdir()
    write("loras/a.safetensors", [3, 4, 0, 0])
    write("loras/half.safetensors", [1.5, 2, 0, 0], dtype=numpy.float16)
    write("loras/other.safetensors", [4, -3, 0, 0])
    (tmp_path / "loras" / "broken.safetensors").write_bytes(b"12")
    ended = run("compare", "loras")
    assert ended.status == 0
    assert ended.stdout.splitlines() == [
        "2 files with one change:",
        "  loras/a.safetensors",
        "  loras/half.safetensors  rescaled by 0.5 and cast, difference 0",
        "1 adapter with a change of its own",
        "1 file not compared",
    ]
    assert ended.stderr.startswith("Note: loras/broken.safetensors: it has 2 bytes")
    record = run("compare", "loras", "--json")
    assert held(record.stdout) == ["compare"]
    assert record.json["groups"] == [["loras/a.safetensors", "loras/half.safetensors"]]
    assert record.json["members"] == [
        {
            "path": "loras/half.safetensors",
            "of": "loras/a.safetensors",
            "multiplier": 0.5,
            "difference": 0.0,
            "how": ["rescaled", "cast"],
        }
    ]


def test_json_has_numbers_of_two_and_matrices_of_three(run):
    two, three = (
        run("compare", *names, "--json") for names in (("a.safetensors", "b.safetensors"), ["a.safetensors"] * 3)
    )
    for shown in (two, three):
        assert held(shown.stdout) == ["compare"]
    record = two.json
    assert record["adapters"] == ["a.safetensors", "b.safetensors"]
    assert record["modules"] == {"shared": 2, "only": [[NAMES[2]], []]}
    assert record["norm"] == pytest.approx([75**0.5, 50**0.5])
    assert record["cosine"] == pytest.approx(48 / (75 * 50) ** 0.5)
    assert record["best_multiplier"] == pytest.approx({"value": 0.64, "left": (1 - 0.64**2 * 75 / 50) ** 0.5})
    assert [*record["blocks"]] == ["blocks.0", "blocks.1", "text_encoder.text_model.encoder.layers.0"]
    assert three.json["sum_energy"] == pytest.approx(3.0)
    assert three.json["cosine"] == [[pytest.approx(1.0)] * 3] * 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_a_bar_counts_modules_and_files(tmp_path):
    from pseudo_terminal import on_a_terminal

    (tmp_path / "loras").mkdir()
    write("loras/a.safetensors", [3, 4, 0, 0])
    write("loras/b.safetensors", [4, 3, 0, 0])
    (tmp_path / "loras" / "broken.safetensors").write_bytes(b"12")
    commands = [["compare", "a.safetensors", "b.safetensors"], ["compare", "loras"], ["compare", "a.safetensors"]]
    (_, modules), (_, files), (status, refused) = on_a_terminal(commands, tmp_path)
    assert b"Comparing [########################] 3/3" in modules
    assert b"Comparing [########################] 6/6" in files
    assert status == 2
    assert b"Comparing [" not in refused
