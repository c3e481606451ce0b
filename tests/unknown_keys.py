"""The places of one unknown key in a file, for the tests of programs."""

# Keys behind a module of the file, behind a name of no module, and behind a module without other keys.
PLACES = {
    "one word": "{module}.foo",
    "two words": "{module}.foo.weight",
    "three words": "{module}.foo.bar.weight",
    "weight": "{module}.weight",
    "bias": "{module}.bias",
    "stranger": "{prefix}nothing.foo",
    "stranger's weight": "{prefix}nothing.foo.weight",
    "bare": "stray",
    "root": "stray.foo",
    "root's weight": "stray.foo.weight",
    "root's part": "stray.foo.bar.weight",
    "other module": "{other}.foo",
    "other module's weight": "{other}.foo.weight",
}
BEHIND = {"one word", "two words", "three words", "weight", "bias"}
STRANGERS = {"stranger", "stranger's weight"}
ROOTS = {"root", "root's weight", "root's part"}
OUTSIDE = STRANGERS | ROOTS
OTHERS = {"other module", "other module's weight"}
