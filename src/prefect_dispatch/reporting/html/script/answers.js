// The fields of answers as columns, and the answers of several briefs side by side.

/** The fields of the answers that are objects. */
const answers = {
  /** Return the names of the columns of a brief. */
  columns(brief) {
    return this.data && Object.hasOwn(this.data.columns, brief) ? this.data.columns[brief] : [];
  },
  /** Return the value of a column in a row of the ledger. */
  value(row, name) {
    const cells = row?.cells;
    if (!cells) return null;
    this.places ??= new Map(Object.keys(this.data.columns).map((brief) => [brief, new Map(this.columns(brief).map((each, place) => [each, place]))]));
    const place = this.places.get(row.brief)?.get(name);
    return place === undefined ? null : cells[place];
  },
  /** Return the note on columns that are left out, or nothing. */
  note() {
    const more = Object.entries(this.data?.more ?? {});
    return more.length ? `Not shown: ${more.map(([brief, count]) => `${counted(count, "field")} of ${brief}`).join(", ")}; each item's page has all of its answer.` : "";
  },
};

/** Return the briefs that have rows. */
function briefNames() {
  briefNames.found ??= [...new Set(ledger.rows.map((row) => row.brief))];
  return briefNames.found;
}

/** Return the ledger with one row for each item, which has a row of the ledger for each brief. */
function itemRows() {
  if (!itemRows.found) {
    const items = new Map();
    for (const row of ledger.rows) {
      if (!items.has(row.item)) items.set(row.item, { id: `item ${row.id}`, first: row.id, item: row.item, briefs: new Map() });
      items.get(row.item).briefs.set(row.brief, row);
    }
    itemRows.found = [...items.values()];
  }
  return itemRows.found;
}

/** Return a value of a field as it is shown. */
function shownValue(value) {
  if (value === null || value === undefined) return "";
  return typeof value === "boolean" ? (value ? "yes" : "no") : String(value);
}

/** Compare two values of a column: numbers by size, everything else as text, nothing last. */
function compareValues(one, other) {
  const empty = (value) => value === null || value === undefined || value === "";
  if (empty(one) || empty(other)) return Number(empty(one)) - Number(empty(other));
  if (typeof one === "number" && typeof other === "number") return one - other;
  compareValues.collator ??= new Intl.Collator("en", { numeric: true });
  return compareValues.collator.compare(shownValue(one), shownValue(other));
}

/**
 * Return a column of values, as wide as they need.
 * @param {string} headerName
 * @param {any[]} rows some of the rows
 * @param {(row: any) => any} get returns the value of a row
 * @param {object} more options of AG Grid
 */
function valueColumn(headerName, rows, get, more = {}) {
  let longest = 0;
  let numeric = true;
  for (const row of rows.slice(0, 300)) {
    const value = get(row);
    if (value === null || value === undefined || value === "") continue;
    numeric &&= typeof value === "number";
    longest = Math.max(longest, shownValue(value).length);
  }
  const width = Math.min(Math.max(longest * 7.4, headerName.length * 7.6) + 34, 280);
  const wide = longest > 34 ? { flex: 1, minWidth: Math.min(260, innerWidth * 0.6) } : { width: Math.max(width, 76) };
  return {
    headerName, ...wide, type: numeric && longest ? "rightAligned" : undefined,
    valueGetter: ({ data }) => get(data) ?? null, valueFormatter: ({ value }) => shownValue(value), comparator: compareValues,
    tooltipValueGetter: ({ value }) => (value === null ? null : shownValue(value).slice(0, 1500)), ...more,
  };
}

/** Return the text of an answer that has no fields, or why there is none. */
function answerOrReason(row) {
  if (!row) return "";
  return row.error ? `${row.kind}: ${row.error}` : [row.reason, row.answer].filter(Boolean).join(" · ");
}

/** Return the columns of fields; where a row has none, the reason stands in their place. */
function fieldColumns(names, rows, outcomeOf, moreOf) {
  return names.map((name, place) => valueColumn(name, rows, (row) => answers.value(outcomeOf(row), name), {
    ...moreOf(name),
    ...(place ? {} : {
      colSpan: ({ data }) => (outcomeOf(data)?.error ? names.length : 1),
      cellRenderer: ({ data, valueFormatted }) => (outcomeOf(data)?.error ? el("span", { class: "missing" }, answerOrReason(outcomeOf(data))) : document.createTextNode(valueFormatted ?? "")),
    }),
  }));
}

/** Return the column of the item, which stays in sight. */
function itemColumn(get, compare) {
  return {
    colId: "item", headerName: "Item", pinned: "left", lockPinned: true, width: innerWidth < 700 ? 132 : Math.min(Math.max(140, longestItem() * 7.2 + 34), 280),
    valueGetter: ({ data }) => get(data), tooltipValueGetter: ({ data }) => get(data), comparator: (_a, _b, one, other) => compare(one.data) - compare(other.data),
  };
}

/** Return the length of the longest name of an item, of the first ones. */
function longestItem() {
  longestItem.found ??= ledger.rows.slice(0, 300).reduce((most, row) => Math.max(most, row.item.length), 0);
  return longestItem.found;
}

/** Return the columns of a table with one row for each item: a group for each brief. */
function sideBySideColumns() {
  const rows = itemRows();
  return [
    itemColumn((row) => row.item, (row) => row.first),
    ...briefNames().map((brief) => {
      const of = (row) => row.briefs.get(brief);
      const own = rows.filter((row) => of(row));
      const named = (name) => ({ context: { name: `${brief}: ${name}`, brief } });
      const fields = fieldColumns(answers.columns(brief), own, of, named);
      const texts = own.some((row) => answerOrReason(of(row)));
      const label = fields.length ? "reason" : "answer";
      const ended = own.some((row) => !["merged"].includes(of(row).disposition))
        ? [{ headerName: "ended", width: 118, valueGetter: ({ data }) => of(data)?.disposition ?? null, cellRenderer: ({ value }) => (value ? pill(value) : document.createTextNode("")), ...named("ended") }] : [];
      return { headerName: brief, children: [...ended, ...fields, ...(texts ? [valueColumn(label, own, (row) => answerOrReason(of(row)), named(label))] : [])] };
    }).filter((group) => group.children.length),
  ];
}

/** Return a plain table with one row for each item and a group of columns for each brief, for few rows and columns. */
function sideBySideTable(rows, most = 9) {
  const groups = briefNames().map((brief) => {
    const fields = answers.columns(brief).slice(0, Math.max(2, Math.floor(most / briefNames().length)));
    return { brief, fields, names: fields.length ? fields : ["answer"] };
  });
  const cells = ({ brief, fields }, row) => {
    const own = row.briefs.get(brief);
    const text = answerOrReason(own);
    if (!fields.length || own?.error || !own?.cells) return el("td", { class: "first", colspan: Math.max(1, fields.length) }, own?.error ? el("span", { class: "missing" }, clipped(text)) : clipped(text));
    return fields.map((name, place) => el("td", { class: place ? null : "first" }, clipped(answers.value(own, name))));
  };
  return el("div", { class: "scroll data", tabindex: 0, role: "group", "aria-label": "Answers, briefs side by side" }, el("table", {},
    el("thead", {},
      el("tr", {}, el("td"), groups.map((group) => el("th", { scope: "colgroup", class: "group", colspan: group.names.length }, group.brief))),
      el("tr", {}, el("th", { scope: "col" }, "item"), groups.map((group) => group.names.map((name, place) => el("th", { scope: "col", class: place ? null : "first" }, name))))),
    el("tbody", {}, rows.map((row) => el("tr", {}, el("th", { scope: "row" }, el("button", { class: "link", type: "button", onclick: () => openItem(row.first) }, row.item)),
      groups.map((group) => cells(group, row)))))));
}

/** Return a value for a cell of a plain table: a long text is shortened. */
function clipped(value, most = 240) {
  const text = typeof value === "number" ? figure(value) : shownValue(value);
  if (text.length < 32) return text;
  return el("span", { class: "long", title: text.length > 90 ? text.slice(0, 1500) : null }, text.length > most ? `${text.slice(0, most)}…` : text);
}
