"""The figures of a sweep by plotly, for a browser: hovering over a point shows what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

from sweeps.engine.reporting import series
from sweeps.engine.reporting.findings import Findings
from sweeps.engine.reporting.records import Records
from sweeps.engine.reporting.series import STYLES

Draw = Callable[[Findings, Records], go.Figure | None]
FAINT = 0.75  # opacity of what is not the best
SHORT = 12  # up to this many trials or epochs, each has a tick


def history(found: Findings, records: Records) -> go.Figure | None:
    """The objective by trial, and the best so far."""
    drawn = [curve for curve in series.curves(found) if curve.values]
    if not drawn:
        return None
    figure = _figure(found, "trial")
    for end, group in series.groups(drawn).items():
        figure.add_scatter(
            x=[int(curve.trial_id) for curve in group],
            y=[curve.values[-1] for curve in group],
            mode="markers",
            marker=_marker(end),
            name=f"{end} ({len(group)})",
            text=[_what(curve) for curve in group],
            hovertemplate="%{text}<extra></extra>",
        )
    if steps := series.best_so_far(found):
        numbers, values = map(list, zip(*steps, strict=True))
        figure.add_scatter(
            x=[*numbers, int(drawn[-1].trial_id)],
            y=[*values, values[-1]],
            mode="lines",
            line={"shape": "hv", "color": series.BEST},
            name="best so far",
            hovertemplate="best so far: %{y:.4f}<extra></extra>",
        )
    return _with_baselines(figure, found)


def learning_curves(found: Findings, records: Records) -> go.Figure | None:
    """The objective of each trial by epoch; the last point says how it ended."""
    drawn = [curve for curve in series.curves(found) if curve.values]
    if not drawn:
        return None
    figure = _figure(found, "epoch")
    best = found.complete[0].trial_id if found.complete else None
    for end, group in series.groups(drawn).items():
        for i, curve in enumerate(group):
            wide = curve.trial_id == best
            last = len(curve.epochs) - 1
            figure.add_scatter(
                x=curve.epochs,
                y=curve.values,
                mode="lines+markers",
                line={
                    "color": STYLES[end].colour,
                    "dash": STYLES[end].dash,
                    "width": 3.5 if wide else 1.5,
                },
                marker={**_marker(end), "size": [0] * last + [9]},
                opacity=1 if wide else FAINT,
                name=f"{end} ({len(group)})",
                legendgroup=end,
                showlegend=i == 0,
                text=[_what(curve)] * len(curve.epochs),
                hovertemplate="epoch %{x}: %{y:.4f}<br>%{text}<extra></extra>",
            )
    return _with_baselines(figure, found)


def parallel(found: Findings, records: Records) -> go.Figure | None:
    """Parallel coordinates: one line per trial, coloured by objective; ranges can be selected."""
    data = series.parallel(found)
    if len(data.values) < 2 or not data.axes:
        return None
    dimensions: list[dict[str, Any]] = [
        {
            "label": axis.label + (" (log)" if axis.log else ""),
            "values": axis.positions,
            "tickvals": axis.ticks,
            "ticktext": axis.labels,
            "range": [min(axis.ticks), 1],
        }
        for axis in data.axes
    ]
    low, high = min(data.values), max(data.values)
    ticks = (low, (low + high) / 2, high)
    dimensions.append(
        {
            "label": found.objective,
            "values": data.values,
            "tickvals": ticks,
            "ticktext": [f"{value:.3f}" for value in ticks],
        }
    )
    line = {"color": data.values, "colorscale": series.GOOD_TO_BAD, "reversescale": found.sign < 0}
    figure = go.Figure(go.Parcoords(dimensions=dimensions, line=line))
    figure.update_layout(margin={"l": 60, "r": 60, "t": 50, "b": 20}, height=380)
    return figure


def importance(found: Findings, records: Records) -> go.Figure | None:
    """Shares of importance with their intervals, beside what is chance."""
    known = found.importance
    if not known.shares:
        return None
    shares = known.shares[: series.AXES][::-1]
    values = [100 * share.value for share in shares]
    figure = go.Figure(
        go.Bar(
            x=values,
            y=[share.name for share in shares],
            orientation="h",
            marker={"color": ["#0072B2" if s.value > known.chance else "#B0B0B0" for s in shares]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [100 * s.high - v for s, v in zip(shares, values, strict=True)],
                "arrayminus": [v - 100 * s.low for s, v in zip(shares, values, strict=True)],
                "thickness": 1.5,
                "color": "#808080",
            },
            text=[f"{100 * s.low:.0f} to {100 * s.high:.0f} %" for s in shares],
            textposition="none",
            hovertemplate="%{y}: %{x:.0f} %, 90 % interval %{text}<extra></extra>",
        )
    )
    label = f"chance: {known.chance:.0%}"
    figure.add_vline(100 * known.chance, line={"color": "#D55E00", "dash": "dash"})
    figure.add_annotation(
        x=100 * known.chance, y=1, yref="paper", text=label, showarrow=False, yanchor="bottom"
    )
    figure.update_layout(
        height=110 + 34 * len(shares),
        margin={"l": 10, "r": 20, "t": 30, "b": 40},
        xaxis={"title": "share of what is explained (%)", "rangemode": "tozero"},
        yaxis={"automargin": True},
    )
    return figure


def slot_use(found: Findings, records: Records) -> go.Figure | None:
    """Which trial each slot ran, and when."""
    bars = series.slot_bars(found, records)
    if not bars:
        return None
    unit, size = series.time_unit(max(bar.end for bar in bars))
    figure = go.Figure()
    for state, style in STYLES.items():
        if not (its := [bar for bar in bars if bar.state == state]):
            continue
        figure.add_bar(
            x=[(bar.end - bar.start) / size for bar in its],
            base=[bar.start / size for bar in its],
            y=[bar.slot + 1 for bar in its],
            orientation="h",
            marker={"color": style.colour, "line": {"color": "white", "width": 1}},
            name=state,
            text=[bar.trial_id for bar in its],
            textposition="inside",
            insidetextanchor="middle",
            hovertemplate=f"trial %{{text}}: %{{x:.2f}} {unit}, {state}<extra></extra>",
        )
    slots = 1 + max(bar.slot for bar in bars)
    figure.update_layout(
        barmode="overlay",
        height=170 + min(420, 46 * slots),
        margin={"l": 10, "r": 20, "t": 10, "b": 40},
        xaxis={"title": f"{unit} since the first epoch began"},
        yaxis={"title": "slot", "autorange": "reversed", "automargin": True, "tickformat": "d"},
        legend=_LEGEND | {"y": -64 / min(420, 46 * slots)},
    )
    figure.update_yaxes(nticks=min(slots, 16) + 1)
    return figure


FIGURES: dict[str, Draw] = {
    "history": history,
    "learning_curves": learning_curves,
    "parallel_coordinates": parallel,
    "importance": importance,
    "slot_use": slot_use,
}
_LEGEND = {"orientation": "h", "yanchor": "top", "y": -0.22, "x": 0}


def _figure(found: Findings, x: str) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        height=430,
        margin={"l": 10, "r": 20, "t": 10, "b": 40},
        xaxis={"title": {"text": x, "standoff": 4}, "tickformat": "d", "nticks": 12},
        yaxis={
            "title": found.objective,
            "range": series.value_range(found),
            "automargin": True,
            "nticks": 8,
        },
        legend=_LEGEND,
        hovermode="closest",
    )
    return figure


def _with_baselines(figure: go.Figure, found: Findings) -> go.Figure:
    last = max(max(trace.x) for trace in figure.data)
    if last <= SHORT:
        figure.update_xaxes(dtick=1)
    for (label, value), dash in zip(
        series.baselines(found).items(), ("dash", "dot", "dashdot"), strict=False
    ):
        figure.add_scatter(
            x=[0, last],
            y=[value, value],
            mode="lines",
            line={"color": "#808080", "width": 1, "dash": dash},
            name=f"{label}: {value:.3f}",
            hovertemplate=f"{label}: {value:.4f}<extra></extra>",
        )
    return figure


def _marker(end: str) -> dict[str, Any]:
    return {"color": STYLES[end].colour, "symbol": STYLES[end].symbol, "size": 9}


def _what(curve: series.Curve) -> str:
    confirms = f"<br>confirms {curve.confirms}" if curve.confirms else ""
    return f"trial {curve.trial_id}<br>{_escape(curve.reason[:90]) or curve.end}{confirms}"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
