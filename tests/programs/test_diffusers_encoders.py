"""What `compat` says of files for pipelines of diffusers that change text encoders is what the real pipelines do.

A verdict that is `unknown` where the pipeline shows what becomes of the file is a gap, listed in GAPS.
"""

import diffusers_encoders
import pytest
from adapters import PEFT
from diffusers_encoders import ENCODERS, adapter_of, loaded
from program_grid import differs, is_gap, observe

from lora_inspect.ops.compat import compat

pytestmark = pytest.mark.slow

TE, TE1, TE2 = "lora_te_", "lora_te1_", "lora_te2_"
# (family, names of the model, what the names of each encoder begin with).
UNDERSCORED = [
    ("sdxl", "kohya", (TE1, TE2)),
    ("sdxl", "kohya, diffusers", (TE1, TE2)),
    ("sd15", "kohya", (TE,)),
    ("sd15", "onetrainer", (TE1,)),
    ("sd2", "kohya", (TE,)),
    ("sd3", "kohya", (TE1, TE2, "lora_te3_")),
    ("sd3", "onetrainer", (TE1, TE2, "lora_te3_")),
    ("flux", "kohya", (TE1,)),
    ("flux", "kohya", (TE1, "lora_te3_")),
    ("flux", "onetrainer", (TE1,)),
    ("flux", "onetrainer", (TE1, TE2)),
]
DOTTED = [
    ("sdxl", "diffusers", ("text_encoder.", "text_encoder_2.")),
    ("sd15", "diffusers", ("text_encoder.",)),
    ("sd2", "diffusers", ("text_encoder.",)),
    ("sd3", "diffusers", ("text_encoder.", "text_encoder_2.")),
    ("sd3", "diffusers", ("text_encoder.", "text_encoder_2.", "text_encoder_3.")),
    ("flux", "diffusers", ("text_encoder.",)),
    ("flux", "diffusers", ("text_encoder.", "text_encoder_2.")),
    ("flux", "diffusers, down and up", ("text_encoder.",)),
]
KINDS = (
    *("lora", "uneven", "rslora flag", "dora_scale of outputs", "magnitude vector", "loha", "lokr whole", "full"),
    *("bias of the up layer", "stranger"),
)
CONFIGS = ("rslora config", "dora config")
_UNEVEN, _BIAS = {("uneven", True)}, {("bias of the up layer", False)}
_OF_FLUX = {*_UNEVEN, *_BIAS, ("bias of the up layer", True)}
GAPS = {
    **dict.fromkeys(UNDERSCORED[:5], _UNEVEN),
    **dict.fromkeys(DOTTED[:5], _BIAS),
    **dict.fromkeys(DOTTED[5:7], _OF_FLUX),
    DOTTED[7]: {("bias of the up layer", True), ("magnitude vector", True)},
}
CELLS = [*UNDERSCORED, *DOTTED]


def judged(family, names, kind, has_alpha, prefixes, file, **options):
    """(what was written, the verdict of `compat`, what the pipeline did)."""
    made = adapter_of(family, names, kind, has_alpha, dict(zip(ENCODERS[family], prefixes, strict=False)), **options)
    made.write(file)
    (verdict,) = compat(str(file), "diffusers").verdicts
    return made, verdict, observe(made.meant, lambda: loaded(family, file))


@pytest.mark.parametrize(("family", "names", "prefixes"), CELLS, ids=lambda part: str(part))
def test_pipelines_with_encoders_do_what_is_said(family, names, prefixes, tmp_path):
    wrong, gaps = [], set()
    kinds = (*KINDS, *(CONFIGS if names == "diffusers" else ()))
    for kind in kinds:
        for has_alpha in (True,) if kind in CONFIGS or kind == "full" else (True, False):
            # RS-LoRA without an alpha means nothing.
            if kind == "rslora flag" and not has_alpha:
                continue
            _, verdict, seen = judged(family, names, kind, has_alpha, prefixes, tmp_path / "adapter.safetensors")
            if why := differs(verdict, seen):
                wrong.append((kind, has_alpha, why))
            if is_gap(verdict):
                gaps.add((kind, has_alpha))
    assert (wrong, gaps) == ([], GAPS.get((family, names, prefixes), set()))


@pytest.mark.parametrize("kind", ["lora", "rslora flag", "magnitude vector"])
@pytest.mark.parametrize(
    ("family", "names", "prefixes"), [CELLS[0], CELLS[3], CELLS[7], DOTTED[0], DOTTED[3]], ids=lambda part: str(part)
)
def test_what_is_written_for_them_loads_as_it_was_trained(family, names, prefixes, kind, tmp_path, run):
    """Magnitudes of encoders, too, which transformers takes under one of two names."""
    source, output = tmp_path / "adapter.safetensors", tmp_path / "written.safetensors"
    spelling = PEFT if names == "diffusers" and kind == "magnitude vector" else None
    made, _, _ = judged(family, names, kind, kind != "magnitude vector", prefixes, source, spelling=spelling)
    if names == "diffusers" and kind != "magnitude vector":
        return
    options = ("--keep-dora",) if kind == "magnitude vector" else ()
    ended = run("convert", source, "--to", "diffusers", "--architecture", family, *options, "-o", output)
    assert ended.status == 0, ended.stderr
    (written,) = compat(str(output), "diffusers").verdicts
    assert written.verdict == "same meaning"
    assert observe(made.meant, lambda: loaded(family, output)).verdict == "same meaning"


@pytest.mark.parametrize(("names", "prefix"), [("kohya", TE1), ("kohya", TE), ("diffusers", "text_encoder.")])
@pytest.mark.parametrize("family", ["flux", "chroma"])
def test_the_first_encoder_has_no_names_of_t5(family, names, prefix, tmp_path, monkeypatch):
    """It is a CLIP in FLUX, and a T5 in Chroma, whose pipeline has no other."""
    first = {"text_encoder": ENCODERS["flux"]["text_encoder_2"]}
    monkeypatch.setitem(ENCODERS, "chroma", first)
    component = "text_encoder" if family == "chroma" else "text_encoder_2"
    made = adapter_of(family, names, "lora", names == "kohya", {component: prefix})
    file = tmp_path / "adapter.safetensors"
    made.write(file)
    (verdict,) = compat(str(file), "diffusers").verdicts
    seen = observe(made.meant, lambda: loaded(family, file))
    assert (verdict.verdict, seen.verdict) == ("refused", "refused")
    assert verdict.says in seen.says


@pytest.mark.parametrize(
    ("leaves", "expected"),
    [
        (("q_proj", "k_proj", "v_proj"), "refused"),
        (("q_proj", "out_proj"), "same meaning"),
        (("q_proj", "k_proj", "v_proj", "fc1"), "partly loaded"),
        (("fc1", "fc2"), "same meaning"),
        (("v_proj", "fc2", "out_proj"), "same meaning"),
    ],
)
@pytest.mark.parametrize(("family", "names", "prefixes"), [CELLS[0], CELLS[2], CELLS[7]], ids=lambda part: str(part))
def test_some_layers_tell_whose_names_they_have(family, names, prefixes, leaves, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(diffusers_encoders, "_LEAVES", leaves)
    made, verdict, seen = judged(family, names, "lora", True, prefixes, tmp_path / "adapter.safetensors")
    assert (verdict.verdict, seen.verdict) == (expected, expected)
    assert made.meant
