// Controls and what they change; the state is in the address too, so that a view can be sent.
const CONTROLS = ["model", "score", "word", "outcome", "label", "predicted"];
const given = (name) => (name === "word" ? $(name).value.trim().normalize("NFC").toLowerCase() : $(name).value);
for (const name of CONTROLS) $(name).addEventListener("change", () => choose({ [name]: given(name) }));
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("clear").addEventListener("click", () => choose({ word: "" }));
$("more").addEventListener("click", () => list(true));
document.addEventListener("click", ({ target }) => {
  const { word, model, score } = target.closest?.("[data-word]")?.dataset ?? {};
  if (word) choose({ word, ...(model && { model, score, outcome: "errors" }) });
});

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = (name) => { root.dataset.theme = name; };
theme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
$("theme").addEventListener("click", () => theme(root.dataset.theme === "dark" ? "light" : "dark"));

function told() {
  for (const name of CONTROLS) $(name).value = chosen[name];
  for (const name of ["model", "score"]) {
    for (const place of document.querySelectorAll(`span.${name}`)) place.textContent = chosen[name];
  }
  $("clear").hidden = !chosen.word;
  $("said").textContent = chosen.word ? `Everything about “${chosen.word}”.` : "";
  $("meaning").replaceChildren(...(signed(chosen.score)
    ? ["pushes toward the class that is explained, ", element("span", { className: "orange" }, "orange"), " away from it."]
    : ["means more attention."]));
  const forms = [...new Set(rowsOf("words", ["model", "score"]).map((row) => row.form))];
  $("forms").replaceChildren(...forms.map((value) => element("option", { value })));
  history.replaceState(null, "", `#${new URLSearchParams(Object.entries(chosen).filter(([, value]) => value))}`);
}

function fromAddress() {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const options = [...($(name)?.options ?? [])].map((option) => option.value);
    if (CONTROLS.includes(name) && (name === "word" || options.includes(value))) chosen[name] = value;
  }
}

const n = held.documents.length;
$("sample").textContent = held.live || n === held.n_documents
  ? "All documents, the most confident errors first."
  : `This page holds ${n.toLocaleString("en")} of ${held.n_documents.toLocaleString("en")} documents: the evidence for each `
    + "finding, then each model's most confident errors, then others by chance. Counts below are of these.";

fromAddress();
listeners.push(told, tabulate, listShared, drawAll, () => list());
choose({});
