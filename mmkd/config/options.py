"""Option checking: a callable's signature and a recipe's mapping to keyword arguments and problems.

A recipe's sections are free-form mappings; what they may hold is written once, in the signature of
the constructor that receives them. `check_options` compares the two before anything loads and
reports every mistake, so that a typing error costs a second and not an epoch.
"""

import inspect
import json
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    PydanticSchemaGenerationError,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)

from mmkd.errors import closest

_SIMPLE = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    bool: ("true or false", "true or false values"),
    Path: ("a path", "paths"),
    type(None): ("null", "nulls"),
}
_YAML_WORDS = {True: ("yes", "on"), False: ("no", "off")}
_WANTED = {"string_type": "text", "int_type": "an integer", "dict_type": "a mapping"}


def check_options(
    target: Callable[..., object],
    options: Mapping[str, object],
    *,
    where: str,
    given: Collection[str] = (),
) -> tuple[dict[str, object], list[str]]:
    """Checks a mapping of options against the signature of the callable that will receive them.

    Values follow YAML's types and are not guessed at: an integer serves as a number and a list as
    a tuple, but the text `"3"` is no integer and `true` is no 1. Nothing is called.

    Args:
        target: The class or function whose keyword parameters the options name.
        options: The recipe's mapping, as YAML gave it.
        where: What a message starts with, such as `recipes/x.yaml: distiller`.
        given: Parameters that the program passes itself; a recipe may not set them.

    Returns:
        The valid options as keyword arguments (defaults are left to `target`), and the problems,
        each one line as `recipes/x.yaml: distiller.code: unknown; did you mean codes?`.
    """
    parameters, open_ended = _keyword_parameters(target)
    allowed = [name for name in parameters if name not in given]
    accepted: dict[str, object] = {}
    problems: list[str] = []
    for key, value in options.items():
        if key in given:
            problems.append(f"{where}.{key}: set by the program itself; remove it")
        elif key not in parameters:
            if open_ended:
                accepted[key] = value
            else:
                problems.append(f"{where}.{key}: {unknown(key, allowed)}")
        else:
            problem, checked = _check_value(parameters[key].annotation, value)
            if problem:
                problems.append(f"{where}.{key}: {problem}")
            else:
                accepted[key] = checked
    for name in allowed:
        if parameters[name].default is inspect.Parameter.empty and name not in options:
            wanted = describe(parameters[name].annotation)
            problems.append(f"{where}.{name}: required, but not given; wanted {wanted}")
    return accepted, problems


def model_problems(model: type[BaseModel], error: ValidationError) -> list[tuple[str, str]]:
    """Puts pydantic's errors about a recipe's structure into the words of `check_options`.

    Args:
        model: The model that was to be made.
        error: What pydantic raised.

    Returns:
        A pair of dotted key and message for each error.
    """
    found = []
    for detail in error.errors():
        loc = [str(part) for part in detail["loc"]]
        kind, got = detail["type"], show(detail["input"])
        if kind == "missing":
            message = "required, but not given"
        elif kind == "extra_forbidden":
            section = _field_type(model, loc[:-1])
            message = unknown(loc[-1], section.model_fields if _is_model(section) else ())
        elif kind in ("model_type", "model_attributes_type"):
            section = _field_type(model, loc)
            with_kind = _is_model(section) and "kind" in section.model_fields
            message = f"got {got}, wanted {'a kind with its options' if with_kind else 'a mapping'}"
        elif kind == "literal_error":
            message = f"got {got}, wanted {describe(_field_type(model, loc))}"
        elif kind == "greater_than_equal":
            message = f"got {got}, wanted at least {detail['ctx']['ge']}"
        elif kind == "less_than_equal":
            message = f"got {got}, wanted at most {detail['ctx']['le']}"
        elif kind == "string_pattern_mismatch":
            pattern = detail["ctx"]["pattern"]
            message = f"got {got}, wanted text that matches {pattern}; rename it"
        elif kind in _WANTED:
            message = f"got {got}, wanted {_WANTED[kind]}"
        else:
            message = f"got {got}: {detail['msg']}"
        found.append((".".join(loc), message))
    return found


def unknown(key: str, choices: Iterable[str]) -> str:
    """Says that a key is unknown and which one may have been meant.

    Args:
        key: The key as written.
        choices: The keys that exist.

    Returns:
        Such as `unknown; did you mean codes?`, or the list of all choices when none is close.
    """
    names = sorted(choices)
    if not names:
        return "unknown; nothing can be set here"
    close = closest(key, names)
    return f"unknown; did you mean {close}?" if close else f"unknown; known: {', '.join(names)}"


def show(value: object) -> str:
    """Renders a value as a message quotes it: YAML's `null`, `true` and `false`, else repr."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def describe(annotation: Any) -> str:
    """Describes a type annotation in plain words, as in "wanted an integer or null"."""
    if annotation in _SIMPLE:
        return _SIMPLE[annotation][0]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(_plain(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    kind = origin or annotation
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "a mapping"
    if _is_list(kind):
        if kind is tuple and arguments and arguments[-1] is not Ellipsis:
            return f"a list of {len(arguments)}: " + ", ".join(describe(a) for a in arguments)
        element = arguments[0] if arguments else None
        if get_origin(element) is Literal:
            return "a list of " + ", ".join(_plain(choice) for choice in get_args(element))
        return f"a list of {_SIMPLE[element][1]}" if element in _SIMPLE else "a list"
    return getattr(annotation, "__name__", str(annotation))


def _keyword_parameters(
    target: Callable[..., object],
) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters that can be passed by name, and whether any other name is taken too."""
    parameters = inspect.signature(target, eval_str=True).parameters.values()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {p.name: p for p in parameters if p.kind in by_name}
    return named, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _check_value(annotation: Any, value: object) -> tuple[str | None, object]:
    """One value against one annotation: a problem or None, and the value to pass on."""
    if annotation is inspect.Parameter.empty:
        return None, value
    if isinstance(value, bool):
        # YAML reads the bare words no and off as false, also where they are a choice's name
        words = _YAML_WORDS[value]
        value = next((choice for choice in _choices(annotation) if choice in words), value)
    try:
        # JSON's strict mode is YAML's types: text becomes a Path, a list a tuple, nothing else
        text = json.dumps(value, default=str)
        return None, TypeAdapter(_as_lists(annotation)).validate_json(text, strict=True)
    except (PydanticSchemaGenerationError, PydanticUserError, TypeError):
        return f"a {describe(annotation)} cannot be written in a recipe; remove it", None
    except ValidationError as error:
        message = f"got {show(value)}, wanted {describe(annotation)}"
        first = error.errors()[0]
        if get_origin(annotation) is Annotated and not first["type"].endswith("_type"):
            message += f" ({first['msg'].lower()})"
        if isinstance(value, str):
            choices = [choice for choice in _choices(annotation) if isinstance(choice, str)]
            close = closest(value, choices)
            message += f"; did you mean {close}?" if close else ""
        return message, None


def _as_lists(annotation: Any) -> Any:
    """An annotation with Iterable and Collection, which pydantic reads lazily or not, as list."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Iterable, Collection):
        return list[arguments[0]]  # type: ignore[valid-type]
    if origin in (Union, types.UnionType):
        return Union[tuple(_as_lists(argument) for argument in arguments)]  # noqa: UP007
    return annotation


def _choices(annotation: Any) -> list[object]:
    """All values that the Literals inside an annotation allow."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for argument in get_args(annotation) for choice in _choices(argument)]


def _plain(choice: object) -> str:
    return choice if isinstance(choice, str) else show(choice)


def _is_list(kind: object) -> bool:
    if kind in (Sequence, Collection, Iterable):
        return True
    return isinstance(kind, type) and issubclass(kind, (list, tuple, AbstractSet))


def _field_type(model: Any, loc: Sequence[str]) -> Any:
    """The annotation of a model's field at a location, None where there is no such field."""
    for part in loc:
        field = model.model_fields.get(part) if _is_model(model) else None
        model = field.annotation if field else None
    return model


def _is_model(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
