"""What `verify` prints, as a line, a table and JSON, and how it ends."""

import json

import pytest
import torch
from adapters import drawn
from verified_merges import BLOCKS, Folder, base_of, delta, lora, weight


@pytest.fixture
def files(tmp_path):
    """The paths of a base, an adapter, their merge, and one that lacks the third block and has half of the first."""
    folder, base, a = Folder(tmp_path), base_of(), lora(alpha=3.0)
    shares = {"whole": (1, 1, 1, 1), "wrong": (0.5, 1, 0, 1)}
    found = {"base": folder.file("base", base), "a": folder.file("a", a)}
    for name, own in shares.items():
        made = {weight(n): (base[weight(n)].double() + own[n] * delta(a, n)).float() for n in range(BLOCKS)}
        found[name] = folder.file(name, base | made)
    return found


def test_a_right_merge_is_one_line_and_status_0(files, run):
    ended = run("verify", files["whole"], files["base"], files["a"])
    assert ended.status == 0
    assert ended.stdout == f"ok: 4 modules carry {files['a']} 1.000 ± 0.000; nothing else differs\n"
    assert ended.stderr == ""


def test_a_wrong_one_says_what_is_wrong_and_shows_the_worst_modules_first_and_ends_with_1(files, run):
    ended = run("verify", files["wrong"], files["base"], files["a"])
    assert ended.status == 1
    lines = ended.stdout.splitlines()
    assert lines[0].startswith(f"not ok: {files['a']} 0.")
    assert lines[1:3] == [
        f"1 of 4 modules has nothing of {files['a']}",
        f"1 of 4 modules has 0.5 of {files['a']}",
    ]
    assert lines[3:] == [
        "",
        "module                  adapter  share  ±      residual",
        "----------------------  -------  -----  -----  --------",
        "blocks.2.attn.q.weight           0.000  0.000  0.000",
        "blocks.0.attn.q.weight           0.500  0.000  0.000",
    ]
    assert ended.stderr == ""


def test_the_table_is_no_wider_than_a_terminal(tmp_path, run):
    folder, long = Folder(tmp_path), "transformer_blocks.0." * 4 + "attn.to_q"
    base = folder.file("base", {f"model.diffusion_model.{long}.weight": torch.eye(6)})
    adapters = [
        folder.file(letter, {f"diffusion_model.{long}.lora_{side}.weight": drawn(number, 6, 6) for side in "AB"})
        for number, letter in enumerate("ab")
    ]
    ended = run("verify", base, base, *adapters)
    table = ended.stdout[ended.stdout.index("\n\n") :].splitlines()
    assert len(table) > 4
    assert max(map(len, table)) <= 80
    assert "…" in table[-1]


def test_json_has_every_share_and_finding(files, run):
    ended = run("verify", files["wrong"], files["base"], files["a"], "--json")
    assert ended.status == 1
    found = json.loads(ended.stdout)
    assert found.keys() == {
        "schema", "ok", "share", "noise", "residual", "missing", "findings", "modules", "module_noise", "residuals",
        "unexpected", "absent", "extra",
    }  # fmt: skip
    assert found["ok"] is False
    assert found["missing"] == [weight(2)]
    assert found["modules"][weight(0)] == {files["a"]: pytest.approx(0.5, abs=1e-5)}
    assert found["findings"][0].keys() == {"code", "message", "modules", "adapter", "is_error"}
    assert [finding["code"] for finding in found["findings"]] == ["missing", "scaled"]
    assert run("verify", files["whole"], files["base"], files["a"], "--json").json["ok"] is True


def test_settings_on_the_path_and_options_are_those_of_merge(files, run):
    ended = run("verify", files["wrong"], files["base"], f"{files['a']}:*_0_*=0.5,*_2_*=0")
    assert ended.status == 0, ended.stdout
    assert "no component text_encoder" in run(
        "verify", files["whole"], files["base"], files["a"], "--only", "text_encoder"
    ).refusal  # fmt: skip
    assert "has nothing to rule" in run(
        "verify", files["whole"], files["base"], files["a"], "--dora-multiplier", "inside"
    ).refusal  # fmt: skip


def test_what_cannot_be_opened_is_refused_and_a_missing_adapter_is_wrong_usage(files, run, tmp_path):
    assert "no such file" in run("verify", tmp_path / "none.safetensors", files["base"], files["a"]).failure
    assert run("verify", files["whole"], files["base"]).status == 2


def test_what_is_read_is_not_written(files, run, tmp_path):
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run("verify", files["wrong"], files["base"], files["a"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
