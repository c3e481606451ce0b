"""The Python API: what it exports, how it is loaded, and that it says what the command line says."""

import errno
import json
import os
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from adapters import base, families, lora, loras

import lora_inspect
from lora_inspect import LoraInspectError, open_adapter
from lora_inspect.files.discovery import find_checkpoints

FIXTURES = Path(__file__).parents[1] / "fixtures"
SYNTHETIC = FIXTURES / "synthetic"
BASE, RSLORA, DORA = (SYNTHETIC / f"{name}.safetensors" for name in ("base_f32", "rslora_flag", "dora_without_flag"))
# Every file and folder that is read without an error.
READABLE = [
    Path(path)
    for path in find_checkpoints(str(FIXTURES))
    if "refused" not in path and "key-shapes" not in path and not path.endswith(".gz")
]

IMPORTED = """
import sys
before = set(sys.modules)
import lora_inspect
print(sorted(set(sys.modules) - before))
assert lora_inspect.__version__ and "merge" in dir(lora_inspect) and "open_adapter" in lora_inspect.__all__
print(sorted(set(sys.modules) - before))
lora_inspect.open_adapter
print(sorted({"torch", "numpy", "click", "tabulate"} & set(sys.modules)))
"""


def test_importing_it_loads_the_package_and_its_version(run_process):
    shown = run_process("-S", "-c", IMPORTED)
    assert (shown.status, shown.stderr) == (0, "")
    own = "['lora_inspect', 'lora_inspect.version']"
    assert shown.stdout.splitlines() == [own, own, "[]"]


@pytest.mark.parametrize("name", lora_inspect.__all__)
def test_every_name_is_there_and_says_what_it_is(name):
    found = getattr(lora_inspect, name)
    assert name in dir(lora_inspect)
    assert found is getattr(lora_inspect, name)
    assert name == "__version__" or found.__doc__


def test_no_other_name_is_there():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = lora_inspect.nonsense
    names = {}
    exec("from lora_inspect import *", names)
    assert names.keys() - {"__builtins__"} == {*lora_inspect.__all__}


def test_all_lists_the_homes():
    assert {*lora_inspect.__all__} - {"__version__"} == lora_inspect._HOMES.keys()
    assert lora_inspect.__all__ == sorted(lora_inspect.__all__)


@pytest.mark.parametrize("path", READABLE, ids=lambda path: path.relative_to(FIXTURES).as_posix())
def test_an_opened_file_is_what_info_prints(path, run):
    opened = open_adapter(path)
    shown = run("info", path, "--json", "--modules").json
    assert json.loads(json.dumps(opened.to_dict(modules=True))) == shown
    assert opened.to_dict().keys() == shown.keys() - {"module_list"}
    assert [change.to_dict() for module in opened.modules for change in module.changes] == shown["module_list"]
    assert (opened.path, opened.kind, opened.architecture, opened.scheme, opened.trainer) == tuple(
        shown[field] for field in ("path", "kind", "architecture", "scheme", "trainer")
    )
    assert list(opened.architectures) == families(shown)
    assert (opened.rslora, opened.dora) == (shown["rslora"]["value"], shown["dora"]["value"])
    assert [one._asdict() for one in opened.evidence] == shown["evidence"]
    assert [{**one._asdict(), "keys": list(one.keys)} for one in opened.problems] == shown["problems"]
    assert dict(opened.metadata) == shown["metadata"]
    assert len(opened.modules) == (shown["modules"] if opened.kind == "adapter" else 0)
    assert "\n" not in repr(opened)
    for module in opened.modules:
        first = module.changes[0].to_dict()
        assert [module.key, module.path, module.component, module.algorithm, module.rank, module.alpha] == [
            first[field] for field in ("module", "path", "component", "algorithm", "rank", "alpha")
        ]
        assert [module.scale, module.why, module.dora, module.shape and list(module.shape)] == [
            first[field] for field in ("scale", "why", "dora", "shape")
        ]
        assert "\n" not in repr(module) + repr(module.changes)


def test_there_are_many_fixtures():
    assert len(READABLE) >= 60


def test_in_one_line():
    assert repr(open_adapter(RSLORA)) == (
        f"<OpenedAdapter '{RSLORA}': lora, RS-LoRA, Wan 2.1 / 2.2, 20 modules, rank 4, scale 1.5>"
    )
    assert repr(open_adapter(BASE)) == f"<OpenedAdapter '{BASE}': a base>"
    assert repr(open_adapter(RSLORA).modules[0]) == ("<OpenedModule 'blocks.0.self_attn.q': lora, rank 4, scale 1.5>")


def test_names_from_files_are_shown_as_text(write_safetensors):
    key = "lora_unet_\x1b[31m_q"
    opened = open_adapter(write_safetensors(lora(key, rank=4)))
    assert "\x1b" not in repr(opened) + repr(opened.modules[0])
    assert repr(opened).endswith(": lora, 1 module, rank 4, scale 2>")
    assert opened.modules[key].key == key


def test_modules_are_found_by_number_path_and_name():
    modules = open_adapter(RSLORA).modules
    first = modules[0]
    assert modules["blocks.0.self_attn.q"] is modules[first.key] is first
    assert [*modules] == [*modules[:]] == [modules[number] for number in range(20)]
    assert first in modules
    assert first.path in modules
    assert "blocks.9.self_attn.q" not in modules
    with pytest.raises(KeyError, match=r"no module is called blocks\.9\.self_attn\.q; did you mean blocks\."):
        modules["blocks.9.self_attn.q"]
    with pytest.raises(KeyError, match=r"no module is called nope; the first of 20 is blocks\.0\.self_attn\.q"):
        modules["nope"]
    with pytest.raises(IndexError):
        modules[20]


def test_a_path_of_two_components_is_said_by_name(write_safetensors):
    keys = [f"lora_te{number}_text_model_encoder_layers_0_self_attn_q_proj" for number in (1, 2)]
    modules = open_adapter(write_safetensors(lora(keys[0], rank=4) | lora(keys[1], rank=4))).modules
    assert modules[keys[1]].component == "text_encoder_2"
    assert {module.path for module in modules} == {"text_model.encoder.layers.0.self_attn.q_proj"}
    with pytest.raises(KeyError, match="path of several modules; choose one of lora_te1"):
        modules["text_model.encoder.layers.0.self_attn.q_proj"]


def test_what_a_file_leaves_open_is_settled_by_the_call_or_on_the_path(write_safetensors):
    file = write_safetensors(lora("base_model.model.q", rank=4, alpha=None, spelling="peft"))
    opened = open_adapter(file)
    assert opened.modules[0].scale is None
    assert [problem.severity for problem in opened.problems] == ["error"]
    with pytest.raises(LoraInspectError, match="alpha"):
        opened.modules[0].delta()
    assert open_adapter(file, alpha=8, rslora=False).modules[0].scale == 2.0
    assert open_adapter(file, alpha=8, rslora=True).modules[0].scale == 4.0
    assert open_adapter(f"{file}:alpha=8", rslora=False).modules[0].scale == 2.0
    assert open_adapter((file, "alpha=8,rslora=yes")).modules[0].scale == 4.0


def test_an_os_path_is_the_path_as_it_is(write_safetensors, tmp_path):
    named = tmp_path / "style.safetensors:0.5"
    shutil.copy(write_safetensors(loras()), named)
    assert open_adapter(named).path == str(named)
    with pytest.raises(LoraInspectError, match="there is no such file"):
        open_adapter(Path(f"{RSLORA}:alpha=4"))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: open_adapter(b"file"), TypeError, "not b'file'"),
        (lambda: open_adapter(3), TypeError, "int"),
        (lambda: open_adapter((RSLORA, 0.5)), ValueError, "a multiplier has no meaning"),
        (lambda: open_adapter(f"{RSLORA}:0.5"), ValueError, "a multiplier has no meaning"),
        (lambda: open_adapter((RSLORA, 0.5, 3)), ValueError, "two parts"),
        (lambda: open_adapter((RSLORA, "nonsense")), ValueError, "not a setting"),
        (lambda: open_adapter(RSLORA, alpha=float("nan")), ValueError, "no finite number"),
        (lambda: open_adapter(RSLORA, alpha="3"), TypeError, "alpha must be a number"),
        (lambda: open_adapter(RSLORA, expert_packing="odd"), ValueError, "expert_packing is 'odd'"),
        (lambda: open_adapter(RSLORA, 3.0), TypeError, "positional"),
        (lambda: open_adapter(RSLORA, rslora="no"), TypeError, "rslora must be True, False or None, not 'no'"),
        (lambda: lora_inspect.merge(BASE, RSLORA, "out", transposed="no"), TypeError, "for each glob, not 'no'"),
        (lambda: lora_inspect.merge(BASE, RSLORA, "out", transposed={"*": "no"}), TypeError, "for each glob, not"),
        (lambda: lora_inspect.merge(BASE, [], "out"), ValueError, "no adapter"),
        (lambda: lora_inspect.merge(BASE, [(RSLORA, True)], "out"), TypeError, "a number, not True"),
        (lambda: lora_inspect.merge(BASE, [(RSLORA, float("inf"))], "out"), ValueError, "no finite number"),
        (lambda: lora_inspect.merge(BASE, [(RSLORA, 10**400)], "out"), ValueError, "no finite number"),
        (lambda: lora_inspect.merge(BASE, RSLORA, "out", rounding="stochastic", seed="1"), TypeError, "whole number"),
        (lambda: lora_inspect.merge(BASE, RSLORA, "out", dtype="int8"), ValueError, "dtype is 'int8'"),
        (lambda: lora_inspect.merge(BASE, RSLORA, "out", dora_multiplier="odd"), ValueError, "multiplier is 'odd'"),
        (lambda: lora_inspect.merge(BASE, RSLORA, "out", transposed={"": True}), ValueError, "is none of yes, no"),
        (lambda: lora_inspect.convert(RSLORA, "out", to="odd"), ValueError, "the name is 'odd'"),
        (lambda: lora_inspect.convert(RSLORA, "out", layout="odd"), ValueError, "layout is 'odd'"),
        (lambda: lora_inspect.convert(RSLORA, "out", algorithm="odd"), ValueError, "algorithm is 'odd'"),
        (lambda: lora_inspect.convert(RSLORA, "out", rank=0, algorithm="lora"), ValueError, "at least 1"),
        (lambda: lora_inspect.convert(RSLORA, "out", rank=2.0), TypeError, "a whole number"),
        (lambda: lora_inspect.convert(RSLORA, "out", max_error=1, algorithm="lora"), ValueError, "below 1"),
        (lambda: lora_inspect.convert(RSLORA, "out", rank=3), ValueError, "rank and max_error limit"),
        (lambda: lora_inspect.compat(RSLORA, program="odd"), ValueError, "program is 'odd'"),
        (lambda: lora_inspect.check(RSLORA, force=True), ValueError, "leave it out, or give fix"),
        (lambda: lora_inspect.check(RSLORA, fix="out", skip_hashes=True), ValueError, "leave skip_hashes out"),
        (lambda: open_adapter(RSLORA).modules[0].delta(parameter="bias"), ValueError, "changes no bias"),
        (lambda: open_adapter(RSLORA).modules[0].delta([[1.0]]), TypeError, "floating-point numbers"),
        *(
            (partial(lambda weight: open_adapter(RSLORA).modules[0].delta(weight), weight), TypeError, "a dense tensor")
            for weight in (torch.zeros(24, 24, device="meta"), torch.zeros(24, 24).to_sparse())
        ),
        *(
            (partial(lambda dtype: open_adapter(RSLORA).modules[0].delta(dtype=dtype), dtype), TypeError, "dtype must")
            for dtype in (torch.int8, torch.bool, "bfloat16")
        ),
    ],
)  # fmt: skip
def test_wrong_arguments_are_told_before_a_file_is_written(call, error, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says):
        call()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: open_adapter("nowhere.safetensors"),
        lambda: lora_inspect.compat("nowhere.safetensors"),
        lambda: lora_inspect.check("nowhere.safetensors"),
        lambda: lora_inspect.check(RSLORA, fix="out.safetensors"),
        lambda: lora_inspect.check(SYNTHETIC),
        lambda: lora_inspect.convert("nowhere.safetensors", "out.safetensors"),
        lambda: lora_inspect.merge("nowhere.safetensors", RSLORA, "out.safetensors"),
        lambda: lora_inspect.merge(BASE, ["nowhere.safetensors"], "out.safetensors"),
        lambda: lora_inspect.verify("nowhere.safetensors", BASE, [RSLORA]),
        lambda: open_adapter(FIXTURES / "refused" / "pickle"),
        lambda: open_adapter("a\0b"),
        lambda: lora_inspect.check("a\0b"),
    ],
)
def test_what_is_refused_is_one_sentence(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoraInspectError, match=r"\.$") as refused:
        call()
    assert "\n" not in str(refused.value)
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_system_is_one_as_well(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "out"))

    monkeypatch.setattr("lora_inspect.api.verbs.merge_planned", full)
    with pytest.raises(LoraInspectError, match="free space, or send the output elsewhere") as refused:
        lora_inspect.merge(BASE, RSLORA, tmp_path / "out.safetensors")
    assert isinstance(refused.value.__cause__, OSError)


def as_printed(result, **ignored):
    """A result as the command line prints it, but for what no two runs have in common."""
    return json.loads(json.dumps(result.to_dict())) | ignored


@pytest.mark.parametrize("adapters", [[f"{RSLORA}:0.5"], [f"{RSLORA}:0.5", str(DORA)]], ids=["one", "two"])
def test_merge_is_that_of_the_command_line(adapters, run, tmp_path, capsys):
    pairs = [(RSLORA, 0.5), *adapters[1:]]
    result = lora_inspect.merge(BASE, pairs, tmp_path / "a.safetensors", dtype="bf16")
    assert capsys.readouterr() == ("", "")
    shown = run("merge", BASE, *adapters, "-o", tmp_path / "b.safetensors", "--dtype", "bf16", "--json").json
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert as_printed(result, output="", seconds=0) == shown | {"output": "", "seconds": 0}
    assert result.output == str(tmp_path / "a.safetensors")
    again = lora_inspect.merge(str(BASE), adapters, tmp_path / "a.safetensors", dtype="bfloat16", force=True)
    assert again.multipliers == result.multipliers


def test_dtypes_have_torch_s_names_too(tmp_path):
    import torch

    result = lora_inspect.merge(BASE, RSLORA, tmp_path / "out.safetensors", dtype=torch.float16)
    assert result.dtype_counts["F16"] >= 20


@pytest.mark.parametrize(
    ("file", "options", "flags"),
    [
        (RSLORA, {}, []),
        (RSLORA, {"to": "diffusers"}, ["--to", "diffusers"]),
        (RSLORA, {"to": "comfyui", "verify": False}, ["--to", "comfyui", "--no-verify"]),
        (DORA, {"drop_magnitude": True, "allow_loss": True}, ["--drop-magnitude", "--allow-loss"]),
        (DORA, {"base": BASE, "rank": 8, "allow_loss": True}, ["--base", str(BASE), "--rank", "8", "--allow-loss"]),
    ],
)
def test_convert_is_that_of_the_command_line(file, options, flags, run, tmp_path, capsys):
    result = lora_inspect.convert(file, tmp_path / "a.safetensors", **options)
    assert capsys.readouterr() == ("", "")
    shown = run("convert", file, "-o", tmp_path / "b.safetensors", *flags, "--json").json
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert as_printed(result, output="") == shown | {"output": ""}


def test_verify_is_that_of_the_command_line(run, tmp_path, capsys):
    merged = tmp_path / "merged.safetensors"
    lora_inspect.merge(BASE, f"{RSLORA}:0.5", merged)
    result = lora_inspect.verify(merged, BASE, (RSLORA, 0.5))
    assert capsys.readouterr() == ("", "")
    assert result.ok
    assert result.share == pytest.approx({str(RSLORA): 1.0}, abs=1e-3)
    assert as_printed(result) == run("verify", merged, BASE, f"{RSLORA}:0.5", "--json").json
    assert not lora_inspect.verify(merged, BASE, RSLORA).ok


def test_compat_is_that_of_the_command_line(run, capsys):
    result = lora_inspect.compat(RSLORA)
    assert capsys.readouterr() == ("", "")
    assert as_printed(result) == run("compat", RSLORA, "--json").json
    (one,) = lora_inspect.compat(RSLORA, program="comfyui").verdicts
    assert (one.verdict, one.factor) == ("wrong strength", 0.5)
    shown = run("compat", DORA, "--base", BASE, "--json").json
    assert as_printed(lora_inspect.compat(DORA, base=BASE)) == shown


@pytest.mark.parametrize(("path", "base"), [(RSLORA, None), (RSLORA, BASE), (DORA, None), (DORA, BASE)])
def test_norms_are_those_of_the_command_line(path, base, run, capsys):
    result = lora_inspect.open_adapter(path).norms(base)
    assert isinstance(result, lora_inspect.NormsResult)
    assert capsys.readouterr() == ("", "")
    options = [] if base is None else ["--base", base]
    assert as_printed(result) == run("info", path, "--norms", "--json", *options).json["norms"]


def test_norms_refuse_what_is_no_adapter_and_a_wrong_answer():
    with pytest.raises(lora_inspect.RefusedError, match="it is no adapter, so it has no change to measure"):
        lora_inspect.open_adapter(BASE).norms()
    with pytest.raises(TypeError, match="transposed must be"):
        lora_inspect.open_adapter(RSLORA).norms(BASE, transposed="no")


@pytest.mark.parametrize(
    "call",
    [
        lambda out, watch: lora_inspect.merge(BASE, [RSLORA], out, progress=watch),
        lambda out, watch: lora_inspect.convert(RSLORA, out, to="diffusers", progress=watch),
        lambda out, watch: lora_inspect.convert(DORA, out, base=BASE, rank=4, allow_loss=True, progress=watch),
        lambda out, watch: lora_inspect.verify(BASE, BASE, [RSLORA], progress=watch),
        lambda out, watch: lora_inspect.compat(DORA, base=BASE, progress=watch),
    ],
    ids=["merge", "convert", "convert DoRA", "verify", "compat"],
)
def test_progress_goes_from_nothing_to_all(call, tmp_path):
    told = []
    call(tmp_path / "out.safetensors", lambda done, total: told.append((done, total)))
    assert len(told) > 2
    assert told == sorted(told)
    (total,) = {total for _, total in told}
    assert (told[0], told[-1]) == ((0, total), (total, total))


def test_who_watches_may_stop_it_and_nothing_is_left(tmp_path):
    class Enough(Exception):
        pass

    def stop(done, total):
        if done:
            raise Enough

    with pytest.raises(Enough):
        lora_inspect.merge(BASE, RSLORA, tmp_path / "out.safetensors", progress=stop)
    with pytest.raises(Enough):
        lora_inspect.convert(RSLORA, tmp_path / "out.safetensors", progress=stop)
    assert os.listdir(tmp_path) == []


def test_other_threads_may_call_it(tmp_path):
    results = []

    def work(number):
        results.append(lora_inspect.merge(BASE, (RSLORA, number), tmp_path / f"{number}.safetensors"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(os.listdir(tmp_path)) == 4


def test_a_path_with_a_colon_takes_its_multiplier_in_a_pair(write_safetensors, tmp_path):
    base_file = write_safetensors(base(), name="base.safetensors")
    odd = tmp_path / "style:v2.safetensors:0.5"
    shutil.copy(write_safetensors(loras()), odd)
    result = lora_inspect.merge(base_file, [(odd, 0.25)], tmp_path / "out.safetensors")
    assert result.multipliers == {str(odd): 0.25}


@pytest.mark.numeric
@pytest.mark.parametrize("file", [RSLORA, DORA])
def test_deltas_are_what_merge_adds(file, tmp_path):
    from safetensors.torch import load_file

    lora_inspect.merge(BASE, file, tmp_path / "merged.safetensors")
    before, after = load_file(BASE), load_file(tmp_path / "merged.safetensors")
    modules = open_adapter(file).modules
    for module in modules:
        weight = before[f"{module.path}.weight"]
        delta = module.delta(weight)
        largest = float(after[f"{module.path}.weight"].abs().max())
        assert float((weight + delta - after[f"{module.path}.weight"]).abs().max()) <= 1e-6 * largest
        assert delta.any()


def test_check_is_that_of_the_command_line(run, write_safetensors, tmp_path, capsys):
    for file in (RSLORA, DORA, FIXTURES / "refused" / "two-bytes"):
        shown = run("check", file, "--json")
        assert as_printed(lora_inspect.check(file)) == json.loads(shown.stdout)
    file = write_safetensors(loras(), {"sshs_model_hash": "0" * 64}, name="stale.safetensors")
    found = lora_inspect.check(file)
    assert found.fails("warning")
    without = lora_inspect.check(file, skip_hashes=True)
    assert {one.code for one in found.problems} - {one.code for one in without.problems} == {"hash-stale"}
    told = []
    mended = lora_inspect.check(
        file, tensors=True, fix=tmp_path / "a.safetensors", progress=lambda *at: told.append(at)
    )
    assert capsys.readouterr() == ("", "")
    assert 0 < told[-1][0] <= told[-1][1]
    shown = run("check", file, "--tensors", "--fix", "-o", tmp_path / "b.safetensors", "--json")
    record = json.loads(shown.stdout)
    assert as_printed(mended, output="") == record | {"output": ""}
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert not mended.fails("warning")


@pytest.mark.parametrize("jobs", [1, 2])
def test_scan_says_what_info_says_of_each_file(jobs, run, tmp_path, capsys):
    for number, file in enumerate((RSLORA, DORA, BASE)):
        shutil.copy(file, tmp_path / f"{number}.safetensors")
    (tmp_path / "below").mkdir()
    shutil.copy(RSLORA, tmp_path / "below" / "again.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    told = []
    found = list(lora_inspect.scan(tmp_path, jobs=jobs, records=True, progress=lambda *at: told.append(at)))
    assert told == [(done, 5) for done in range(1, 6)]
    assert capsys.readouterr() == ("", "")
    assert [Path(one.path).name for one in found] == [
        *("0.safetensors", "1.safetensors", "2.safetensors", "broken.safetensors", "again.safetensors")
    ]
    for one in found:
        if one.error is None:
            assert json.loads(json.dumps(one.record)) == run("info", one.path, "--json").json
    assert [one.kind for one in found] == ["adapter", "adapter", "base", "", "adapter"]
    assert isinstance(found[3].error, LoraInspectError)
    assert found[4].duplicate_of == found[0].path
    assert len(list(lora_inspect.scan(str(tmp_path), recursive=False))) == 4
    assert [one.path for one in lora_inspect.scan([RSLORA, str(BASE)])] == [str(RSLORA), str(BASE)]


@pytest.mark.numeric
def test_a_program_with_types_runs(tmp_path):
    import typed_program

    assert all(map(os.path.exists, typed_program.use(BASE, RSLORA, tmp_path)))
