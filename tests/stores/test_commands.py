"""Commands with bases and adapters at addresses: what they do with the same files on a disk, or a sentence.

None prints or writes what is hidden in an address.
"""

import json
import os
import shutil
import struct

import pytest
from hubs import COMMIT

from lora_inspect.files.locations import is_of_server

pytestmark = pytest.mark.slow
BASE, SHARDED, ADAPTER = "base_f32.safetensors", "base_sharded", "dora_and_rslora_flags.safetensors"
PEFT = "minilm-peft-lora-r8"
RSLORA = "rslora_flag.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
QUERY = "?X-Amz-Signature=hidden"


@pytest.fixture
def on_disk(fixtures, folder):
    """The folder that the server serves, with models and adapters in it."""
    shutil.copytree(fixtures / "synthetic", folder, dirs_exist_ok=True)
    shutil.copytree(fixtures / PEFT, folder / PEFT)
    return folder


@pytest.fixture(params=["http", "s3", "hub"])
def at(request, on_disk):
    """`at(name)`: the address of a file or a folder that is on the disk, too, in one kind of store after the other."""
    if request.param == "http":
        server = request.getfixturevalue("server")
        return lambda name: server.url(name) + QUERY
    if request.param == "hub":
        request.getfixturevalue("hub")
        return lambda name: f"hf://owner/name/{name}"
    bucket = request.getfixturevalue("bucket")
    bucket.put_folder(on_disk, "d")
    return lambda name: bucket.url(f"d/{name}")


def content_of(path):
    """The bytes of a file, or of all files of a folder by their names."""
    if path.is_file():
        return path.read_bytes()
    return {one.relative_to(path).as_posix(): one.read_bytes() for one in path.rglob("*") if one.is_file()}


def shown(outcome):
    assert "hidden" not in outcome.stdout + outcome.stderr
    return outcome


def test_info_says_the_same(at, on_disk, run):
    for name in (ADAPTER, BASE, f"{PEFT}/adapter_model.safetensors"):
        local = run("info", "--json", on_disk / name).json
        remote = shown(run("info", "--json", at(name))).json
        assert remote.pop("path") == at(name).removesuffix(QUERY)
        local.pop("path")
        for record in (local, remote):
            for item in record["evidence"]:
                item["where"] = os.path.basename(item["where"])
        assert remote == local


def test_check_and_compat_say_the_same(at, on_disk, run):
    for command in (["check", "--json"], ["compat", "--json"]):
        local, remote = (run(*command, path) for path in (on_disk / ADAPTER, at(ADAPTER)))
        assert shown(remote).status == local.status
        known = remote.stdout.replace(at(ADAPTER).removesuffix(QUERY), str(on_disk / ADAPTER))
        told, expected = json.loads(known), json.loads(local.stdout)
        for one in (told, expected):
            for program in (one if isinstance(one, dict) else {}).get("programs", []):
                program.pop("fix")  # which names another output
        assert told == expected


@pytest.mark.parametrize("base", [BASE, SHARDED])
def test_a_merge_is_the_same_byte_for_byte(base, at, on_disk, run, tmp_path):
    ending = ".safetensors" if base == BASE else ""
    local, remote = (tmp_path / f"{name}{ending}" for name in ("local", "remote"))
    of_server = is_of_server(at(base)) and base == SHARDED
    named = f"{base}/{INDEX}" if of_server else base
    assert run("merge", on_disk / named, f"{on_disk / ADAPTER}:0.5", "-o", local).status == 0
    ended = shown(run("merge", at(named), f"{at(ADAPTER)}:0.5", "-o", remote))
    assert ended.status == 0, ended
    assert ("a server does not list its folders" in ended.stderr) == of_server
    expected, made = content_of(local), content_of(remote)
    if of_server:
        expected.pop("config.json")
    assert made == expected
    assert b"hidden" not in (made if base == BASE else b"".join(made.values()))


def test_what_is_merged_is_verified(at, on_disk, run, tmp_path):
    assert run("merge", on_disk / BASE, on_disk / ADAPTER, "-o", on_disk / "merged.safetensors").status == 0
    told = shown(run("verify", "--json", on_disk / "merged.safetensors", at(BASE), at(ADAPTER))).json
    assert told["ok"]


def test_a_conversion_is_the_same_byte_for_byte(at, on_disk, run, tmp_path):
    for name, adapter in (("local", on_disk / RSLORA), ("remote", at(RSLORA))):
        assert shown(run("convert", adapter, "-o", tmp_path / f"{name}.safetensors")).status == 0
    assert content_of(tmp_path / "remote.safetensors") == content_of(tmp_path / "local.safetensors")


def test_a_folder_of_adapters_is_a_table(at, on_disk, run):
    if is_of_server(at("")):
        pytest.skip("a server lists no folders")
    told = shown(run("info", "--json", at("").rstrip("/"))).json
    names = {path.relative_to(on_disk).as_posix() for path in on_disk.rglob("*.safetensors")}
    singles = {name for name in names if "-of-" not in name}
    assert {one["path"].partition("/d/")[2] or one["path"].partition(f"@{COMMIT}/")[2] for one in told} >= singles
    assert not any("error" in one for one in told)


def test_metadata_are_read_and_never_written(at, on_disk, run, tmp_path):
    assert shown(run("metadata", "show", at(ADAPTER))).status == 0
    refused = shown(run("metadata", "set", at(ADAPTER), "title=new")).refusal
    assert "only read" in refused
    ended = shown(run("metadata", "set", at(ADAPTER), "title=new", "-o", tmp_path / "new.safetensors"))
    assert ended.status == 0
    assert run("metadata", "get", tmp_path / "new.safetensors", "title").stdout.strip() == "new"


def test_hashes_are_those_of_the_file(at, on_disk, run):
    local, remote = (run("metadata", "show", "--hashes", path) for path in (on_disk / ADAPTER, at(ADAPTER)))
    assert shown(remote).status == local.status == 0
    assert remote.stdout.splitlines()[1:] == local.stdout.splitlines()[1:]


def test_a_mistyped_name_is_told_from_its_neighbours(at, run):
    refused = shown(run("info", at("base_f23.safetensors"))).failure
    assert "there is no such file or folder" in refused
    assert (f"did you mean {at(BASE)}?" in refused) != is_of_server(at(BASE))


def merge_of(server, run, tmp_path):
    return shown(run("merge", server.url(BASE) + QUERY, server.url(ADAPTER), "-o", tmp_path / "out.safetensors"))


def left_in(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "served")


def test_failures_that_pass_leave_no_trace_in_a_merge(on_disk, server, run, tmp_path):
    assert run("merge", on_disk / BASE, on_disk / ADAPTER, "-o", tmp_path / "local.safetensors").status == 0
    wrongs = [
        lambda handler, asked: handler.answer(500),
        lambda handler, asked: handler.answer(429, {"Retry-After": "1"}),
        lambda handler, asked: handler.serve(asked, truncated=9),
        lambda handler, asked: handler.serve(asked, shifted=4),
        lambda handler, asked: handler.reset(),
    ]
    numbers = iter(range(10**6))

    def every_other(handler, asked):
        number = next(numbers)
        if number % 2:
            return False
        wrongs[number // 2 % len(wrongs)](handler, asked)
        return True

    server.misdo = every_other
    ended = merge_of(server, run, tmp_path)
    assert ended.status == 0, ended
    assert content_of(tmp_path / "out.safetensors") == content_of(tmp_path / "local.safetensors")


@pytest.mark.parametrize("after", [2, 6, 12])
@pytest.mark.parametrize("status", [500, 403])
def test_failures_that_do_not_pass_leave_nothing(status, after, on_disk, server, run, tmp_path):
    numbers = iter(range(10**6))
    server.misdo = lambda handler, asked: next(numbers) >= after and (handler.answer(status) or True)
    says = (
        "lora-inspect cannot read it (status 500, 6 times)"
        if status == 500
        else "the server does not give it to you (status 403)"
    )
    assert says in merge_of(server, run, tmp_path).failure
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("name", [BASE, ADAPTER])
def test_a_file_that_changes_under_a_merge_leaves_nothing(name, on_disk, server, run, tmp_path):
    size = (on_disk / name).stat().st_size

    def change(handler, asked):
        if (asked.path.startswith(f"/{name}") and asked.stop > 65_536) or asked.start:
            os.utime(on_disk / name, ns=(1, 1))
        return False

    server.misdo = change if size > 65_536 else None
    if size <= 65_536:
        seen = iter(range(10**6))

        def touch(handler, asked):
            if asked.path.startswith(f"/{name}") and next(seen) == 1:
                os.utime(on_disk / name, ns=(1, 1))
            return False

        server.misdo = touch
    assert "it changed while it was read; run the command again" in merge_of(server, run, tmp_path).failure
    assert left_in(tmp_path) == []


MODULES, RANK = 300, 64


@pytest.fixture
def large(folder):
    """An adapter of 4 GB with holes for its numbers, each module with an alpha of its own between its factors."""
    header, position = {"__metadata__": {"ss_network_module": "networks.lora"}}, 0
    wide = 4 * 2**30 // (MODULES * 2 * RANK * 2)
    for number in range(MODULES):
        module = f"lora_unet_double_blocks_{number}_img_attn_proj"
        for name, shape, size in (
            ("lora_down.weight", [RANK, wide], 2 * RANK * wide),
            ("alpha", [], 2),
            ("lora_up.weight", [wide, RANK], 2 * RANK * wide),
        ):
            header[f"{module}.{name}"] = {
                "dtype": "BF16",
                "shape": shape,
                "data_offsets": [position, position + size],
            }
            position += size
    text = json.dumps(header).encode()
    path = folder / "large.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, entry in header.items():
            if name.endswith(".alpha"):
                file.seek(8 + len(text) + entry["data_offsets"][0])
                file.write(struct.pack("<f", 32.0)[2:])
        file.truncate(8 + len(text) + position)
    assert path.stat().st_size > 4 * 10**9
    return path


def test_info_of_a_large_file_reads_its_header_and_alphas_alone(large, server, run):
    record = run("info", "--json", server.url(large.name)).json
    assert record["alphas"] == {"32": MODULES}
    assert record["bytes"] == large.stat().st_size
    assert server.bytes < 1_000_000
    assert len(server.asked) <= MODULES + 10


LOADED = """\
import sys
from lora_inspect.cli import main
try:
    main(sys.argv[1:])
finally:
    print(*sys.modules)
"""


def test_info_of_an_address_loads_no_torch(on_disk, server, run_process):
    ended = run_process("-c", LOADED, "info", server.url(ADAPTER))
    assert ended.status == 0, ended
    assert not {"torch", "numpy"} & set(ended.stdout.split())
    assert ended.stderr == ""


def test_info_of_a_file_on_a_disk_loads_no_store(on_disk, run_process):
    loaded = run_process("-c", LOADED, "info", on_disk / ADAPTER).stdout.split()
    assert "lora_inspect.stores.requests" not in loaded
    assert not [name for name in loaded if name.startswith(("fsspec", "aiohttp", "asyncio", "huggingface_hub", "s3fs"))]


@pytest.mark.parametrize(
    ("verb", "names", "output"),
    [("merge", (SHARDED, ADAPTER), ["-o", "out"]), ("convert", (RSLORA,), ["-o", "out.safetensors"]),
     ("compat", (ADAPTER,), [])],
)  # fmt: skip
def test_a_command_on_a_disk_needs_no_library_of_a_store(verb, names, output, on_disk, run_process):
    ended = run_process("-c", LOADED, verb, *(on_disk / name for name in names), *output)
    assert ended.stderr == ""
    assert not {"fsspec", "s3fs", "botocore", "aiohttp"} & set(ended.stdout.split())


def test_without_the_libraries_it_is_said_what_brings_them(run_process, server):
    script = "import sys; sys.modules['fsspec'] = None\nfrom lora_inspect.cli import main; main(['info', sys.argv[1]])"
    refused = run_process("-c", script, server.url(ADAPTER) + QUERY)
    assert refused.failure.endswith("run `pip install 'lora-inspect[remote]'`.")


def test_wrong_usage_prints_nothing_that_is_hidden(server, run):
    address = server.url("a") + QUERY
    for arguments in (["nothing", address], [address, "--nothing"], ["merge", address]):
        assert shown(run(*arguments)).status in (1, 2)
    for argument in ("s3://key:hidden@bucket/a", "--base=s3://key:hidden@bucket/a"):
        assert "an address cannot hold credentials" in shown(run("info", argument)).refusal


@pytest.mark.parametrize("key", ["../up.json", "/etc/up.json", "d/../../up.json", "./up.json"])
def test_a_name_that_leads_out_of_a_folder_is_refused(key, bucket, fixtures, run, tmp_path):
    bucket.put_folder(fixtures / "synthetic" / SHARDED, "base")
    bucket.put(f"base/{key}", b"{}")
    adapter = fixtures / "synthetic" / ADAPTER
    refused = shown(run("merge", bucket.url("base"), adapter, "-o", tmp_path / "out")).refusal
    assert "a file on a disk cannot have this name" in refused
    assert left_in(tmp_path) == []


def test_copies_of_the_model_beside_it_are_left_behind(bucket, fixtures, run, tmp_path):
    bucket.put_folder(fixtures / "synthetic" / SHARDED, "base")
    for key in ("onnx/model.onnx", "deep/er/notes.txt", "empty/", "pytorch_model.bin"):
        bucket.put(f"base/{key}", b"1")
    told = run("merge", "--json", bucket.url("base"), fixtures / "synthetic" / ADAPTER, "-o", tmp_path / "out").json
    assert sorted(told["left_behind"]) == ["onnx/", "pytorch_model.bin"]
    assert (tmp_path / "out" / "deep" / "er" / "notes.txt").read_bytes() == b"1"
