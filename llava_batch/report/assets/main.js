// Main: the page's state, what changes it, and what is drawn when it has changed.

const DATA = JSON.parse(document.getElementById("data").textContent);
const STATE = { page: 0, texts: DATA.items.map(searchText) };
const byId = (id) => document.getElementById(id);
const FIELDS = ["search", "status", "question", "order"];

function choices() {
  return Object.fromEntries(FIELDS.map((name) => [name, byId(name).value]));
}

function fill(id, options) {
  byId(id).replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
}

function draw() {
  const { found, terms } = selected(choices());
  const size = Number(byId("page-size").value), pages = Math.max(1, Math.ceil(found.length / size));
  STATE.page = Math.min(Math.max(0, STATE.page), pages - 1);
  const first = STATE.page * size, shown = found.slice(first, first + size);
  const focus = (at) => {
    const page = Math.floor(at / size);
    if (page !== STATE.page) { STATE.page = page; draw(); }
    byId("cards").children[at % size]?.querySelector(".open").focus();
  };
  const cards = shown.map((item, i) => card(item, terms, () => openDetail(found, first + i, focus)));
  byId("cards").replaceChildren(...(cards.length ? cards : [el("li", { className: "empty" }, DATA.items.length ? "No row fits. Take a word out of the search, or choose all rows." : "There are no rows.")]));
  byId("found").textContent = found.length === DATA.items.length ? `${found.length} rows` : `${found.length} of ${DATA.items.length} rows`;
  byId("page-label").textContent = `Page ${STATE.page + 1} of ${pages}`;
  byId("previous").disabled = STATE.page === 0;
  byId("next").disabled = STATE.page >= pages - 1;
  byId("pager").hidden = DATA.items.length <= 12;
}

function turnPage(by) {
  const before = STATE.page;
  STATE.page += by;
  draw();
  if (STATE.page !== before) byId("gallery").scrollIntoView({ block: "start" });
}

function drawCharts() {
  histogram(byId("lengths"), DATA.lengths, DATA.names, "Answer lengths in tokens");
  histogram(byId("logprobs"), DATA.logprobs, DATA.names, "Mean log-probabilities");
  curve(byId("rates"), DATA.rates, DATA.names);
}

function prepareTools() {
  fill("status", statusOptions());
  fill("question", [["all", "All questions"], ...questionOptions()]);
  fill("order", Object.entries(ORDERS).map(([name, [text]]) => [name, name === "given" && COMPARING() ? "Differing first" : text]));
  byId("question-label").hidden = byId("question").options.length < 3;
  for (const name of FIELDS) byId(name).addEventListener("input", () => { STATE.page = 0; draw(); });
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  byId("page-size").addEventListener("input", draw);
  byId("previous").addEventListener("click", () => turnPage(-1));
  byId("next").addEventListener("click", () => turnPage(1));
  for (const link of document.querySelectorAll("[data-code]"))
    link.addEventListener("click", () => {
      byId("search").value = "";
      byId("question").value = "all";
      byId("status").value = `code:${link.dataset.code}`;
      STATE.page = 0;
      draw();
    });
}

function prepareKeys() {
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.ctrlKey || event.metaKey || event.altKey || byId("detail").open) return;
    if (typing && event.key === "Escape") event.target.blur();
    if (typing) return;
    if (event.key === "/") { event.preventDefault(); byId("search").focus(); }
    if (event.key === "n") turnPage(1);
    if (event.key === "p") turnPage(-1);
  });
}

// Light or dark as the system has it, until the reader chooses; a page on disk may not remember.
function prepareTheme() {
  const root = document.documentElement, button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(isDark()));
    button.setAttribute("aria-label", "Dark mode");
  };
  try { root.dataset.theme = localStorage.getItem("llava-batch-theme") ?? ""; } catch { /* not allowed */ }
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("llava-batch-theme", root.dataset.theme); } catch { /* not allowed */ }
    label();
  });
  system.addEventListener("change", label);
  label();
}

prepareTheme();
prepareTools();
prepareKeys();
draw();
new ResizeObserver(drawCharts).observe(byId("lengths"));
