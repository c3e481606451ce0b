"""The progress bar: on a terminal alone, and never above a refusal."""

import json
import re
import sys
import types

import pytest
from adapters import base, loras

from lora_inspect.cli.progress_bar import in_bytes, of_all, percent, progress_bar

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
if sys.platform != "win32":
    from pseudo_terminal import on_a_terminal


@pytest.mark.slow
def test_a_bar_is_drawn_by_what_is_done_and_not_by_what_is_refused(write_safetensors, tmp_path):
    model, adapter = (
        write_safetensors(base(), name="base.safetensors"),
        write_safetensors(loras(), name="a.safetensors"),
    )
    magnitude = {"dora_scale": ("F32", (6, 1), 1.0)}
    dora = write_safetensors(loras(1, **magnitude), name="dora.safetensors")
    words = {
        "Merging": ["merge", model, adapter, "-o", tmp_path / "merged.safetensors"],
        "Converting": [
            "convert",
            dora,
            "--base",
            model,
            "--rank",
            "1",
            "--allow-loss",
            "-o",
            tmp_path / "c.safetensors",
        ],
    }
    done = on_a_terminal(words.values(), tmp_path)
    refused = on_a_terminal(words.values(), tmp_path)  # the outputs exist
    for label, (status, output), (refusal, sentence) in zip(words, done, refused, strict=True):
        assert (status, refusal) == (0, 1)
        assert f"{label} [------------------------] ".encode() in output
        assert re.search(rf"{label} \[#{{24}}\] (100%|1/1)".encode(), output)
        assert label.encode() not in sentence
        assert sentence.startswith(b"Error: ")


@pytest.mark.slow
def test_hashes_of_a_large_file_show_how_far_they_are(tmp_path, write_safetensors):
    size = 1 << 28
    stale = {"sshs_model_hash": "0" * 64}
    path = write_safetensors(loras(), stale, "large.safetensors")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["zeros"] = {"dtype": "U8", "shape": [size], "data_offsets": [len(content) - 8 - length] * 2}
    header["zeros"]["data_offsets"][1] += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + content[8 + length :])
        file.truncate(file.tell() + size)
    words = {
        "Reading": ["check", path],
        "Hashing": ["metadata", "show", path, "--hashes"],
        "Writing": ["metadata", "set", path, "--hashes", "--dry-run"],
    }
    for label, (status, output) in zip(words, on_a_terminal(words.values(), tmp_path), strict=True):
        assert status == (label == "Reading")
        assert len(set(re.findall(rf"\r{label} \[[#-]+\] (\d+)%".encode(), output))) > 1


@pytest.mark.parametrize(
    ("spelled", "done", "length", "seconds", "says"),
    [
        (of_all, 3, 10, 0.5, "3/10"),
        (of_all, 3, 10, 30.0, "3/10  1:10 left"),
        (of_all, 10, 10, 30.0, "10/10"),
        (percent, 1, 3, 9.0, "33%"),
        (percent, 0, 0, 0.0, "0%"),
        (in_bytes, 0, 10**9, 0.0, "0%"),
        (in_bytes, 0, 10**9, 7.0, "0%"),
        (in_bytes, 4 * 10**8, 10**9, 0.5, "40%  800 MB/s"),
        (in_bytes, 10**8, 10**9, 2.0, "10%  50 MB/s  0:18 left"),
        (in_bytes, 10**9, 10**12, 4.0, "0%  250 MB/s  1:06:36 left"),
        (in_bytes, 10**12, 10**12, 400.0, "100%  2,500 MB/s"),
    ],
)
def test_what_stands_behind_a_bar(spelled, done, length, seconds, says):
    assert spelled(done, length, seconds) == says


def test_more_than_all_fills_the_bar_and_no_more(monkeypatch):
    written = []
    monkeypatch.setattr(
        sys, "stderr", types.SimpleNamespace(isatty=lambda: True, write=written.append, flush=lambda: None)
    )
    with progress_bar("Merging", 10, percent) as progress:
        progress(0)
        progress(20)
    assert written[1] == f"\rMerging [{'#' * 24}] 200%"
    assert set(written[-1]) == {"\r", " "}
    assert len(written[-1]) == len(written[1]) + 1
