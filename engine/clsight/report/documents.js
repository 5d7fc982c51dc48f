// The document browser: a page of the sample that a report holds, or of all documents from a server.
const PAGE = 10;
let seen = 0;
let asked = 0;

function filters() {
  const any = chosen.outcome === "wrong";
  return {
    model: any ? "" : chosen.model, outcome: any ? "errors" : chosen.outcome, form: chosen.word,
    label: chosen.label, predicted: chosen.predicted,
  };
}

const formAt = (one, i) => one.forms[i] ?? one.parts[2 * i + 1];
const nWords = (one) => (one.parts.length - 1) / 2;

function holds(one, form) {
  const pair = form.includes(" ");
  for (let i = 0; i < nWords(one); i++) {
    if (formAt(one, i) === form) return true;
    if (pair && i + 1 < nWords(one) && `${formAt(one, i)} ${formAt(one, i + 1)}` === form) return true;
  }
  return false;
}

// The same as report/documents.py asks of the database.
function answers(one, { model, outcome, form, label, predicted }) {
  const all = Object.values(one.answers);
  const mine = model ? [one.answers[model]].filter(Boolean) : all;
  const wrong = mine.some((answer) => !answer.correct);
  const differ = all.some((answer) => answer.correct) && !all.every((answer) => answer.correct);
  const outcomes = { all: true, errors: wrong, correct: !wrong, disagree: differ };
  return mine.length > 0 && outcomes[outcome] && (!label || one.label === label)
    && (!predicted || mine.some((answer) => answer.predicted === predicted)) && (!form || holds(one, form));
}

const sureness = (one, model) => Math.max(-1, ...Object.entries(one.answers)
  .filter(([name, answer]) => (!model || name === model) && !answer.correct)
  .map(([, answer]) => answer.confidence));

async function browse(offset) {
  const wanted = filters();
  if (!held.live) {
    const found = held.documents.filter((one) => answers(one, wanted))
      .sort((a, b) => sureness(b, wanted.model) - sureness(a, wanted.model));
    return { total: found.length, documents: found.slice(offset, offset + PAGE) };
  }
  const given = Object.entries({ ...wanted, limit: PAGE, offset }).filter(([, value]) => value !== "");
  const answer = await fetch(`api/browse?${new URLSearchParams(given)}`);
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.detail);
  return said;
}

async function list(further = false) {
  const mine = ++asked; // an answer that comes after another choice is dropped
  const offset = further ? seen : 0;
  try {
    const { total, documents } = await browse(offset);
    if (mine !== asked) return;
    const cards = documents.map(card);
    if (further) $("list").append(...cards);
    else $("list").replaceChildren(...cards);
    seen = offset + documents.length;
    $("count").textContent = `${seen.toLocaleString("en")} of ${total.toLocaleString("en")} `
      + `document${total === 1 ? "" : "s"}${chosen.word ? ` with “${chosen.word}”` : ""}.`;
    $("more").hidden = seen >= total;
    if (further && cards.length) cards[0].querySelector("h3").focus();
  } catch (error) {
    $("count").textContent = `Documents cannot be shown: ${error.message}`;
  }
}

function card(one) {
  const models = held.models.filter((model) => one.answers[model])
    .sort((a, b) => (b === chosen.model) - (a === chosen.model));
  const title = element("h3", { tabIndex: -1 }, `Document ${one.id}, gold label ${one.label}`);
  const cut = one.n_words > nWords(one)
    ? [element("p", { className: "note" }, `The first ${nWords(one)} of ${one.n_words.toLocaleString("en")} words.`)] : [];
  return element("article", {}, title, ...cut, ...models.flatMap((model) => answer(one, model)));
}

function answer(one, model) {
  const { predicted, correct, confidence, scores } = one.answers[model];
  const values = scores[chosen.score] ?? [];
  const verdict = element("span", { className: correct ? "right" : "wrong" }, correct ? "✓ right" : "✗ wrong");
  const said = element("p", { className: "answer" }, element("b", {}, model),
    ` says ${predicted} (${(100 * confidence).toFixed(1)} %), `, verdict, ". ", tops(one, values));
  return [said, element("p", { className: "text", dir: "auto" }, ...shaded(one, values))];
}

function tops(one, values) {
  const best = new Map();
  values.forEach((value, i) => best.set(formAt(one, i), Math.max(value, best.get(formAt(one, i)) ?? 0)));
  const strongest = [...best].filter(([, value]) => value > 0).sort((a, b) => b[1] - a[1]).slice(0, 5);
  return element("span", { className: "tops" }, strongest.length ? "Most: " : "",
    ...strongest.flatMap(([form], i) => (i ? [", ", wordButton(form)] : [wordButton(form)])));
}

function shaded(one, values) {
  const whole = values.reduce((sum, value) => sum + Math.max(value, 0), 0);
  return one.parts.map((part, place) => {
    if (place % 2 === 0) return part;
    const i = (place - 1) / 2;
    const value = values[i] ?? 0;
    const form = formAt(one, i);
    const word = element("span", { title: `${form}: ${title(value, whole)}` }, part);
    word.dataset.word = form;
    word.style.background = `rgba(var(${value < 0 ? "--orange" : "--blue"}), ${Math.abs(value) / 170})`;
    word.classList.toggle("down", value < -5);
    word.classList.toggle("asked", chosen.word.split(" ").includes(form));
    return word;
  });
}

const title = (value, whole) => (value < 0
  ? `against, ${-value} % of the strongest word` : `share ${((100 * value) / (whole || 1)).toFixed(1)} %`);
