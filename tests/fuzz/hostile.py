"""What has broken readers of such files before, as data: names, numbers, patterns, metadata, first bytes."""

import io
import json
import os
import pickle
import zipfile
from typing import Any

from fuzz.odd_json import Raw

# What only a file that must not be read holds: it must never turn up in an output.
SECRET = b"the secret of another folder"


class Runs:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def _zip(data: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
    return packed.getvalue()


FOREIGN = (
    b"",
    b"\x00",
    b"{}",
    bytes(8),
    bytes(64),
    b"\xff" * 16,
    pickle.dumps(Runs(), 2),
    pickle.dumps(Runs(), 0),
    pickle.dumps({"state_dict": [0.0] * 4}, 4),
    _zip(pickle.dumps(Runs(), 2)),
    b"GGUF\x03\x00\x00\x00" + bytes(32),
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n",
    b"<!DOCTYPE html><html><body>404</body></html>",
    b'{"weight_map": {}}',
    b'{"r": 8, "peft_type": "LORA"}',
    b"[" * 5000,
    b"\x89HDF\r\n\x1a\n" + bytes(16),
    b"\x93NUMPY\x01\x00" + bytes(16),
    b"import os\nos.system('touch executed')\n",
)

BIG = 2**63
NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 8, 16, 255, 2**31, 2**32, 2**53 + 1, 2**62, BIG - 1, BIG, 2**64, 10**30, 0.5, -0.0, 1e-320, 5e-324,
    1e308, Raw("1e999"), Raw("NaN"), Raw("-Infinity"), Raw("Infinity"), Raw("1" * 5000), Raw("-" + "9" * 400),
    Raw("1" + "0" * 400), Raw("1." + "0" * 500), Raw("01"), Raw("+1"), Raw("0x10"), Raw("1_000"), True, False,
)  # fmt: skip

DTYPES: tuple[Any, ...] = (
    "F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "F8_E4M3", "F8_E5M2",
    "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "F6_E2M3", "F6_E3M2", "C64", "F33", "f32", "", "F32 ", "\x1b[31mF32",
    "x" * 3000, [], ["F32"], {}, {"F32": 1}, None, 7, True,
)  # fmt: skip

SHAPES: tuple[Any, ...] = (
    [], [0], [1], [0, 0], [2**62, 2**62, 0], [2**31, 2**31], [2**63 - 1], [2**64], [-1], [1, -1], [1.0], [2.5], ["4"],
    [True], [None], [[4, 4]], "", "44", {}, {"0": 4}, None, 16, [1] * 3000, [0, 2**40], [Raw("9" * 5000)], [Raw("NaN")],
    [2**20, 2**20, 2**20],
)  # fmt: skip

WORDS = (
    "", ".", "..", " ", "\x00", "\n", "\r\x1b[2K", "\x1b]0;title\x07", "\x9b31m", "\u202e", "\u200b", "\ud800",
    "é", "e\u0301" * 9, "表", "\U0001f600", "'", '"', "`touch executed`", "$(touch executed)", "%s%n", "{}", "{0}",
    "[q", "*", "?", "-o", "--force", "__metadata__", "__class__", "a" * 300, "." * 300, "._" * 100, "9" * 5000, "0",
    "00", "weight", "alpha", "lora", "lora_unet_", "C:\\x", "../outside/secret.txt", "blocks.0.attn.to_q.weight",
)  # fmt: skip

# Regular expressions as configurations hold them: those that never end first.
PATTERNS = (
    "(a+)+$", "(a|a)*b", "(.*)*x", "((.|_)+)+!", "(?:[a-z_.0-9]+)*\\Z!", "(\\w+\\.?)+$", "([^.]+\\.)*([^.]+)*#",
    "(.+)\\1+$", "(?=(.+))\\1+!", "[", "(", ")", "*", "^", "$", "?", "\\", "(?P<n>", "(?#", "(?i)(?s)q",
    "q{1000000000}", "(q{500}){500}", "a{99999}{99999}", ".*" * 40, "(" * 200 + ")" * 200, "q|" * 2000, "q" * 5000,
    "." * 2000, "to_q", "attn.to_q", ".*\\.attn\\.to_q", "^blocks.0.*", "blocks.0.attn.to_q", "(?<=q)", "(?(1)q)",
    "[[:alpha:]]+", "\\d+", "(?:)*", "(|q)+",
)  # fmt: skip

TEXTS = (
    *WORDS,
    *PATTERNS[:8],
    "LORA",
    "DORA",
    "IA3",
    "all-linear",
    "pissa",
    "olora",
    "eva",
    "True",
    "False",
    "none",
    "yes",
)

JSON_VALUES: tuple[Any, ...] = (
    None, [], {}, [[]], [None], {"": None}, "x", *NUMBERS, *TEXTS[:20], Raw("[" * 900 + "]" * 900),
    Raw("[" * 100000), Raw('{"a":' * 900 + "1" + "}" * 900), Raw(""), Raw("{"), Raw("nul"), Raw("'x'"),
    Raw('"\\ud800"'), Raw('{"r":1,"r":2}'),
)  # fmt: skip

CONFIG_FIELDS = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_rslora", "use_dora", "peft_type", "bias",
    "modules_to_save", "exclude_modules", "init_lora_weights", "fan_in_fan_out", "layer_replication", "layers_pattern",
    "layers_to_transform", "target_parameters", "lora_bias", "use_qalora", "use_bdlora", "trainable_token_indices",
    "base_model_name_or_path", "task_type", "megatron_config", "loftq_config", "corda_config", "quantization_config",
)  # fmt: skip

METADATA_FIELDS = (
    "ss_network_args", "ss_network_alpha", "ss_network_dim", "ss_network_module", "ss_base_model_version", "ss_v2",
    "ss_rank_pattern", "ss_alpha_pattern", "ss_rank_pattern_match_semantics", "ss_init_lora_weights", "software",
    "ss_sd_scripts_commit_hash", "lora_adapter_metadata", "modelspec.architecture", "quant_map", "format",
    "lora_inspect.scale", "lora_inspect.folded", "lora_inspect.magnitudes", "lora_inspect.converted",
    "lora_inspect.merged", "lora_inspect.combined", "lora_inspect.network", "lora_inspect.trained_as",
    "lora_inspect.initial_factors", "lora_inspect.init_lora_weights",
)  # fmt: skip

METADATA_VALUES = (
    *TEXTS, "networks.lora", "networks.lora_wan", "lycoris.kohya", "networks.loha", "networks.lokr", "4", "0", "0.0",
    "-1", "None", "nan", "inf", "1e400", "1" * 5000, "1" + "0" * 400, "alpha/rank", "alpha/sqrt(rank)",
    "wan2.1", "[" * 5000, "null", "[]", "{}", '{"use_rslora": "True"}', '{"use_rslora": []}',
    '{"algo": "lokr", "conv_dim": "x"}', '{"split_qkv": "True"}', '{"rank_pattern": "{\'(a+)+$\': 4}"}', "{'q': 4}",
    '{"r": NaN}', '{"split_dims": "[1,2"}', '{"r": 4, "r": 8}', json.dumps({"blocks.0.attn.to_q": 4, "(a+)+$": 8}),
    json.dumps({"transformer.r": 4, "transformer.lora_alpha": 5e-324}),
)  # fmt: skip

# Elements as floats: whatever has no reciprocal, no square, no neighbour.
FLOATS = (0.0, -0.0, 1.0, -1.0, 5e-324, 1e-45, 1e-38, 3.4e38, 1e300, 1.8e308, float("inf"), float("-inf"), float("nan"))

# Names beside the weights of a folder.
SIDE_NAMES = (
    "config.json", "README.md", "tokenizer.json", "sub/deep/file.txt", ".git/config", "checkpoint-1/optimizer.pt",
    "a\nb.txt", "\x1b[31m.txt", "\u202egpj.txt", "-o", "x" * 200, "pickle.py", "networks/__init__.py",
    "sitecustomize.py", "json.py", "model.bin", "model.gguf", "adapter_config.json", "model.safetensors.index.json",
    "other.safetensors", "a.safetensors.header-journal", "out.safetensors.0123456789abcdef.partial",
    "out.safetensors.0123456789abcdef.partial.lock",
    "outdir.0123456789abcdef.partial.old", "x.0123456789abcdef.partial.gone", "\udcff\udcfe.safetensors",
)  # fmt: skip

LINKS = ("../outside/secret.txt", "../../outside/secret.txt", "/etc/hostname", "/dev/zero", ".", "..", "nowhere",
         "config.json", "a.safetensors", "/proc/self/mem")  # fmt: skip
