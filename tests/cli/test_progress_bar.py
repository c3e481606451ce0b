"""The progress bar: on a terminal alone, and never above a refusal."""

import sys

import pytest
from toy_adapters import base, loras

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
if sys.platform != "win32":
    from pseudo_terminal import on_a_terminal


def test_a_bar_is_drawn_by_what_is_done_and_not_by_what_is_refused(write_safetensors, tmp_path):
    model, adapter = (
        write_safetensors(base(), name="base.safetensors"),
        write_safetensors(loras(), name="a.safetensors"),
    )
    magnitude = {"dora_scale": ("F32", (6, 1), 1.0)}
    dora = write_safetensors(loras(1, **magnitude), name="dora.safetensors")
    words = {
        "Merging": ["merge", model, adapter, "-o", tmp_path / "merged.safetensors"],
        "Converting": ["convert", dora, "--base", model, "--rank", "1", "--lossy", "-o", tmp_path / "c.safetensors"],
    }
    done = on_a_terminal(words.values(), tmp_path)
    refused = on_a_terminal(words.values(), tmp_path)  # the outputs exist
    for label, (status, output), (refusal, sentence) in zip(words, done, refused, strict=True):
        assert (status, refusal) == (0, 1)
        assert f"{label}  [".encode() in output
        assert b"100%" in output
        assert label.encode() not in sentence
        assert sentence.startswith(b"Error: ")
