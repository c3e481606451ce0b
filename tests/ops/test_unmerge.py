"""unmerge: what is proved is what was there, whatever is not is counted, and nothing else is touched."""

import json
import re

import pytest
import torch
from adapters import drawn
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.merging import unmerged_weights, working_crew
from lora_inspect.merging.options import UnmergeRequest
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.ops.unmerge import plan_unmerge
from lora_inspect.ops.unmerge import unmerge as unmerge_files
from lora_inspect.reading.model.settings import Settings, parse_argument

pytestmark = pytest.mark.numeric

OUT, IN, RANK = 96, 80, 8
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


def base(dtype, blocks=3):
    tensors = {f"blocks.{block}.attn.q.weight": (0.05 * drawn(block, OUT, IN)).to(dtype) for block in range(blocks)}
    return tensors | {
        "blocks.0.attn.q.bias": (0.1 * drawn(8, OUT)).to(dtype),
        "norm.weight": (1 + 0.1 * drawn(9, OUT)).to(dtype),
        "steps": torch.arange(4),
    }


def lora(seed, blocks=3, size=0.002, **extra):
    tensors = {}
    for block in range(blocks):
        key = f"lora_unet_blocks_{block}_attn_q"
        tensors[f"{key}.lora_down.weight"] = drawn(100 * seed + block, RANK, IN)
        tensors[f"{key}.lora_up.weight"] = size / RANK**0.5 * drawn(200 * seed + block, OUT, RANK)
        tensors[f"{key}.alpha"] = torch.tensor(float(RANK))
    return tensors | extra


def loha(seed):
    key = "lora_unet_blocks_1_attn_q"
    shapes = {"hada_w1_a": (OUT, 4), "hada_w1_b": (4, IN), "hada_w2_a": (OUT, 4), "hada_w2_b": (4, IN)}
    return {f"{key}.{name}": 0.15 * drawn(seed + n, *shape) for n, (name, shape) in enumerate(shapes.items())} | {
        f"{key}.alpha": torch.tensor(4.0)
    }


def lokr(seed):
    key = "lora_unet_blocks_2_attn_q"
    return {f"{key}.lokr_w1": 0.05 * drawn(seed, 8, 8), f"{key}.lokr_w2": 0.05 * drawn(seed + 1, OUT // 8, IN // 8)}


class Folder:
    def __init__(self, path):
        self.path = path

    def file(self, name, tensors, metadata=None):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, self.path / name, metadata)
        return str(self.path / name)

    def merged(self, name, whole, *adapters, **options):
        out = str(self.path / name)
        pairs = [parse_argument(argument) for argument in adapters]
        merge(plan_merge(whole, pairs, MergeOptions(allow_loss=True, **options)), out, force=True)
        return out

    def undone(self, merged, *adapters, base=None, accept=True):
        out = str(self.path / "undone.safetensors")
        asked = UnmergeRequest(base=base, allow_ambiguous=accept)
        result = unmerge_files(plan_unmerge(merged, [(a, Settings()) for a in adapters], asked), out, force=True)
        return result, load_file(out)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "bias", "two at strengths"])
def test_every_number_that_is_proved_was_there(dtype, kind, folder):
    whole = base(TYPES[dtype])
    files = [folder.file("base.safetensors", whole)]
    files += {
        "lora": lambda: [folder.file("a.safetensors", lora(1))],
        "loha": lambda: [folder.file("a.safetensors", loha(1))],
        "lokr": lambda: [folder.file("a.safetensors", lokr(1))],
        "bias": lambda: [
            folder.file("a.safetensors", lora(1, **{"lora_unet_blocks_0_attn_q.diff_b": 0.01 * drawn(4, OUT)}))
        ],
        "two at strengths": lambda: [folder.file("a.safetensors", lora(1)), folder.file("b.safetensors", lora(2))],
    }[kind]()
    settings = [":0.75,blocks.1=-0.5", ":1.5"] if kind.startswith("two") else [""]
    merged = folder.merged("merged.safetensors", files[0], *map("".join, zip(files[1:], settings, strict=True)))
    result, found = folder.undone(merged, *reversed(files[1:]))
    changed = load_file(merged)
    assert found.keys() == whole.keys()
    touched = {name for name in whole if not torch.equal(whole[name], changed[name])}
    assert result.weights == len(touched)
    entries = wrong = 0
    for name, tensor in whole.items():
        if name not in touched:
            assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))
            continue
        entries += tensor.numel()
        differ = (found[name].double() - tensor.double()).abs()
        wrong += int((differ > 0).sum())
        left = result.unproved.get(name, {"entries": 0, "off_by": 0.0})
        assert int((differ > 0).sum()) <= left["entries"]
        assert float(differ.max()) <= left["off_by"]
    assert result.entries == entries
    assert result.proved <= entries - wrong
    # Most of it is proved: a few in a hundred stand in a lower binade than what they became.
    assert result.proved > 0.85 * entries


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_the_fold_was_no_finer_than_the_weight_nothing_is_called_proved(dtype, folder):
    """As float64 is, and float32 where the record does not say that it was folded in float64."""
    whole = base(dtype)
    files = folder.file("base.safetensors", whole), folder.file("a.safetensors", lora(1))
    merged = folder.merged("merged.safetensors", *files)
    with safe_open(merged, "pt") as opened:
        record = json.loads(opened.metadata()["lora_inspect.merged"])
    assert record.pop("folded_in") == {"F32" if dtype == torch.float32 else "F64": "F64"}
    folder.file("merged.safetensors", load_file(merged), {"lora_inspect.merged": json.dumps(record)})
    result, found = folder.undone(merged, files[1])
    assert result.proved < 0.01 * result.entries
    for name in result.unproved:
        assert float((found[name] - whole[name]).abs().max()) <= min(1e-6, result.unproved[name]["off_by"])


@pytest.mark.parametrize(("dtype", "size"), [("fp32", 1e-39), ("fp32", 1e-41), ("fp64", 1e-310)])
@pytest.mark.parametrize("kind", [lora, loha, lokr])
def test_what_is_lost_beside_zero_is_not_called_proved(dtype, size, kind, folder):
    """Below the normal numbers a rounding is off by more than its share of the number."""
    whole = {name: (tensor.double() * size).to(tensor.dtype) for name, tensor in base(TYPES[dtype]).items()}
    changing = ("lora_up", "hada_w1_a", "lokr_w1")
    adapter = {
        key: (tensor.double() * size).to(TYPES[dtype]) if any(name in key for name in changing) else tensor
        for key, tensor in kind(1).items()
    }
    files = folder.file("base.safetensors", whole), folder.file("a.safetensors", adapter)
    result, found = folder.undone(folder.merged("merged.safetensors", *files), files[1])
    differ = {name: (found[name].double() - whole[name].double()).abs() for name in whole}
    assert sum(int((one > 0).sum()) for one in differ.values()) > 0
    for name, one in differ.items():
        left = result.unproved.get(name, {"entries": 0, "off_by": 0.0})
        assert int((one > 0).sum()) <= left["entries"]
        assert float(one.max()) <= left["off_by"]


def test_rows_to_which_nothing_is_added_are_proved_in_any_type(folder):
    for dtype in (torch.float32, torch.bfloat16):
        whole, adapter = base(dtype), lora(1)
        for key in adapter:
            if "lora_up" in key:
                adapter[key][: OUT // 2] = 0
        files = folder.file("base.safetensors", whole), folder.file("a.safetensors", adapter)
        result, found = folder.undone(folder.merged("merged.safetensors", *files), files[1])
        assert result.proved >= result.entries / 2
        assert all(torch.equal(found[name][: OUT // 2], whole[name][: OUT // 2]) for name in result.unproved)


@pytest.mark.parametrize("with_base", [False, True])
def test_what_is_restored_does_not_depend_on_the_number_of_threads(with_base, folder, monkeypatch):
    files = folder.file("base.safetensors", base(torch.bfloat16)), folder.file("a.safetensors", lora(1, size=0.02))
    merged, found = folder.merged("merged.safetensors", *files), []
    for threads, elements in [(1, 1 << 15), (2, 1000), (5, 100)]:
        monkeypatch.setattr(working_crew, "computing_threads", lambda most, threads=threads: threads)
        monkeypatch.setattr(unmerged_weights, "BLOCK_ELEMENTS", elements)
        result, _ = folder.undone(merged, files[1], base=files[0] if with_base else None)
        written = (folder.path / "undone.safetensors").read_bytes()
        found.append((result.proved, list(result.unproved), result.unchecked, written))
    assert found[0] == found[1] == found[2]


def test_without_consent_nothing_is_written_that_is_not_proved(run, folder):
    files = folder.file("base.safetensors", base(torch.bfloat16)), folder.file("a.safetensors", lora(1))
    merged, out = folder.merged("merged.safetensors", *files), folder.path / "out.safetensors"
    refusal = run("unmerge", merged, files[1], "-o", out).refusal
    assert f"of {3 * OUT * IN:,} changed numbers" in refusal
    assert refusal.endswith("; restore all with --base, or write the nearest ones with --allow-ambiguous.")
    assert not out.exists()
    record = run("unmerge", merged, files[1], "-o", out, "--allow-ambiguous", "--json").json
    assert record["undone"] == [files[1]]
    assert record["entries"] - record["proved"] == sum(one["entries"] for one in record["unproved"].values())
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert "lora_inspect.merged" not in metadata
    assert json.loads(metadata["lora_inspect.undone"])["adapters"][0]["file"] == "a.safetensors"


@pytest.mark.parametrize("dtype", TYPES)
def test_with_the_base_all_is_restored_byte_for_byte(dtype, run, folder):
    files = folder.file("base.safetensors", base(TYPES[dtype])), folder.file("a.safetensors", lora(1))
    merged, out = folder.merged("merged.safetensors", *files), folder.path / "out.safetensors"
    done = run("unmerge", merged, files[1], "-o", out, "--base", files[0])
    assert f"all tensors are as in {files[0]}" in done.stdout
    assert out.read_bytes() == (folder.path / "base.safetensors").read_bytes()


def test_a_merge_of_a_merge_is_undone_one_by_one(run, folder):
    files = folder.file("base.safetensors", base(torch.bfloat16)), folder.file("a.safetensors", lora(1))
    second = folder.file("b.safetensors", lora(2))
    first = folder.merged("first.safetensors", *files)
    both = folder.merged("both.safetensors", first, second)
    assert (
        f"{files[1]}: {both} records no merge of it"
        in run("unmerge", both, second, files[1], "-o", folder.path / "o.safetensors").refusal
    )
    out = folder.path / "out.safetensors"
    assert run("unmerge", both, second, "-o", out, "--allow-ambiguous").status == 0
    with safe_open(out, "pt") as found, safe_open(first, "pt") as expected:
        before = json.loads(expected.metadata()["lora_inspect.merged"])
        assert json.loads(found.metadata()["lora_inspect.merged"]) == {**before, "estimated": True}
    # What are estimates of that merge would be called proved numbers of the base.
    again = folder.path / "again.safetensors"
    refusal = run("unmerge", out, files[1], "-o", again, "--allow-ambiguous").refusal
    assert f"{out}: an earlier unmerge with --allow-ambiguous" in refusal
    assert not again.exists()
    assert run("unmerge", both, second, "-o", out, "--force", "--base", first).status == 0
    assert run("unmerge", out, files[1], "-o", again, "--allow-ambiguous").status == 0
    # Of a new merge into the estimates all is known.
    third = folder.merged("third.safetensors", again, second)
    assert folder.undone(third, second)[0].proved > 0
    assert out.read_bytes() == (folder.path / "first.safetensors").read_bytes()


def dora():
    return {f"lora_unet_blocks_{block}_attn_q.dora_scale": 0.5 + drawn(7, OUT, 1).abs() for block in range(3)}


def oft():
    return {"lora_unet_blocks_0_attn_q.oft_blocks": 0.01 * drawn(3, 4, OUT // 4, OUT // 4)}


@pytest.mark.parametrize(
    ("adapter", "why"),
    [
        (lambda: lora(1, **dora()), "DoRA divided by norms that are lost"),
        (oft, "depends on the weight that it changed"),
    ],
)
def test_what_cannot_be_subtracted_is_refused_by_name_and_restored_from_the_base(adapter, why, run, folder):
    files = folder.file("base.safetensors", base(torch.bfloat16)), folder.file("a.safetensors", adapter())
    merged, out = folder.merged("merged.safetensors", *files), folder.path / "out.safetensors"
    refusal = run("unmerge", merged, files[1], "-o", out, "--allow-ambiguous").refusal
    assert why in refusal
    assert "unmerge cannot take lora_unet_blocks_0_attn_q out of blocks.0.attn.q.weight" in refusal
    assert refusal.endswith("name base.safetensors with --base.")
    done = run("unmerge", merged, files[1], "-o", out, "--base", files[0], "--json").json
    assert "blocks.0.attn.q.weight" in done["unchecked"]
    assert out.read_bytes() == (folder.path / "base.safetensors").read_bytes()


def test_a_cast_is_undone_with_the_base_alone(run, folder):
    files = folder.file("base.safetensors", base(torch.float32)), folder.file("a.safetensors", lora(1))
    merged, out = folder.merged("merged.safetensors", *files, dtype="BF16"), folder.path / "out.safetensors"
    assert (
        "to BF16, which lost their earlier values"
        in run("unmerge", merged, files[1], "-o", out, "--allow-ambiguous").refusal
    )
    assert run("unmerge", merged, files[1], "-o", out, "--base", files[0]).status == 0


@pytest.mark.parametrize("options", [[], ["--changed-dtype", "bf16"], ["--dtype", "bf16"]])
def test_codes_are_restored_from_the_base_alone(options, run, folder):
    whole = base(torch.bfloat16)
    for block in range(3):
        name = f"blocks.{block}.attn.q.weight"
        scale = whole[name].abs().max().float() / 448
        whole[name] = (whole[name].float() / scale).to(torch.float8_e4m3fn)
        whole[f"blocks.{block}.attn.q.weight_scale"] = scale
    files = folder.file("base.safetensors", whole), folder.file("a.safetensors", lora(1, size=0.3))
    merged, out = folder.path / "merged.safetensors", folder.path / "out.safetensors"
    assert run("merge", *files, "-o", merged, *options).status == 0
    refusal = run("unmerge", merged, files[1], "-o", out, "--allow-ambiguous").refusal
    assert ("to BF16, which lost their earlier values" if options else "stored as F8_E4M3 codes") in refusal
    done = run("unmerge", merged, files[1], "-o", out, "--base", files[0], "--json").json
    assert "blocks.0.attn.q.weight" in done["unchecked"]
    assert out.read_bytes() == (folder.path / "base.safetensors").read_bytes()


def test_what_was_rounded_stochastically_is_restored_from_the_base_alone(run, folder):
    files = folder.file("base.safetensors", base(torch.bfloat16)), folder.file("a.safetensors", lora(1))
    merged, out = folder.merged("merged.safetensors", *files), folder.path / "out.safetensors"
    with safe_open(merged, "pt") as file:
        record = json.loads(file.metadata()["lora_inspect.merged"])
    drawn_by = {"lora_inspect.merged": json.dumps({**record, "options": {"seed": 0, "accept_loss": True}})}
    merged = folder.file("drawn.safetensors", load_file(merged), drawn_by)
    refusal = run("unmerge", merged, files[1], "-o", out, "--allow-ambiguous").refusal
    assert "it was rounded stochastically" in refusal
    done = run("unmerge", merged, files[1], "-o", out, "--base", files[0], "--json").json
    assert len(done["unchecked"]) == 3


def wrong_cases(folder):
    whole = base(torch.bfloat16)
    files = folder.file("base.safetensors", whole), folder.file("a.safetensors", lora(1))
    merged = (
        folder.merged("merged.safetensors", *files, include=()) if False else folder.merged("m.safetensors", *files)
    )
    other = folder.file("other.safetensors", lora(2))
    tensors = load_file(merged)
    with safe_open(merged, "pt") as file:
        metadata = file.metadata()
    moved = dict(tensors, **{"blocks.0.attn.q.weight": tensors["blocks.0.attn.q.weight"] * 3})
    likewise = {name: tensor + (name == "norm.weight") for name, tensor in whole.items()}
    changed = {name: tensor * 2 if name == "blocks.2.attn.q.weight" else tensor for name, tensor in whole.items()}
    later = dict(json.loads(metadata["lora_inspect.merged"]), options={"magic": True})
    bare = {"lora_inspect.merged": json.dumps({"version": "0.1.0", "adapters": [{"file": "a", "multiplier": 1}]})}
    (folder.path / "else").mkdir()
    old, unknown = folder.file("old.safetensors", tensors, bare), {"lora_inspect.merged": json.dumps(later)}
    yield [files[0], files[1]], "it records no merge by lora-inspect"
    yield [old, files[1]], "damaged or from an earlier version"
    yield [merged, other], "a.safetensors (SHA-256 "
    yield [merged, folder.file("else/a.safetensors", lora(3))], "but this one differs; find that file"
    yield [merged, files[1], other], "records no merge of it, only of a.safetensors"
    yield [merged, f"{files[1]}:0.5"], "it was merged with no settings, but its path says 0.5"
    yield [folder.file("l.safetensors", tensors, unknown), files[1]], "it was merged with magic"
    yield [folder.file("c.safetensors", moved, metadata), files[1]], "so the file was changed since"
    yield [merged, files[1], "--base", other], "its header or size is not that of base.safetensors"
    yield [merged, files[1], "--base", folder.file("x.safetensors", likewise)], "as it differs"
    yield [merged, files[1], "--base", folder.file("y.safetensors", changed)], "numbers differ"


@pytest.mark.parametrize("number", range(11))
def test_what_does_not_fit_the_record_is_refused(number, run, folder):
    arguments, says = list(wrong_cases(folder))[number]
    out = folder.path / "out.safetensors"
    assert says in run("unmerge", *arguments, "-o", out, "--allow-ambiguous").refusal
    assert not out.exists()


def test_what_was_cast_after_the_merge_is_not_undone(folder):
    """A number of fewer bits that fits alone is none that the base had."""
    files = folder.file("base.safetensors", base(torch.float32)), folder.file("a.safetensors", lora(1))
    merged = folder.merged("merged.safetensors", *files)
    with safe_open(merged, "pt") as file:
        metadata = file.metadata()
    halved = {name: one.bfloat16() if one.is_floating_point() else one for name, one in load_file(merged).items()}
    cast = folder.file("cast.safetensors", halved, metadata)
    with pytest.raises(
        LoraInspectError, match=r"is BF16, but no tensor of base\.safetensors was, so it was cast since"
    ):
        folder.undone(cast, files[1])


def test_files_of_different_merges_are_not_undone_together(run, folder):
    whole = base(torch.bfloat16)
    names, adapter = sorted(whole), folder.file("a.safetensors", lora(1))
    parts = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
    (folder.path / "model").mkdir()
    for file, own in parts.items():
        folder.file(f"model/{file}", {name: whole[name] for name in own})
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder.path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    merged = folder.path / "merged"
    for settings, other in ((":2", "other"), ("", "merged")):
        assert run("merge", folder.path / "model", adapter + settings, "-o", folder.path / other).status == 0
    for name in parts:
        kept = (merged / name).read_bytes()
        for source in ("other", "model"):
            (merged / name).write_bytes((folder.path / source / name).read_bytes())
            arguments = ("unmerge", merged, adapter, "-o", folder.path / "out", "--allow-ambiguous")
            refusal = run(*arguments).refusal
            assert "record different merges" in refusal or "it records no merge by lora-inspect" in refusal
        (merged / name).write_bytes(kept)
    assert run(*arguments).status == 0


DAMAGES = {
    "an adapter": (lambda it: it["adapters"].append({"file": 3}), "damaged or from an earlier version"),
    "settings": (lambda it: it["adapters"][0].update(settings=3), "damaged or from an earlier version"),
    "a config": (lambda it: it["adapters"][0].update(config={}), "damaged or from an earlier version"),
    "options": (lambda it: it.update(options=["alpha"]), "damaged or from an earlier version"),
    "a multiplier": (lambda it: it["adapters"][0].update(multiplier=0.5), "contradicts its settings"),
    "no multiplier": (lambda it: it["adapters"][0].pop("multiplier"), "contradicts its settings"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_record_that_is_read_in_part_alone_is_refused(damage, folder):
    """What of it was not read may have changed the weights as well, and nothing would be proved."""
    files = folder.file("base.safetensors", base(torch.bfloat16)), folder.file("a.safetensors", lora(1))
    merged = folder.merged("merged.safetensors", *files)
    with safe_open(merged, "pt") as file:
        record = json.loads(file.metadata()["lora_inspect.merged"])
    change, says = DAMAGES[damage]
    change(record)
    damaged = folder.file("damaged.safetensors", load_file(merged), {"lora_inspect.merged": json.dumps(record)})
    with pytest.raises(LoraInspectError, match=says):
        folder.undone(damaged, files[1])


def test_a_program_undoes_as_the_command_line_does(folder):
    import lora_inspect

    files = folder.file("base.safetensors", base(torch.bfloat16)), folder.file("a.safetensors", lora(1))
    merged, out = folder.merged("merged.safetensors", *files), str(folder.path / "out.safetensors")
    told: list[tuple[int, int]] = []
    result = lora_inspect.unmerge(merged, files[1], out, allow_ambiguous=True, progress=lambda *at: told.append(at))
    assert 0 < result.proved < result.entries
    assert told[-1][0] == told[-1][1]
    whole = lora_inspect.unmerge(merged, [files[1]], out, base=files[0], force=True)
    assert whole.proved == whole.entries


def test_the_options_of_a_merge_are_none_of_unmerge(run, folder):
    files = folder.file("base.safetensors", base(torch.bfloat16)), folder.file("a.safetensors", lora(1))
    merged, out = folder.merged("merged.safetensors", *files), folder.path / "out.safetensors"
    for option in (["--dtype", "fp16"], ["--only", "model"], ["--alpha", "1"], ["--hash-base"]):
        ended = run("unmerge", merged, files[1], "-o", out, *option)
        assert ended.status == 2
        assert re.search(f"No such option:? '?{option[0]}", ended.stderr)  # click 8.1 and later ones
    assert run("merge", *files, "-o", out, "--allow-ambiguous").status == 2
    assert run("merge", *files, "-o", out, "--base", files[0]).status == 2
    assert run("unmerge", merged, files[1], "--dry-run").stdout.startswith("would take 1 adapters out of 3 weights")


def test_a_folder_is_restored_as_a_folder(run, folder):
    whole = base(torch.bfloat16)
    (folder.path / "model").mkdir()
    names = sorted(whole)
    parts = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
    for file, own in parts.items():
        folder.file(f"model/{file}", {name: whole[name] for name in own})
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder.path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder.path / "model" / "README.md").write_text("kept")
    adapter = folder.file("a.safetensors", lora(1))
    merged = folder.path / "merged"
    assert run("merge", folder.path / "model", adapter, "-o", merged).status == 0
    out = folder.path / "out"
    refusal = run("unmerge", merged, adapter, "-o", out).refusal
    assert f"of {3 * OUT * IN:,} changed numbers" in refusal
    assert not out.exists()
    planned = run("unmerge", merged, adapter, "-o", out, "--dry-run", "--json").json
    assert planned == {
        "schema": "lora-inspect/unmerge-plan/1", "dry_run": True, "output": str(out), "undone": [adapter], "weights": 3,
        "tensors_copied": len(whole) - 3,
    }  # fmt: skip
    assert run("unmerge", merged, adapter, "-o", out, "--allow-ambiguous").status == 0
    assert (out / "README.md").read_text() == "kept"
    found = {name: tensor for file in parts for name, tensor in load_file(out / file).items()}
    differ = sum(int((found[name] != whole[name]).sum()) for name in whole)
    assert 0 < differ < 0.1 * 3 * OUT * IN
    assert run("unmerge", merged, adapter, "-o", out, "--force", "--base", folder.path / "model").status == 0
    for file in parts:
        assert (out / file).read_bytes() == (folder.path / "model" / file).read_bytes()


def test_what_was_rounded_stochastically_is_not_undone(folder):
    """Other numbers than the nearest ones may have been there before."""
    files = [folder.file("base.safetensors", base(TYPES["bf16"])), folder.file("a.safetensors", lora(1))]
    merged = folder.merged("merged.safetensors", *files, seed=0)
    with pytest.raises(LoraInspectError, match=r"it was rounded stochastically.*name base.safetensors with --base"):
        folder.undone(merged, files[1])
    result, found = folder.undone(merged, files[1], base=files[0])
    assert len(result.unchecked) == 3
    assert torch.equal(found["blocks.0.attn.q.weight"], base(TYPES["bf16"])["blocks.0.attn.q.weight"])


def test_an_adapter_that_is_not_named_is_looked_for_beside_the_merged_model(run, folder):
    files = folder.file("base.safetensors", base(torch.float32)), folder.file("a.safetensors", lora(1))
    merged, out = folder.merged("merged.safetensors", *files), folder.path / "out.safetensors"
    assert run("unmerge", merged, "-o", out, "--base", files[0], "--json").json["undone"] == [files[1]]
    folder.file("a.safetensors", lora(2))
    refusal = run("unmerge", merged, "-o", out, "--base", files[0], "--force").refusal
    assert "a.safetensors (SHA-256" in refusal
    assert refusal.endswith("was merged into it, but is not named; name all merged adapters.")
