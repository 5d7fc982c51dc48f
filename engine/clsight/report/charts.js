// Charts: what each shows, and how rows get into it. Specifications come from charts.py.
const CHARTS = {
  calibration: { table: "calibration", by: [] },
  confusion: { table: "confusion", by: ["model"] },
  words: { table: "words", by: ["model", "score"] },
  habits: { table: "habits", by: ["score"] },
  agreement: { table: "agreement", by: ["model"] },
  explained: { table: "agreement", by: ["model"] },
  weights: { table: "weights", by: ["model"] },
  attention: { table: "attention", by: ["model"] },
};
const quiet = "#8a8a8a";
const ink = { labelColor: "currentColor", titleColor: "currentColor", labelFontSize: 12, titleFontSize: 12 };
const CONFIG = {
  background: "transparent",
  font: "system-ui, sans-serif",
  axis: { ...ink, gridColor: quiet, gridOpacity: 0.25, domainColor: quiet, tickColor: quiet, titleFontWeight: "normal" },
  legend: { ...ink, orient: "bottom", columns: 4, symbolStrokeColor: quiet },
  header: ink,
  view: { stroke: quiet, strokeOpacity: 0.3 },
  text: { fontSize: 12 },
};
const ERRORS = 1; // of Vega: warnings of its compiler are for its authors
const views = {};

const rowsFor = ({ table, by }) =>
  rowsOf(table, by).map((row) => ({ ...row, chosen: row.form !== undefined && row.form === chosen.word }));

// Nothing to draw is said, not drawn as an empty frame.
function fits(name, rows) {
  const figure = $(`f-${name}`);
  figure.querySelector(".empty").hidden = rows.length > 0;
  figure.querySelector(".scroll").hidden = rows.length === 0;
  return rows.length > 0;
}

async function draw(name) {
  const place = $(`c-${name}`);
  if (!place) return;
  const rows = rowsFor(CHARTS[name]);
  if (!fits(name, rows)) return;
  if (views[name]) {
    await views[name].data("rows", rows).runAsync();
    return;
  }
  const spec = { ...specs[name], description: place.dataset.label, datasets: { ...specs[name].datasets, rows } };
  const { view } = await vegaEmbed(place, spec, { renderer: "svg", actions: false, config: CONFIG, logLevel: ERRORS });
  views[name] = view;
  view.addEventListener("click", (_, item) => picked(name, item?.datum));
}

function picked(name, datum) {
  if (!datum) return;
  if (datum.form) choose({ word: datum.form });
  else if (name === "confusion" && datum.label !== undefined) {
    choose({ label: datum.label, predicted: datum.predicted, outcome: "all" });
  } else if (datum.model) choose({ model: datum.model });
}

async function drawAll() {
  for (const name of Object.keys(CHARTS)) await draw(name);
  document.documentElement.dataset.drawn = "true";
}
