"""Charts of a run, as Altair objects: for notebooks, and for the report, which fills in the rows.

Each takes its rows as a Polars frame, or `altair.NamedData` for a page that brings them later.
"""

from typing import Any

import altair as alt

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
"""Colours that can be told apart with any colour vision (Okabe and Ito 2008), one a model."""
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
FINDINGS = {"over-attended": ("#D55E00", "triangle-up"), "neglected": ("#0072B2", "square"),
            "under-attended": ("#009E73", "diamond"), "tested": ("#8a8a8a", "circle")}
"""What a word can be found to be: colour and shape, so that neither alone must tell."""
FITTED: Any = {"autosize": {"type": "fit-x", "contains": "padding"}, "width": "container"}

Rows = Any
"""A Polars frame, or `altair.NamedData`."""


def calibration(rows: Rows, models: list[str]) -> alt.LayerChart:
    """Is a model right as often as it says it is? One line a model, one point a bin.

    Args:
        rows: of the relation `calibration`.
        models: all models, in the order of their colours.
    """
    even = alt.Chart(rows).mark_line(strokeDash=[4, 4], color="#8a8a8a").encode(
        x="confidence:Q", y="confidence:Q")
    accuracy = alt.Chart(rows).encode(
        x=alt.X("confidence:Q", title="stated confidence",
                scale=alt.Scale(zero=False, domainMax=1),
                axis=alt.Axis(format="%", tickCount=5)),
        y=alt.Y("accuracy:Q", title="share that is right",
                scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
        color=_by_model(models),
        tooltip=["model:N", alt.Tooltip("confidence:Q", format=".1%"),
                 alt.Tooltip("accuracy:Q", format=".1%"),
                 alt.Tooltip("n_documents:Q", title="documents", format=",")],
    )
    points = accuracy.mark_point(filled=True, opacity=1).encode(
        size=alt.Size("n_documents:Q", legend=None), shape=_shape_of_model(models))
    return (even + accuracy.mark_line() + points).properties(**FITTED, height=260)


def confusion(rows: Rows) -> alt.LayerChart:
    """Which labels a model takes for which; shares are of each gold label.

    Args:
        rows: of the relation `confusion`, of one model.
    """
    cells = alt.Chart(rows).encode(
        x=alt.X("predicted:N", title="predicted", axis=alt.Axis(labelAngle=0, orient="top")),
        y=alt.Y("label:N", title="gold label"),
        tooltip=["label:N", "predicted:N", alt.Tooltip("n_documents:Q", format=","),
                 alt.Tooltip("share:Q", format=".1%")],
    )
    shade = cells.mark_rect().encode(
        color=alt.Color("share:Q", title="share of the label", legend=None,
                        scale=alt.Scale(scheme="blues", domain=[0, 1])))
    counts = cells.mark_text().encode(
        text=alt.Text("n_documents:Q", format=","),
        color=alt.condition("datum.share > 0.5", alt.value("white"), alt.value("black")))
    return (shade + counts).properties(**FITTED, height=alt.Step(34))


def words(rows: Rows) -> alt.LayerChart:
    """Tested words: how much more often they stand in errors x how much more they are attended.

    Args:
        rows: of the relation `word_statistics`, of one model and score, with a column `finding`
            (one of `FINDINGS`); where a column `chosen` is true, the word stands out.
    """
    base = alt.Chart(rows).transform_filter(
        "datum.presence_ratio > 0 && datum.intensity_ratio > 0").encode(
        x=alt.X("presence_ratio:Q", title="presence: times as often in errors",
                scale=alt.Scale(type="log", nice=False, padding=12)),
        y=alt.Y("intensity_ratio:Q", title="intensity: times as much attended there",
                scale=alt.Scale(type="log", nice=False, padding=12)),
        tooltip=["form:N", "finding:N", alt.Tooltip("n_documents:Q", title="documents", format=","),
                 alt.Tooltip("n_errors:Q", title="of them errors", format=","),
                 *(alt.Tooltip(f"{name}:Q", format=".3~r") for name in (
                     "mass_ratio", "presence_ratio", "intensity_ratio", "lift", "q",
                     "consistency"))],
    )
    points = base.mark_point(filled=True).encode(
        color=_by_finding(), shape=_shape_of_finding(),
        opacity=alt.condition("datum.finding == 'tested' && !datum.chosen", alt.value(0.45),
                              alt.value(1)),
        size=alt.condition("datum.chosen", alt.value(250), alt.value(45)),
        order=alt.Order("finding:N", sort="descending"),
    )
    names = base.mark_text(align="left", dx=9, dy=-5, fontWeight="bold").encode(
        text=alt.condition("datum.finding != 'tested' || datum.chosen", "form:N", alt.value("")),
        color=_by_finding())
    return (_even("x") + _even("y") + points + names).properties(**FITTED, height=360)


def habits(rows: Rows, models: list[str]) -> alt.LayerChart:
    """Words that at least one model over-attends, in all models: shared habits and one's own.

    Args:
        rows: of the relation `word_statistics`, of those words and one score, in the order in
            which they are drawn; `finding` is "over-attended" where it is.
        models: all models, in the order of their colours.
    """
    base = alt.Chart(rows).encode(
        y=alt.Y("form:N", title=None, sort=None),
        yOffset=alt.YOffset("model:N"), color=_by_model(models),
        tooltip=["form:N", "model:N", "finding:N",
                 *(alt.Tooltip(f"{name}:Q", format=".3~r") for name in (
                     "adjusted_ratio", "adjusted_ratio_low", "adjusted_ratio_high", "q"))],
    )
    ratio: Any = {"title": "mass in errors / expected (95 % interval)",
                  "scale": alt.Scale(type="log")}
    drawn = "datum.adjusted_ratio > 0 && datum.adjusted_ratio_low > 0"
    intervals = base.transform_filter(drawn).mark_rule(strokeWidth=2).encode(
        x=alt.X("adjusted_ratio_low:Q", **ratio), x2="adjusted_ratio_high:Q")
    points = base.transform_filter(drawn).mark_point(size=60).encode(
        x=alt.X("adjusted_ratio:Q", **ratio),
        shape=_shape_of_model(models),
        fill=alt.Fill(**_of_model(models), legend=None),
        fillOpacity=alt.condition("datum.finding == 'over-attended'", alt.value(1), alt.value(0)))
    return (_even("x") + intervals + points).properties(**FITTED, height=alt.Step(16, **{
        "for": "position"}))


def agreement(rows: Rows, scores: list[str]) -> alt.LayerChart:
    """How far the scores of a model rank a document's words alike (Spearman's correlation).

    Args:
        rows: of the relation `compare_scores`, of one model.
        scores: all scores in their order.
    """
    cells = alt.Chart(rows).encode(
        x=alt.X("other:N", title=None, sort=scores, axis=alt.Axis(orient="top", labelAngle=-90)),
        y=alt.Y("score:N", title=None, sort=scores),
        tooltip=["score:N", "other:N", alt.Tooltip("rank_correlation:Q", format=".3f"),
                 alt.Tooltip("top5_shared:Q", title="of the five top words in common",
                             format=".0%")],
    )
    shade = cells.mark_rect().encode(color=alt.Color(
        "rank_correlation:Q", title="rank correlation",
        scale=alt.Scale(scheme="blueorange", reverse=True, domain=[-1, 1])))
    values = cells.mark_text().encode(
        text=alt.Text("rank_correlation:Q", format=".2f"),
        color=alt.condition("abs(datum.rank_correlation) > 0.7", alt.value("white"),
                            alt.value("black")))
    return (shade + values).properties(**FITTED, height=alt.Step(30))


def explained(rows: Rows, scores: list[str]) -> alt.Chart:
    """How much of the margin each score of a model explains, summed over a document's words.

    Args:
        rows: of the relation `compare_scores`, of one model.
        scores: all scores in their order.
    """
    return alt.Chart(rows).mark_bar(color=PALETTE[0]).encode(
        y=alt.Y("score:N", title=None, sort=scores),
        x=alt.X("max(margin_explained):Q", title="share of the margin's variance explained",
                scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
        tooltip=["score:N", alt.Tooltip("max(margin_explained):Q", title="explained",
                                        format=".1%")],
    ).properties(**FITTED, height=alt.Step(24))


def head_weights(rows: Rows) -> alt.Chart:
    """The mean weight of each head of the last layer, with the output projection and without.

    Args:
        rows: model, head, weighting ("classifier" or "projected"), weight; of one model.
    """
    return alt.Chart(rows).mark_bar().encode(
        x=alt.X("head:O", title="head of the last layer", axis=alt.Axis(labelAngle=0)),
        xOffset="weighting:N",
        y=alt.Y("weight:Q", title="mean weight"),
        color=alt.Color("weighting:N", title="weighting", scale=alt.Scale(range=PALETTE[:2])),
        tooltip=["head:O", "weighting:N", alt.Tooltip("weight:Q", format=".3f")],
    ).properties(**FITTED, height=180)


def attention(rows: Rows) -> alt.FacetChart:
    """Where each head's attention from [CLS] goes: a cell a head, a panel a kind of piece.

    Args:
        rows: model, layer, head, where, share, in_errors, in_correct; of one model.
    """
    cells = alt.Chart(rows).mark_rect().encode(
        x=alt.X("head:O", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("layer:O", sort="descending", axis=alt.Axis(titleAngle=0, titleAlign="right")),
        color=alt.Color("share:Q", title="share", scale=alt.Scale(scheme="viridis", domain=[0, 1]),
                        legend=alt.Legend(orient="bottom", format="%")),
        tooltip=["layer:O", "head:O", "where:N", alt.Tooltip("share:Q", format=".1%"),
                 alt.Tooltip("in_errors:Q", format=".1%"),
                 alt.Tooltip("in_correct:Q", format=".1%")],
    ).properties(width=alt.Step(26), height=alt.Step(20))
    return cells.facet(row=alt.Row("where:N", title=None, header=alt.Header(
        orient="top", labelAnchor="start", labelFontWeight="bold"), sort=[
            "on [CLS]", "on separators", "on punctuation", "on other words"]), spacing=6)


def _by_model(models: list[str]) -> alt.Color:
    return alt.Color(**_of_model(models))


def _of_model(models: list[str]) -> dict[str, Any]:
    return {"shorthand": "model:N", "title": "model", "scale": alt.Scale(
        domain=models, range=[PALETTE[i % len(PALETTE)] for i in range(len(models))])}


def _shape_of_model(models: list[str]) -> alt.Shape:
    return alt.Shape("model:N", title="model", scale=alt.Scale(
        domain=models, range=[SHAPES[i % len(SHAPES)] for i in range(len(models))]))


def _by_finding() -> alt.Color:
    return alt.Color("finding:N", title="finding", scale=alt.Scale(
        domain=[*FINDINGS], range=[colour for colour, _ in FINDINGS.values()]))


def _shape_of_finding() -> alt.Shape:
    return alt.Shape("finding:N", title="finding", scale=alt.Scale(
        domain=[*FINDINGS], range=[shape for _, shape in FINDINGS.values()]))


def _even(axis: str) -> alt.Chart:
    """Where a ratio is 1: no more in errors than elsewhere."""
    return alt.Chart(alt.InlineData([{"at": 1}])).mark_rule(
        strokeDash=[4, 4], color="#8a8a8a").encode(**{axis: "at:Q"})
