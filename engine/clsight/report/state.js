// What is chosen, and who wants to know when that changes.
const $ = (id) => document.getElementById(id);
const held = JSON.parse($("contents").textContent);
const specs = JSON.parse($("specs").textContent);

const chosen = {
  model: held.models[0], score: $("score").value, word: "", outcome: "errors", label: "", predicted: "",
};
const listeners = [];

function choose(values) {
  Object.assign(chosen, values);
  for (const listener of listeners) listener();
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children); // texts become text nodes, whatever they hold
  return made;
}

function wordButton(form) {
  return element("button", { type: "button", className: "word", onclick: () => choose({ word: form }) }, form);
}

// Rows of a table that is held as columns, those of the chosen model or score where `by` says so.
function rowsOf(table, by) {
  const columns = Object.entries(held.tables[table]);
  const n = columns.length ? columns[0][1].length : 0;
  const rows = [];
  for (let i = 0; i < n; i++) {
    if (by.every((key) => held.tables[table][key][i] === chosen[key])) {
      rows.push(Object.fromEntries(columns.map(([name, values]) => [name, values[i]])));
    }
  }
  return rows;
}

const signed = (score) => held.signed.includes(score);

// Counts in full, other numbers with three digits; a ratio without a value is one over nothing.
function shown(x) {
  if (x === null || x === undefined) return "∞";
  if (Number.isInteger(x)) return x.toLocaleString("en");
  if (Math.abs(x) < 0.001) return x.toExponential(1);
  return x.toLocaleString("en", { maximumSignificantDigits: 3 });
}
