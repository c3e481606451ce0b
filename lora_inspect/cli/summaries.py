"""The verbs in the order in which people meet them, and what each does: the help lists them without loading any."""

VERBS = {
    "info": "What a file is and means, and on which evidence.",
    "check": "What is wrong or doubtful with files, and what can be mended.",
    "merge": "Fold adapters into a base.",
    "verify": "Prove how much of each adapter a merged model carries.",
    "convert": "Rewrite an adapter so that every loader applies the same scale.",
    "metadata": "Show and change what a file says of itself; the tensors stay as they are.",
    "compat": "What each program that loads adapters makes of one.",
}

METADATA_VERBS = {
    "show": "List what a file says of itself.",
    "get": "Print one value as it is.",
    "set": "Give keys values.",
    "unset": "Remove keys.",
    "copy": "Take over the metadata of another file.",
    "strip": "Remove all that does not decide how the file is read.",
}
