"""A file that has each problem, by the code of the problem, and files that nearly have it."""

import hashlib
import json
import struct

from adapters import IN, OUT, lora, loras, split

PEFT = lora("base_model.model.blocks.0.q", alpha=None, spelling="peft")
CONFIG = {"peft_type": "LORA", "r": 16, "lora_alpha": 8, "target_modules": ["q"]}
MAGNITUDE = {"dora_scale": ("F32", (OUT, 1), 1)}
SHARDS = ("x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors")


def peft(**config):
    return {"tensors": PEFT, "config": {**CONFIG, **config}, "name": "adapter_model.safetensors"}


def strong(factor=6.0, **extra):
    """A fourth module of `loras`, whose change is so many times that of the others, in one direction."""
    name = "lora_unet_blocks_3_attn_q"
    return {**lora(name, **extra), f"{name}.lora_up.weight": ("F32", (OUT, 16), 0.25 * factor)}


# What the reading finds: the file of each problem; `beside` is what `write_safetensors` puts beside it.
TOYS = {
    "weights-missing": {"config": CONFIG},
    "no-weight-change": {"tensors": {"prompt_embeddings": ("F32", (4, IN), 1)}},
    "scheme-unknown": {"tensors": {f"w_{side}_000": ("F32", (4, 4), 1) for side in "ab"}},
    "no-adapter": {
        "tensors": {"a.weight": ("F32", (OUT, IN), 1)},
        "config": {"fine_tune_type": "full"},
        "name": "adapters.safetensors",
    },
    "duplicate-tensor": {"tensors": {**lora("a"), "a.lora_A.weight": ("F32", (16, IN), 1)}},
    "shape-mismatch": {"tensors": lora("a") | {"a.lora_up.weight": ("F32", (OUT, 5), 1)}},
    "incomplete": {"tensors": {"a.lora_down.weight": ("F32", (16, IN), 1)}},
    "magnitude-shape": {"tensors": lora("a", dora_scale=("F32", (OUT + 1, 1), 1))},
    "experts-ambiguous": peft(target_parameters=["mlp.experts.gate_up_proj"]),
    "peft-setting-unsupported": peft(use_qalora=True),
    "algorithm-unsupported": peft(peft_type="OF_NO_FILE_HERE"),
    "residual-base": {"tensors": loras(), "metadata": {"ss_init_lora_weights": "pissa_niter_4"}},
    "pattern-unsupported": peft(alpha_pattern={"(a+)+": 4}),
    "shards-contradict": {
        "tensors": lora("a"),
        "metadata": {"ss_network_alpha": "8"},
        "name": SHARDS[0],
        "beside": (lora("b"), {"ss_network_alpha": "4"}, SHARDS[1]),
    },
    "dora-conflict": {"tensors": {**lora("a", **MAGNITUDE), "use_dora_flag": ("F32", (), 0.0)}},
    "dora-missing": {"tensors": {**lora("a"), "use_dora_flag": ("F32", (), 1.0)}},
    "dora-partial": {"tensors": {**lora("a", **MAGNITUDE), **lora("b")}},
    "dora-stripped": {"tensors": loras(), "metadata": {"ss_network_args": json.dumps({"use_dora": "True"})}},
    "setting-contradicts": {"tensors": loras(), "alpha": 4.0},
    "setting-repeats": {"tensors": loras(), "alpha": 8.0},
    "scale-unknown": {"tensors": PEFT},
    "alpha-missing": {"tensors": {**loras(2), **lora("lora_unet_blocks_2_attn_q", alpha=None)}},
    "config-damaged": {"tensors": loras(), "metadata": {"lora_adapter_metadata": "{"}},
    "formula-unknown": {"tensors": {"base_model.model.a.oft_R.weight": ("F32", (2, 3), 1)}},
    "mixed-schemes": {"tensors": {**loras(1), **lora("transformer.blocks.1.q")}},
    "unclaimed": {"tensors": {**loras(1), "odd.tensor": ("F32", (1,), 1)}},
    "embeddings": {"tensors": {**loras(1), "bundle_emb.<own>.clip_l": ("F32", (2, IN), 1)}},
    "rslora-hint": {"tensors": loras(alpha=4.0)},
    "expert-hint": {
        "tensors": {
            "base_model.model.mlp.experts.lora_A.weight": ("F32", (4, IN), 1),
            # Two experts of rank 2, whose columns have a direction each.
            "base_model.model.mlp.experts.lora_B.weight": ("F32", (2, 4), struct.pack("<8f", 1, 1, 0, 0, 0, 0, 1, 1)),
        },
        "config": {
            **CONFIG,
            "r": 2,
            "target_parameters": ["mlp.experts.down_proj"],
            "auto_mapping": {"unsloth_fixed": True},
        },
        "name": "adapter_model.safetensors",
    },
    "trained-scale": {
        "tensors": loras(),
        "metadata": {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "dylora"}'},
    },
}


def described(tensors, first=0):
    """The entries of a header, of tensors that follow each other from a position on."""
    entries, position = {}, first
    for name, (dtype, shape, data) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + len(data)]}
        position += len(data)
    return entries


def raw(text, data):
    """A file with this text for a header."""
    header = text.encode()
    return struct.pack("<Q", len(header)) + header + data


FLOATS = {f"a.lora_{side}.weight": ("F32", (2, 2), struct.pack("<4f", 1, 2, 3, 4)) for side in ("down", "up")}
DATA = b"".join(data for _, _, data in FLOATS.values())
ENTRIES = described(FLOATS)
ODD_FIRST = {"b": ("U8", (1,), b"\x01"), **FLOATS}
BRIEF = {"separators": (",", ":")}
METADATA = {"__metadata__": {"format": "pt"}}
SHA = hashlib.sha256(DATA).hexdigest()
WHOLE = json.dumps(METADATA | ENTRIES, **BRIEF)
FLUX = {f"lora_unet_double_blocks_{i}_img_attn_qkv": 3072 for i in range(19)}


def flux(version):
    tensors = {}
    for name, width in FLUX.items():
        tensors |= lora(name, rank=2, alpha=2.0, out=3 * width, inputs=width, dtype="F16")
    return {"tensors": tensors, "metadata": {"ss_base_model_version": version}}


def dora(shape, square=False, out=OUT):
    """Two modules with a magnitude of this shape, the second one square where that is asked for."""
    sizes = [(out, IN), (IN, IN) if square else (out, IN)]
    tensors = {}
    for i, (rows, columns) in enumerate(sizes):
        own = shape if shape[0] != OUT or len(shape) > 1 else (rows,)
        tensors |= lora(f"lora_unet_{i}_q", out=rows, inputs=columns, dora_scale=("F32", own, 1.0))
    return {"tensors": tensors}


def alphas(dtype, number, rank=16, **metadata):
    return {"tensors": loras(1, rank=rank, alpha=(dtype, (), number)), "metadata": metadata}


def with_factor(suffix, dtype, number, shape=(OUT, 16)):
    return {"tensors": {**loras(), f"lora_unet_blocks_0_attn_q.{suffix}": (dtype, shape, number)}}


ZERO_UP = {f"lora_unet_blocks_{i}_attn_q.lora_up.weight": ("F32", (OUT, 16), 0.0) for i in range(3)}
DEAD = {"lora_unet_blocks_0_attn_q.lora_down.weight": ("F32", (16, IN), 0.0)}
SHA_OF_LORAS = {"sshs_model_hash": "0" * 64}
# What `check` alone looks for.
LINT_TOYS = {
    "unreadable": {"content": b"\x00" * 4},
    "not-an-adapter": {"tensors": {"blocks.0.q.weight": ("F32", (OUT, IN), 1.0)}},
    "dora-scale-flat": dora((OUT,)),
    "dora-axis-unknown": {"tensors": lora("lora_unet_q", out=IN, dora_scale=("F32", (IN,), 1.0))},
    "split-keys": {"tensors": split()},
    "split-alpha": {
        "tensors": {
            "lora_unet_double_blocks_0_img_attn_qkv.alpha": ("F32", (), 2.0),
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": ("F32", (6, IN), 1.0),
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": (
                "F32",
                (6, 6),
                struct.pack("<36f", *(float(row // 2 == column // 2) for row in range(6) for column in range(6))),
            ),
        },
        "metadata": {
            "ss_network_module": "networks.lora_flux",
            "ss_network_dim": "2",
            "ss_network_alpha": "2",
            "ss_network_args": json.dumps({"split_qkv": "True"}),
        },
    },
    "alpha-rounded": alphas("BF16", 3.3, ss_network_alpha="3.3"),
    "alpha-half": alphas("BF16", 5.65625),
    "alpha-negative": alphas("F32", -4.0),
    "flag-type": {"tensors": {**loras(), "use_rslora_flag": ("BF16", (), 1.0)}},
    "rank-large": {"tensors": loras(rank=16)},
    "mixed-dtypes": with_factor("lora_up.weight", "F16", 0.25),
    "hash-stale": {"tensors": loras(), "metadata": SHA_OF_LORAS},
    "hash-empty": {"tensors": loras(), "metadata": {"sshs_model_hash": ""}},
    "dim-contradicts": {"tensors": loras(rank=4), "metadata": {"ss_network_dim": "8"}},
    "alpha-contradicts": {"tensors": loras(rank=4, alpha=3.0), "metadata": {"ss_network_alpha": "5"}},
    "architecture-contradicts": flux("sdxl_base_v1-0"),
    "metadata-number": {"tensors": loras(rank=4), "metadata": {"ss_network_dim": "-8", "ss_network_alpha": "nan"}},
    "metadata-json": {"tensors": loras(), "metadata": {"ss_tag_frequency": "{'img': {'cat': 1}}"}},
    "metadata-empty": {"tensors": loras(), "metadata": {"ss_training_comment": " ", "modelspec.author": ""}},
    "metadata-large": {"tensors": loras(), "metadata": {"ss_tag_frequency": json.dumps("x" * 1_000_000)}},
    "header-start": {"content": raw("{ " + WHOLE[1:], DATA)},
    "metadata-late": {"content": raw(json.dumps(ENTRIES | METADATA, **BRIEF), DATA)},
    "header-padding": {"content": raw(WHOLE + "\n", DATA)},
    "unaligned": {"content": raw(json.dumps(METADATA | described(ODD_FIRST), **BRIEF), b"\x01" + DATA)},
    "tensor-empty": {"tensors": {**loras(), "nothing": ("F32", (0, 4), 0.0)}},
    "odd-name": {"tensors": {**loras(), "lora_unet_q.lora_up.weight\u200b": ("F32", (1,), 1.0)}},
    "not-finite": with_factor("lora_up.weight", "F32", float("nan")),
    "untrained": {"tensors": loras() | ZERO_UP},
    "module-dead": {"tensors": {**loras(), **dict([next(iter(ZERO_UP.items()))]), **DEAD}},
    "module-untrained": {"tensors": {**loras(), **dict([next(iter(ZERO_UP.items()))])}},
    "half-overflow": with_factor("lora_up.weight", "F32", 1e6),
    "half-subnormal": with_factor("lora_up.weight", "F16", 1e-6),
    "magnitude-sign": {"tensors": lora("lora_unet_q", dora_scale=("F32", (OUT, 1), -1.0))},
    "change-large": with_factor("lora_up.weight", "F32", 50.0),
    "spike": {"tensors": {**loras(5), **strong()}},
    "module-negligible": {"tensors": {**loras(3), **strong(1e-8)}},
    "scale-small": {"tensors": loras(rank=16, alpha=1.0)},
}


def huge(**extra):
    """A module with a large factor, and other tensors."""
    return {**lora("lora_unet_q", rank=2, **extra), "lora_unet_q.lora_up.weight": ("F32", (OUT, 2), 5000.0)}


# Other files that have the problem of a lint.
ALSO = {
    # One program gives all magnitudes the same axis, and these have two.
    "dora-axis-unknown": [{"tensors": dora((OUT,))["tensors"] | {
        key: tensor for name, size, out in (("in", IN, OUT), ("square", IN, IN))
        for key, tensor in lora(f"lora_unet_{name}", out=out, dora_scale=("F32", (size,), 1.0)).items()}}],
    "change-large": [{"tensors": huge()}],
    # Alone of its kind it is compared with all modules.
    "spike": [{"tensors": {**loras(3), **lora("lora_unet_head", alpha=50.0)}}],
    "module-negligible": [{"tensors": {**loras(3), **lora("lora_unet_head", alpha=1e-9)}}],
    "scale-small": [{"tensors": {**loras(3), **lora("lora_unet_head", rank=32, alpha=-1.0)}}],
    "alpha-rounded": [
        alphas("F16", 3.3, ss_network_alpha="3.3"),
        alphas("BF16", 3.3, ss_network_alpha="3.3", ss_network_args='{"conv_alpha": "1"}'),
        # Of an asked 0 the root of the rank is stored, and LyCORIS folds it into others.
        alphas("BF16", 2.23606797749979, rank=5, ss_network_alpha="0"),
        alphas("BF16", 7.0710678118654755, rank=2, ss_network_alpha="5"),
    ],
    "alpha-half": [alphas("F16", 3.302734375), alphas("BF16", 0.0993)],
    "dim-contradicts": [
        {"tensors": loras(rank=4), "metadata": {"ss_network_dim": "8", "ss_network_args": json.dumps(args)}}
        for args in ({"rank_dropout": "0.1"}, {"conv_dim": "1"}, {"block_dims": None})
    ],
    "header-padding": [{"content": raw(WHOLE + " " * 70_000, DATA)}],
    "hash-stale": [
        {"tensors": loras(), "metadata": {key: value}}
        for key, value in (
            ("sshs_model_hash", "no hash"),
            ("sshs_model_hash", "0x12"),
            ("modelspec.hash_sha256", "1" * 64),
            ("sshs_legacy_hash", "12345678"),
        )
    ],
    "hash-empty": [{"tensors": loras(), "metadata": {"sshs_model_hash": hashlib.sha256().hexdigest()}}],
    "odd-name": [{"tensors": {**loras(), name: ("F32", (1,), 1.0)}} for name in ("", " a", "a\n", "a\u202eb")],
    "metadata-number": [
        {"tensors": loras(), "metadata": {"ss_network_dim": value}} for value in ("inf", "0", "1.5", "1e999")
    ],
}  # fmt: skip


def two_directions():
    """Factors of rank 2 with strong changes of two rows, one four times the other."""
    up = [[0.0, 0.0] for _ in range(OUT)]
    up[0][0], up[1][1] = 400.0, 100.0
    down = [[0.0] * IN for _ in range(2)]
    down[0][0] = down[1][1] = 1.0
    name = "lora_unet_blocks_5_attn_q"
    packed = {
        key: struct.pack(f"<{len(rows) * len(rows[0])}f", *(value for row in rows for value in row))
        for key, rows in (("up", up), ("down", down))
    }
    return {
        f"{name}.lora_up.weight": ("F32", (OUT, 2), packed["up"]),
        f"{name}.lora_down.weight": ("F32", (2, IN), packed["down"]),
    }


# What is like the file of a lint and has nothing of it: real trainers write all of these.
NEAR = {
    "unreadable": [{"content": raw("{}", b"")}],
    "not-an-adapter": [{"tensors": loras()}],
    "dora-scale-flat": [
        dora((OUT, 1)),
        dora((1, IN)),
        # What fits no side, and what is of slices, is wrong in another way.
        {"tensors": lora("lora_unet_q", dora_scale=("F32", (OUT + IN,), 1.0))},
        {"tensors": {**split(out=2), "lora_unet_blocks_0_attn_qkv.dora_scale": ("F32", (2,), 1.0)}},
    ],
    "dora-axis-unknown": [dora((OUT,), square=True)],
    "split-keys": [{"tensors": loras()}],
    "split-alpha": [
        {"tensors": loras(rank=6), "metadata": {"ss_network_module": "networks.lora", "ss_network_dim": "6"}}
    ],
    "alpha-missing": [
        {"tensors": loras(alpha=None)},
        {"tensors": {**loras(2), "lora_unet_norm.w_norm": ("F32", (IN,), 1.0)}},
        {"tensors": {**loras(2), "lora_unet_x.diff": ("F32", (OUT, IN), 1.0)}},
        # PEFT keeps alpha elsewhere.
        {"tensors": {**lora("base_model.model.a.q"), **lora("base_model.model.b.q", alpha=None)}},
    ],
    "alpha-rounded": [
        alphas("BF16", 8.0, ss_network_alpha="8"),
        alphas("BF16", 3.3),
        alphas("F32", 3.3, ss_network_alpha="3.3"),
        # A pattern and an option give other alphas.
        alphas("BF16", 3.3, ss_network_alpha="3.3", ss_alpha_pattern="{}"),
        # LyCORIS's alpha times sqrt(rank).
        alphas("BF16", 32.0, ss_network_alpha="8"),
    ],
    "alpha-half": [alphas("BF16", number) for number in (1.0, 8.0, 129.0, 255.0, 0.5, 2.5)]
    + [alphas("F16", 3.25), alphas("F16", 5.65625), alphas("F32", 5.656854)],
    "alpha-negative": [alphas("F32", 0.0)],
    "flag-type": [
        {"tensors": {**loras(), "use_rslora_flag": ("BOOL", (), 1)}},
        {"tensors": {**loras(), "use_rslora_flag": ("F32", (), 2.0)}},
    ],
    "rank-large": [{"tensors": loras(rank=5)}, {"tensors": loras(rank=16, inputs=4, out=16, kernel=(2, 2))}],
    "mixed-dtypes": [
        {"tensors": loras(dtype="F16")},
        dora((OUT, 1)),
        {"tensors": {**loras(dtype="F16"), **lora("x", 1, inputs=1, dtype="F16"),
                     "x.lora_down.weight": ("F32", (1, 1), 1.0)}},
    ],
    "hash-stale": [
        {"content": raw(json.dumps({"__metadata__": {key: value}} | ENTRIES, **BRIEF), DATA)}
        for key, value in (
            ("sshs_model_hash", SHA),
            ("modelspec.hash_sha256", SHA),
            ("modelspec.hash_sha256", f"0x{SHA.upper()}"),
            # LyCORIS hashes in the order of its modules, which no file shows.
            ("sshs_model_hash", f"0x{'1' * 64}"),
            # That of files below a mebibyte.
            ("sshs_legacy_hash", "e3b0c442"),
            # That of a file of nothing.
            ("sshs_legacy_hash", "E3B0C442"),
            # That of a base.
            ("ss_sd_model_hash", "12345678"),
        )
    ],
    "hash-empty": [
        {"tensors": loras(), "metadata": {"sshs_legacy_hash": "e3b0c442"}},
        {"content": raw(json.dumps({"__metadata__": {"sshs_model_hash": hashlib.sha256().hexdigest()}}), b"")},
    ],
    "dim-contradicts": [
        {"tensors": loras(rank=4), "metadata": {"ss_network_dim": dim}} for dim in ("4", "Dynamic", "None", "[8]")
    ]
    + [
        {"tensors": loras(rank=4), "metadata": {"ss_network_dim": "8", "ss_network_args": json.dumps(args)}}
        for args in ({"block_dims": "4"}, {"single_dim": "4"}, {"network_reg_dims": "q=4"})
    ]
    + [
        {"tensors": loras(rank=4), "metadata": {"ss_network_dim": "2", "ss_network_args": '{"split_qkv": "True"}'}},
    ]
    + [
        {"tensors": loras(rank=IN), "metadata": {"ss_network_dim": "8"}},
        {"tensors": {**loras(1, rank=4), **lora("lora_te_x", rank=8)}, "metadata": {"ss_network_dim": "8"}},
        {
            "tensors": loras(rank=4, kernel=(3, 3), inputs=8, out=8),
            "metadata": {"ss_network_dim": "16", "ss_network_args": json.dumps({"conv_dim": "4"})},
        },
    ],
    "alpha-contradicts": [
        {"tensors": loras(rank=4, alpha=alpha), "metadata": {"ss_network_alpha": asked, **more}}
        for alpha, asked, more in (
            (3.0, "3.0", {}),
            (2.0, "1", {}),  # times sqrt(4), as LyCORIS folds it
            (4.0, "0", {}),
            (2.0, "0", {}),
            (3.0, "Dynamic", {}),
            (1.0, "4", {"ss_network_dim": "16"}),  # a smaller rank of the same scale
            (3.0, "5", {"ss_alpha_pattern": "{}"}),
        )
    ]
    + [{"tensors": loras(alpha=None), "metadata": {"ss_network_alpha": "4"}}],
    "architecture-contradicts": [
        *(flux(version) for version in ("flux1", "chroma", "nobody knows", "")),
        {"tensors": loras(), "metadata": {"ss_base_model_version": "flux1"}},
    ],
    "metadata-number": [
        {"tensors": loras(rank=4), "metadata": {"ss_network_dim": dim, "ss_network_alpha": alpha}}
        for dim, alpha in (("4", "8.0"), ("None", "None"), ("Dynamic", "Dynamic"), ("4.0", "0"))
    ],
    "metadata-json": [
        {"tensors": loras(), "metadata": {"ss_tag_frequency": value, "ss_training_comment": "{"}}
        for value in ('{"img": {"cat": 1}}', "null", "None", "")
    ],
    "metadata-empty": [{"tensors": loras(), "metadata": {"ss_training_comment": "None"}}],
    "metadata-large": [{"tensors": loras(), "metadata": {"ss_tag_frequency": json.dumps("x" * 900_000)}}],
    "header-start": [{"content": raw(WHOLE, DATA)}, {"content": raw("{}", b"")}],
    "metadata-late": [{"content": raw(WHOLE, DATA)}, {"content": raw(json.dumps(ENTRIES, **BRIEF), DATA)}],
    # A writer leaves room for later.
    "header-padding": [{"content": raw(WHOLE + " " * 4096, DATA)}, {"content": raw(WHOLE, DATA)}],
    "unaligned": [
        {"content": raw(WHOLE + " " * (-len(WHOLE) % 8), DATA)},
        # Headers were not padded before 2023, and F16 begins where it may all the same.
        {"tensors": {**loras(dtype="F16"), "n": ("U8", (1,), 1)}},
        # What has no bytes begins nowhere.
        {"tensors": {**loras(), "n": ("U8", (1,), 1), "nothing": ("F32", (0,), 0.0)}},
    ],
    "tensor-empty": [{"tensors": loras()}],
    "odd-name": [{"tensors": {**loras(1), "bundle_emb.小明.clip_l": ("F32", (2, IN), 1)}, "metadata": {"ss_é": "x"}}],
    "not-finite": [
        with_factor("lora_up.weight", "F16", 65504.0),
        # The largest numbers of a type without infinities.
        {"tensors": {**loras(), "lora_unet_x.diff": ("F8_E4M3", (1, 2), b"\x7e\xfe")}},
    ],
    "untrained": [
        {"tensors": loras()},
        {"tensors": lora("lora_unet_q", dora_scale=("F32", (OUT, 1), 1.0)) | {
            "lora_unet_q.lora_up.weight": ("F32", (OUT, 16), 0.0)}},
    ],
    "module-dead": [{"tensors": {**loras(), **DEAD}}],
    "module-untrained": [{"tensors": loras()}, LINT_TOYS["module-dead"]],
    "half-overflow": [with_factor("lora_up.weight", "F32", 65504.0)],
    "half-subnormal": [with_factor("lora_up.weight", "F16", 1e-4), with_factor("lora_up.weight", "BF16", 1e-6)],
    "magnitude-sign": [dora((OUT, 1))],
    "change-large": [with_factor("lora_up.weight", "F32", 0.05), {"tensors": loras(alpha=4.0)},
        # How much of these changes is left hangs on the base, or on a core.
        {"tensors": huge(dora_scale=("F32", (OUT, 1), 1.0))},
        {"tensors": huge(kernel=(1, 1)) | {
            "lora_unet_q.lora_up.weight": ("F32", (OUT, 2, 1, 1), 5000.0),
            "lora_unet_q.lora_mid.weight": ("F32", (2, 2, 3, 3), 1e-6)}},
    ],
    "spike": [
        {"tensors": {**loras(5), **strong(4.9)}},
        # With two directions of nearly one size.
        {"tensors": {**loras(5, rank=2), **lora("lora_unet_blocks_5_attn_q", rank=2), **two_directions()}},
        {"tensors": {**loras(5), **strong(6.0, dora_scale=("F32", (OUT, 1), 1.0))}},
    ],
    "module-negligible": [
        {"tensors": {**loras(3), **strong(1e-5)}},
        # All zeros are told as such.
        LINT_TOYS["module-untrained"],
        LINT_TOYS["module-dead"],
        {"tensors": loras() | ZERO_UP},
    ],
    "scale-small": [
        {"tensors": loras(rank=15, alpha=1.0)},
        {"tensors": loras(alpha=None)},
        # The meaning of a file that lacks its magnitudes is open.
        {"tensors": {**loras(rank=16, alpha=1.0), "use_dora_flag": ("F32", (), 1.0)}},
    ],
}  # fmt: skip
