// Tables of many rows by AG Grid: only what is in sight is in the document; rows are walked by arrow keys.

/** Rows up to which a table is as high as they are. */
const FEW = 12;

/** Return the look of a grid; its colours are those of the page, light or dark. */
function gridTheme() {
  gridTheme.made ??= agGrid.themeQuartz.withParams({
    backgroundColor: "var(--surface)",
    foregroundColor: "var(--text)",
    headerBackgroundColor: "var(--raised)",
    headerTextColor: "var(--muted)",
    borderColor: "var(--line)",
    accentColor: "var(--focus)",
    rowHoverColor: "var(--raised)",
    browserColorScheme: "inherit",
    fontFamily: "inherit",
    fontSize: 13,
    headerFontWeight: 500,
    spacing: 6,
    wrapperBorderRadius: 10,
  });
  return gridTheme.made;
}

/**
 * Make a grid.
 * @param {HTMLElement} holder
 * @param {string} name what a screen reader calls it
 * @param {object} options AG Grid's
 */
function grid(holder, name, options) {
  const few = options.rowData.length <= FEW;
  holder.classList.toggle("few", few);
  const api = agGrid.createGrid(holder, {
    theme: gridTheme(),
    domLayout: few ? "autoHeight" : "normal",
    styleNonce: document.body.dataset.nonce,
    suppressMovableColumns: true,
    ensureDomOrder: true,
    enableCellTextSelection: true,
    animateRows: false,
    rowBuffer: 4,
    tooltipShowDelay: 500,
    defaultColDef: { sortable: true, resizable: true, suppressHeaderMenuButton: true, minWidth: 70 },
    ...options,
  });
  api.setGridAriaProperty("label", name);
  return api;
}

/** Return a column of numbers. */
function figureColumn(field, headerName, show = number, width = 96) {
  return {
    field, headerName, width, type: "rightAligned", sortingOrder: ["desc", "asc", null],
    valueFormatter: ({ value }) => (value === 0 && show === number ? "" : show(value)),
    comparator: (a, b) => (a ?? -1) - (b ?? -1),
  };
}

/** Return a column of coloured words. */
function pillColumn(field, headerName, width) {
  return { field, headerName, width, cellRenderer: ({ value }) => (value ? pill(value) : document.createTextNode("")) };
}

/** Return the columns of the ledger; those that say nothing in this run are left out. */
function ledgerColumns() {
  const any = (field) => ledger.rows.some((row) => row[field]);
  return [
    // Rows come in the order of their keys, numbers by value.
    { field: "item", headerName: "Item", flex: 2, minWidth: 140, comparator: (_a, _b, one, other) => one.data.id - other.data.id },
    new Set(ledger.rows.map((row) => row.brief)).size > 1 && { field: "brief", headerName: "Brief", width: 140 },
    pillColumn("disposition", "Ended", 128),
    pillColumn("change", "Change", 112),
    { field: "origin", headerName: "Origin", width: 86 },
    { field: "model", headerName: "Model", width: 132, tooltipField: "model" },
    figureColumn("attempts", "Attempts", number, 88),
    figureColumn("reasks", "Re-asks", number, 84),
    figureColumn("waits", "Waits", number, 78),
    figureColumn("tokens", "Tokens", number, 84),
    figureColumn("cost", "Cost", usd, 92),
    figureColumn("seconds", "Seconds", (value) => (value ? value.toFixed(2) : ""), 92),
    {
      colId: "told", headerName: "Answer or reason", flex: 3, minWidth: 200, sortable: true,
      valueGetter: ({ data }) => (data.error ? `${data.kind}: ${data.error}` : [data.reason, data.answer].filter(Boolean).join(" · ")),
    },
  ].filter((column) => column && (column.colId || ["item", "disposition"].includes(column.field) || any(column.field)));
}

/** What the ledger is filtered by. */
const filter = { text: "", brief: "", disposition: "", origin: "", change: "", kind: "" };

/** The words of the search, in small letters. */
let searched = [];

/** Return whether a row passes the filter. */
function passes(row) {
  for (const name of ["brief", "disposition", "origin", "change", "kind"]) {
    if (filter[name] && row[name] !== filter[name]) return false;
  }
  if (!searched.length) return true;
  row.text ??= [row.item, row.brief, row.kind, row.error, row.reason, row.by, row.model, row.answer].join("\n").toLowerCase();
  return searched.every((word) => row.text.includes(word));
}

/** The ledger's view: what it is filtered by, and its grid. */
const ledgerView = {
  /** Build it. */
  render(view) {
    this.search = el("input", { type: "search", placeholder: "Items, answers, reasons, errors", "aria-keyshortcuts": "/", oninput: () => this.apply() });
    this.selects = Object.fromEntries(
      [["disposition", "Ended"], ["brief", "Brief"], ["origin", "Origin"], ["change", "Change"], ["kind", "Failure"]]
        .map(([name, label]) => [name, this.select(name, label)]).filter(([, select]) => select),
    );
    this.shown = el("span", { class: "shown" });
    const holder = el("div", { class: "ledger" });
    const bar = el("div", { class: "bar", role: "search" },
      el("label", { class: "wide" }, "Search (press /)", this.search),
      Object.values(this.selects).map((select) => select.label),
      el("button", { class: "button", type: "button", onclick: () => this.reset() }, "Clear"),
      this.shown);
    const cut = report.rows[0] < report.rows[1]
      ? el("p", { class: "note" }, `${number(report.rows[0])} of ${number(report.rows[1])} rows are shown, those without an answer first; report.json has all.`)
      : null;
    view.append(bar, ...(cut ? [cut] : []), holder, el("p", { class: "note no-print" },
      "Arrow keys walk the rows, Enter opens one, and sorts on a column's head; Tab leaves the table."));
    this.api = grid(holder, "Ledger", {
      rowData: ledger.rows,
      columnDefs: ledgerColumns(),
      getRowId: ({ data }) => String(data.id),
      isExternalFilterPresent: () => Object.values(filter).some(Boolean),
      doesExternalFilterPass: ({ data }) => passes(data),
      onRowClicked: ({ data, event }) => { if (!String(getSelection())) openItem(data.id, event); },
      onCellKeyDown: ({ data, event }) => { if (event.key === "Enter") openItem(data.id); },
      onModelUpdated: () => this.count(),
    });
    this.fill();
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
  /** Say how many rows are shown. */
  count() {
    const rows = this.api?.getDisplayedRowCount() ?? ledger.rows.length;
    this.shown.textContent = `${number(rows)} of ${counted(ledger.rows.length, "row")}`;
    announce(this.shown.textContent);
  },
  /** Return the places of the rows as they are shown. */
  order() {
    if (!this.api) return ledger.rows.map((row) => row.id);
    const ids = [];
    this.api.forEachNodeAfterFilterAndSort(({ data }) => ids.push(data.id));
    return ids;
  },
};

/** Show the ledger, filtered. */
function showLedger(by) {
  for (const name of Object.keys(filter)) filter[name] = by[name] ?? "";
  if (ledgerView.api) ledgerView.fill();
  location.hash = "#ledger";
}
