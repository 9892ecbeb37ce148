"use strict";
// Text: elements made from texts. Nothing here, or anywhere on this page, sets markup from data.

function el(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child != null));
  return node;
}

// Text of unknown language: its own direction, and no language, so that the reader's fonts decide.
function prose(tag, className, ...children) {
  return el(tag, { className, dir: "auto", lang: "" }, ...children);
}

function fold(text) {
  return text.normalize("NFKC").toLocaleLowerCase();
}

// `text` with the places of any of `terms` marked.
function marked(text, terms) {
  const lower = text.toLocaleLowerCase();
  if (!terms.length || lower.length !== text.length) return [text];
  const parts = [];
  let at = 0;
  while (at < text.length) {
    const hits = terms.map((term) => [lower.indexOf(term, at), term.length]).filter(([i]) => i >= 0);
    if (!hits.length) break;
    const [start, length] = hits.reduce((a, b) => (b[0] < a[0] ? b : a));
    parts.push(text.slice(at, start), el("mark", {}, text.slice(start, start + length)));
    at = start + length;
  }
  return [...parts, text.slice(at)];
}

function words(text) {
  if (!Intl.Segmenter) return text.split(/(\s+)/).filter(Boolean);
  return [...new Intl.Segmenter(undefined, { granularity: "word" }).segment(text)].map((s) => s.segment);
}

// For each of two texts its words, with those that the other does not have in that place marked.
function differences(one, two) {
  const a = words(one), b = words(two);
  if (a.length * b.length > 1e6) return [[one], [two]];
  const longest = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      longest[i][j] = a[i] === b[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
  const keptA = new Set(), keptB = new Set();
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] === b[j]) keptA.add(i++), keptB.add(j++);
    else if (longest[i + 1][j] >= longest[i][j + 1]) i++;
    else j++;
  }
  const length = (parts) => parts.join("").length;
  const common = length([...keptA].map((i) => a[i])) / Math.max(length(a), length(b), 1);
  if (common < 0.35) return [[one], [two]]; // so little in common that marks would say nothing
  return [runs(a, keptA), runs(b, keptB)];
}

function runs(parts, kept) {
  const found = [];
  for (let i = 0; i < parts.length; ) {
    const same = kept.has(i);
    let text = "";
    while (i < parts.length && kept.has(i) === same) text += parts[i++];
    found.push(same || !text.trim() ? text : el("mark", {}, text));
  }
  return found;
}
