"""The dashboard of a run: one HTML page that needs nothing else, as a file or from a server."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import altair as alt
import duckdb

from clsight import __version__, charts, database, shards
from clsight import plan as plans
from clsight.document_view import template
from clsight.errors import ClsightError
from clsight.output import compact_json
from clsight.plan import Plan
from clsight.report.contents import contents, summary

MOST_FINDINGS = 20
"""Findings of a model that are spelled out; the others are in the table of words."""
SCRIPTS = ("state.js", "charts.js", "words.js", "documents.js", "page.js")


def write(run: Path, output: Path) -> None:
    """Write the report of a run, one HTML file that works offline.

    Raises:
        UsageError: the run is not complete.
    """
    text = page(run)
    with shards.replaced(output) as path:
        path.write_text(text, encoding="utf-8")


def page(run: Path, live: bool = False) -> str:
    """The page as HTML; a live one asks `api/browse` for documents, another holds a sample.

    Raises:
        UsageError: the run is not complete.
        ClsightError: it was made by an older version.
    """
    plan = plans.load(run)
    try:
        with database.connect(run) as connection:
            held, said = contents(connection, plan, live), summary(connection)
    except duckdb.CatalogException as error:
        raise ClsightError(f"{run} was made by an older version, which lacks what is shown here; "
                           "the same clsight run again makes its relations anew") from error
    html: str = template("report/page").render(
        run=run.resolve().name, dataset=Path(plan.dataset.path).name, plan=plan, held=held, **said,
        most_findings=MOST_FINDINGS, specs=_specs(plan), own=[_own(name) for name in SCRIPTS],
        style=_own("page.css"), libraries=_libraries(), version=__version__, ratio=_ratio,
        data=_data, code=_code,
    )
    return html


def _specs(plan: Plan) -> dict[str, Any]:
    """Charts by the table that their rows come from, without rows."""
    rows, models, scores = alt.NamedData("rows"), [*plan.models], [*plan.scores]
    drawn = {
        "calibration": charts.calibration(rows, models), "confusion": charts.confusion(rows),
        "words": charts.words(rows), "habits": charts.habits(rows, models),
        "agreement": charts.agreement(rows, scores), "explained": charts.explained(rows, scores),
        "weights": charts.head_weights(rows), "attention": charts.attention(rows),
    }
    return {name: chart.to_dict(validate=False) for name, chart in drawn.items()}


@cache
def _libraries() -> dict[str, str]:
    """Vega with Vega-Lite and its embedding, and DataTables: as their Python packages hold them."""
    import vl_convert
    from itables.utils import read_package_file

    return {"vega": vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", _vegalite()),
            "datatables": read_package_file("html/dt_bundle.js"),
            "datatables_style": read_package_file("html/dt_bundle.css")}


def _vegalite() -> str:
    """The newest Vega-Lite of the bundle that Altair's charts are written for."""
    major, minor, *_ = alt.SCHEMA_VERSION.removeprefix("v").split(".")
    return f"{major}.{minor}"


def _own(name: str) -> str:
    return (files("clsight.report") / name).read_text(encoding="utf-8")


def _data(value: Any) -> str:
    """A value as JSON that cannot end the script element around it, whatever texts hold."""
    from markupsafe import Markup

    return Markup(compact_json(value).replace("<", "\\u003c"))


def _code(text: str) -> str:
    """A script or style, which means the same and cannot end the element around it."""
    from markupsafe import Markup

    return Markup(text.replace("</s", "<\\/s").replace("<!--", "<\\!--"))


def _ratio(value: float | None) -> str:
    return "∞" if value is None else f"{value:.3g}"
