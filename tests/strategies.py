"""All hypothesis strategies: headers, module paths, alphas and whole adapters."""

import json
import math
import string
import struct

from hypothesis import strategies as st

from lora_inspect import architectures
from lora_inspect.algorithms import every
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.files.safetensors.writer import TensorPlan
from lora_inspect.maths.scaling import PACKINGS
from lora_inspect.reading.keys.suffixes import SHARED
from lora_inspect.reading.model.settings import Settings
from lora_inspect.schemes import SCHEMES

# Words of real paths, with the traps among them: underscores, numbers, words of suffixes and of prefixes.
_WORDS = (
    "blocks", "0", "12", "self_attn", "q", "k_img", "to_out", "ffn", "img_mod", "adaLN_modulation", "lora", "alpha",
    "weight", "down", "transformer", "te1", "unet", "layer", "proj", "x_embedder", "magnitude", "lora_down", "diff",
)  # fmt: skip

_LETTERS = string.ascii_lowercase + string.digits


def _word(number: int, letters: str = string.ascii_lowercase) -> str:
    """The word of letters and digits that a number is, by default with a small letter in front."""
    number, first = divmod(number, len(letters))
    return letters[first] + (_word(number - 1, _LETTERS) if number else "")


# Each word is drawn at once: letter by letter hypothesis takes several times as long.
_words = st.integers(0, 26 * 36**4).map(_word)
_joined_words = st.tuples(_words, st.integers(0, 36**3).map(lambda number: _word(number, _LETTERS))).map("_".join)

segments = st.one_of(st.sampled_from(_WORDS), _words, _joined_words)
paths = st.lists(segments, min_size=1, max_size=6).map(".".join)

# Names and metadata as JSON may carry them: anything that UTF-8 can spell.
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
names = texts.filter(lambda text: text != "__metadata__")
metadata = st.dictionaries(texts, texts, max_size=4)


def _plan(name: str, dtype: str, shape: list[int]) -> TensorPlan:
    if math.prod(shape) * BITS[dtype] % 8:
        shape = [*shape, 8]  # types below a byte are stored in whole bytes
    return TensorPlan(name, dtype, tuple(shape))


shapes = st.lists(st.integers(0, 5), max_size=4)
tensor_plans = st.lists(
    st.builds(_plan, names, st.sampled_from(sorted(BITS)), shapes), max_size=6, unique_by=lambda plan: plan.name
)


# What replaces or splits parts of a header: signs, numbers and words that parsers differ about.
_PARTS = (
    *'{}[]:,"\\- \t\n\0', "0", "-0", "1", "1.0", "1e0", "1e999", "-1", "00", "NaN", "Infinity", "null", "true", "[]",
    "{}", '""', "\\u0061", "\\ud800", "\ufeff", "é", "18446744073709551616", "9" * 309, '"a"', '"dtype"', '"F32"',
    '"shape":[0],', '"data_offsets":[0,0],', '"__metadata__":', '"x":1,', "[" * 130, "]" * 130,
)  # fmt: skip


@st.composite
def damaged(draw, header):
    """The header with one to three places in which something else stands, or the same twice."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(header)))
        stop = min(len(header), start + draw(st.sampled_from([0, 0, 1, 1, 2, 5, 30])))
        part = draw(st.one_of(st.sampled_from(_PARTS), st.just(header[start:stop] * 2)))
        header = header[:start] + part + header[stop:]
    return header


def truncate_bf16(number: float) -> float:
    """The bfloat16 number whose bytes are the upper half of the float32."""
    return struct.unpack("<f", b"\x00\x00" + struct.pack("<f", number)[2:])[0]


# (dtype, number) with numbers that the dtype holds exactly.
stored_numbers = st.one_of(
    st.tuples(st.just("F64"), st.floats(allow_nan=False)),
    st.tuples(st.just("F32"), st.floats(allow_nan=False, width=32)),
    st.tuples(st.just("F16"), st.floats(allow_nan=False, width=16)),
    st.tuples(st.just("BF16"), st.floats(allow_nan=False, width=32).map(truncate_bf16)),
    st.tuples(st.just("I64"), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just("I32"), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just("I16"), st.integers(-(2**15), 2**15 - 1)),
    st.tuples(st.just("I8"), st.integers(-128, 127)),
    st.tuples(st.just("U8"), st.integers(0, 255)),
    st.tuples(st.just("BOOL"), st.booleans()),
)

ranks = st.integers(1, 6)
alphas = st.sampled_from([0.5, 1.0, 2.0, 3.0, 8.0, -1.5])

# Ends of keys: those of whole modules, and any that some algorithm knows.
_MODULES = (
    (".lora_down.weight", ".lora_up.weight", ".alpha"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight", ".lora_magnitude_vector"),
    (".lora_down.weight", ".lora_up.weight", ".lora_mid.weight", ".dora_scale"),
    (".lora_down.0.weight", ".lora_up.0.weight", ".lora_down.1.weight", ".lora_up.1.weight", ".alpha"),
)
_SUFFIXES = sorted({*SHARED, *(suffix for algorithm in every().values() for suffix in algorithm.suffixes)})
_PREFIXES = sorted({prefix for scheme in SCHEMES.values() for prefix in scheme.prefixes})


@st.composite
def odd_adapters(draw):
    """Tensors by name as `encode` takes them: modules of any spelling whose shapes and types may be anything."""
    tensors = {}
    for _ in range(draw(st.integers(0, 3))):
        module = draw(st.sampled_from(_PREFIXES)) + draw(st.one_of(st.just("blocks_0_q"), paths, st.just("")))
        suffixes = [*draw(st.sampled_from(_MODULES)), *draw(st.lists(st.sampled_from(_SUFFIXES), max_size=2))]
        keys = [module + suffix for suffix in suffixes]
        if draw(st.booleans()):
            keys = draw(st.permutations(keys))[1:]
        for key in keys:
            dtype = draw(st.sampled_from(["F32", "F32", "F32", "BF16", "BOOL", "I64", "C64"]))
            shape = draw(st.sampled_from([(), (1,), (4, 4), (4, 4), (4, 4), (4, 4, 1, 1), (4, 4, 3, 3), (0, 4), (4,)]))
            tensors[key] = (dtype, shape, bytes(math.prod(shape) * BITS[dtype] // 8))
    for flag in ("use_rslora_flag", "use_dora_flag", "lokr_factor"):
        if draw(st.booleans()):
            tensors[flag] = ("BF16", (), b"\x80\x3f")
    return tensors


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["q", "(", "pissa", "True", ""])),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(["q", "(", "r"]), inner)),
    max_leaves=4,
)
lora_configs = st.dictionaries(
    st.sampled_from(
        ["peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "target_modules",
         "bias", "modules_to_save", "init_lora_weights", "fan_in_fan_out", "layer_replication"]
    ),
    json_values,
)  # fmt: skip

_strengths = st.floats(allow_nan=False, allow_infinity=False)
# Components and globs: whatever has no sign of the grammar, nor of a file's address, and is no setting of its own.
_pattern_letters = st.characters(exclude_categories=("Cs", "Z", "Cc"), exclude_characters=r"/\:;,=")
_patterns = st.text(_pattern_letters, min_size=1, max_size=8).filter(
    lambda text: text not in ("alpha", "rslora", "residual")
)
settings = st.builds(
    Settings,
    multiplier=st.none() | _strengths,
    part_multipliers=st.dictionaries(_patterns, _strengths, max_size=3).map(lambda found: tuple(found.items())),
    rslora=st.none() | st.booleans(),
    alpha=st.none() | _strengths,
    allow_partial_dora=st.just(False),
    expert_packing=st.none() | st.sampled_from(PACKINGS),
    residual=st.none() | st.booleans(),
    architecture=st.none() | st.sampled_from([family.name for family in architectures.every()]),
    step=st.none() | st.integers(0, 10**12 - 1),
    of_several=st.just(False),
)


def _grouped(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    quantifiers = st.sampled_from(["", "*", "+", "?", "{1,2}", "{2}", "{,2}", "{0}", "*?", "+?", "??", "{1,}", "{,}"])
    bodies = st.one_of(inner, st.tuples(inner, inner).map("".join), st.tuples(inner, inner).map("|".join))
    return st.builds(lambda opens, body, repeated: f"{opens}{body}){repeated}", st.sampled_from(["(", "(?:"]), bodies,
                     quantifiers)  # fmt: skip


# Regular expressions, of which some are none.
expressions = st.recursive(
    st.lists(
        st.sampled_from(
            ["a", "b", ".", r"\.", "[ab]", "[^a.]", r"\w", r"\d", "\n", "^", "$", r"\b", r"\A", r"\Z", "a*", ".*",
             "b+?", "a?", "{", "]", "x{1,2}", "a{\u0662}", "b{,\u0662}", "|", "\\_"]
        ),
        max_size=4,
    ).map("".join),
    _grouped,
    max_leaves=6,
)  # fmt: skip

# Keys that trainers tell of a training by.
_TOLD_KEYS = (
    "modelspec.title", "ss_output_name", "name", "ss_sd_model_name", "modelspec.trigger_phrase", "ss_tag_frequency",
    "ss_dataset_dirs", "ss_datasets", "ot_config", "training_info", "ss_training_comment", "ss_steps", "ss_resolution",
    "ss_learning_rate", "ss_optimizer", "ss_training_finished_at", "modelspec.date", "ss_epoch",
)  # fmt: skip
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
told_metadata = st.dictionaries(st.sampled_from(_TOLD_KEYS), st.text(max_size=40) | any_json.map(json.dumps))
