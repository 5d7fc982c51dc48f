// The table of tested words: sort, search and pages by DataTables, from the text that the page holds.
const source = new Blob([$("datatables").textContent], { type: "text/javascript" });
const address = URL.createObjectURL(source);
const { default: DataTable } = await import(address);
URL.revokeObjectURL(address);

const number = (value, type) => (type === "display" ? shown(value) : value ?? Infinity);
const COLUMNS = [
  ["form", "word"], ["finding", "finding"], ["n_documents", "documents"], ["n_errors", "errors"],
  ["mass_ratio", "mass ratio"], ["presence_ratio", "presence"], ["intensity_ratio", "intensity"],
  ["lift", "lift"], ["q", "q"], ["consistency", "consistency"],
];
const escaped = DataTable.render.text().display;

const words = new DataTable("#words", {
  columns: COLUMNS.map(([data, title], i) => ({
    data, title, className: i < 2 ? "dt-left" : "dt-right", type: i < 2 ? "string" : "num",
    render: i < 2 ? (value, type) => (type === "display" ? escaped(value) : value) : number,
    createdCell: i ? undefined : (cell, form, row) => cell.replaceChildren(
      row.kind === "group" ? form : wordButton(form)),
  })),
  order: [], pageLength: 10, lengthMenu: [10, 25, 100], autoWidth: false,
  language: { search: "Search words:", emptyTable: "No word is tested for this model." },
});

function tabulate() {
  const rows = rowsOf("words", ["model", "score"]);
  words.clear().rows.add(rows);
  const exact = rows.some((row) => row.form === chosen.word);
  words.column(0).search(exact ? (_, row) => row.form === chosen.word : "").draw();
  $("held").textContent = chosen.word && !exact
    ? `“${chosen.word}” is not among the words tested here that the page holds.`
    : `${rows.length} words are held here: all findings, then those with most evidence either way.`;
}

function listShared() {
  if (!$("shared")) return;
  const rows = rowsOf("shared", ["score"]);
  $("shared").replaceChildren(...rows.map((row) => element("li", {}, wordButton(row.form),
    row.habit === "shared" ? ` shared by ${row.models.join(" and ")}` : ` ${row.models[0]}'s own, unlike ${row.models[1]}`,
    ` (q ${shown(row.q)})`)));
  if (!rows.length) $("shared").append(element("li", {}, "Of no word can either be said for this score."));
}
