"""The version of this package, and the distributions that install it: the whole one, and one without torch."""

__version__ = "0.1.0"

WHOLE, LIGHT = "lora-inspect", "lora-inspect-light"


def installed_by() -> list[str]:
    """Return the names of the distributions that installed this package: none for a checkout, two by mistake."""
    # A program that imports the package loads no more than the version.
    import os
    from importlib.metadata import distributions

    # That of a checkout that was installed to be edited lies elsewhere.
    beside = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return [name for name in (WHOLE, LIGHT) if any(distributions(name=name, path=[beside]))]


def described() -> str:
    """Return the version in a line, with the form of the installation."""
    found = installed_by()
    if len(found) > 1:
        return (
            f"{WHOLE}, version {__version__}, is installed twice, also as {LIGHT}; run pip uninstall {WHOLE} {LIGHT}, "
            "then install one of them"
        )
    return f"{LIGHT}, version {__version__} (without torch)" if found == [LIGHT] else f"{WHOLE}, version {__version__}"


def requirement_with(extra: str) -> str:
    """Return the requirement for pip that adds an extra to the installed form."""
    form = LIGHT if installed_by() == [LIGHT] else WHOLE
    return f"{form}[{extra}]"


def torch_advice() -> str:
    """Return the problem and the fix if torch is not installed."""
    if installed_by() == [LIGHT]:
        return f"{LIGHT}, the light form, comes without it; run pip uninstall {LIGHT}, then pip install {WHOLE}"
    return "it is not installed; run pip install torch"
