"""Recipes: a YAML file, its base and overrides to one frozen, checked ``Recipe``.

A recipe names everything a run depends on. Its structure is checked here; the options of each part
are checked against the constructor that takes them (`mmkd.config.options`). No part is imported,
so a recipe can be read, listed and compared without loading torch.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from mmkd.config.layers import merge, merge_layers
from mmkd.config.options import model_problems
from mmkd.errors import RecipeError, closest, outside
from mmkd.files import read_yaml, write_text, yaml_folders

SUFFIXES = (".yaml", ".yml")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Options = dict[str, object]


class Section(BaseModel):
    """A part of a recipe: frozen, and without room for unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Spec(BaseModel):
    """A choice by name with its options, in YAML `{kind: sasrec, layers: 2}` or just `sasrec`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str

    @property
    def options(self) -> Options:
        """Everything beside `kind`."""
        return dict(self.model_extra or {})

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value


class DataSection(Section):
    """Where the catalogue and the interactions are, and how they are split.

    Without a split, each user's last event tests.
    """

    root: str
    items: Options
    interactions: Options
    split: Spec = Spec(kind="leave_one_out")

    @property
    def folder(self) -> Path:
        """`root` as an absolute path; a relative root counts from the working folder."""
        return Path(self.root).expanduser().absolute()


class StudentSection(Section):
    """The recommender: item embedding, backbone, and the item vectors it scores with."""

    embedding: Options = Field(default_factory=dict)
    backbone: Spec
    score_with: Literal["id", "fused"]


class ObjectiveSection(Section):
    """The recommendation loss and, unless null, what is added to it.

    `correlation` is KDSR's, `attributes`, `contrastive` and `mutual` are EMKD's, `compression`
    holds the student to a trained run, `neighbours` shares every target with the items that the
    encoders find like it.
    """

    recommendation: Spec
    correlation: Options | None = None
    attributes: Options | None = None
    contrastive: Options | None = None
    mutual: Options | None = None
    compression: Options | None = None
    neighbours: Options | None = None


class Recipe(Section):
    """Everything a run depends on; `load_recipe` reads one.

        >>> from mmkd import load_recipe
        >>> recipe = load_recipe("quickstart", ["training.lr=1e-3", "encoders.image=null"])
        >>> recipe.training["lr"], recipe.encoders, recipe.task.kind
        (0.001, {'text': 'hashed-text'}, 'next_item')

    `task` is what the networks learn to predict, `objective` the losses by which they do.
    `encoders` maps a modality to the name of its encoder card and may be empty; a null card drops a
    modality that a base recipe has. `distiller: null` is the distiller's own defaults; whether
    anything is distilled is said by `objective.correlation`.
    """

    name: Annotated[str, Field(pattern=NAME)]  # it names a folder
    seed: Annotated[StrictInt, Field(ge=0, le=2**32 - 1)] = 0  # what numpy and sklearn take
    data: DataSection
    encoders: dict[str, str] = Field(default_factory=dict)
    cache: Options = Field(default_factory=dict)
    embed: Options = Field(default_factory=dict)
    distiller: Options | None = None
    student: StudentSection
    ensemble: Options = Field(default_factory=dict)
    task: Spec
    objective: ObjectiveSection
    asynchronous: Spec = Spec(kind="none")
    training: Options = Field(default_factory=dict)
    evaluation: Options = Field(default_factory=dict)

    _source: str = PrivateAttr(default="")
    _notices: tuple[str, ...] = PrivateAttr(default=())

    @field_validator("encoders", mode="before")
    @classmethod
    def _without_null(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return {} if value is None else value
        return {modality: card for modality, card in value.items() if card is not None}

    def __eq__(self, other: object) -> bool:
        """Two recipes are equal when they say the same, wherever they were read from."""
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        """Consistent with `==`."""
        return hash(recipe_digest(self))

    @property
    def notices(self) -> tuple[str, ...]:
        """A line for each key that was read in an old spelling; no part of what a recipe says."""
        return self._notices

    def where(self, section: str) -> str:
        """The start of a message about a section, such as `recipes/x.yaml: distiller`."""
        return f"{self._source or self.name}: {section}"

    def to_yaml(self) -> str:
        """The whole recipe, bases and overrides resolved; reading it gives an equal recipe."""
        content = {key: _escaped(value) for key, value in self.model_dump().items()}
        return OmegaConf.to_yaml(OmegaConf.create(content))

    def save(self, path: Path) -> None:
        """Writes `to_yaml()` to a file, whole or not at all; its folder is made when missing."""
        write_text(path, self.to_yaml())


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe, puts it over its base, applies overrides and checks the structure.

    A recipe may name one `base`, a recipe beside it, and then holds just the differences. Mappings
    merge key by key and lists are replaced; a mapping whose `kind` changes is replaced as well, for
    the options of one kind mean nothing to another. Overrides merge in the same way.

    Args:
        name_or_path: A path that ends in `.yaml`, or a name to be found in `./recipes`, among the
            recipes that came with the package, or in the checkout.
        overrides: Such as `training.lr=1e-3`; the part after `=` is YAML.

    Returns:
        The recipe, with interpolations resolved.

    Raises:
        RecipeError: With every problem of the structure, each with file and dotted key; or a file
            cannot be found or read.
    """
    path = find_recipe(name_or_path)
    source = display_path(path)
    changes, problems = parse_overrides(overrides)
    content, notices, gone = merge_layers([*read_layers(path), ("override", changes)])
    problems += [f"{source}: {problem}" for problem in gone]
    changes, _, _ = merge_layers([("override", changes)])  # in today's spelling
    missing = list(_missing(content))
    problems += [
        f"{source}: {key}: has no value yet (???); set it in the file or with {key}=VALUE"
        for key in missing
    ]
    resolved: Any = content
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(content), resolve=True)
    except OmegaConfBaseException as error:  # go on unresolved, to report the others too
        key = getattr(error, "full_key", None) or "interpolation"
        problems.append(f"{source}: {key}: {str(error).splitlines()[0]}")
    try:
        recipe = Recipe.model_validate(resolved)
    except ValidationError as error:
        problems += [
            f"{'override' if _touches(changes, key) else source}: {key}: {message}"
            for key, message in model_problems(Recipe, error)
            if key not in missing
        ]
        raise RecipeError(problems) from None
    if problems:
        raise RecipeError(problems)
    recipe._source = source
    recipe._notices = tuple(notices)
    return recipe


def recipe_digest(recipe: Recipe) -> str:
    """A hexadecimal digest of all a recipe says, for naming and comparing runs."""
    text = json.dumps(recipe.model_dump(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    folders = yaml_folders("recipes")
    for folder in folders:
        candidate = folder / f"{name_or_path}.yaml"
        if candidate.is_file():
            return candidate
    close = closest(name_or_path, recipe_names())
    hint = f"did you mean {close}?" if close else f"known: {', '.join(recipe_names()) or 'none'}"
    looked = ", ".join(display_path(folder) for folder in folders)
    raise RecipeError([f"{name_or_path}: no such recipe; {hint} (looked in {looked})"])


def recipe_names() -> list[str]:
    """The names of all recipes that can be loaded by name, sorted."""
    return sorted(
        {path.stem for folder in yaml_folders("recipes") for path in folder.glob("*.yaml")}
    )


def read_layers(path: Path) -> list[tuple[str, dict[str, object]]]:
    """Reads a recipe file and the base it names, if any.

    Args:
        path: The recipe's file.

    Returns:
        File and mapping, the base first, interpolations and `???` still in them, without the key
        `base`.

    Raises:
        RecipeError: When a file is no YAML mapping, or the base is missing or has a base itself.
    """
    content = _read(path)
    base = content.pop("base", None)
    layers = [(display_path(path), content)]
    if (base_path := _beside(path, base)) is None:
        return layers
    lower = _read(base_path)
    if "base" in lower:
        where = f"{display_path(path)}: base"
        raise RecipeError([f"{where}: {base!r} has a base itself; one level is the limit"])
    return [(display_path(base_path), lower), *layers]


def base_of(path: Path) -> Path | None:
    """The file of the base that a recipe names, or None.

    Raises:
        RecipeError: When the recipe is no YAML mapping, or the base is missing.
    """
    return _beside(path, _read(path).get("base"))


def _beside(path: Path, base: object) -> Path | None:
    """The file that a recipe's `base` names."""
    if base is None:
        return None
    where = f"{display_path(path)}: base"
    if not isinstance(base, str):
        raise RecipeError([f"{where}: got {base!r}, wanted the name of a recipe"])
    base_path = path.parent / (base if Path(base).suffix in SUFFIXES else f"{base}.yaml")
    if not base_path.is_file():
        siblings = [p.stem for p in path.parent.glob("*.yaml") if p != path]
        close = closest(base, siblings)
        hint = f"did you mean {close}?" if close else "it must lie beside the recipe"
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


def quoted(path: Path) -> str:
    """A path as an override's value, which is YAML: it may hold `#`, `: ` or `${`."""
    return json.dumps(str(path).replace("${", "\\${"), ensure_ascii=False)


def display_path(path: Path) -> str:
    """A path as a message shows it: relative where it lies in the working folder."""
    absolute = path.absolute()
    inside = absolute.is_relative_to(Path.cwd())
    return str(absolute.relative_to(Path.cwd()) if inside else absolute)


def _read(path: Path) -> dict[str, object]:
    source, also = display_path(path), (ValueError,)
    with outside(RecipeError, source, "not readable as YAML", remedy="correct the file", also=also):
        return read_yaml(path)


def _plain(config: DictConfig) -> dict[str, object]:
    """OmegaConf's mapping as a plain one with text keys, interpolations left as they are."""
    content = OmegaConf.to_container(config, resolve=False)
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _missing(content: object, prefix: str = "") -> Iterator[str]:
    """Dotted keys whose value is `???`."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _missing(value, f"{prefix}.{key}" if prefix else str(key))
    elif content == "???":
        yield prefix


def _touches(changes: object, key: str) -> bool:
    """Whether a dotted key was written by an override."""
    for part in key.split("."):
        if not isinstance(changes, Mapping) or part not in changes:
            return False
        changes = changes[part]
    return True


def _escaped(value: object) -> object:
    """Keeps a literal `${` literal: read again, it would be an interpolation."""
    if isinstance(value, str):
        return value.replace("${", "\\${")
    if isinstance(value, Mapping):
        return {key: _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, (list, tuple)) else value
