// Detail: one row at full length in a dialog, with the keys to walk through the rows found.

function factsOf(item) {
  const rows = [["Question", item.question_id], ["Image", item.width ? `${item.width} × ${item.height} pixels` : null]];
  item.sides.forEach((row, side) => {
    const of = COMPARING() ? ` (${DATA.names[side]})` : "";
    rows.push(
      [`Ended by${of}`, { stop: "its own end", length: "the token limit" }[row.finish_reason] ?? row.finish_reason],
      [`Tokens${of}`, row.answer_tokens === null ? null : `${row.answer_tokens} in the ${row.turns.length > 1 ? "last " : ""}answer, ${row.prompt_tokens} in the prompt`],
      [`Mean log-probability${of}`, row.mean_logprob === null ? null : row.mean_logprob.toFixed(3).replace("-0.000", "0.000")]);
  });
  const list = el("dl", {});
  for (const [name, value] of rows)
    if (value !== null && value !== undefined) list.append(el("dt", { dir: "auto" }, name), el("dd", {}, el("bdi", {}, value)));
  return list;
}

function turnsOf(row) {
  if (row.status !== "ok") return [failure(row)];
  return row.turns.flatMap((turn) => [
    turn.question ? prose("p", "question", turn.question) : null,
    prose("p", "answer", turn.answer ?? ""),
  ]);
}

function promptsOf(item) {
  return item.sides.map((row, side) => row.prompt === null ? null :
    el("details", {}, el("summary", {}, "Prompt as given to the model" + (COMPARING() ? ` (${DATA.names[side]})` : "")), prose("pre", "", row.prompt)));
}

function openDetail(found, at, close) {
  const dialog = document.getElementById("detail");
  const show = (i) => {
    at = i;
    const item = found[at];
    const walk = (label, by) => el("button", { type: "button", className: "quiet", disabled: !found[at + by], onclick: () => show(at + by) }, label);
    const body = COMPARING() ? [pairOf(item, true)] : turnsOf(item.sides[0]);
    dialog.replaceChildren(el("div", { className: "sheet" },
      el("header", {},
        el("h2", { id: "detail-title", className: "path" }, el("bdi", {}, item.id)),
        walk("Previous", -1), walk("Next", 1),
        el("button", { type: "button", className: "quiet", autofocus: true, onclick: () => dialog.close() }, "Close")),
      picture(item),
      el("div", { className: "words" }, ...body.filter(Boolean), factsOf(item), ...promptsOf(item).filter(Boolean))));
    dialog.scrollTop = 0;
  };
  dialog.onkeydown = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && found[at + by]) {
      event.preventDefault();
      show(at + by);
      dialog.querySelector("header button:last-child").focus();
    }
  };
  dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
  dialog.onclose = () => close(at);
  show(at);
  dialog.showModal();
}
