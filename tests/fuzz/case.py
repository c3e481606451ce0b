"""One case: what lies in its folder, and the command that runs there."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from fuzz.contents import Content, described, from_json, to_json
from lora_inspect.cli import cli

# Beside the verbs of the command line: what a trainer calls to resume from a file.
NETWORKS = "networks"


@dataclass(frozen=True)
class Case:
    """`command` is a verb of the command line with its arguments, or `networks`, a network module and a file."""

    contents: Mapping[str, Content]
    command: tuple[str, ...]
    name: str = ""

    @property
    def target(self) -> str:
        """The verb, or what stands in its place."""
        known = (*cli.list_commands(click.Context(cli)), NETWORKS)
        return next((word for word in self.words[:1] if word in known), "no verb")

    @property
    def words(self) -> tuple[str, ...]:
        """The command without the mark after which no option follows, where it stands before the verb."""
        return self.command[1:] if self.command[:1] == ("--",) else self.command

    def parsed(self) -> dict[str, Any]:
        """The command's arguments as click reads them; nothing where it refuses them."""
        if self.target == NETWORKS:
            return {}
        try:
            group = cli.make_context("lora-inspect", list(self.command), resilient_parsing=True)
            held = vars(group).get("_protected_args", vars(group).get("protected_args", []))
            if not (left := [*held, *group.args]):
                return {}
            name, verb, words = cli.resolve_command(group, left)
            return verb.make_context(name, words, resilient_parsing=True).params if verb else {}
        except (click.ClickException, click.exceptions.Exit):
            return {}

    def shown(self) -> str:
        """The case for whoever looks into it."""
        command = shlex.join(self.command).encode("unicode_escape").decode()
        return "\n".join([self.name, f"  {command}", *(f"  {line}" for line in described(self.contents))])

    def as_json(self) -> str:
        """The case as the corpus keeps it."""
        return json.dumps({"command": self.command, "files": to_json(self.contents)}, indent=1) + "\n"


def case_from_json(text: str, name: str) -> Case:
    kept = json.loads(text)
    return Case(from_json(kept["files"]), tuple(kept["command"]), name)
