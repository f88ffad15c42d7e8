// This run beside another one, whose report.json or outcomes.jsonl the reader opens here; nothing leaves the window.

/** Most bytes of a file that is opened, and most lines of an outcomes.jsonl. */
const MOST_BYTES = 64_000_000;
const MOST_LINES = 200_000;
/** Most levels of an answer that are compared field by field. */
const DEEPEST = 3;

/** Return an object's fields by their path; those of lists stay together. */
function flattenFields(value, prefix = "", depth = 1, found = new Map()) {
  for (const [name, part] of Object.entries(value)) {
    const path = prefix ? `${prefix}.${name}` : name;
    if (isObject(part) && Object.keys(part).length && depth < DEEPEST) flattenFields(part, path, depth + 1, found);
    else found.set(path, part);
  }
  return found;
}

/** Return whether a value is an object with fields. */
function isObject(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

/** Return a value as text in which the order of an object's fields has no influence. */
function stableText(value) {
  if (Array.isArray(value)) return `[${value.map(stableText).join(",")}]`;
  if (!isObject(value)) return JSON.stringify(value) ?? "";
  return `{${Object.keys(value).sort().map((name) => `${JSON.stringify(name)}:${stableText(value[name])}`).join(",")}}`;
}

/** Return a value as text for a cell. */
function plainText(value) {
  if (Array.isArray(value)) return value.map(plainText).join("; ");
  if (isObject(value)) return Object.entries(value).map(([name, part]) => `${name}: ${plainText(part)}`).join(", ");
  return value === null ? "null" : shownValue(value);
}

/**
 * Return another run as it is compared, from the texts of its files.
 * @param {string[]} texts
 * @returns {{outcomes: Map<string, object>, value: any, run: any}} the answer of an outcome is undefined if unknown
 */
function readOtherRun(texts) {
  const other = { outcomes: new Map(), value: undefined, run: {} };
  const place = (brief, item) => {
    const key = JSON.stringify([String(brief), String(item)]);
    if (!other.outcomes.has(key)) other.outcomes.set(key, { brief: String(brief), item: String(item), failed: false, kind: "", answer: undefined });
    return other.outcomes.get(key);
  };
  for (const text of texts) {
    const data = parseFile(text);
    if (Array.isArray(data)) {
      for (const each of data) {
        const entry = place(each.brief, each.item);
        entry.failed = each.status !== "succeeded";
        if (entry.failed) entry.kind = String(each.error?.kind ?? each.status);
        else entry.answer = each.value ?? null;
      }
      continue;
    }
    other.run = isObject(data.run) ? data.run : {};
    other.value = data.value ?? null;
    for (const row of data.ledger) place(row.brief, row.item).failed = ["failed", "skipped"].includes(row.disposition);
    for (const gap of Array.isArray(data.gaps) ? data.gaps : []) place(gap.brief, gap.item).kind = String(gap.error?.kind ?? "");
    for (const each of Array.isArray(data.value?.answers) ? data.value.answers : []) {
      const entry = isObject(each) && "brief" in each ? other.outcomes.get(JSON.stringify([String(each.brief), String(each.item)])) : undefined;
      if (entry) entry.answer ??= each.value ?? null;
    }
  }
  return other;
}

/** Return a report, or a list of outcomes; throw an error that says what the file is not. */
function parseFile(text) {
  const lines = text.trim().split("\n");
  let data = null;
  try {
    data = JSON.parse(text);
  } catch {
    if (lines.length > MOST_LINES) throw new Error(`It has more than ${number(MOST_LINES)} lines.`);
    try {
      data = lines.filter((line) => line.trim()).map((line) => JSON.parse(line));
    } catch {
      throw new Error("It is neither a report.json nor an outcomes.jsonl.");
    }
  }
  if (isObject(data) && Array.isArray(data.ledger) && data.ledger.every(isObject)) return data;
  const outcomes = isObject(data) ? [data] : data;
  if (!Array.isArray(outcomes) || !outcomes.length || !outcomes.every((each) => isObject(each) && typeof each.item === "string" && typeof each.status === "string")) {
    throw new Error("It is neither a report.json nor an outcomes.jsonl.");
  }
  return outcomes;
}

/** Return the fields in which two answers differ: name, the other run's value, this run's value. */
function differingFields(row, theirs) {
  const [text, cut] = ledger.page(row.id)?.answer ?? ["", 0];
  if (row.cells && !cut && isObject(theirs)) {
    const own = flattenFields(JSON.parse(text));
    const other = flattenFields(theirs);
    return [...new Set([...own.keys(), ...other.keys()])].filter((name) => stableText(own.get(name)) !== stableText(other.get(name)))
      .map((name) => [name, other.get(name), own.get(name)]);
  }
  const all = typeof theirs === "string" ? theirs : JSON.stringify(theirs, null, 2);
  if (cut ? all.length === text.length + cut && all.startsWith(text) : all === text || (row.cells === null && stableText(theirs) === stableText(parsed(text)))) return [];
  return [["", all, text]];
}

/** Return a text as JSON, or itself. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** Return a gap in words. */
function gapText(kind) {
  return kind ? `no answer: ${kind}` : "no answer";
}

/** Return the differences of the outcomes of two runs, and how many outcomes were the same or can't be compared. */
function compareOutcomes(other) {
  const found = { rows: [], counts: { added: 0, removed: 0, changed: 0, "gap opened": 0, "gap closed": 0 }, same: 0, unknown: 0 };
  const add = (change, row, fields) => {
    found.counts[change] += 1;
    for (const [field, before, now] of fields) found.rows.push({ change, brief: row.brief, item: row.item, id: row.id, field, before: plainText(before), now: plainText(now) });
  };
  const seen = new Set();
  for (const row of ledger.rows) {
    const key = JSON.stringify([row.brief, row.item]);
    const theirs = other.outcomes.get(key);
    seen.add(key);
    const failed = row.status !== "succeeded";
    const own = failed ? row.kind || row.status : "";
    if (!theirs) add("added", row, [["", "", failed ? gapText(own) : "answered"]]);
    else if (failed && !theirs.failed) add("gap opened", row, [["", theirs.answer ?? "answered", gapText(own)]]);
    else if (!failed && theirs.failed) add("gap closed", row, [["", gapText(theirs.kind), answerOrReason(row) || (row.cells ? plainText(parsed(ledger.page(row.id)?.answer?.[0] ?? "")) : "answered")]]);
    else if (failed) found.same += 1;
    else if (theirs.answer === undefined) found.unknown += 1;
    else {
      const fields = differingFields(row, theirs.answer);
      if (fields.length) add("changed", row, fields);
      else found.same += 1;
    }
  }
  for (const [key, theirs] of other.outcomes) {
    if (!seen.has(key)) add("removed", theirs, [["", theirs.failed ? gapText(theirs.kind) : theirs.answer ?? "answered", ""]]);
  }
  return found;
}

/** Return the differences of the lists of records in two merged values. */
function compareRecords(other) {
  const [text, cut] = report.value ?? ["", 1];
  const own = cut || report.prose ? null : parsed(text);
  if (!isObject(own) || !isObject(other.value)) return [];
  const identity = Array.isArray(report.run.integrator?.identity) ? report.run.integrator.identity : [];
  const rows = [];
  for (const [name, list] of Object.entries(own)) {
    const theirs = Object.hasOwn(other.value, name) ? other.value[name] : null;
    const records = [list, theirs];
    if (["answers", "gaps"].includes(name) || !records.every((each) => Array.isArray(each) && each.every(isObject)) || !(list.length + theirs.length)) continue;
    const keyed = identity.length > 0 && records.flat().every((each) => identity.every((field) => Object.hasOwn(each, field)));
    const keyOf = (record) => stableText(keyed ? identity.map((field) => record[field]) : record);
    const [mine, others] = records.map((each) => new Map(each.map((record) => [keyOf(record), record])));
    const label = (record) => plainText(keyed ? identity.map((field) => record[field]) : record).slice(0, 300);
    for (const [key, record] of mine) {
      const before = others.get(key);
      if (!before) rows.push({ change: "added", list: name, record: label(record), field: "", before: "", now: plainText(record) });
      else {
        const [was, is] = [flattenFields(before), flattenFields(record)];
        for (const field of new Set([...was.keys(), ...is.keys()])) {
          if (stableText(was.get(field)) !== stableText(is.get(field))) rows.push({ change: "changed", list: name, record: label(record), field, before: plainText(was.get(field)), now: plainText(is.get(field)) });
        }
      }
    }
    for (const [key, record] of others) if (!mine.has(key)) rows.push({ change: "removed", list: name, record: label(record), field: "", before: plainText(record), now: "" });
  }
  return rows;
}

/** Build the view that compares this run with another one. */
function renderCompare(view) {
  const results = el("div", { class: "view" });
  const message = el("p", { class: "note said", role: "status" });
  const open = async (files) => {
    results.replaceChildren();
    message.textContent = "";
    try {
      const texts = [];
      for (const file of files) {
        if (file.size > MOST_BYTES) throw new Error(`${file.name} is larger than ${number(MOST_BYTES / 1e6)} MB.`);
        texts.push(await file.text());
      }
      if (!texts.length) return;
      const other = readOtherRun(texts);
      message.textContent = `Compared with ${[...files].map((file) => file.name).join(" and ")}${other.run.started ? `, the run of ${moment(other.run.started)}` : ""}.`;
      results.append(...comparison(other));
    } catch (error) {
      message.textContent = `This can't be compared. ${error.message}`;
    }
    announce(message.textContent);
  };
  const picker = el("input", { type: "file", multiple: true, accept: ".json,.jsonl", onchange: () => open(picker.files) });
  const zone = el("section", {
    class: "card stack drop",
    ondragover: (event) => { event.preventDefault(); zone.classList.add("over"); },
    ondragleave: () => zone.classList.remove("over"),
    ondrop: (event) => { event.preventDefault(); zone.classList.remove("over"); open(event.dataTransfer.files); },
  },
  el("h3", {}, "Compare with another run"),
  el("p", { class: "note" }, "Choose or drop the report.json of another run of this job; with its outcomes.jsonl also the answers of items that were merged are compared. The files are read in this window only, and nothing is sent."),
  el("label", { class: "picker" }, el("span", { class: "sr" }, "Files of the other run"), picker), message);
  view.append(zone, results);
}

/** Return the cards of a comparison. */
function comparison(other) {
  const found = compareOutcomes(other);
  const records = compareRecords(other);
  const tile = (name, count) => el("div", { class: "tile" }, el("dt", {}, name), el("dd", {}, number(count)));
  const several = briefNames().length > 1;
  const notes = [
    found.unknown ? `Of ${counted(found.unknown, "item")} the other report.json has no answer of its own; choose its outcomes.jsonl, too.` : "",
    report.rows[0] < report.rows[1] ? `Only the ${number(report.rows[0])} rows of this page are compared.` : "",
  ].filter(Boolean).map((text) => el("p", { class: "note" }, text));
  const nothing = found.rows.length + records.length ? [] : [card("", el("p", {}, "No differences in what could be compared."))];
  return [
    el("dl", { class: "tiles" }, ...Object.entries(found.counts).map(([name, count]) => tile(titleOf(name), count)), tile("Same", found.same)),
    ...notes, ...nothing,
    ...(found.rows.length ? [differenceCard("Items", found.rows, [["item", "Item"], ...(several ? [["brief", "Brief"]] : [])], (row) => row.id !== undefined && openItem(row.id))] : []),
    ...(records.length ? [differenceCard("Merged value", records, [["list", "List"], ["record", "Record"]], () => {})] : []),
  ];
}

/** Return a card with differences, one row for each field. */
function differenceCard(title, rows, names, open) {
  const holder = el("div", { class: "figures opens" });
  const columns = [...names, ["field", "Field"], ["before", "Other run"], ["now", "This run"]];
  const grided = { api: null };
  const section = el("section", { class: "card stack" },
    el("div", { class: "card-head" }, el("h3", {}, title, " ", el("small", {}, counted(rows.length, "difference"))), exportButtons(`comparison-${title}`, () => gridTable(grided.api))), holder);
  // The grid measures its columns, so it is made when its place is in the document.
  requestAnimationFrame(() => {
    const [first, ...rest] = columns.map(([field, name]) => valueColumn(name, rows, (row) => row[field], { colId: field }));
    grided.api = grid(holder, title, {
      rowData: rows,
      columnDefs: [{ ...first, pinned: innerWidth < 700 ? undefined : "left" }, pillColumn("change", "Change", 120), ...rest],
      onCellClicked: ({ data }) => { if (!String(getSelection())) open(data); },
      onCellKeyDown: ({ data, event }) => { if (event.key === "Enter") open(data); },
    });
  });
  return section;
}
