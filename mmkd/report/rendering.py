"""Rendering: templates to HTML in which everything that is given to them is escaped.

One environment for all pages, so that items look alike wherever they are shown.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mmkd.errors import MmkdError

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
_NONE = "\N{EN DASH}"


def templates(*folders: Path, extra: str) -> "Environment":
    """The templates of some folders and, behind them, the report's.

    Args:
        *folders: Looked through first.
        extra: What of mmkd to install where jinja2 is not.

    Raises:
        MmkdError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise not_installed("jinja2", extra=extra) from None
    environment = Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"four": _four, "signed": _signed, "share": _share, "took": _took}
    environment.policies["json.dumps_function"] = json.dumps
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def not_installed(what: str, *, extra: str) -> MmkdError:
    """The error where a package of an extra of mmkd is missing."""
    return MmkdError(f"{what} is not installed; run: pip install 'mmkd[{extra}]'")


def _four(value: float | None) -> str:
    return _NONE if value is None else f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def _share(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:.0%}" if value >= 0.1 or value == 0 else f"{value:.1%}"


def _took(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
