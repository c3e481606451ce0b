"""The nodes for ComfyUI, loaded as it loads them, with stand-ins for its own modules and folders of a test."""

import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

from lora_inspect import LoraInspectError, NotFoundError, RefusedError, WouldOverwriteError

ROOT = Path(__file__).parents[2]
PACK = ROOT / "integrations" / "comfyui"
LAYERS = ("blocks.0.self_attn.q", "blocks.0.self_attn.k", "blocks.1.ffn.0")
WRITERS = ("LoraInspectCombine", "LoraInspectConvert", "LoraInspectResize", "LoraInspectExtract")
HOSTILE_OUTPUTS = (
    *("", ".", "..", "../up", "a/b", "a\\b", "/tmp/up", "C:up", "C:\\up", "up:stream", "a\0b", "a\nb"),
    *(".hidden", "end.", " space", "space ", "a*b", "NUL", "nul.safetensors", "com1", "a\u202eb", "\ud800", "a" * 201),
)
HOSTILE_INPUTS = (
    *("", ".", "..", "../secret.safetensors", "sub/../style.safetensors", "sub\\..\\style.safetensors"),
    *("sub//style.safetensors", "./style.safetensors", "C:style.safetensors", "\\style.safetensors", "style\0", "sub/"),
)


class Interrupted(Exception):
    """Raised where the user cancels."""


class Patcher:
    """A model or a text encoder as ComfyUI hands it on: with patches of its weights, by name."""

    def __init__(self, patches=(), strengths=()):
        self.patches = {name: [1.0] for name in patches}
        self.strengths = strengths
        self.patcher = self


@pytest.fixture
def comfy(tmp_path, monkeypatch):
    """ComfyUI's folders below `root`, and the modules that the nodes import."""
    folders = {kind: tmp_path / "models" / kind for kind in ("loras", "checkpoints", "diffusion_models")}
    output = tmp_path / "output"
    for folder in (*folders.values(), output):
        folder.mkdir(parents=True)

    def load(model, clip, tensors, model_strength, clip_strength):
        fits = [] if (tmp_path / "fits no model").exists() else tensors
        model = model and Patcher([name for name in fits if "_te_" not in name], (model_strength,))
        return model, clip and Patcher([name for name in fits if "_te_" in name], (clip_strength,))

    state = SimpleNamespace(root=tmp_path, loras=folders["loras"], output=output, progress=[], is_cancelled=False)

    def interrupt():
        if state.is_cancelled:
            raise Interrupted

    bar = SimpleNamespace(update_absolute=lambda done, total: state.progress.append((done, total)))
    stand_ins = {
        "folder_paths": {
            "get_filename_list": lambda kind: sorted(
                path.relative_to(folders[kind]).as_posix() for path in folders[kind].rglob("*.safetensors")
            ),
            "get_folder_paths": lambda kind: [str(folders[kind])],
            "get_output_directory": lambda: str(output),
        },
        "comfy": {},
        "comfy.model_management": {"throw_exception_if_processing_interrupted": interrupt},
        "comfy.sd": {"load_lora_for_models": load},
        "comfy.utils": {"ProgressBar": lambda total: bar, "load_torch_file": lambda path, safe_load: load_file(path)},
    }
    for name, contents in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            setattr(sys.modules["comfy"], name.removeprefix("comfy."), module)
    # ComfyUI names the package after its path.
    name = str(PACK).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py")
    pack = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, pack)
    spec.loader.exec_module(pack)
    state.pack = pack
    state.run = lambda name, **inputs: pack.NODE_CLASS_MAPPINGS[name]().run(**inputs)
    yield state
    for loaded in [loaded for loaded in sys.modules if loaded.startswith(f"{name}.")]:
        del sys.modules[loaded]


def write_lora(path, rank=2, alpha=1.0, rslora=False, seed=0, layers=LAYERS):
    """A LoRA file of layers of Wan, and its changes in float64 by layer."""
    random = torch.Generator().manual_seed(seed)
    tensors, deltas = {}, {}
    for layer in layers:
        down, up = torch.randn(rank, 8, generator=random), torch.randn(8, rank, generator=random)
        name = f"lora_unet_{layer.replace('.', '_')}"
        tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(alpha),
        }
        deltas[layer] = alpha / (rank**0.5 if rslora else rank) * (up.double() @ down.double())
    if rslora:
        tensors["use_rslora_flag"] = torch.tensor(True)
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    return deltas


def applied_by_comfyui(path):
    """The changes of a file as ComfyUI computes them: alpha over rank for all, and 1 without an alpha."""
    tensors = load_file(path)
    deltas = {}
    for name, up in tensors.items():
        for up_end, down_end in ((".lora_up.weight", ".lora_down.weight"), (".lora_B.weight", ".lora_A.weight")):
            if name.endswith(up_end):
                module = name.removesuffix(up_end)
                alpha = tensors.get(f"{module}.alpha", torch.tensor(float(up.shape[1]))).double()
                layer = module.removeprefix("diffusion_model.").removeprefix("lora_unet_")
                down = tensors[module + down_end].double()
                deltas[layer.replace(".", "_")] = alpha / up.shape[1] * (up.double() @ down)
    return deltas


def assert_near(path, expected):
    found = applied_by_comfyui(path)
    assert found.keys() == {layer.replace(".", "_") for layer in expected}
    for layer, delta in expected.items():
        torch.testing.assert_close(found[layer.replace(".", "_")], delta, rtol=1e-5, atol=1e-6)


def files_of(comfy):
    return {path: path.read_bytes() for path in comfy.root.rglob("*") if path.is_file()}


def combine(comfy, **inputs):
    given = {"lora_1": "style.safetensors", "strength_1": 1.0, "output_name": "sum", "folder": "loras"}
    return comfy.run("LoraInspectCombine", **{**given, "overwrite": False, **inputs})


def convert(comfy, **inputs):
    given = {"lora": "style.safetensors", "output_name": "new", "folder": "loras", "overwrite": False}
    return comfy.run("LoraInspectConvert", **{**given, **inputs})


def test_every_node_has_what_comfyui_asks_for(comfy):
    nodes = comfy.pack.NODE_CLASS_MAPPINGS
    assert nodes.keys() == comfy.pack.NODE_DISPLAY_NAME_MAPPINGS.keys()
    write_lora(comfy.loras / "style.safetensors")
    for node in nodes.values():
        assert callable(getattr(node(), node.FUNCTION))
        assert len(node.RETURN_NAMES) == len(node.RETURN_TYPES)
        assert node.DESCRIPTION
        assert node.OUTPUT_NODE
        inputs = node.INPUT_TYPES()
        chosen = {**inputs["required"], **inputs.get("optional", {})}
        assert set(node.FILES) <= chosen.keys()
    assert inputs["required"]["lora"][0] == ["style.safetensors"]


@pytest.mark.numeric
def test_a_sum_is_that_of_the_files_at_their_strengths(comfy):
    style = write_lora(comfy.loras / "style.safetensors", rank=2, alpha=1.0, seed=1)
    face = write_lora(comfy.loras / "sub" / "face.safetensors", rank=3, alpha=2.0, rslora=True, seed=2)
    done = combine(
        comfy, strength_1=0.8, lora_2="sub/face.safetensors", strength_2=-0.5, lora_3="None", model=Patcher()
    )
    model, clip, name, report = done["result"]
    assert (clip, name) == (None, "sum.safetensors")
    assert len(model.patches) == len(load_file(comfy.loras / name))
    assert model.strengths == (1.0,)
    assert "3 modules" in report
    assert done["ui"] == {"text": (report,)}
    assert_near(comfy.loras / name, {layer: 0.8 * style[layer] - 0.5 * face[layer] for layer in LAYERS})
    assert comfy.progress[-1][0] == comfy.progress[-1][1] > 0


@pytest.mark.numeric
def test_a_converted_file_has_its_meaning_in_comfyui(comfy):
    expected = write_lora(comfy.loras / "style.safetensors", rank=4, alpha=4.0, rslora=True)
    report = convert(comfy, folder="output")["result"][3]
    assert "exact" in report
    assert "left out: use_rslora_flag" in report
    assert_near(comfy.output / "new.safetensors", expected)


@pytest.mark.numeric
def test_a_resized_file_has_the_largest_singular_values(comfy):
    deltas = write_lora(comfy.loras / "style.safetensors", rank=4)
    inputs = {"lora": "style.safetensors", "output_name": "small", "folder": "loras", "overwrite": False}
    comfy.run("LoraInspectResize", rule="rank", value=2.0, **inputs)
    kept = {}
    for layer, delta in deltas.items():
        left, values, right = torch.linalg.svd(delta)
        kept[layer] = (left[:, :2] * values[:2]) @ right[:2]
    assert_near(comfy.loras / "small.safetensors", kept)


@pytest.mark.numeric
def test_an_extracted_file_is_the_difference_of_two_models(comfy):
    random = torch.Generator().manual_seed(0)
    # A layer that does not change tells the family of the model.
    names = (*LAYERS, "blocks.0.cross_attn.q")
    base = {f"{layer}.weight": torch.randn(8, 8, generator=random) for layer in names}
    deltas = write_lora(comfy.root / "change.safetensors", rank=2)
    tuned = base | {f"{layer}.weight": (base[f"{layer}.weight"].double() + deltas[layer]).float() for layer in LAYERS}
    save_file(base, comfy.root / "models" / "checkpoints" / "base.safetensors")
    save_file(tuned, comfy.root / "models" / "diffusion_models" / "tuned.safetensors")
    inputs = {"base": "checkpoints/base.safetensors", "rank": 2, "output_name": "x", "folder": "loras"}
    comfy.run("LoraInspectExtract", tuned="diffusion_models/tuned.safetensors", overwrite=False, **inputs)
    assert_near(comfy.loras / "x.safetensors", deltas)


def test_check_and_inspect_report_a_scale_that_comfyui_misreads(comfy):
    write_lora(comfy.loras / "style.safetensors", rank=4, alpha=4.0, rslora=True)
    record, report = comfy.run("LoraInspectInspect", lora="style.safetensors")["result"]
    assert json.loads(record)["rslora"]["value"] is True
    assert "RS-LoRA: yes" in report
    assert "ComfyUI: wrong strength" in report
    assert comfy.run("LoraInspectCheck", lora="style.safetensors", read_numbers=False)["result"][0] is True


def test_check_of_clean_file_states_whether_numbers_were_read(comfy):
    write_lora(comfy.loras / "style.safetensors")
    said = {}
    for is_read in (False, True):
        is_good, report = comfy.run("LoraInspectCheck", lora="style.safetensors", read_numbers=is_read)["result"]
        assert is_good is True
        name, said[is_read] = report.splitlines()
        assert name == "style.safetensors"
    assert said == {False: "no problem in the header; read_numbers reads the numbers", True: "no problems"}


def test_check_reports_a_damaged_file_and_numbers_that_are_none(comfy):
    (comfy.loras / "text.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    is_good, report = comfy.run("LoraInspectCheck", lora="text.safetensors", read_numbers=False)["result"]
    assert (is_good, "[unreadable]" in report) == (False, True)
    write_lora(comfy.loras / "nan.safetensors", alpha=float("nan"))
    assert comfy.run("LoraInspectCheck", lora="nan.safetensors", read_numbers=True)["result"][0] is False


@pytest.mark.parametrize("name", HOSTILE_OUTPUTS, ids=ascii)
def test_an_output_with_another_name_than_a_plain_one_is_refused(comfy, name):
    write_lora(comfy.loras / "style.safetensors")
    before = files_of(comfy)
    for node in map(comfy.pack.NODE_CLASS_MAPPINGS.get, WRITERS):
        assert node.VALIDATE_INPUTS(output_name=name) is not True
    with pytest.raises(RefusedError, match="; give a plain name such as combined"):
        convert(comfy, output_name=name, overwrite=True)
    assert files_of(comfy) == before


@pytest.mark.parametrize("name", ["combined", "combined.safetensors", "style 0.8 (new)", "日本"])
def test_a_plain_name_is_taken_and_has_one_ending(comfy, name):
    write_lora(comfy.loras / "style.safetensors")
    assert comfy.pack.NODE_CLASS_MAPPINGS["LoraInspectConvert"].VALIDATE_INPUTS(output_name=name) is True
    assert convert(comfy, output_name=name)["result"][2] == f"{name.removesuffix('.safetensors')}.safetensors"


@pytest.mark.parametrize("folder", ["input", "../loras", "/tmp", ""])
def test_no_node_writes_to_another_folder(comfy, folder):
    write_lora(comfy.loras / "style.safetensors")
    with pytest.raises(RefusedError, match="choose loras or output"):
        convert(comfy, folder=folder)


@pytest.mark.parametrize("name", HOSTILE_INPUTS, ids=ascii)
def test_an_input_that_is_no_name_of_the_list_is_refused(comfy, name):
    write_lora(comfy.root / "models" / "secret.safetensors")
    write_lora(comfy.loras / "sub" / "style.safetensors")
    write_lora(comfy.loras / "style.safetensors")
    for node, inputs in (
        ("LoraInspectCheck", {"lora": name, "read_numbers": False}),
        ("LoraInspectInspect", {"lora": name}),
    ):
        with pytest.raises(RefusedError, match=r"; choose a file of the list\.$"):
            comfy.run(node, **inputs)
    with pytest.raises(RefusedError):
        combine(comfy, lora_2=name)
    assert not (comfy.loras / "sum.safetensors").exists()


def test_an_absolute_path_is_refused_even_of_a_listed_file(comfy):
    write_lora(comfy.loras / "style.safetensors")
    with pytest.raises(RefusedError, match="it is no name of a file"):
        convert(comfy, lora=str(comfy.loras / "style.safetensors"))


@pytest.mark.parametrize("name", ["loras/style.safetensors", "checkpoints/../loras/style.safetensors", "style"])
def test_a_model_is_read_from_folders_of_models_only(comfy, name):
    write_lora(comfy.loras / "style.safetensors")
    inputs = {"tuned": name, "base": name, "rank": 2, "output_name": "x", "folder": "loras", "overwrite": False}
    with pytest.raises(RefusedError, match=r"it is in no folder of models|it is no name of a file"):
        comfy.run("LoraInspectExtract", **inputs)


def link(path, target):
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("links cannot be made here")


def test_a_link_is_followed_inside_the_folders_only(comfy):
    expected = write_lora(comfy.loras / "style.safetensors")
    write_lora(comfy.root / "secret.safetensors")
    link(comfy.loras / "inside.safetensors", comfy.loras / "style.safetensors")
    link(comfy.loras / "outside.safetensors", comfy.root / "secret.safetensors")
    link(comfy.loras / "folder", comfy.root)
    convert(comfy, lora="inside.safetensors")
    assert_near(comfy.loras / "new.safetensors", expected)
    for name in ("outside.safetensors", "folder/secret.safetensors"):
        with pytest.raises(RefusedError, match="it is a link out of ComfyUI's loras folders"):
            convert(comfy, lora=name, output_name="other")


@pytest.mark.parametrize("exists", [True, False])
def test_an_output_that_is_a_link_out_is_refused(comfy, exists):
    write_lora(comfy.loras / "style.safetensors")
    target = comfy.root / "mine.txt"
    if exists:
        target.write_text("mine")
    link(comfy.loras / "new.safetensors", target)
    with pytest.raises(RefusedError, match="it is a link out of the loras folder"):
        convert(comfy, overwrite=True)
    assert target.exists() == exists
    assert not exists or target.read_text() == "mine"


def test_a_file_is_overwritten_only_where_the_input_says_so(comfy):
    first = write_lora(comfy.loras / "style.safetensors", seed=1)
    second = write_lora(comfy.loras / "face.safetensors", seed=2)
    combine(comfy)
    with pytest.raises(WouldOverwriteError, match=r"sum\.safetensors: it exists; give another name, or turn on overw"):
        combine(comfy, lora_1="face.safetensors")
    assert_near(comfy.loras / "sum.safetensors", first)
    combine(comfy, lora_1="face.safetensors", overwrite=True)
    assert_near(comfy.loras / "sum.safetensors", second)


def test_an_output_never_overwrites_an_input(comfy):
    write_lora(comfy.loras / "style.safetensors")
    before = files_of(comfy)
    with pytest.raises(RefusedError, match="it is an input"):
        convert(comfy, output_name="style", overwrite=True)
    assert files_of(comfy) == before


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (b"version https://git-lfs", LoraInspectError, "style.safetensors: "),
        (None, NotFoundError, "style.safetensors: "),
    ],
)
def test_a_wrong_file_is_an_error_of_one_sentence(comfy, content, kind, says):
    if content:
        (comfy.loras / "style.safetensors").write_bytes(content)
    with pytest.raises(kind) as caught:
        combine(comfy)
    said = str(caught.value)
    assert says in said
    assert said.endswith(".")
    assert said.count("\n") == 0
    assert "; " in said
    # Only the frames of the test and of the node are left, and no other error stands behind it.
    frames = [Path(frame.filename).parent.name for frame in traceback.extract_tb(caught.tb)]
    assert set(frames) == {"integrations", "comfyui"}
    assert "During handling" not in "".join(traceback.format_exception(caught.value))
    assert os.listdir(comfy.loras) == (["style.safetensors"] if content else [])


@pytest.mark.parametrize(
    ("rule", "good", "wrong"),
    [
        ("rank", (1, 16.0), (0, 0.5, 2.5, -1, float("nan"))),
        ("energy kept", (0.9, 1), (0, 1.5, float("nan"))),
        ("largest error", (0.1,), (0, 2)),
        ("megabytes", (0.01, 200), (0, float("inf"))),
        ("another rule", (), (1,)),
        (None, (0, None), ()),
    ],
)
def test_a_value_fits_its_rule(comfy, rule, good, wrong):
    write_lora(comfy.loras / "style.safetensors")
    node = comfy.pack.NODE_CLASS_MAPPINGS["LoraInspectResize"]
    assert all(node.VALIDATE_INPUTS(output_name="x", rule=rule, value=value) is True for value in good)
    for value in wrong:
        assert node.VALIDATE_INPUTS(output_name="x", rule=rule, value=value) is not True
        inputs = {"lora": "style.safetensors", "output_name": "x", "folder": "loras", "overwrite": False}
        with pytest.raises(RefusedError, match="; give another value"):
            comfy.run("LoraInspectResize", rule=rule, value=value, **inputs)


@pytest.mark.numeric
def test_an_open_scale_is_settled_by_an_input(comfy):
    deltas = write_lora(comfy.loras / "style.safetensors", rank=4, alpha=2.0)
    tensors = {}
    for name, one in load_file(comfy.loras / "style.safetensors").items():
        layer = next(layer for layer in LAYERS if f"_{layer.replace('.', '_')}." in name)
        if "alpha" not in name:
            tensors[f"base_model.model.{layer}.lora_{'A' if 'down' in name else 'B'}.weight"] = one
    save_file(tensors, comfy.loras / "style.safetensors")
    with pytest.raises(LoraInspectError, match="alpha="):
        convert(comfy)
    convert(comfy, alpha=2.0, rslora="no", architecture="")
    assert_near(comfy.loras / "new.safetensors", deltas)
    combine(comfy, alpha=2.0, rslora="no")
    assert_near(comfy.loras / "sum.safetensors", deltas)
    convert(comfy, alpha=2.0, rslora="yes", architecture="wan", output_name="rs")
    assert_near(comfy.loras / "rs.safetensors", {layer: 2 * delta for layer, delta in deltas.items()})


def test_a_node_runs_again_once_a_file_has_another_time_or_size(comfy):
    style, face = comfy.loras / "style.safetensors", comfy.loras / "face.safetensors"
    style.write_bytes(b"12")
    face.write_bytes(b"34")
    os.utime(style, ns=(1, 1_000))
    os.utime(face, ns=(1, 2_000))
    node = comfy.pack.NODE_CLASS_MAPPINGS["LoraInspectCombine"]

    def state():
        given = {"lora_1": "style.safetensors", "lora_2": "face.safetensors", "lora_3": "None", "lora_4": None}
        return node.IS_CHANGED(**given, strength_1=1.0, output_name="sum", overwrite=False, model=None)

    first = state()
    assert state() == first
    os.utime(face, ns=(1, 3_000))
    second = state()
    style.write_bytes(b"123")
    os.utime(style, ns=(1, 1_000))
    third = state()
    style.unlink()
    assert len({first, second, third, state()}) == 4


def test_cancelling_ends_the_work_and_leaves_nothing(comfy):
    write_lora(comfy.loras / "style.safetensors")
    comfy.is_cancelled = True
    with pytest.raises(Interrupted):
        combine(comfy)
    assert os.listdir(comfy.loras) == ["style.safetensors"]


def test_a_file_that_changes_nothing_of_the_connected_model_is_an_error(comfy):
    write_lora(comfy.loras / "style.safetensors")
    (comfy.root / "fits no model").touch()
    with pytest.raises(RefusedError, match="it changes no weight of the connected models; connect the model"):
        combine(comfy, model=Patcher(), clip=Patcher())


def test_the_pack_has_the_license_and_asks_for_this_program():
    project = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (PACK / project["license"]["file"]).read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (PACK / "requirements.txt").read_text(encoding="utf-8").split() == project["dependencies"]
