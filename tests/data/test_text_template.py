"""Text templates: a missing value leaves nothing of its segment behind."""

import polars as pl
import pytest

from mmkd.data.text_template import TextTemplate
from mmkd.errors import DataError

FILM = "{title}. {genres}. {director}. {plot}"


@pytest.mark.parametrize(
    ("template", "values", "expected"),
    [
        (FILM, ("Heat", "Crime", "Mann", "A heist"), "Heat. Crime. Mann. A heist"),
        (FILM, ("Heat", None, "Mann", None), "Heat. Mann"),
        (FILM, (None, "Crime", None, "A heist"), "Crime. A heist"),
        (FILM, (None, None, None, "A heist"), "A heist"),
        (FILM, ("Heat", "  ", "", None), "Heat"),
        (FILM, (None, "", " ", None), None),
        (FILM, (".hack", None, None, "-"), ".hack. -"),
        ("{title} ({genres}), by {director}.", ("Heat", None, "Mann", None), "Heat, by Mann."),
        ("{title} ({genres}), by {director}.", ("Heat", "Crime", None, None), "Heat (Crime)."),
        ("Film: {title}. Plot: {plot}", (None, None, None, "A heist"), "Plot: A heist"),
        ("Film: {title}. Plot: {plot}", ("Heat", None, None, None), "Film: Heat"),
        ("{{{title}}}", ("Heat", None, None, None), "{Heat}"),
        ("{title} {title}", ("Heat", None, None, None), "Heat Heat"),
    ],
)
def test_a_missing_value_takes_its_segment_with_it(
    template: str, values: tuple[str | None, ...], expected: str | None
) -> None:
    names = ("title", "genres", "director", "plot")
    # beside a row that has everything, as rows must not mind each other
    columns = {
        name: pl.Series([value, "x"], dtype=pl.String)
        for name, value in zip(names, values, strict=True)
    }
    assert TextTemplate.parse(template).render(columns)[0] == expected


def test_columns_are_listed_once_in_order() -> None:
    assert TextTemplate.parse("{b} {a}, {b}").columns == ("b", "a")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("title", r"no placeholder.*write \{title\}"),
        ("{title", "text template '{title'"),
        ("{}", "plain column name"),
        ("{price:.2f}", "plain column name"),
        ("{title!r}", "plain column name"),
    ],
)
def test_a_malformed_template_is_refused(template: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TextTemplate.parse(template)
