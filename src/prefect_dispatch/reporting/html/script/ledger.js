// The ledger: a row for each brief and item, or for each item with its briefs side by side.

/** Return the columns of the ledger; those without a value in this run are left out. */
function ledgerColumns() {
  const any = (field) => ledger.rows.some((row) => row[field]);
  const names = [...new Set(briefNames().flatMap((brief) => answers.columns(brief)))];
  const figures = [
    { field: "origin", headerName: "Origin", width: 86 },
    { field: "model", headerName: "Model", width: 160, tooltipField: "model" },
    figureColumn("attempts", "Attempts", number, 88),
    figureColumn("reasks", "Re-asks", number, 84),
    figureColumn("waits", "Waits", number, 78),
    figureColumn("tokens", "Tokens", number, 84),
    figureColumn("cost", "Cost", usd, 104),
    figureColumn("seconds", "Seconds", (value) => (value ? value.toFixed(2) : ""), 92),
  ];
  return [
    // Rows come in the order of their keys, numbers by value.
    itemColumn((row) => row.item, (row) => row.id),
    briefNames().length > 1 && { field: "brief", headerName: "Brief", width: 140 },
    pillColumn("disposition", "Ended", 128),
    pillColumn("change", "Change", 112),
    ...fieldColumns(names, ledger.rows, (row) => row, () => ({})),
    ledger.rows.some((row) => answerOrReason(row)) && {
      colId: "answer", headerName: names.length ? "Reason" : "Answer or reason", flex: 2, minWidth: 200,
      valueGetter: ({ data }) => answerOrReason(data), tooltipValueGetter: ({ value }) => value,
    },
    ...figures,
  ].filter((column) => column && (column.colId || column.valueGetter || column.field === "disposition" || any(column.field)));
}

/** What the ledger is filtered by. */
const filter = { text: "", brief: "", disposition: "", origin: "", change: "", kind: "" };

/** The words of the search, in small letters. */
let searched = [];

/** Return whether a row of the ledger passes the filter, apart from the words of the search. */
function passesSelects(row) {
  return ["brief", "disposition", "origin", "change", "kind"].every((name) => !filter[name] || row[name] === filter[name]);
}

/** Return the text of a row in which words are searched. */
function searchText(row) {
  row.text ??= [row.item, row.brief, row.kind, row.error, row.reason, row.by, row.model, row.answer, ...(row.cells ?? [])].join("\n").toLowerCase();
  return row.text;
}

/** Return whether a row of the table passes the filter. */
function passes(row) {
  const rows = row.briefs ? [...row.briefs.values()] : [row];
  if (!rows.some(passesSelects)) return false;
  if (!searched.length) return true;
  const texts = rows.map(searchText);
  return searched.every((word) => texts.some((text) => text.includes(word)));
}

/** The ledger's view: what it is filtered by, and its grid. */
const ledgerView = {
  /** Build it. */
  render(view) {
    const several = briefNames().length > 1;
    this.search = el("input", { type: "search", placeholder: "Items, answers, reasons, errors", "aria-keyshortcuts": "/", oninput: () => this.apply() });
    this.selects = Object.fromEntries(
      [["disposition", "Ended"], ["brief", "Brief"], ["origin", "Origin"], ["change", "Change"], ["kind", "Failure"]]
        .map(([name, label]) => [name, this.select(name, label)]).filter(([, select]) => select),
    );
    this.rowsControl = several ? el("select", { onchange: () => this.layOut() },
      el("option", { value: "items" }, "items, briefs side by side"), el("option", { value: "outcomes" }, "each brief and item")) : null;
    if (several) this.rowsControl.value = itemRows().length > 1 && briefNames().length <= 12 ? "items" : "outcomes";
    this.shown = el("span", { class: "shown" });
    this.holder = el("div", { class: "ledger" });
    const bar = el("div", { class: "bar", role: "search" },
      el("label", { class: "wide" }, "Search (press /)", this.search),
      foldable("Filters", [several ? el("label", {}, "Rows", this.rowsControl) : null, Object.values(this.selects).map((select) => select.label),
        el("button", { class: "button", type: "button", onclick: () => this.reset() }, "Clear")]));
    const notes = [
      report.rows[0] < report.rows[1] ? `${number(report.rows[0])} of ${number(report.rows[1])} rows are shown, those without an answer first; report.json has all.` : "",
      answers.note(),
    ].filter(Boolean).map((text) => el("p", { class: "note" }, text));
    view.append(bar, el("div", { class: "bar above" }, this.shown, exportButtons("ledger", () => gridTable(this.api))), ...notes, this.holder,
      el("p", { class: "note no-print wide-only" }, "Arrow keys move between the cells, Enter opens a row and sorts on a column's header; Tab leaves the table."));
    this.api = grid(this.holder, "Ledger", {
      rowData: this.rows(),
      columnDefs: this.columns(),
      getRowId: ({ data }) => String(data.id),
      isExternalFilterPresent: () => Object.values(filter).some(Boolean),
      doesExternalFilterPass: ({ data }) => passes(data),
      onCellClicked: (event) => { if (!String(getSelection())) openItem(this.idOf(event)); },
      onCellKeyDown: (event) => { if (event.event.key === "Enter") openItem(this.idOf(event)); },
      onModelUpdated: () => this.count(),
    });
    this.fill();
  },
  /** Return whether there is one row for each item. */
  byItem() {
    return this.rowsControl?.value === "items";
  },
  /** Return the rows. */
  rows() {
    return this.byItem() ? itemRows() : ledger.rows;
  },
  /** Return the columns. */
  columns() {
    return this.byItem() ? sideBySideColumns() : ledgerColumns();
  },
  /** Return the place of the outcome in a cell. */
  idOf({ data, colDef }) {
    return data.briefs ? (data.briefs.get(colDef.context?.brief)?.id ?? data.first) : data.id;
  },
  /** Show the kind of rows that is chosen. */
  layOut() {
    fitHeight(this.api, this.holder, this.rows().length);
    this.api.updateGridOptions({ columnDefs: this.columns(), rowData: this.rows() });
    this.count();
  },
  /** Return a select of the values of a column, if there are several. */
  select(name, label) {
    const values = [...new Set(ledger.rows.map((row) => row[name]))].filter(Boolean).sort();
    if (values.length < 2 && !(values.length && ["kind", "change"].includes(name))) return null;
    const control = el("select", { onchange: () => this.apply() },
      el("option", { value: "" }, "all"), values.map((value) => el("option", { value }, value.replaceAll("_", " "))));
    return { control, label: el("label", {}, label, control) };
  },
  /** Take the filter from the controls. */
  apply() {
    filter.text = this.search.value.trim();
    for (const [name, { control }] of Object.entries(this.selects)) filter[name] = control.value;
    this.filtered();
  },
  /** Put the filter into the controls. */
  fill() {
    this.search.value = filter.text;
    for (const [name, { control }] of Object.entries(this.selects)) control.value = filter[name];
    this.filtered();
  },
  /** Show the rows that pass. */
  filtered() {
    searched = filter.text.toLowerCase().split(/\s+/).filter(Boolean);
    this.api.onFilterChanged();
  },
  /** Show all rows. */
  reset() {
    for (const name of Object.keys(filter)) filter[name] = "";
    this.fill();
    this.search.focus();
  },
  /** Report how many rows are shown. */
  count() {
    const all = this.rows().length;
    const rows = this.api?.getDisplayedRowCount() ?? all;
    this.shown.textContent = `${number(rows)} of ${this.byItem() ? counted(all, "item") : counted(all, "row")}`;
    announce(this.shown.textContent);
  },
  /** Return the places of the outcomes as they are shown. */
  order() {
    if (!this.api) return ledger.rows.map((row) => row.id);
    const ids = [];
    this.api.forEachNodeAfterFilterAndSort(({ data }) => ids.push(...(data.briefs ? [...data.briefs.values()].map((row) => row.id) : [data.id])));
    return ids;
  },
  /** Scroll to the row of an outcome. */
  reveal(id) {
    const node = this.api?.getRowNode(this.byItem() ? itemRows().find((row) => row.item === ledger.rows[id].item).id : String(id));
    if (!node || !node.displayed) return;
    this.api.ensureNodeVisible(node, "middle");
    this.api.setFocusedCell(node.rowIndex, "item");
  },
};

/** Show the ledger, filtered. */
function showLedger(by) {
  for (const name of Object.keys(filter)) filter[name] = by[name] ?? "";
  if (ledgerView.api) ledgerView.fill();
  location.hash = "#ledger";
}
