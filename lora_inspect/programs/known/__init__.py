"""One program a file: the facts that its loader was measured by."""
