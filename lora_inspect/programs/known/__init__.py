"""One program a file: the facts about its loader."""
