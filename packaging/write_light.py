"""Writes packaging/light/pyproject.toml, the light form, from pyproject.toml: another name, and fewer libraries.

python packaging/write_light.py
"""

import json
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "packaging" / "light" / "pyproject.toml"
NAME = "lora-inspect-light"
# Libraries that the light form does without: torch, and what only the training network imports.
LEFT_OUT = ("safetensors", "torch")
DESCRIPTION = "Says what a LoRA file means and on which evidence, checks it, and combines several, without torch."
# Of the whole form's extras those that need no torch.
EXTRAS = ("gguf", "remote", "report")
# What is the same in both.
KEPT = ("license", "license-files", "requires-python", "keywords", "classifiers")

HEAD = "# Written by packaging/write_light.py from the pyproject.toml of the whole form."
BUILD = """[tool.hatch.version]
path = "../../lora_inspect/version.py"

[tool.hatch.build.targets.wheel]
bypass-selection = true

[tool.hatch.build.targets.wheel.force-include]
"../../lora_inspect" = "lora_inspect"
"""


def light(whole: dict[str, Any]) -> str:
    """The text of the file, of what the whole form's says."""
    project = whole["project"]
    dependencies = [one for one in project["dependencies"] if not one.startswith(LEFT_OUT)]
    if len(dependencies) + len(LEFT_OUT) != len(project["dependencies"]):
        raise SystemExit(f"pyproject.toml: its dependencies are not {' and '.join(LEFT_OUT)} and others")
    fields = {
        "name": NAME,
        "description": DESCRIPTION,
        "dynamic": ["version"],
        "readme": "README.md",
        **{name: project[name] for name in KEPT},
        "dependencies": dependencies,
    }
    sections = {
        "build-system": {"requires": ["hatchling>=1.26"], "build-backend": "hatchling.build"},
        "project": fields,
        "project.urls": project["urls"],
        "project.optional-dependencies": {name: project["optional-dependencies"][name] for name in EXTRAS},
        "project.scripts": project["scripts"],
    }
    return "\n".join([HEAD, "", *(_section(name, own) for name, own in sections.items()), BUILD])


def _section(name: str, fields: dict[str, Any]) -> str:
    lines = [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in fields.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """A text, or a list of texts, one a line. JSON spells both as TOML does."""
    if isinstance(value, str):
        return json.dumps(value)
    return "[\n" + "".join(f"  {json.dumps(one)},\n" for one in value) + "]"


def current() -> str:
    """The text for the pyproject.toml that is there."""
    return light(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")))


if __name__ == "__main__":
    OUT.write_text(current(), encoding="utf-8")
