"""Charts: rows of figures to Vega-Lite specifications, which a page draws without any request.

What a run or an encoder is called is a value of a chart's data, never the name of a field or an
expression, so that it is shown and not evaluated.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt

from mmkd.evaluation.metrics import SLICES

Record = Mapping[str, Any]
Spec = dict[str, Any]

INK, QUIET, ACCENT, WARM = "#2b2926", "#a49c8f", "#0f6f68", "#b4541a"
_SERIES = (ACCENT, WARM, "#5b5ea6", "#8a7a2d", "#a0426a", "#4f7f3a", "#6b6259", "#2f7fb8")
_KINDS = {"this run": ACCENT, "run": "#5b5ea6", "baseline": QUIET, "seed": QUIET}
_SLICE_COLOURS = ("#c2652a", "#e0b04c", "#7fb3a6", "#0f6f68")  # cold to head
_ROW_PX = 30
_MOST_EPOCHS = 10  # numbered on an axis
_SIDES: tuple[tuple[Literal["center", "left", "right"], int, int], ...] = (
    *(("center", 0, -13), ("center", 0, 15)),  # a name above its point, or below
    *(("left", 10, 0), ("right", -10, 0)),
)
_PLOT_PX, _LETTER_PX = (560, 208), 6.2
_FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"


def intervals(rows: Sequence[Record], metric: str) -> Spec:
    """A row a run or baseline: a point with its interval."""
    base = alt.Chart(alt.InlineData(values=[*rows])).encode(
        y=alt.Y("name:N", sort=None, title=None, axis=_names()),
        color=_kind(),
    )
    tips = [_tip("name:N", "run"), _tip("value:Q", metric), _tip("low:Q"), _tip("high:Q")]
    room = max(1e-4, *(row["high"] for row in rows)) * 1.15  # for the last figure
    bar = base.mark_rule(strokeWidth=3, opacity=0.35).encode(
        x=alt.X("low:Q", title=metric, scale=alt.Scale(domain=[0, room])), x2="high:Q"
    )
    point = base.mark_circle(size=110, opacity=1).encode(x="value:Q", tooltip=tips)
    text = base.mark_text(align="left", dx=11, dy=-9, fontSize=11).encode(
        x="value:Q", text=alt.Text("value:Q", format=".4f")
    )
    return _spec(bar + point + text, height=_ROW_PX * len(rows))


def slices(rows: Sequence[Record], metric: str) -> Spec:
    """A row a slice, a point a method."""
    order = [part for part in SLICES if any(row["slice"] == part for row in rows)]
    told = {row["slice"]: f"{row['slice']} · {row['n']:,}" for row in reversed(rows)}
    named = [{**row, "told": told[row["slice"]]} for row in rows]
    base = alt.Chart(alt.InlineData(values=named)).encode(
        y=alt.Y("told:N", sort=[told[part] for part in order], title=None, axis=_names()),
        x=alt.X("value:Q", title=metric),
        color=_series("name", [*dict.fromkeys(row["name"] for row in rows)], rows),
        tooltip=[_tip("name:N", "run"), _tip("slice:N"), _tip("value:Q", metric)],
    )
    chart = base.mark_line(color="#ddd6ca", strokeWidth=6, opacity=0.9).encode(
        color=alt.value("#e6e0d5"), detail="slice:N", tooltip=alt.value(None)
    ) + base.mark_circle(size=110, opacity=0.95)
    return _spec(chart, height=46 * len(order))


def gains(rows: Sequence[Record], metric: str) -> Spec:
    """A row a slice: the gain with its interval, beside nothing gained."""
    told = [{**row, "told": f"{row['slice']} · {row['n']:,}"} for row in rows]
    base = alt.Chart(alt.InlineData(values=told)).encode(
        y=alt.Y("told:N", sort=None, title=None, axis=_names())
    )
    tips = [_tip("slice:N"), _tip("value:Q", "gain"), _tip("low:Q"), _tip("high:Q")]
    nothing = alt.Chart(alt.InlineData(values=[{"at": 0}])).mark_rule(color=QUIET).encode(x="at:Q")
    bar = base.mark_rule(strokeWidth=3, opacity=0.35, color=ACCENT).encode(
        x=alt.X("low:Q", title=f"gain in {metric}", axis=alt.Axis(format="+.3f")), x2="high:Q"
    )
    point = base.mark_circle(size=110, opacity=1, color=ACCENT).encode(x="value:Q", tooltip=tips)
    return _spec(nothing + bar + point, height=_ROW_PX * len(rows))


def by_epoch(
    rows: Sequence[Record], what: str, *, best: int, last: int, logarithmic: bool = False
) -> Spec:
    """A line a name over the epochs, with the epoch whose weights were kept.

    Args:
        rows: ``epoch``, ``name`` and ``value``.
        what: The axis's title.
        best: The epoch that was kept.
        last: The last epoch, so that all such charts have one axis.
        logarithmic: Whether the values are of very different sizes.
    """
    step = -(-last // _MOST_EPOCHS)
    steep = logarithmic and all(row["value"] > 0 for row in rows)
    scale = alt.Scale(type="log") if steep else alt.Scale(zero=False)
    x = alt.X(
        "epoch:Q",
        title="epoch",
        scale=alt.Scale(domain=[1, max(2, last)], nice=False, zero=False),
        axis=alt.Axis(values=sorted({1, *range(step, last + 1, step)}), format="d", grid=False),
    )
    axis = alt.Axis(minExtent=52, maxExtent=52, tickCount=4)
    base = alt.Chart(alt.InlineData(values=[*rows])).encode(
        x=x,
        y=alt.Y("value:Q", title=what, scale=scale, axis=axis),
        color=_series("name", [*dict.fromkeys(row["name"] for row in rows)]),
        tooltip=[_tip("name:N", "what"), _tip("epoch:Q", form="d"), _tip("value:Q")],
    )
    kept = (
        alt.Chart(alt.InlineData(values=[{"epoch": best}]))
        .mark_rule(strokeDash=[3, 3], color=QUIET)
        .encode(x="epoch:Q")
    )
    return _spec(kept + base.mark_line(strokeWidth=2) + base.mark_circle(size=36), height=130)


def shares(rows: Sequence[Record]) -> Spec:
    """Bars of four parts, by how often items train."""
    order = [*dict.fromkeys(row["what"] for row in rows)]
    chart = (
        alt.Chart(
            alt.InlineData(values=[{**row, "at": SLICES.index(row["slice"])} for row in rows])
        )
        .mark_bar(height=20)
        .encode(
            y=alt.Y("what:N", sort=order, title=None, axis=_names()),
            x=alt.X("share:Q", title=None, axis=alt.Axis(format="%", grid=False)),
            order=alt.Order("at:Q"),
            color=alt.Color(
                "slice:N",
                scale=alt.Scale(domain=[*SLICES], range=[*_SLICE_COLOURS]),
                legend=_legend(),
            ),
            tooltip=[_tip("what:N", "of"), _tip("slice:N"), _tip("share:Q", form=".1%")],
        )
    )
    return _spec(chart, height=34 * len(order))


def retention_and_metric(rows: Sequence[Record], metric: str) -> Spec:
    """A point a run: how much it holds of its encoders, and how well it ranks.

    A run's seeds are small points without a name.
    """
    names = ["" if row["kind"] == "seed" else row["name"] for row in rows]
    sides = beside([(row["retention"], row["value"]) for row in rows], names)
    placed = [
        {**row, "side": side if name else None}
        for row, side, name in zip(rows, sides, names, strict=True)
    ]
    base = alt.Chart(alt.InlineData(values=placed)).encode(
        x=alt.X(
            "retention:Q",
            title="retention (Spearman)",
            scale=alt.Scale(zero=False, nice=False, padding=60),
        ),
        y=alt.Y("value:Q", title=metric, scale=alt.Scale(zero=False, nice=False, padding=26)),
        tooltip=[_tip("name:N", "run"), _tip("retention:Q"), _tip("value:Q", metric)],
    )
    mean, seed = alt.datum.kind != "seed", alt.datum.kind == "seed"
    spread = base.transform_filter(seed).mark_circle(size=44, opacity=0.45).encode(color=_kind())
    point = base.transform_filter(mean).mark_circle(size=120, opacity=1).encode(color=_kind())
    texts = [
        base.mark_text(align=align, dx=dx, dy=dy, fontSize=11, color=INK)
        .encode(text="name:N")
        .transform_filter(f"datum.side == {side}")
        for side, (align, dx, dy) in enumerate(_SIDES)
    ]
    above, below, right, left = texts
    return _spec(spread + point + above + below + right + left, height=260)


def beside(points: Sequence[tuple[float, float]], names: Sequence[str]) -> list[int]:
    """At which of the four sides of its point each name meets the fewest names and points.

    Sizes are those of a page of usual width; a narrower one brings names nearer.
    """
    spans = [max(axis) - min(axis) or 1.0 for axis in zip(*points, strict=True)]
    lows = [min(axis) for axis in zip(*points, strict=True)]
    places = [
        ((x - lows[0]) / spans[0] * _PLOT_PX[0], (lows[1] - y) / spans[1] * _PLOT_PX[1])
        for x, y in points
    ]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    sides = []
    for (x, y), name in zip(places, names, strict=True):
        boxes = []
        for align, dx, dy in _SIDES:
            width = _LETTER_PX * len(name)
            left = x + dx - {"center": width / 2, "left": 0, "right": width}[align]
            boxes.append((left, y + dy - 6, left + width, y + dy + 6))
        met = [sum(_overlap(box, other) for other in taken) for box in boxes]
        sides.append(met.index(min(met)))
        taken.append(boxes[sides[-1]])
    return sides


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(one[a] < other[a + 2] and other[a] < one[a + 2] for a in (0, 1))


def importances(rows: Sequence[Record]) -> Spec:
    """A bar an option: its share of what made trials differ."""
    base = alt.Chart(alt.InlineData(values=[*rows])).encode(
        y=alt.Y("name:N", sort=None, title=None, axis=_names(limit=260)),
        x=alt.X("value:Q", title="importance", scale=alt.Scale(domain=[0, 1])),
        tooltip=[_tip("name:N", "option"), _tip("value:Q", "importance", ".2f")],
    )
    text = base.mark_text(align="left", dx=6, fontSize=11).encode(
        text=alt.Text("value:Q", format=".2f")
    )
    return _spec(base.mark_bar(height=14, color=ACCENT) + text, height=_ROW_PX * len(rows))


def tried(
    rows: Sequence[Record], option: str, metric: str, *, kind: str, within: Sequence[Any]
) -> Spec:
    """A point a trial: an option's value, and what came of it.

    Args:
        rows: ``at``, the value, a number unless ``kind`` is ``choice``; ``value``, ``state`` and
            ``number`` of the trial.
        option: The axis's title.
        metric: The other axis's title.
        kind: As of a dimension.
        within: The two ends, or the choices.
    """
    if kind == "choice":
        names = alt.Axis(labelAngle=0, labelLimit=140)
        x = alt.X("at:N", title=option, scale=alt.Scale(domain=[*within]), axis=names)
    else:
        scale = alt.Scale(domain=[*within], nice=False)
        if kind == "log":
            scale = alt.Scale(domain=[*within], nice=False, type="log")
        x = alt.X("at:Q", title=option, scale=scale, axis=alt.Axis(tickCount=6, format="~g"))
    states = alt.Scale(domain=["complete", "pruned"], range=[ACCENT, QUIET])
    chart = (
        alt.Chart(alt.InlineData(values=[*rows]))
        .mark_circle(size=90)
        .encode(
            x=x,
            y=alt.Y("value:Q", title=metric, scale=alt.Scale(zero=False)),
            color=alt.Color("state:N", scale=states, legend=None),
            opacity=alt.Opacity(
                "state:N", scale=alt.Scale(domain=["complete", "pruned"], range=[0.9, 0.5])
            ).legend(None),
            tooltip=[
                _tip("number:Q", "trial", "d"),
                _tip("at:N", "value"),
                _tip("value:Q", metric),
                _tip("state:N"),
            ],
        )
    )
    return _spec(chart, height=200)


def searches(rows: Sequence[Record], metric: str) -> Spec:
    """A line a recipe: the best so far, trial by trial."""
    names = [*dict.fromkeys(row["name"] for row in rows)]
    base = alt.Chart(alt.InlineData(values=[*rows])).encode(
        x=alt.X("number:Q", title="trial", axis=alt.Axis(format="d", tickMinStep=1, grid=False)),
        y=alt.Y("best:Q", title=f"best {metric} so far", scale=alt.Scale(zero=False)),
        color=_series("name", names),
        tooltip=[_tip("name:N", "recipe"), _tip("number:Q", "trial", "d"), _tip("best:Q")],
    )
    line = base.mark_line(strokeWidth=2, interpolate="step-after")
    return _spec(line + base.mark_circle(size=36), height=180)


def _kind() -> alt.Color:
    scale = alt.Scale(domain=[*_KINDS], range=[*_KINDS.values()])
    return alt.Color("kind:N", scale=scale, legend=None)


def _series(field: str, names: Sequence[str], rows: Sequence[Record] = ()) -> alt.Color:
    """Colours by name; baselines, where the rows tell kinds, in quiet ones."""
    quiet = iter(("#8f877a", "#bdb5a7", "#d5cec2", "#6b6259"))
    loud = iter(_SERIES * (1 + len(names) // len(_SERIES)))
    baselines = {row["name"] for row in rows if row["kind"] == "baseline"}
    colours = [next(quiet, QUIET) if name in baselines else next(loud) for name in names]
    scale = alt.Scale(domain=[*names], range=colours)
    return alt.Color(f"{field}:N", scale=scale, legend=_legend())


def _legend() -> alt.Legend:
    return alt.Legend(title=None, orient="top", direction="horizontal", columns=2, symbolSize=70)


def _names(limit: int = 150) -> alt.Axis:
    return alt.Axis(labelLimit=limit, domain=False, ticks=False, labelPadding=8)


def _tip(field: str, title: str | None = None, form: str = ".4f") -> alt.Tooltip:
    name = field.partition(":")[0]
    tip = alt.Tooltip(field, title=title or name)
    return tip.format(form) if field.endswith(":Q") else tip


def _spec(chart: alt.Chart | alt.LayerChart, *, height: int) -> Spec:
    """The finished specification, as wide as the page lets it be."""
    styled = (
        chart.properties(
            width="container",
            height=height,
            background="transparent",
            autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        )
        .configure(font=_FONT)  # first: it would undo the others
        .configure_view(stroke=None)
        .configure_axis(
            labelColor="#5d574f",
            titleColor="#5d574f",
            titleFontWeight="normal",
            labelFontSize=12,
            titleFontSize=12,
            titlePadding=8,
            tickCount=6,
            gridColor="#ebe5da",
            domainColor="#cfc8bb",
            tickColor="#cfc8bb",
        )
        .configure_legend(labelFontSize=12, labelColor="#3d3934", labelLimit=180)
    )
    spec: Spec = styled.to_dict()
    spec.pop("$schema", None)  # the page says which version draws it
    return spec
