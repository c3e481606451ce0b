"""`check` over real files: what is found in them, and nothing else; hashes are those that real trainers stated."""

import hashlib
import json
import os
import struct

import pytest
import torch
from adapters import loras
from problem_toys import raw
from safetensors.torch import save, save_file

from lora_inspect.checking import hash_lints
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.discovery import stored_bytes
from lora_inspect.ops.check import CheckResult, check, fix, found_in
from lora_inspect.reading.model.evidence import ERROR, NOTE, SEVERITIES, WARNING, Problem

# Everything that is found in the real files and the fixtures, with their numbers read: each was looked at.
FOUND = {
    # Their hashes are those that their trainer stated in 2023.
    "hashed/smart_falcon_4_lokr.safetensors": {"module-untrained"},
    "hashed/smart_falcon_8_lokr.safetensors": {"module-untrained"},
    "synthetic/bf16_alpha_and_flags.safetensors": {"flag-type"},
    "synthetic/comfyui_alpha.safetensors": {"rslora-hint"},
    "synthetic/split.safetensors": {"split-keys", "rslora-hint"},
    # mlx does not pad headers.
    "mlx/lora/adapters.safetensors": {"unaligned"},
    "mlx/dora/adapters.safetensors": {"unaligned"},
    "mlx/experts/adapters.safetensors": {"unaligned"},
    "mlx/square-dora/adapters.safetensors": {"unaligned"},
    "mlx/llama.safetensors": {"unaligned"},
    "mlx/qwen3-moe.safetensors": {"unaligned"},
    "mlx/full/adapters.safetensors": {"no-adapter", "unaligned"},
    "refused/lfs-pointer/adapter_model.safetensors": {"unreadable"},
    "refused/two-bytes/Tiptop5369.safetensors": {"unreadable"},
    "refused/peft-unilora-unsupported/adapter_model.safetensors": {"incomplete"},
}
# Their factors are drawn at random, and as large as no training makes them.
RANDOM = ("gguf", "experts")


def adapters(fixtures):
    for path in sorted(fixtures.rglob("*")):
        if path.suffix in (".safetensors", ".gguf") and "base" not in path.name and "oracle" not in path.name:
            yield path


def test_real_files_have_what_was_looked_at_and_nothing_else(fixtures):
    found = {}
    for path in adapters(fixtures):
        name = path.relative_to(fixtures).as_posix()
        codes = {problem.code for problem in check(os.fspath(path), tensors=True).problems} - {"not-an-adapter"}
        if name.startswith(RANDOM):
            codes -= {"change-large"}
        if codes:
            found[name] = codes
    assert found == FOUND


@pytest.mark.slow
@pytest.mark.parametrize("rank", [4, 8])
def test_hashes_of_a_real_file_with_another_byte_are_stale_and_mended(rank, fixtures, tmp_path):
    file = fixtures / "hashed" / f"smart_falcon_{rank}_lokr.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    (path := tmp_path / "a.safetensors").write_bytes(content)
    stale = [problem for problem in check(os.fspath(path)).problems if problem.code == "hash-stale"]
    # The last byte lies before the first mebibyte in the one, and in the piece behind it in the other.
    keys = [("sshs_model_hash",)] if rank == 4 else [("sshs_model_hash",), ("sshs_legacy_hash",)]
    assert [problem.keys for problem in stale] == keys
    result = fix(os.fspath(path), os.fspath(tmp_path / "out.safetensors"))
    assert result.left == ()
    content[-1] ^= 1
    path.write_bytes(content)
    assert check(os.fspath(path)).problems == ()


def test_a_fixed_copy_is_measured_as_the_file_was(write_safetensors, tmp_path):
    path = write_safetensors({**loras(rank=4, alpha=0.25), "use_rslora_flag": ("BF16", (), 0.0)})
    result = fix(os.fspath(path), os.fspath(tmp_path / "out.safetensors"), tensors=True)
    assert {problem.code for problem in result.left} == {"scale-small"}
    assert [problem.code for problem in result.problems].count("scale-small") == 1


def by_sd_scripts(tensors, metadata):
    """The hashes, written down from sd-scripts' source."""
    content = save(tensors, metadata)
    (length,) = struct.unpack("<Q", content[:8])
    return {
        "sshs_model_hash": hashlib.sha256(content[8 + length :]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(content[0x100000:][:0x10000]).hexdigest()[:8],
    }


@pytest.fixture
def large(tmp_path):
    """A file beyond a mebibyte with the hashes that sd-scripts gives it."""
    source = torch.Generator().manual_seed(2)
    tensors = {
        "lora_unet_q.lora_up.weight": torch.randn(20_000, 16, generator=source),
        "lora_unet_q.lora_down.weight": torch.randn(16, 8, generator=source).half(),
        "lora_unet_q.alpha": torch.tensor(8.0),
    }
    metadata = {"ss_epoch": "3"}
    return tensors, metadata | by_sd_scripts(tensors, metadata), tmp_path / "a.safetensors"


def codes(path):
    return {problem.code for problem in check(os.fspath(path)).problems} - {"rank-large", "mixed-dtypes"}


def test_hashes_of_sd_scripts_are_true(large):
    tensors, metadata, path = large
    save_file(tensors, path, metadata)
    assert codes(path) == set()


@pytest.mark.parametrize("key", ["sshs_model_hash", "sshs_legacy_hash"])
def test_hashes_of_other_tensors_are_stale(key, large):
    tensors, metadata, path = large
    tensors["lora_unet_q.lora_up.weight"] += 1
    save_file(tensors, path, {"ss_epoch": "3", key: metadata[key]})
    assert codes(path) == {"hash-stale"}


def test_a_legacy_hash_of_a_header_without_padding_is_true(large):
    """Files of 2023 have it: the library did not pad then, so all bytes stand elsewhere."""
    tensors, metadata, path = large
    content = save(tensors, {"ss_epoch": "3"})
    (length,) = struct.unpack("<Q", content[:8])
    text = content[8 : 8 + length].rstrip(b" ")
    old = struct.pack("<Q", len(text)) + text + content[8 + length :]
    legacy = hashlib.sha256(old[0x100000:][:0x10000]).hexdigest()[:8]
    assert legacy != metadata["sshs_legacy_hash"]
    save_file(tensors, path, {"ss_epoch": "3", "sshs_legacy_hash": legacy})
    assert codes(path) == set()


def test_a_legacy_hash_says_nothing_where_the_tensors_are_proved(large):
    tensors, metadata, path = large
    save_file(tensors, path, {**metadata, "ss_epoch": "4000"})
    assert codes(path) == set()


def test_what_was_mended_has_the_hashes_that_sd_scripts_gives_it(large, tmp_path):
    tensors, metadata, path = large
    save_file(tensors, path, {**dict.fromkeys(metadata, "1" * 8), "ss_epoch": "3"})
    result = fix(os.fspath(path), os.fspath(tmp_path / "out.safetensors"))
    from safetensors import safe_open

    with safe_open(result.output, "pt") as opened:
        assert opened.metadata() == metadata


def test_the_legacy_hash_follows_the_metadata_that_it_is_of(large, tmp_path):
    tensors, metadata, path = large
    save_file(tensors, path, {**metadata, "ss_network_alpha": ""})
    result = fix(os.fspath(path), os.fspath(tmp_path / "out.safetensors"))
    from safetensors import safe_open

    with safe_open(result.output, "pt") as opened:
        assert opened.metadata() == metadata
    save_file(tensors, path, {**metadata, "ss_network_dim": "-1"})
    result = fix(os.fspath(path), os.fspath(tmp_path / "out.safetensors"), force=True)
    with safe_open(result.output, "pt") as opened:
        written = opened.metadata()
    assert (
        written["sshs_legacy_hash"]
        == by_sd_scripts(tensors, {"ss_epoch": "3", "ss_network_dim": "16"})["sshs_legacy_hash"]
    )


def test_a_header_of_blanks_alone_takes_no_time(tmp_path):
    """A hostile file: fifty million blanks behind its header."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw("{}" + " " * 50_000_000, b""))
    assert codes(path) == {"header-padding", "not-an-adapter"}


def test_a_collection_is_taken_apart_and_a_checkpoint_is_not(tmp_path, write_safetensors):
    for name in ("all/a.safetensors", "all/b/adapter_model.safetensors"):
        write_safetensors(loras(), None, name)
    assert found_in(os.fspath(tmp_path / "all")) == [
        os.path.join(tmp_path, "all", "a.safetensors"), os.path.join(tmp_path, "all", "b", "adapter_model.safetensors")
    ]  # fmt: skip
    assert found_in(os.fspath(tmp_path / "all" / "b")) == [os.path.join(tmp_path, "all", "b")]
    assert found_in("missing") == ["missing"]


def test_the_bytes_of_a_set_are_those_of_its_shards(tmp_path, write_safetensors):
    shards = [write_safetensors(loras(1), None, f"x-0000{i}-of-00002.safetensors") for i in (1, 2)]
    size = sum(shard.stat().st_size for shard in shards)
    assert [stored_bytes(os.fspath(path)) for path in (shards[0], tmp_path, tmp_path / "missing")] == [size, size, 0]


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("metadata", [{}, {"sshs_model_hash": "0" * 64}], ids=["no hash", "a hash"])
def test_every_byte_is_told_to_the_progress_once(metadata, tensors, tmp_path, write_safetensors):
    told = []
    path = write_safetensors({**loras(), "n": ("I64", (3,), 1)}, metadata)
    check(os.fspath(path), tensors=tensors, progress=told.append)
    assert sum(told) == path.stat().st_size
    assert len(told) > (tensors or bool(metadata))  # not all at the end
    if metadata:
        told.clear()
        fix(os.fspath(path), os.fspath(tmp_path / "mended.safetensors"), tensors=tensors, progress=told.append)
        assert sum(told) == path.stat().st_size
        assert len(told) > 5


def test_tensors_are_hashed_once_in_an_order(tmp_path, write_safetensors, monkeypatch):
    hashed, real = [], hash_lints.data_sha256
    monkeypatch.setattr(hash_lints, "data_sha256", lambda order, *more: hashed.append(order) or real(order, *more))
    wrong = {"sshs_model_hash": "0" * 64, "modelspec.hash_sha256": "0x" + "1" * 64}
    # In the file b is before a; the library and sorted names agree on another order.
    path = write_safetensors({"b": ("F32", (2,), 1), "a": ("F32", (2,), 2)}, wrong)
    assert {problem.code for problem in check(os.fspath(path)).problems} >= {"hash-stale"}
    assert len(hashed) == 2


def test_a_file_that_is_missing_is_no_problem_of_a_file(tmp_path):
    with pytest.raises(LoraInspectError, match="there is no such file"):
        check(os.fspath(tmp_path / "missing"))


@pytest.mark.parametrize("severity", [NOTE, WARNING, ERROR])
def test_a_result_fails_by_its_most_serious_problem(severity):
    result = CheckResult("p", (Problem("a", NOTE, "x"), Problem("b", severity, "x")))
    for limit in SEVERITIES:
        fails = SEVERITIES.index(severity) >= SEVERITIES.index(limit)
        assert result.fails(limit) == fails
        mended = CheckResult("p", (Problem("a", ERROR, "x"),), frozenset("a"), "out", (), result.problems)
        assert mended.fails(limit) == (fails or limit == NOTE)
    with pytest.raises(ValueError, match="a severity is one of note, warning, error, not 'fatal'"):
        result.fails("fatal")


READ = (
    *("ss_network_args", "ss_network_dim", "ss_network_alpha", "ss_base_model_version"),
    *("sshs_model_hash", "modelspec.hash_sha256", "modelspec.architecture"),
)


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 9, '{"a": ' + "1" * 5000 + "}", "9" * 5000, "\0\x1b", "1e999"])
@pytest.mark.parametrize("key", READ)
def test_metadata_may_hold_anything(key, text, write_safetensors):
    path = write_safetensors(loras(), {key: text})
    assert isinstance(json.dumps([problem.message for problem in check(os.fspath(path)).problems]), str)
