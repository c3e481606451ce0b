"""An adapter of one expert of Wan 2.2 on a base that is called the other one is merged with a note."""

import layouts
import pytest
from adapters import dotted, factors
from safetensors.torch import save_file

PATHS = [f"blocks.{number}.{leaf}" for number in (0, 1) for leaf in ("self_attn.q", "cross_attn.k", "ffn.0")]


@pytest.fixture
def said(tmp_path, run):
    """`said(base, adapter)`: what is said of a merge of files with these names, and a folder of the base."""

    def merged(base, adapter, folder="", prefix="diffusion_model.", only=()):
        own = layouts.tensors({f"{path}.weight": (6, 4) for path in PATHS})
        for name in (base, adapter):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(own, tmp_path / base)
        save_file(dotted(prefix, factors(own, PATHS)), tmp_path / adapter)
        target = tmp_path / folder if folder else tmp_path / base
        ended = run("merge", target, tmp_path / adapter, "--dry-run", *only)
        assert ended.status == 0, ended.stderr
        return ended.stderr

    return merged


def test_the_other_expert_is_told(said):
    stderr = said("wan2.2_t2v_low_noise_14B.safetensors", "style_high_noise.safetensors")
    assert "style_high_noise.safetensors is named as an adapter of the high noise expert (file name), but" in stderr
    assert "wan2.2_t2v_low_noise_14B.safetensors as the low noise one (file name)" in stderr


def test_a_folder_of_the_original_repository_has_the_name_of_its_expert(said):
    stderr = said("low_noise_model/model.safetensors", "style_high_noise.safetensors", folder="low_noise_model")
    assert "the low noise one (folder name)" in stderr


def test_what_is_merged_of_an_adapter_of_both_decides(tmp_path, run):
    own = layouts.tensors({f"{path}.weight": (6, 4) for path in PATHS})
    save_file(own, tmp_path / "low_noise.safetensors")
    both = {**dotted("transformer.", factors(own, PATHS)), **dotted("transformer_2.", factors(own, PATHS))}
    save_file(both, tmp_path / "style.safetensors")
    words = "merge", tmp_path / "low_noise.safetensors", tmp_path / "style.safetensors", "--dry-run", "--only"
    assert "expert" not in run(*words, "model_2").stderr
    assert "the high noise expert (prefix of its keys), but" in run(*words, "model").stderr


@pytest.mark.parametrize(("base", "adapter"), [
    ("low_noise.safetensors", "style_low_noise.safetensors"), ("wan.safetensors", "style_low_noise.safetensors"),
    ("low_noise.safetensors", "style.safetensors"),
])  # fmt: skip
def test_nothing_is_told_where_nothing_differs(base, adapter, said):
    assert "expert" not in said(base, adapter)
