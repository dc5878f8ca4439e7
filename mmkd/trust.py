"""Whose code may run: names that the user trusts, asked before anything outside mmkd is imported.

A recipe, a card and a run's ``student.json`` may name a class, ``kind: package.module:Class``, and
importing a module runs it. Whoever wrote the file must not decide that; the user does, for this
process, with ``--trust-code`` or ``trust_code=``. A class that is passed as an object is here
already and needs none of this.
"""

from collections.abc import Iterable

_trusted: set[str] = set()


def trust_code(names: str | Iterable[str] | None) -> None:
    """Let kinds of these packages or modules be imported, by this process and from now on.

        >>> from mmkd.trust import is_trusted, trust_code
        >>> trust_code("my_package.letters")
        >>> is_trusted("my_package.letters"), is_trusted("my_package"), is_trusted("mmkd.encoders")
        (True, False, True)

    Args:
        names: Packages, with all that is in them, or modules; None changes nothing.

    Raises:
        ValueError: One is no dotted name.
    """
    for name in [names] if isinstance(names, str) else names or ():
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(
                f"trust_code: got {name!r}, wanted a package or module such as my_package.letters"
            )
        _trusted.add(name)


def trusted() -> tuple[str, ...]:
    """The names, for a process of this one's own."""
    return tuple(sorted(_trusted))


def is_trusted(module: str) -> bool:
    """Whether a module is mmkd's own, or one that the user trusts, as what is being run is."""
    parts = module.split(".")
    above = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return bool(above & {"mmkd", "__main__", *_trusted})


def refusal(kind: str, module: str) -> str:
    """What is told of a kind whose module is not trusted."""
    return (
        f"{kind!r} is code outside mmkd, which runs when it is imported; if you know whose it is, "
        f"allow it with --trust-code {module} (in Python: trust_code={module!r})"
    )
