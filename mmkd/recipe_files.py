"""Recipe files: from a name to a path, and from a file, its base and overrides to mappings."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmkd.options import RecipeError

SUFFIXES = (".yaml", ".yml")


def find_recipe(name_or_path: str) -> Path:
    """Finds a recipe's file.

    Args:
        name_or_path: A path that ends in `.yaml` or `.yml`, or a name to be looked up in
            `./recipes`, then in the package, then in the checkout.

    Returns:
        The path of an existing file.

    Raises:
        RecipeError: When there is none; names what was meant and where it was looked for.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix in SUFFIXES:
        if path.is_file():
            return path
        raise RecipeError([f"{name_or_path}: no such recipe file"])
    folders = list(_folders())
    for folder in folders:
        candidate = folder / f"{name_or_path}.yaml"
        if candidate.is_file():
            return candidate
    close = difflib.get_close_matches(name_or_path, recipe_names(), n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(recipe_names()) or 'none'}"
    looked = ", ".join(display_path(folder) for folder in folders)
    raise RecipeError([f"{name_or_path}: no such recipe; {hint} (looked in {looked})"])


def recipe_names() -> list[str]:
    """The names of all recipes that can be loaded by name, sorted."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml")})


def read_with_base(path: Path) -> dict[str, object]:
    """Reads a recipe file and puts it over the base it names, if any.

    Args:
        path: The recipe's file.

    Returns:
        The merged mapping, interpolations and `???` still in it, without the key `base`.

    Raises:
        RecipeError: When a file is no YAML mapping, or the base is missing or has a base itself.
    """
    base_path = base_of(path)
    content = _read(path)
    base = content.pop("base", None)
    if base_path is None:
        return content
    lower = _read(base_path)
    if "base" in lower:
        where = f"{display_path(path)}: base"
        raise RecipeError([f"{where}: {base!r} has a base itself; one level is the limit"])
    return merge(lower, content)


def base_of(path: Path) -> Path | None:
    """The file of the base that a recipe names, or None.

    Raises:
        RecipeError: When the recipe is no YAML mapping, or the base is missing.
    """
    base = _read(path).get("base")
    if base is None:
        return None
    where = f"{display_path(path)}: base"
    if not isinstance(base, str):
        raise RecipeError([f"{where}: got {base!r}, wanted the name of a recipe"])
    base_path = path.parent / (base if Path(base).suffix in SUFFIXES else f"{base}.yaml")
    if not base_path.is_file():
        siblings = [p.stem for p in path.parent.glob("*.yaml") if p != path]
        close = difflib.get_close_matches(base, siblings, n=1)
        hint = f"did you mean {close[0]}?" if close else "it must lie beside the recipe"
        raise RecipeError([f"{where}: no recipe {base!r} in {display_path(path.parent)}; {hint}"])
    return base_path


def parse_overrides(overrides: Sequence[str]) -> tuple[dict[str, object], list[str]]:
    """Turns overrides such as `training.lr=1e-3` into one nested mapping.

    Args:
        overrides: Dotted key, `=`, and a value in YAML.

    Returns:
        The mapping, and a problem for each override that cannot be read.
    """
    changes: dict[str, object] = {}
    problems = []
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            problems.append(f"override {override!r}: wanted key=value, such as training.lr=1e-3")
            continue
        try:
            change = _plain(OmegaConf.from_dotlist([override]))
        except (yaml.YAMLError, OmegaConfBaseException):
            problems.append(
                f"override {override!r}: its value is not YAML; quote it: {key}='\"...\"'"
            )
            continue
        changes = merge(changes, change)
    return changes, problems


def merge(lower: Mapping[str, object], upper: Mapping[str, object]) -> dict[str, object]:
    """Puts one mapping over another.

    Mappings merge key by key; anything else is replaced, and so is a mapping whose `kind` changes,
    since the options of one kind mean nothing to another.

    Args:
        lower: What holds where `upper` says nothing.
        upper: What wins.

    Returns:
        A new mapping.
    """
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        if isinstance(below, str) and isinstance(value, Mapping) and "kind" not in value:
            below = {"kind": below}  # options added to a kind that was written as a bare name
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            kinds = [mapping["kind"] for mapping in (below, value) if "kind" in mapping]
            other_kind = len(kinds) == 2 and kinds[0] != kinds[1]
            merged[key] = dict(value) if other_kind else merge(below, value)
        else:
            merged[key] = value
    return merged


def display_path(path: Path) -> str:
    """A path as a message shows it: relative where it lies in the working folder."""
    absolute = path.absolute()
    inside = absolute.is_relative_to(Path.cwd())
    return str(absolute.relative_to(Path.cwd()) if inside else absolute)


def _folders() -> Iterator[Path]:
    """Where names are looked up, first match wins; folders that do not exist are left out."""
    checkout = Path(__file__).parents[1]
    candidates = [Path("recipes"), Path(str(files("mmkd"))) / "_bundled" / "recipes"]
    if (checkout / "pyproject.toml").is_file():
        candidates.append(checkout / "recipes")
    unique = dict.fromkeys(candidate.absolute() for candidate in candidates)
    return (folder for folder in unique if folder.is_dir())


def _read(path: Path) -> dict[str, object]:
    source = display_path(path)
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise RecipeError(
            [f"{source}: not readable as YAML: {' '.join(str(error).split())}"]
        ) from error
    if not isinstance(config, DictConfig):
        raise RecipeError([f"{source}: holds a list, wanted a mapping of recipe sections"])
    return _plain(config)


def _plain(config: DictConfig) -> dict[str, object]:
    """OmegaConf's mapping as a plain one with text keys, interpolations left as they are."""
    content = OmegaConf.to_container(config, resolve=False)
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}
