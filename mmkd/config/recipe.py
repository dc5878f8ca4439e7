"""Recipes: a YAML file, its base and overrides to one frozen, checked ``Recipe``.

A recipe names everything a run depends on. Its structure is checked here; the options of each part
are checked against the constructor that takes them (`mmkd.config.options`). No part is imported,
so a recipe can be read, listed and compared without loading torch.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

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

from mmkd.config.merging import merge, merge_layers
from mmkd.config.options import model_problems
from mmkd.errors import RecipeError, closest, outside
from mmkd.files import read_yaml, write_text, yaml_folders, yaml_names
from mmkd.runs.frames import from_folder, to_absolute
from mmkd.trust import trust_code as trust

SUFFIXES = (".yaml", ".yml")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Options = dict[str, object]
Overrides = Sequence[str] | Mapping[str, Any]


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
    modality that a base recipe has. `tune` maps such a modality, or several such as ``text+image``
    that learn together, to how its encoder is tuned on the log before anything else. `distiller:
    null` is the distiller's own defaults; whether anything is distilled is said by
    `objective.correlation`.
    """

    name: Annotated[str, Field(pattern=NAME)]  # it names a folder
    seed: Annotated[StrictInt, Field(ge=0, le=2**32 - 1)] = 0  # what numpy and sklearn take
    data: DataSection
    encoders: dict[str, str] = Field(default_factory=dict)
    tune: dict[str, Options] = Field(default_factory=dict)
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
    _notes: tuple[str, ...] = PrivateAttr(default=())

    @field_validator("encoders", "tune", mode="before")
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
    def tuned(self) -> tuple[str, ...]:
        """The encoders that `tune` names."""
        return tuple(name for key in self.tune for name in key.split("+"))

    @property
    def notices(self) -> tuple[str, ...]:
        """A line for each key that was read in an old spelling; no part of what a recipe says."""
        return self._notices

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each layer that left no encoder, of what followed; no part of the recipe."""
        return self._notes

    @property
    def layer(self) -> tuple[str, dict[str, object]]:
        """Where it was read and all it says, to be put below other layers."""
        content = {key: _escaped(value) for key, value in self.model_dump().items()}
        return self._source or self.name, content

    def where(self, section: str) -> str:
        """The start of a message about a section, such as `recipes/x.yaml: distiller`."""
        return f"{self._source or self.name}: {section}"

    def to_yaml(self, folder: Path | None = None) -> str:
        """The whole recipe, bases and overrides resolved; reading it gives an equal recipe.

        Args:
            folder: Where it will lie, if that is a run's: tables that runs keep are named from
                there, so that it may be moved.
        """
        content = self.model_dump() if folder is None else from_folder(self.model_dump(), folder)
        return OmegaConf.to_yaml(
            OmegaConf.create({key: _escaped(value) for key, value in content.items()})
        )

    def save(self, path: Path) -> None:
        """Writes `to_yaml()` to a file, whole or not at all; its folder is made when missing."""
        write_text(path, self.to_yaml())


def load_recipe(
    name_or_path: str,
    overrides: Overrides = (),
    *,
    trust_code: str | Sequence[str] | None = None,
) -> Recipe:
    """Reads a recipe, puts it over its base, applies overrides and checks the structure.

        >>> from mmkd import load_recipe
        >>> recipe = load_recipe("quickstart", ["seed=3", "training.epochs=2"])
        >>> recipe.seed, recipe.training["epochs"], recipe.encoders["text"]
        (3, 2, 'hashed-text')

    A recipe may name one `base`, a recipe beside it or a preset, and then holds just the
    differences. Mappings merge key by key and lists are replaced; a mapping whose `kind` changes is
    replaced as well, for the options of one kind mean nothing to another. Overrides merge in the
    same way. A file or overrides that leave no encoder, such as `encoders=null`, make an ids-only
    recipe of what they change: distiller, objective.correlation, asynchronous and
    student.score_with follow (`Recipe.notes` says so), unless they set those too.

    Args:
        name_or_path: A path that ends in `.yaml`, or a name to be found in `./recipes`, among the
            recipes that came with the package, or in the checkout.
        overrides: Such as `training.lr=1e-3`, the part after `=` in YAML; or a mapping such as
            `{"training.lr": 1e-3}`, where a class stands for its `package.module:Class`.
        trust_code: Packages or modules whose kinds it may name, `package.module:Class`: using the
            recipe imports them. See `mmkd.trust`. A class that is given as one is trusted.

    Returns:
        The recipe, with interpolations resolved. A FutureWarning tells of each old spelling.

    Raises:
        RecipeError: With every problem of the structure, each with file and dotted key; or a file
            cannot be found or read.
    """
    trust(trust_code)
    recipe = read_recipe(name_or_path, overrides)
    for line in recipe.notices:
        warnings.warn(line, FutureWarning, stacklevel=2)
    return recipe


def read_recipe(name_or_path: str, overrides: Overrides = ()) -> Recipe:
    """As `load_recipe`, without a warning: for who prints the notices, or reads a run's recipe."""
    path = find_recipe(name_or_path)
    return compose(read_layers(path), overrides, source=display_path(path))


def compose(
    layers: Sequence[tuple[str, Mapping[str, object]]], overrides: Overrides = (), *, source: str
) -> Recipe:
    """A recipe of layers, the lowest first, and overrides; as `load_recipe`.

    Args:
        layers: Where each was read, and what it holds.
        overrides: As for `load_recipe`.
        source: What messages call the recipe.
    """
    changes, problems = parse_overrides(overrides)
    merged = merge_layers([*layers, ("override", changes)])
    content = merged.content
    problems += [f"{source}: {problem}" for problem in merged.problems]
    changes = merge_layers([("override", changes)]).content  # in today's spelling
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
    recipe._notices, recipe._notes = merged.notices, merged.notes
    return recipe


def recipe_digest(recipe: Recipe) -> str:
    """A hexadecimal digest of all a recipe says, for naming and comparing runs."""
    text = json.dumps(recipe.model_dump(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_recipe(name_or_path: str) -> Path:
    """Finds a recipe's file.

    Args:
        name_or_path: A path that ends in `.yaml` or `.yml`, or a name to be looked up in
            `./recipes`, then in the package, then in the checkout; recipes before presets.

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
    for folder in (*folders, *_presets()):
        candidate = folder / f"{name_or_path}.yaml"
        if candidate.is_file():
            return candidate
    known = [*recipe_names(), *preset_names()]
    close = closest(name_or_path, known)
    hint = f"did you mean {close}?" if close else f"known: {', '.join(known) or 'none'}"
    looked = ", ".join(display_path(folder) for folder in folders)
    raise RecipeError([f"{name_or_path}: no such recipe; {hint} (looked in {looked})"])


def recipe_names() -> list[str]:
    """The names of all recipes that can be loaded by name, sorted."""
    return yaml_names("recipes")


def preset_names() -> list[str]:
    """The names of all presets, sorted: recipes without data, for the base of one with data.

    >>> from mmkd.config.recipe import preset_names
    >>> {"emkd", "fused", "id", "kdsr", "soft"} <= set(preset_names())
    True
    """
    return yaml_names("recipes", "presets")


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
    name = base if Path(base).suffix in SUFFIXES else f"{base}.yaml"
    for folder in (path.parent, *_presets()):
        # a recipe may be named as the preset that it changes
        if (found := folder / name).is_file() and found.resolve() != path.resolve():
            return found
    siblings = [p.stem for p in path.parent.glob("*.yaml") if p != path]
    close = closest(base, [*siblings, *preset_names()])
    presets = ", ".join(preset_names())
    hint = f"did you mean {close}?" if close else f"it must lie there, or be a preset ({presets})"
    raise RecipeError([f"{where}: no recipe {base!r} in {display_path(path.parent)}; {hint}"])


def parse_overrides(overrides: Overrides) -> tuple[dict[str, object], list[str]]:
    """Turns overrides such as `training.lr=1e-3` into one nested mapping.

    Args:
        overrides: Dotted key, `=`, and a value in YAML; or dotted keys to values.

    Returns:
        The mapping, and a problem for each override that cannot be read.
    """
    changes: dict[str, object] = {}
    problems = []
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            change: object = _written(value)
            for part in reversed(key.split(".")):
                change = {part: change}
            changes = merge(changes, cast(dict[str, object], change))
        return changes, []
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            problems.append(f"override {override!r}: wanted key=value, such as training.lr=1e-3")
            continue
        try:
            from_yaml = _plain(OmegaConf.from_dotlist([override]))
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError):
            problems.append(
                f"override {override!r}: its value is not YAML; quote it: {key}='\"...\"'"
            )
            continue
        changes = merge(changes, from_yaml)
    return changes, problems


def quoted(path: Path) -> str:
    """A path as an override's value, which is YAML: it may hold `#`, `: ` or `${`."""
    return json.dumps(str(path).replace("${", "\\${"), ensure_ascii=False)


def display_path(path: Path) -> str:
    """A path as a message shows it: relative where it lies in the working folder."""
    absolute = path.absolute()
    inside = absolute.is_relative_to(Path.cwd())
    return str(absolute.relative_to(Path.cwd()) if inside else absolute)


def _presets() -> Iterator[Path]:
    """Where presets lie, first match wins."""
    found = (folder / "presets" for folder in yaml_folders("recipes"))
    return (folder for folder in found if folder.is_dir())


def _read(path: Path) -> dict[str, object]:
    source, also = display_path(path), (ValueError,)
    with outside(RecipeError, source, "not readable as YAML", remedy="correct the file", also=also):
        return to_absolute(read_yaml(path), path.parent)


def _plain(config: DictConfig) -> dict[str, object]:
    """OmegaConf's mapping as a plain one with text keys, interpolations left as they are."""
    content = OmegaConf.to_container(config, resolve=False)
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _written(value: object) -> object:
    """A Python value as a recipe has it: a class by its name, a path as text, a tuple as a list."""
    if isinstance(value, type):
        trust(value.__module__)  # it is here already
        return f"{value.__module__}:{value.__qualname__}"
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _written(one) for key, one in value.items()}
    return [_written(one) for one in value] if isinstance(value, (list, tuple)) else value


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
