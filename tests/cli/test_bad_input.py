"""Bad files, each through every command: refused in one sentence with file, key and way out, and nothing written."""

import json
import math
import os
import pickle
import shutil
import struct
import zipfile

import pytest
from adapters import IN, OUT, base, lora, loras, split

Q = "lora_unet_blocks_0_attn_q"
PEFT = lora("base_model.model.blocks.0.attn.q", alpha=None, spelling="peft")
CONFIG = {"peft_type": "LORA", "r": 16, "lora_alpha": 8, "target_modules": ["q"]}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"
# How the last clause of a refusal begins: with the way out.
WAYS_OUT = ("fetch ", "save ", "write ", "merge ", "use the", "name ", "give ", "settle ", "put ", "convert ", "check ",
            "add ", "find ", "list ", "run `git", "download ")  # fmt: skip


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refuse(run, tmp_path):
    """Runs a command that must refuse: one sentence with every word, and not a byte of the folder changed."""

    def refuse_command(*command, words=(), status=1):
        before = contents(tmp_path)
        shown = run(*command)
        sentence = shown.refusal if status == 1 else shown.failure
        assert [word for word in words if word not in sentence] == [], sentence
        assert sentence.rsplit("; ", 1)[1].startswith(WAYS_OUT), sentence
        assert shown.stdout == ""
        assert contents(tmp_path) == before

    return refuse_command


@pytest.fixture
def good(write_safetensors):
    return write_safetensors(base(), name="good/base.safetensors"), write_safetensors(
        loras(), name="good/a.safetensors"
    )


@pytest.fixture
def refuse_everywhere(refuse, good, tmp_path):
    """`file` through info, as adapter and base of merge, and through convert."""

    def refuse_file(file, words, status=1):
        out = tmp_path / "out.safetensors"
        refuse("info", file, words=words, status=status)
        refuse("merge", good[0], file, "-o", out, words=words, status=status)
        refuse("merge", file, good[1], "-o", out, words=words, status=status)
        refuse("convert", file, "--to-standard", "-o", out, words=words, status=status)

    return refuse_file


def header(**entries):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def entry(start, stop, dtype="F32", shape=None):
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


TWO = header(a=entry(0, 8), b=entry(8, 16))
# content of bad.safetensors, words of the sentence beside the file's name
UNREADABLE = {
    "empty": (b"", ["0 bytes"]),
    "two bytes": (b"{}", ["2 bytes"]),
    "truncated": ((TWO + bytes(16))[:-1], ["truncated"]),
    "cut in the header": (TWO[:30], ["truncated"]),
    "header longer than the file": (struct.pack("<Q", 5000) + b"{}", ["5000 bytes"]),
    "header over 100 MB announced": (struct.pack("<Q", 100_000_001) + b"{}", ["100000001 bytes"]),
    "overlapping ranges": (header(a=entry(0, 8), b=entry(4, 12)) + bytes(12), ["b overlaps"]),
    "a hole": (header(a=entry(0, 8), b=entry(12, 20)) + bytes(20), ["b leaves a hole"]),
    "trailing bytes": (TWO + bytes(17), ["longer than its header"]),
    "not JSON": (struct.pack("<Q", 8) + b"{'a': 1}", ["not JSON"]),
    "JSON nested beyond reason": (struct.pack("<Q", 100_000) + b"[" * 100_000, ["not a JSON object"]),
    "a JSON list": (struct.pack("<Q", 2) + b"[]", ["not a JSON object"]),
    "numbers in the metadata": (header(__metadata__={"a": 1}), ["__metadata__"]),
    "unknown dtype": (header(a=entry(0, 8, "F33")) + bytes(8), ["a has the unknown dtype 'F33'"]),
    "negative shape": (header(a=entry(0, 8, shape=[-2])) + bytes(8), ["shape or range of a"]),
    "float shape": (header(a=entry(0, 8, shape=[2.0])) + bytes(8), ["shape or range of a"]),
    "huge shape": (header(a=entry(0, 8, shape=[2**40, 2**40])) + bytes(8), ["a has 8 bytes"]),
    "huge numbers": (header(a=entry(0, 8, shape=[10**4000] * 2)) + bytes(8), ["not JSON", "at a"]),
    "a line break in a key": (header(**{"a\nb": entry(0, 8, "F33")}) + bytes(8), [r"a\nb has the unknown dtype"]),
    "Git-LFS pointer": (POINTER, ["git lfs pull"]),
    "web page": (b"<!DOCTYPE html>" + bytes(99), ["web page"]),
    "GGUF": (b"GGUF" + bytes(99), ["GGUF"]),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_file_is_refused_by_every_command(content, words, refuse_everywhere, tmp_path):
    file = tmp_path / "bad.safetensors"
    file.write_bytes(content)
    refuse_everywhere(file, [str(file), *words])


def test_a_missing_file_and_an_empty_folder_are_refused(refuse_everywhere, tmp_path):
    refuse_everywhere(tmp_path / "missing.safetensors", ["missing.safetensors", "no such file"], status=3)
    (tmp_path / "empty").mkdir()
    refuse_everywhere(tmp_path / "empty", ["empty", "no .safetensors file"])


@pytest.mark.parametrize(
    ("content", "words"),
    [(POINTER, ["git lfs pull"]), (b"{", ["not valid JSON"]), (b"[1]", ["not an object"])],
    ids=["pointer", "not JSON", "a list"],
)
@pytest.mark.parametrize("named", ["folder", "file"])
def test_a_broken_adapter_config_is_refused_by_name(content, words, named, refuse_everywhere, write_safetensors):
    file = write_safetensors(PEFT, name="peft/adapter_model.safetensors")
    (file.parent / "adapter_config.json").write_bytes(content)
    refuse_everywhere(file.parent if named == "folder" else file, ["adapter_config.json", *words])


class Marker:
    """Creates a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def zipped(content):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)

    return write


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.bin", "a.pth", "A.PT", "a.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("form", ["zip", 0, 1, 2, 4, 5])
def test_a_pickle_under_any_name_is_refused_and_never_unpickled(form, name, refuse_everywhere, tmp_path):
    marker = tmp_path / "unpickled"
    dumped = pickle.dumps({"weight": Marker(marker)}, 2 if form == "zip" else form)
    file = tmp_path / name
    if form == "zip":
        zipped(dumped)(file)
    else:
        file.write_bytes(dumped)
    # Bytes of this line alone, and no file's: a marker that does nothing would prove nothing.
    pickle.loads(pickle.dumps(Marker(tmp_path / "proof"))).close()
    assert (tmp_path / "proof").exists(), "the marker works"
    refuse_everywhere(file, [name])
    assert not marker.exists()


def test_a_folder_with_nothing_but_a_pickle_is_refused(refuse_everywhere, tmp_path):
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_model.bin").write_bytes(pickle.dumps({}))
    refuse_everywhere(tmp_path / "peft", ["adapter_model.bin", "pickle"])


def without(tensors, *keys):
    return {key: tensor for key, tensor in tensors.items() if key not in keys}


MAGNITUDE = {"dora_layer.weight": ("F32", (OUT,), 1.0)}
UNKNOWN = {"ss_network_args": json.dumps({"use_rslora": "True"}), "ss_network_alpha": "3"}
# tensors, metadata, code of the problem, words of the sentence
MEANINGLESS = {
    "no up": (without(loras(1), f"{Q}.lora_up.weight"), {}, "incomplete", [f"{Q}.lora_down.weight", "no up"]),
    "no down": (without(loras(1), f"{Q}.lora_down.weight"), {}, "incomplete", [f"{Q}.lora_up.weight", "no down"]),
    "no up beside good ones": (without(loras(3), f"{Q}.lora_up.weight"), {}, "incomplete", [Q]),
    "ranks differ": (
        {**loras(1), f"{Q}.lora_up.weight": ("F32", (OUT, 4), 1)}, {}, "shape-mismatch", [Q, "rank 16", "rank 4"]),
    "a slice is missing": (split(Q, parts=(0, 2)), {}, "shape-mismatch", [Q, "0, 2"]),
    "DoRA without a magnitude": ({**loras(2), "use_dora_flag": ("BOOL", (), 1)}, {}, "dora-missing", ["use_dora_flag"]),
    "DoRA with some": ({**lora(Q, **MAGNITUDE), **lora("lora_unet_x")}, {}, "dora-partial", ["lora_unet_x"]),
    "DoRA denied": ({**lora(Q, **MAGNITUDE), "use_dora_flag": ("BOOL", (), 0)}, {}, "dora-conflict", ["use_dora_flag"]),
    "a magnitude of another shape": (
        lora(Q, **{"dora_scale": ("F32", (OUT,), 1)}), {}, "magnitude-shape", [f"{Q}.dora_scale", "[6]"]),
    "alpha 0": (loras(1, alpha=0.0), {}, "scale-unknown", [f"{Q} is unknown: the stored alpha is 0", "--alpha N"]),
    "alpha NaN": (loras(1, alpha=math.nan), {}, "scale-unknown", [Q, "alpha is not a finite number", "--alpha N"]),
    "evidence conflicts": (
        {**loras(), "use_rslora_flag": ("BOOL", (), 1)}, {"lora_inspect.scale": "alpha/rank"}, "scale-unknown",
        [Q, "conflicts", "--rslora yes|no"]),
    "ss_network_alpha conflicts": (loras(), UNKNOWN, "scale-unknown", [Q, "conflicts", "--rslora yes|no"]),
    "PEFT without config": (PEFT, {}, "scale-unknown", ["blocks.0.attn.q", "adapter_config.json", "--alpha N"]),
    "PiSSA of blissful": (loras(), {"ss_init_lora_weights": "pissa_niter_4"}, "residual-base", ["pissa_niter_4"]),
    "LoHa with factors of another rank": (
        {f"{Q}.hada_w{i}_{x}": ("F32", (4, i + 2), 1) for i in (1, 2) for x in "ab"}, {}, "shape-mismatch",
        [f"{Q}: w1_a has shape [4, 3], not [4, 4]"]),
    "LoHa with one core": (
        {f"{Q}.hada_{x}": ("F32", (4,) * (4 if x == "t1" else 2), 1) for x in ("w1_a", "w1_b", "w2_a", "w2_b", "t1")},
        {}, "shape-mismatch", [f"{Q}: t2 missing"]),
    "LoKr without its large factor": (
        {f"{Q}.lokr_w1": ("F32", (2, 2), 1)}, {}, "shape-mismatch",
        [f"{Q}: either w2 or both w2_a and w2_b are needed"]),
    "LoKr on rows that it has not": (
        {f"{Q}.lokr_w1": ("F32", (2, 2), 1), f"{Q}.lokr_w2": ("F32", (6, 3), 1), f"{Q}.row_offset": ("F32", (), 12)},
        {}, "formula-unknown", [Q, "row_offset is not one of the 12 rows"]),
    "LoKr on half a row": (
        {f"{Q}.lokr_w1": ("F32", (2, 2), 1), f"{Q}.lokr_w2": ("F32", (6, 3), 1), f"{Q}.row_offset": ("F32", (), 0.5)},
        {}, "formula-unknown", [Q, "row_offset is not one of the 12 rows"]),
    "LoKr on rows of one factor": (
        {f"{Q}.lokr_w1": ("F32", (2, 2), 1), f"{Q}.row_offset": ("F32", (), 0)}, {}, "shape-mismatch",
        [f"{Q}: either w2 or both"]),
    "T-LoRA of two ranks": (
        {f"{Q}.q_layer.weight": ("F32", (4, IN), 1), f"{Q}.p_layer.weight": ("F32", (OUT, 3), 1),
         f"{Q}.lambda_layer": ("F32", (1, 4), 1)}, {}, "shape-mismatch", [Q, "have different ranks"]),
    "T-LoRA with a kernel": (
        {f"{Q}.q_layer.weight": ("F32", (4, IN, 3, 3), 1), f"{Q}.p_layer.weight": ("F32", (OUT, 4, 1, 1), 1),
         f"{Q}.lambda_layer": ("F32", (1, 4), 1)}, {}, "shape-mismatch", [Q, "cannot be multiplied"]),
    "OFT of sd-scripts on FLUX": (
        {f"{Q}.oft_blocks.{number}": ("F32", (2, 3, 3), 1) for number in range(3)}, {}, "algorithm-unsupported",
        ["OFT of sd-scripts in slices", Q]),
    "(IA)3 of either axis": (
        {f"{Q}.ia3_l": ("F32", (1, OUT, 1, 1), 1)}, {}, "formula-unknown", [Q, "feedforward_modules"]),
    "(IA)3 of both axes": (
        {f"{Q}.ia3_l": ("F32", (OUT, 2), 1)}, {}, "shape-mismatch", [f"{Q}: ia3_l [", "not one number"]),
    "BOFT of odd blocks": (
        {f"{Q}.oft_blocks": ("F32", (2, 2, 3, 3), 1)}, {}, "shape-mismatch", [f"{Q}: oft_blocks [", "not 2 stages"]),
    "BOFT of more stages than its blocks have": (
        {f"{Q}.oft_blocks": ("F32", (3, 2, 2, 2), 1)}, {}, "shape-mismatch", [f"{Q}: oft_blocks [", "not 3 stages"]),
    "BOFT of groups that do not fit": (
        {f"{Q}.oft_blocks": ("F32", (3, 6, 2, 2), 1)}, {}, "shape-mismatch", [f"{Q}: oft_blocks [", "not 3 stages"]),
    "BOFT with too many gains": (
        {f"{Q}.oft_blocks": ("F32", (2, 2, 2, 2), 1), f"{Q}.rescale": ("F32", (5, 1), 1)}, {}, "shape-mismatch",
        [f"{Q}: rescale [5, 1]"]),
    "BOFT of PEFT without lengths": (
        {f"{Q}.boft_R": ("F32", (1, 2, 2, 2), 1)}, {}, "incomplete", [Q, "no lengths factor"]),
    "BOFT of PEFT of odd blocks": (
        {f"{Q}.boft_R": ("F32", (2, 2, 3, 3), 1), f"{Q}.boft_s": ("F32", (OUT, 1), 1)}, {}, "shape-mismatch",
        [f"{Q}: boft_R [", "not 2 stages"]),
    "BOFT of PEFT with lengths of two axes": (
        {f"{Q}.boft_R": ("F32", (1, 2, 3, 3), 1), f"{Q}.boft_s": ("F32", (OUT, 2), 1)}, {}, "shape-mismatch",
        [f"{Q}: boft_s [", "not one number"]),
    "OFT of blocks that are not square": (
        {f"{Q}.oft_blocks": ("F32", (2, 3, 4), 1)}, {}, "shape-mismatch", ["oft_blocks", Q]),
    "OFT with too many gains": (
        {f"{Q}.oft_blocks": ("F32", (2, 3, 3), 1), f"{Q}.rescale": ("F32", (OUT + 1, 1), 1)}, {}, "shape-mismatch",
        ["rescale", Q]),
    "OFT of sd-scripts without a limit": (
        {f"{Q}.oft_blocks": ("F32", (2, 3, 3), 1), f"{Q}.alpha": ("F32", (), 0.0)},
        {"ss_network_module": "networks.oft"}, "formula-unknown", [Q, "no rotation in sd-scripts"]),
    "OFT of sd-scripts by its prefix": (
        {"oft_unet_x.oft_blocks": ("F32", (2, 3, 3), 1), "oft_unet_x.alpha": ("F32", (), 0.0)}, {},
        "formula-unknown", ["oft_unet_x", "no rotation in sd-scripts"]),
    "OFT whose limit is no number": (
        {f"{Q}.oft_blocks": ("F32", (2, 3, 3), 1), f"{Q}.alpha": ("F32", (), math.nan)}, {}, "formula-unknown",
        [Q, "finite"]),
    "OFT beside LoRA with one alpha": (
        loras(1, oft_blocks=("F32", (2, 3, 3), 1)), {}, "formula-unknown", [Q, "scale of the other change"]),
    "OFT of PEFT without config": (
        {f"{Q}.oft_R.weight": ("F32", (2, 3), 1)}, {}, "formula-unknown", ["adapter_config.json", "put it next", Q]),
    "OFT of PEFT of half a block": (
        {f"{Q}.oft_R.weight": ("F32", (2, 4), 1)}, {}, "shape-mismatch", ["oft_R [2, 4]", Q]),
    "scaled OFT of a branch of OneTrainer": (
        {f"{Q}.oft_R.weight": ("F32", (2, 3), 1), f"{Q}.oft_R.scaled_oft": ("F32", (), 1)},
        {"ot_branch": "scaled_oft"}, "formula-unknown", ["branches of OneTrainer", Q]),
    "scaled OFT of no branch": (
        {f"{Q}.oft_R.weight": ("F32", (2, 3), 1), f"{Q}.oft_R.scaled_oft": ("F32", (), 1)}, {}, "formula-unknown",
        ["branches of OneTrainer", Q]),
    "scaled OFT that is none": (
        {f"{Q}.oft_R.weight": ("F32", (2, 3), 1), f"{Q}.oft_R.scaled_oft": ("F32", (), 0)},
        {"ot_branch": "master"}, "formula-unknown", ["scaled_oft is not yes", Q]),
    "OFT of OneTrainer": (
        {f"{Q}.oft_R.weight": ("F32", (2, 3), 1)}, {"ot_branch": "master", "ot_revision": "c063836"},
        "formula-unknown", ["OneTrainer wrote it", Q]),
    "OFT of old PEFT without config": (
        {f"{Q}.oft_r": ("F32", (2, 3, 3), 1)}, {}, "formula-unknown", ["adapter_config.json", "put it next", Q]),
    "OFT of old PEFT of no squares": (
        {f"{Q}.oft_r": ("F32", (2, 3, 4), 1)}, {}, "shape-mismatch", ["oft_r [2, 3, 4]", Q]),
    "OFT of PEFT 0.15 with a row of lengths": (
        {f"{Q}.oft_r": ("F32", (2, 3, 3), 1), f"{Q}.oft_s": ("F32", (1, 6), 1)}, {}, "shape-mismatch",
        ["oft_s [1, 6]", Q]),
    "GLoRA of either order": (
        {f"{Q}.{n}.weight": ("F32", (4, 4), 1) for n in ("a1", "a2", "b1", "b2")}, {}, "formula-unknown",
        [Q, "before or since version 3"]),
    "LoRA on a weight that is widened": (
        loras(1, reshape_weight=("F32", (2,), 1)), {}, "algorithm-unsupported",
        ["a weight that ComfyUI widens", Q, "needs zeros"]),
    "an empty weight": ({f"{Q}.set_weight": ("F32", (0, IN), 1)}, {}, "shape-mismatch", [Q, "is not a weight"]),
    "LoRA beside a replaced weight": (
        loras(1, set_weight=("F32", (OUT, IN), 1)), {}, "formula-unknown", [Q, "ComfyUI drops the LoRA"]),
    "a bias on no up layer": ({f"{Q}.lora_up.bias": ("F32", (OUT,), 1)}, {}, "incomplete", [f"{Q}.lora_up.bias"]),
    "half an embedding": ({f"{Q}.lora_embedding_A": ("F32", (4, 9), 1)}, {}, "incomplete", ["lora_embedding_A", "up"]),
    "an embedding of three dimensions": (
        {f"{Q}.lora_embedding_A": ("F32", (4, 9, 1), 1), f"{Q}.lora_embedding_B": ("F32", (5, 4), 1)}, {},
        "shape-mismatch",
        [Q, "down [4, 9, 1] is not a matrix"]),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "metadata", "code", "words"), MEANINGLESS.values(), ids=MEANINGLESS)
def test_an_adapter_without_a_safe_meaning_is_shown_and_refused(
    tensors, metadata, code, words, run, refuse, good, write_safetensors, tmp_path
):
    file = write_safetensors(tensors, metadata, "bad.safetensors")
    record = run("info", file, "--json").json
    assert record["kind"] == "adapter"
    assert {item["severity"] for item in record["problems"] if item["code"] == code} == {"error"}
    words = [str(file), *words]
    refuse("merge", good[0], file, "-o", tmp_path / "out.safetensors", words=words)
    refuse("merge", good[0], file, "-o", tmp_path / "out.safetensors", "--allow-unmatched", words=words)
    refuse("convert", file, "--to-standard", "-o", tmp_path / "out.safetensors", words=words)


SETTINGS = {
    **{init: {"init_lora_weights": init} for init in ("pissa_niter_4", "corda", "loftq")},
    "modules_to_save": {"modules_to_save": ["head"]},
    "bias": {"bias": "some"},
    "OF_NO_FILE_HERE": {"peft_type": "OF_NO_FILE_HERE"},
}


@pytest.mark.parametrize("word", SETTINGS)
def test_a_peft_setting_that_is_not_built_is_refused_by_name(word, run, refuse, good, write_safetensors, tmp_path):
    file = write_safetensors(PEFT, name="peft/adapter_model.safetensors")
    (file.parent / "adapter_config.json").write_text(json.dumps({**CONFIG, **SETTINGS[word]}))
    assert "error" in {item["severity"] for item in run("info", file.parent, "--json").json["problems"]}
    refuse("merge", good[0], file.parent, "-o", tmp_path / "out.safetensors", words=["adapter_config.json", word])
    refuse("convert", file.parent, "--to-standard", "-o", tmp_path / "out.safetensors", words=[word])


# Fields of a config with an expression that is not compared with modules, and whether it lies beside the file.
PATTERNS = {
    "rank_pattern": {"rank_pattern": {"k": 4, "(a+)+$": 8}},
    "alpha_pattern": {"alpha_pattern": {"(a+)+$": 8}},
    "target_modules": {"target_modules": "(a+)+$"},
    "embedded": {"rank_pattern": {"(a+)+$": 8}},
}


@pytest.mark.parametrize("place", PATTERNS)
def test_an_expression_that_is_not_compared_is_refused_with_its_key(place, run, refuse, good, write_safetensors):
    config = {**CONFIG, **PATTERNS[place]}
    embedded = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})}
    tensors = lora("transformer.blocks.0.attn.q", alpha=None, spelling="peft") if place == "embedded" else PEFT
    file = write_safetensors(tensors, embedded if place == "embedded" else {}, "peft/other.safetensors")
    if place != "embedded":
        (file.parent / "adapter_config.json").write_text(json.dumps(config))
    record = run("info", file, "--json").json
    assert record["scales"] == {"unknown": 1}
    assert "pattern-unsupported" in {item["code"] for item in record["problems"] if item["severity"] == "error"}
    assert not any("--alpha" in item["message"] for item in record["problems"])  # no option settles it
    where = "metadata lora_adapter_metadata" if place == "embedded" else "adapter_config.json"
    words = [str(file), where, "'(a+)+$'", "unbounded repeat"]
    words.append("list the module names" if place == "target_modules" else "write the plain module path")
    words.append("rank_pattern" if place == "embedded" else place)
    for extra in ([], ["--alpha", "4", "--rslora", "no"]):
        refuse("merge", good[0], file, "-o", file.parent / "out.safetensors", *extra, words=words)
    refuse("convert", file, "-o", file.parent / "out.safetensors", words=words)


STORED = {
    "peft-unilora-unsupported": ["Uni-LoRA", "save_indices"],
    "lfs-pointer": ["git lfs pull"],
    "pickle": ["pickle"],
    "two-bytes": ["2 bytes"],
}


@pytest.mark.parametrize("name", STORED)
def test_the_stored_files_that_must_be_refused_are(name, refuse, fixtures, good, tmp_path):
    shutil.copytree(fixtures / "refused" / name, tmp_path / "copy")
    files = [path for path in (tmp_path / "copy").iterdir() if path.suffix != ".json"]
    assert len(files) == 1
    refuse("merge", good[0], files[0], "-o", tmp_path / "out.safetensors", words=[files[0].name, *STORED[name]])
    refuse("convert", files[0], "--to-standard", "-o", tmp_path / "out.safetensors", words=STORED[name])
    assert sorted(os.listdir(tmp_path)) == ["copy", "good"]
