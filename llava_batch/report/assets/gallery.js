// Gallery: which rows are shown, in which order, and the card of each.

const COMPARING = () => DATA.names.length > 1;

function picture(item) {
  const box = el("div", { className: "picture" });
  if (item.thumb >= 0) {
    box.append(el("img", { src: `data:image/jpeg;base64,${DATA.thumbs[item.thumb]}`, alt: "", loading: "lazy", decoding: "async" }));
  } else {
    const size = item.width ? `${item.width} × ${item.height}` : "no picture";
    box.append(el("span", { className: "none" }, item.width ? "no thumbnail " : "", item.width ? el("br", {}) : "", size));
  }
  return box;
}

function failure(row) {
  return el("p", { className: "failed" }, el("code", {}, row.error_code ?? "unknown"), prose("span", "", row.error_message ?? ""));
}

function last(row) {
  return row.turns.at(-1);
}

function questionsOf(item) {
  return item.sides.map((row) => last(row).question).filter(Boolean);
}

// The whole of what can be searched in an item.
function searchText(item) {
  const parts = [item.id, item.question_id];
  for (const row of item.sides) {
    parts.push(row.error_code, row.error_message);
    for (const turn of row.turns) parts.push(turn.question, turn.answer);
  }
  return fold(parts.filter(Boolean).join("\n"));
}

function answerOf(row, terms) {
  if (row.status !== "ok") return failure(row);
  return prose("p", "answer", ...marked(last(row).answer ?? "", terms));
}

// The answers of both sides, with the words that differ marked.
function pairOf(item, full) {
  const [one, two] = item.sides;
  const both = one.status === "ok" && two.status === "ok";
  const parts = item.sides.map((row) => row.turns.map((turn) => [turn.answer ?? ""]));
  if (both && !item.same)
    for (let i = 0; i < Math.min(one.turns.length, two.turns.length); i++)
      [parts[0][i], parts[1][i]] = differences(one.turns[i].answer ?? "", two.turns[i].answer ?? "");
  return el("div", { className: "two" }, ...item.sides.map((row, side) => {
    const box = el("div", { className: `side-${side}` }, el("p", { className: "who", dir: "auto" }, DATA.names[side]));
    if (row.status !== "ok") box.append(failure(row));
    else row.turns.forEach((turn, i) => {
      if (!full && i < row.turns.length - 1) return;
      if (full && turn.question) box.append(prose("p", "question", turn.question));
      box.append(prose("p", "answer", ...parts[side][i]));
    });
    return box;
  }));
}

function card(item, terms, open) {
  const body = el("div", { className: "words" });
  const questions = [...new Set(questionsOf(item))];
  if (!DATA.asked.length) for (const text of questions) body.append(prose("p", "question", ...marked(text, terms)));
  body.append(COMPARING() ? pairOf(item, false) : answerOf(item.sides[0], terms));
  const name = el("button", { type: "button", className: "open path", title: item.id, onclick: open }, el("bdi", {}, ...marked(item.id.slice(item.unit.length + 1), terms)));
  const row = item.sides[0], facts = [];
  if (!COMPARING() && row.turns.length > 1) facts.push(`${row.turns.length} turns`);
  if (!COMPARING() && row.finish_reason === "length") facts.push("cut");
  if (!COMPARING() && row.mean_logprob !== null) facts.push(`log-prob. ${row.mean_logprob.toFixed(2).replace("-0.00", "0.00")}`);
  const foot = el("div", { className: "foot" }, name);
  for (const fact of facts) foot.append(el("span", {}, fact));
  if (COMPARING()) foot.append(el("span", {}, item.same ? "same" : "differ"));
  body.append(foot);
  return el("li", {}, el("article", { className: "card" }, picture(item), body));
}

const STATUSES = {
  all: ["All rows", () => true],
  ok: ["Answered", (item) => item.sides[0].status === "ok"],
  error: ["In error", (item) => item.sides.some((row) => row.status !== "ok")],
  length: ["Cut at the token limit", (item) => item.sides.some((row) => row.finish_reason === "length")],
  differ: ["Differ", (item) => !item.same],
  same: ["Same", (item) => item.same],
};

function statusOptions() {
  const names = COMPARING() ? ["all", "differ", "same", "error", "length"] : ["all", "ok", "error", "length"];
  const found = names.filter((name) => name === "all" || DATA.items.some(STATUSES[name][1])).map((name) => [name, STATUSES[name][0]]);
  const codes = new Set(DATA.items.flatMap((item) => item.sides.map((row) => row.error_code)).filter(Boolean));
  return [...found, ...[...codes].sort().map((code) => [`code:${code}`, code])];
}

function hasStatus(item, wanted) {
  if (wanted.startsWith("code:")) return item.sides.some((row) => row.error_code === wanted.slice(5));
  return STATUSES[wanted][1](item);
}

// Question ids of the sample, each with its text where the text is the same everywhere.
function questionOptions() {
  const texts = new Map();
  for (const item of DATA.items) {
    if (item.question_id === null) continue;
    const seen = texts.get(item.question_id) ?? new Set();
    questionsOf(item).forEach((text) => seen.add(text));
    texts.set(item.question_id, seen);
  }
  const ids = [...texts.keys()].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  return ids.map((id) => [`id:${id}`, texts.get(id).size === 1 ? `${id} · ${[...texts.get(id)][0].slice(0, 80)}` : id]);
}

const NOTHING_LAST = (value, sign) => (value === null || value === undefined ? Infinity : sign * value);
const ORDERS = {
  given: ["As drawn, by id", null],
  unsure: ["Least confident first", (row) => NOTHING_LAST(row.mean_logprob, 1)],
  long: ["Longest answer first", (row) => NOTHING_LAST(row.answer_tokens, -1)],
  short: ["Shortest answer first", (row) => NOTHING_LAST(row.answer_tokens, 1)],
};

// The items that are to be shown, in order.
function selected({ search, status, question, order }) {
  const terms = fold(search).split(/\s+/).filter(Boolean);
  const found = DATA.items.filter((item, i) =>
    hasStatus(item, status) &&
    (question === "all" || `id:${item.question_id}` === question) &&
    terms.every((term) => STATE.texts[i].includes(term)));
  const key = ORDERS[order][1];
  if (!key) return { found, terms };
  const keyed = found.map((item) => [key(item.sides[0]), item]);
  return { found: keyed.sort((a, b) => (a[0] === b[0] ? 0 : a[0] - b[0])).map(([, item]) => item), terms };
}
