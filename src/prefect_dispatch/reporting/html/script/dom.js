// Elements, figures and data. What agents, items and errors say becomes text nodes here, and never HTML.

/**
 * Return the data of a script element.
 * @param {string} id
 * @returns {any} nothing if there is no such element
 */
function read(id) {
  const element = document.getElementById(id);
  return element ? JSON.parse(element.textContent) : undefined;
}

/**
 * Make an element.
 * @param {string} tag its name
 * @param {object} attributes its attributes; what begins with `on` is a listener; false and null are left out
 * @param {...(Node|string|number|null|Array)} children its content: nodes, and texts as they are
 * @returns {HTMLElement}
 */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== "").map(node));
  return element;
}

/** Return a node: a text becomes a text node. */
function node(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}

/** Return the element with an id. */
function byId(id) {
  return document.getElementById(id);
}

const whole = new Intl.NumberFormat("en-US");
const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });

/** Return a number with separators; a dash for none. */
function number(value) {
  return value === null || value === undefined ? "–" : whole.format(value);
}

/** Return US dollars with the digits that matter. */
function usd(value) {
  if (value === null || value === undefined) return "unknown";
  if (value === 0) return "$0";
  return value >= 1 ? `$${value.toFixed(2)}` : `$${value.toPrecision(3).replace(/\.?0+$/, "")}`;
}

/** Return seconds as a duration. */
function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${Math.round(seconds * 100) / 100} s`;
  const all = Math.round(seconds);
  const [hours, minutes, rest] = [Math.floor(all / 3600), Math.floor((all % 3600) / 60), all % 60];
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${rest} s`;
}

/** Return a moment as the reader's clock has it. */
function moment(iso) {
  const time = new Date(iso);
  return Number.isNaN(time.getTime()) ? String(iso) : time.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

/** Return a count and its noun. */
function counted(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}

const KINDS = {
  merged: "good", duplicate_of: "info", overridden: "info", failed: "bad", skipped: "warn",
  succeeded: "good", complete: "good", gaps: "warn",
  changed: "info", new: "info", added: "good", removed: "warn", "gap opened": "bad", "gap closed": "good", "gaps closed": "good", "gaps opened": "bad",
};

/** Return a word as a coloured label. */
function pill(word, kind = Object.hasOwn(KINDS, word) ? KINDS[word] : "") {
  return el("span", { class: `pill ${kind}` }, word.replaceAll("_", " "));
}

/**
 * Return a preview as text, with how much of it is cut.
 * @param {[string, number?]} text
 * @param {string} file where the rest stands
 */
function block(text, file = "outcomes.jsonl") {
  const [shown, cut] = text;
  const box = el("pre", { class: "said", tabindex: shown.length > 300 || shown.split("\n").length > 15 ? 0 : null }, shown || "(nothing)");
  return cut ? [box, el("p", { class: "cut" }, `… ${counted(cut, "more character")} in ${file}.`)] : [box];
}

/** Return a short preview for a line. */
function inline(text) {
  return text[1] ? `${text[0]}…` : text[0];
}

/**
 * Return a card.
 * @param {string} title
 * @param {...any} children
 */
function card(title, ...children) {
  return el("section", { class: "card" }, title ? el("h3", {}, title) : null, children);
}

/**
 * Return a plain table, for few rows.
 * @param {string[]} header
 * @param {any[][]} rows
 * @param {number[]} numeric columns of numbers
 */
function table(header, rows, numeric = []) {
  const cls = (column) => ({ class: numeric.includes(column) ? "num" : null });
  const first = (cell, column) => (column ? el("td", cls(column), cell) : el("th", { scope: "row" }, cell));
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, header.map((name, column) => (name ? el("th", { scope: "col", ...cls(column) }, name) : el("td"))))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map(first)))),
  ));
}

/** Say something to a screen reader. */
function announce(text) {
  byId("live").textContent = text;
}

const report = read("report");

/** The rows of the ledger, read when they are first needed. */
const ledger = {
  /** @type {object[]|null} */
  all: null,
  /** Return every row as an object; `id` is its place. */
  get rows() {
    if (!this.all) {
      answers.data = read("answers") ?? null;
      this.all = (read("rows") ?? []).map((row, id) => {
        const told = { id, cells: answers.data?.rows[id] ?? null };
        report.columns.forEach((name, column) => { told[name] = row[column]; });
        return told;
      });
    }
    return this.all;
  },
  /** Return the place of a (brief, item), or undefined where it has no row. */
  find(brief, item) {
    this.places ??= new Map(this.rows.map((row) => [JSON.stringify([row.brief, row.item]), row.id]));
    return this.places.get(JSON.stringify([brief, item]));
  },
  /** Return what the page of an item shows. */
  page(id) {
    const name = `block-${Math.floor(id / report.block)}`;
    this.blocks ??= new Map();
    if (!this.blocks.has(name)) this.blocks.set(name, read(name));
    return this.blocks.get(name)?.[id % report.block];
  },
};
