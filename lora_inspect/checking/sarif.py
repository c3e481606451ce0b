"""The problems of files as SARIF 2.1.0, which code hosts and editors read."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

from lora_inspect.checking.rules import RULES
from lora_inspect.checking.subject import CheckRule
from lora_inspect.reading.model.evidence import Problem
from lora_inspect.stores.address import is_remote
from lora_inspect.version import __version__

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
FINGERPRINT = "lora-inspect/v1"


def sarif(files: Iterable[tuple[str, Sequence[Problem]]], folder: str, numbers_read: bool) -> dict[str, Any]:
    """Return the log of one run: (path, problems) of every file, with paths relative to `folder`.

    `numbers_read` is True if the problems are of the numbers too, False if they are of the headers only.
    """
    index = {rule.code: number for number, rule in enumerate(RULES)}
    results = [
        _result(artifact_uri(path, folder), problem, index[problem.code])
        for path, problems in files
        for problem in problems
    ]
    driver = {
        "name": "lora-inspect",
        "version": __version__,
        "semanticVersion": __version__,
        "rules": [_described(rule) for rule in RULES],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": results,
        "properties": {"numbers_read": numbers_read},
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def artifact_uri(path: str, folder: str) -> str:
    """Return the path as a relative URI, or as one of a file if it is on another drive; an address stays."""
    if is_remote(path):
        return path
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:
        return "file:///" + _quoted(os.path.abspath(path)).lstrip("/")
    return _quoted(relative)


def _quoted(path: str) -> str:
    return quote(os.fsencode(path.replace(os.sep, "/")))


def _described(rule: CheckRule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "shortDescription": {"text": rule.means},
        "fullDescription": {"text": f"{rule.means} {rule.matters}"},
        "help": {
            "text": f"{rule.matters} {rule.way_out}",
            "markdown": f"{rule.means}\n\n**Why it matters.** {rule.matters}\n\n**The way out.** {rule.way_out}",
        },
        "defaultConfiguration": {"level": rule.severity},
    }


def _result(uri: str, problem: Problem, index: int) -> dict[str, Any]:
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": uri}}}
    if problem.keys:
        location["logicalLocations"] = [{"fullyQualifiedName": key, "kind": "member"} for key in problem.keys]
    # The words of a message may change between versions, what it is about does not.
    about = "\0".join((uri, problem.code, *problem.keys))
    return {
        "ruleId": problem.code,
        "ruleIndex": index,
        "level": problem.severity,
        "message": {"text": f"{problem.message}."},
        "locations": [location],
        "partialFingerprints": {FINGERPRINT: hashlib.sha256(about.encode("utf-8", "surrogatepass")).hexdigest()},
    }
