"""Runs the installed command on the fixtures, as its user does: every verb, or without torch all that need none.

    python tests/installed.py whole|light

Run by the Python of an environment with one of the forms and nothing else. Prints a line for each command, and ends
with 1 where one does something else than it should.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
SYNTHETIC = FIXTURES / "synthetic"
BASE, LORA, OTHER = (SYNTHETIC / f"{name}.safetensors" for name in ("base_f32", "rslora_flag", "comfyui_alpha"))
LOHA = FIXTURES / "minilm-lycoris-loha-r8" / "lycoris.safetensors"
SCRIPT = Path(sysconfig.get_path("scripts")) / "lora-inspect"
SENTENCE = (
    "Error: this needs torch, but lora-inspect-light, the light form, comes without it; run pip uninstall "
    "lora-inspect-light, then pip install lora-inspect.\n"
)
DOWN = {"down": "up", "A": "B"}
LIBRARIES = ("click", "numpy", "safetensors", "tabulate", "threadpoolctl", "torch")

READING = (
    ("info", SYNTHETIC),
    ("info", LORA, "--why"),
    ("check", SYNTHETIC, "--fail-on", "error"),
    ("check", LORA, "--tensors"),
    ("info", LORA, "--spectrum"),
    ("metadata", "show", LORA),
    ("compat", LORA),
)
SUMS = (
    ("combine", f"{LORA}:0.5", OTHER, "-o", "combined.safetensors"),
    ("resize", LORA, "--rank", "2", "-o", "resized.safetensors"),
    ("average", LORA, LORA, "-o", "average.safetensors"),
    ("compare", LORA, OTHER),
    ("compare", LOHA, LOHA),
    ("extract", SYNTHETIC / "base_bf16.safetensors", BASE, "--rank", "4", "-o", "noise.safetensors"),
)
PAGES = (("report", LORA, OTHER, "-o", "page.html"),) if find_spec("jinja2") else ()
COMPUTING = (
    ("merge", BASE, f"{LORA}:0.5", "-o", "merged.safetensors"),
    ("verify", "merged.safetensors", BASE, f"{LORA}:0.5"),
    ("unmerge", "merged.safetensors", f"{LORA}:0.5", "--base", BASE, "-o", "unmerged.safetensors"),
    ("convert", LORA, "-o", "standard.safetensors"),
    ("convert", LORA, "--to", "diffusers", "-o", "diffusers.safetensors"),
    ("extract", "merged.safetensors", BASE, "--rank", "4", "-o", "extracted.safetensors"),
)


# What says without torch that it needs it, of files that are there.
NEEDS_TORCH = (
    COMPUTING[0],
    ("verify", BASE, BASE, f"{LORA}:0.5"),
    ("unmerge", "recorded.safetensors", f"{LORA}:0.5", "--base", BASE, "-o", "unmerged.safetensors"),
    *COMPUTING[3:5],
    ("compat", SYNTHETIC / "dora_without_flag.safetensors", "--base", BASE),
)
# Element types of the files that are read here, as numpy spells them. The light form brings no safetensors.
DTYPES = {"F32": "<f4", "BOOL": "?"}


def read_header(content):
    """Return the header of a safetensors file, and where its data begins."""
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), 8 + length


def load_file(path):
    """Return the tensors of a safetensors file by name."""
    content = path.read_bytes()
    header, start = read_header(content)
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, stop = entry["data_offsets"]
            data = content[start + first : start + stop]
            tensors[name] = numpy.frombuffer(data, DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def write_record(path):
    """A file that says that half of LORA was merged into BASE, as the whole form writes it."""
    header = "e01fae553ff10571afcd050f54c3ddf0b382c547257ff655047cbe7170378437"
    base = {"file": BASE.name, "bytes": BASE.stat().st_size, "dtypes": {"F32": 65}, "header": header}
    digest = hashlib.sha256(LORA.read_bytes()).hexdigest()
    how = {"multiplier": 0.5, "settings": "0.5", "scale": "alpha/sqrt(rank)", "sha256": digest}
    record = {"version": "0.1.0", "base": base, "adapters": [{"file": LORA.name, **how}], "folded_in": {"F32": "F64"}}
    content = BASE.read_bytes()
    header, start = read_header(content)
    header["__metadata__"] = {"lora_inspect.merged": json.dumps(record)}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[start:])


def run(words, folder):
    start = time.perf_counter()
    ended = subprocess.run([SCRIPT, *map(str, words)], cwd=folder, capture_output=True, text=True)
    return ended, time.perf_counter() - start


def deltas(path, multiplier=1.0):
    """The changes of an adapter by kohya's names, of RS-LoRA where its flag says so."""
    tensors = load_file(path)
    scale = 0.5 if "use_rslora_flag" in tensors else 1.0
    found = {}
    for key in tensors:
        name, _, side = key.removesuffix(".weight").rpartition(".lora_")
        if side in DOWN:
            up, down = (tensors[f"{name}.lora_{own}.weight"].astype(numpy.float64) for own in (DOWN[side], side))
            factor = multiplier * float(tensors[f"{name}.alpha"]) / len(down) ** scale
            flat = "lora_unet_" + name.removeprefix("lora_unet_").removeprefix("diffusion_model.").replace(".", "_")
            found[flat] = factor * (up.reshape(len(up), -1) @ down.reshape(len(down), -1))
    return found


def is_sum(folder):
    """Return True if the combined file holds 0.5 times one adapter and the other."""
    meant = deltas(LORA, 0.5)
    for name, other in deltas(OTHER).items():
        meant[name] = meant[name] + other
    found = deltas(folder / "combined.safetensors")
    return found.keys() == meant.keys() and all(numpy.allclose(found[name], meant[name], atol=1e-5) for name in meant)


def is_merge(folder):
    """Return True if the merged base is the base and half of the adapter."""
    base, merged = load_file(BASE), load_file(folder / "merged.safetensors")
    named = {name.removesuffix(".weight").replace(".", "_"): name for name in base}
    meant = dict(base)
    for key, delta in deltas(LORA, 0.5).items():
        name = named[key.removeprefix("lora_unet_")]
        meant[name] = base[name] + delta.reshape(base[name].shape)
    return merged.keys() == meant.keys() and all(numpy.allclose(merged[name], meant[name], atol=1e-5) for name in meant)


def imports(folder):
    """What is wrong with the names of the training network."""
    code = "import networks.lora_wan, lora_inspect.networks.lora_wan"
    ended = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    return [ended.stderr] if ended.returncode else []


def main():
    is_light = sys.argv[1] == "light"
    own = {one.metadata["Name"]: one.version for one in importlib.metadata.distributions()}
    listed = ", ".join(f"{name} {own[name]}" for name in LIBRARIES if name in own)
    print(f"Python {platform.python_version()}, {listed}")
    heavy = [name for name in ("safetensors", "torch") if name in own]
    wrong = [f"{' and '.join(heavy) or 'no torch'} is installed"] if is_light == bool(heavy) else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told, _ = run(["--version"], folder)
        print(told.stdout, end="")
        wrong += [] if told.stdout.startswith("lora-inspect-light," if is_light else "lora-inspect,") else [told.stdout]
        if is_light:
            write_record(folder / "recorded.safetensors")
        for words in (*READING, *SUMS, *PAGES, *(NEEDS_TORCH if is_light else COMPUTING)):
            ended, seconds = run(words, folder)
            line = " ".join(os.path.relpath(word, FIXTURES) if isinstance(word, Path) else word for word in words)
            print(f"  {seconds:5.2f} s  {line}")
            if is_light and words in NEEDS_TORCH:
                print(f"           {ended.stderr}", end="")
                if (ended.returncode, ended.stderr) != (3, SENTENCE):
                    wrong.append(f"{line} ends with {ended.returncode}: {ended.stderr}")
            elif ended.returncode or "Traceback" in ended.stderr or "Warning" in ended.stderr:
                wrong.append(f"{line} ends with {ended.returncode}: {ended.stderr}")
        wrong += [] if is_sum(folder) else ["combined.safetensors is another sum"]
        if not is_light:
            wrong += [] if is_merge(folder) else ["merged.safetensors is another merge"]
            wrong += imports(folder)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
