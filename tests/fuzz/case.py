"""One case: what lies in its folder, and the command that runs there."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click

from fuzz.contents import Content, described, from_json, to_json
from lora_inspect.cli.group import cli

# Beside the verbs of the command line: what a trainer calls to resume from a file.
NETWORKS = "networks"


def leaves(command: click.Command = cli, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every verb that does something by itself, after the words that lead to it: a group is none."""
    if not isinstance(command, click.Group):
        yield " ".join(words), command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from leaves(found, (*words, name))


VERBS = dict(leaves())


@dataclass(frozen=True)
class Case:
    """`command` is a verb of the command line with its arguments, or `networks`, a network module and a file."""

    contents: Mapping[str, Content]
    command: tuple[str, ...]
    name: str = ""

    @property
    def target(self) -> str:
        """The words of the verb, or what stands in its place."""
        begins = (" ".join(self.words[:count]) for count in (1, 2))
        return next((words for words in begins if words in VERBS or words == NETWORKS), "no verb")

    @property
    def words(self) -> tuple[str, ...]:
        """The command without the mark after which no option follows, where it stands before the verb."""
        return self.command[1:] if self.command[:1] == ("--",) else self.command

    def parsed(self) -> dict[str, Any]:
        """The command's arguments as click reads them; nothing where it refuses them."""
        if self.target == NETWORKS:
            return {}
        name: str | None = "lora-inspect"
        verb: click.Command | None = cli
        words = list(self.command)
        try:
            while verb is not None:
                context = verb.make_context(name, words, resilient_parsing=True)
                if not isinstance(verb, click.Group):
                    return context.params
                held = vars(context).get("_protected_args", vars(context).get("protected_args", []))
                if not (left := [*held, *context.args]):
                    break
                name, verb, words = verb.resolve_command(context, left)
        except (click.ClickException, click.exceptions.Exit):
            pass
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
