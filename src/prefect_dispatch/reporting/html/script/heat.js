// The heat map of a test matrix: a row for each test, a column for each environment; by AG Grid, so that only what is
// in sight is in the document, and cells are walked by arrow keys.

const CELLS = {
  passed: ["✓", "ok"], xfailed: ["x", "off"], skipped: ["s", "off"], flaky: ["~", "flaky"],
  failed: ["✗", "red"], error: ["!", "red"], absent: ["–", "none"], "no result": ["?", "lost"],
};
const WORST = ["error", "failed", "no result", "flaky", "skipped", "xfailed", "absent", "passed"];
const STEPS = [0.01, 0.1, 1, 10];

/** Return milliseconds as few characters. */
function brief(ms) {
  if (ms === null || ms === undefined) return "";
  if (ms < 1) return ms ? "<1ms" : "0";
  if (ms < 1000) return `${Math.round(ms)}ms`;
  return ms < 60000 ? `${(ms / 1000).toPrecision(2).replace(/\.0$/, "")}s` : `${Math.round(ms / 6000) / 10}m`;
}

/** Return whether an environment has passed. */
function passed(environment) {
  return ["passed", "flaky"].includes(environment.verdict);
}

/** One test, with its cells. */
class HeatRow {
  constructor([label, suite, same, letters, times], id, results) {
    Object.assign(this, { id, label, suite, same, letters, times, results });
    this.found = new Set([...letters].map((letter) => results[letter]));
    this.red = [...letters].filter((letter) => "FE".includes(letter)).length;
    if (letters.length === 1 && this.red) this.red = heatView.environments.length;
    this.longest = times.reduce((most, ms) => (ms > most ? ms : most), 0);
    this.text = `${label}\n${suite}`.toLowerCase();
  }
  /** Return what came of it in an environment. */
  result(column) {
    return this.results[this.letters.length === 1 ? this.letters : this.letters[column]];
  }
}

/** The view: what it is filtered by, and its grid. */
const heatView = {
  /** Build it. */
  render(view) {
    const told = read("heat");
    Object.assign(this, { environments: told.environments, said: told.said, of: told.of });
    this.rows = told.tests.map((test, id) => new HeatRow(test, id, told.results));
    this.search = el("input", { type: "search", placeholder: "Tests, suites", "aria-keyshortcuts": "/", oninput: () => this.apply() });
    this.columns = el("input", { type: "search", placeholder: "python=3.13 …", oninput: () => this.choose() });
    this.verdict = el("select", { onchange: () => this.choose() }, [["", "all"], ["red", "not passed"], ["yes", "required"]].map(([value, text]) => el("option", { value }, text)));
    this.kind = this.select(["", "all"], ["trouble", "not passed everywhere"], ...["failed", "error", "flaky", "skipped", "xfailed"].map((name) => [name, name]));
    this.same = this.select(["", "all"], ...["everywhere", "differs", "absent"].map((name) => [name, name]));
    this.mode = el("select", { onchange: () => this.choose() }, [["results", "signs"], ["times", "durations"]].map(([value, text]) => el("option", { value }, text)));
    this.shown = el("span", { class: "shown" });
    this.detail = el("section", { class: "card stack", "aria-label": "Cell", hidden: true });
    const holder = el("div", { class: "heat" });
    const cut = this.rows.length < this.of ? el("p", { class: "note" }, `${number(this.rows.length)} of ${number(this.of)} tests are shown, those in trouble first; report.json has all.`) : null;
    view.append(
      el("div", { class: "bar", role: "search" }, el("label", { class: "wide" }, "Search (press /)", this.search),
        el("label", {}, "Result", this.kind), el("label", {}, "Same", this.same), el("label", {}, "Environments", this.verdict),
        el("label", {}, "Named", this.columns), el("label", {}, "Cells", this.mode), el("button", { class: "button", type: "button", onclick: () => this.reset() }, "Clear"), this.shown),
      ...(cut ? [cut] : []), this.legend(), holder, this.detail,
      el("p", { class: "note no-print" }, "Arrow keys move between the cells, Enter shows the details of one, and sorts on a column's header; Tab leaves the table."),
      el("p", { class: "note plain-print" }, "In print, the tables of the result hold the same figures."));
    this.api = grid(holder, "Matrix", {
      rowData: this.rows,
      columnDefs: this.defs(),
      getRowId: ({ data }) => String(data.id),
      rowHeight: 26,
      headerHeight: this.headHeight(),
      domLayout: "normal",
      enableCellTextSelection: false,
      isExternalFilterPresent: () => true,
      doesExternalFilterPass: ({ data }) => this.passes(data),
      onCellClicked: ({ data, colDef }) => this.tell(data, colDef.at),
      onCellKeyDown: ({ data, colDef, event }) => { if (event.key === "Enter") this.tell(data, colDef.at); },
      onModelUpdated: () => this.count(),
    });
    this.count();
  },
  /** Return a select. */
  select(...options) {
    return el("select", { onchange: () => this.apply() }, options.map(([value, text]) => el("option", { value }, text)));
  },
  /** Return how high the heads of the columns are: their names stand upright. */
  headHeight() {
    const longest = this.environments.reduce((most, each) => Math.max(most, each.environment.length), 0);
    return Math.max(44, Math.min(24 + longest * 6.6, 210));
  },
  /** Return the columns: those of a test, and the environments that are chosen. */
  defs() {
    const words = this.columns.value.toLowerCase().split(/\s+/).filter(Boolean);
    const narrow = innerWidth < 700;
    const chosen = this.environments.map((each, at) => [each, at]).filter(([each]) => words.every((word) => each.environment.toLowerCase().includes(word)))
      .filter(([each]) => ({ "": true, red: !passed(each), yes: each.required === "yes" })[this.verdict.value]);
    this.chosen = chosen.length;
    return [
      { colId: "test", headerName: "Test", pinned: "left", width: narrow ? 150 : 320, lockPinned: true, valueGetter: ({ data }) => data.label, tooltipValueGetter: ({ data }) => data.label, comparator: (_a, _b, one, other) => one.data.label.localeCompare(other.data.label, "en", { numeric: true }) },
      { colId: "same", headerName: "Same", width: 118, valueGetter: ({ data }) => data.same, cellRenderer: ({ value }) => pill(value, value === "differs" ? "bad" : value === "absent" ? "warn" : "") },
      figureColumn("red", "Failed", number, 74),
      figureColumn("longest", "Longest", (ms) => (ms ? brief(ms) : ""), 82),
      ...chosen.map(([each, at]) => this.column(each, at)),
    ];
  },
  /** Return the column of an environment. */
  column(each, at) {
    const times = this.mode.value === "times";
    return {
      colId: `e${at}`, at, headerName: each.environment, width: times ? 58 : 34, minWidth: 30, resizable: false, sortingOrder: ["desc", "asc", null],
      headerClass: ["upright", passed(each) ? "" : each.required === "yes" ? "red" : "open"],
      headerTooltip: [`${each.environment}: ${each.verdict}${each.required === "yes" ? ", required" : ""}`, each.why].filter(Boolean).join("\n").slice(0, 1000),
      valueGetter: ({ data }) => (times ? data.times[at] ?? null : data.result(at)),
      comparator: times ? (a, b) => (a ?? -1) - (b ?? -1) : (a, b) => WORST.indexOf(b) - WORST.indexOf(a),
      cellClass: ({ data }) => ["tile-cell", `heat-${times ? this.step(data, at) : CELLS[data.result(at)][1]}`],
      cellRenderer: ({ data }) => el("span", { role: "img", "aria-label": this.spoken(data, at), title: this.spoken(data, at) }, times ? brief(data.times[at]) || CELLS[data.result(at)][0] : CELLS[data.result(at)][0]),
    };
  },
  /** Return the colour of a duration. */
  step(row, at) {
    const ms = row.times[at];
    const [, cls] = CELLS[row.result(at)];
    return ms === null || ms === undefined || cls === "red" ? cls : `t${STEPS.filter((step) => ms >= step * 1000).length}`;
  },
  /** Return a cell in words. */
  spoken(row, at) {
    const ms = row.times[at];
    const [message] = this.said[`${row.id}/${at}`] ?? [];
    return [`${this.environments[at].environment}: ${row.result(at)}${ms ? `, ${duration(ms / 1000)}` : ""}`, message ? inline(message) : ""].filter(Boolean).join("\n");
  },
  /** Return what the signs mean. */
  legend() {
    return el("p", { class: "legend" }, Object.entries(CELLS).map(([name, [sign, cls]]) => el("span", {}, el("b", { class: `tile-cell heat-${cls}`, "aria-hidden": "true" }, sign), name)));
  },
  /** Return whether a row passes the filter. */
  passes(row) {
    const { kind, same, words } = this.by ?? {};
    if (same && row.same !== same) return false;
    if (kind === "trouble" ? row.found.size === 1 && row.found.has("passed") : kind && !row.found.has(kind)) return false;
    return (words ?? []).every((word) => row.text.includes(word));
  },
  /** Take the filter from the controls. */
  apply() {
    this.by = { kind: this.kind.value, same: this.same.value, words: this.search.value.toLowerCase().split(/\s+/).filter(Boolean) };
    this.api.onFilterChanged();
  },
  /** Show the environments and the cells that are wanted. */
  choose() {
    this.api.setGridOption("columnDefs", this.defs());
    this.api.refreshCells({ force: true });
    this.count();
  },
  /** Show everything. */
  reset() {
    for (const control of [this.search, this.columns, this.verdict, this.kind, this.same]) control.value = "";
    this.apply();
    this.choose();
    this.search.focus();
  },
  /** Say how much is shown. */
  count() {
    const rows = this.api?.getDisplayedRowCount() ?? this.rows.length;
    this.shown.textContent = `${number(rows)} of ${counted(this.rows.length, "test")} · ${number(this.chosen)} of ${counted(this.environments.length, "environment")}`;
    announce(this.shown.textContent);
  },
  /** Show the details of one cell, or of a test in all environments. */
  tell(row, at) {
    this.detail.replaceChildren(...(at === undefined ? this.ofTest(row) : this.ofCell(row, at)));
    this.detail.hidden = false;
    announce(at === undefined ? row.label : this.spoken(row, at));
  },
  /** Return where a test came to what. */
  ofTest(row) {
    const groups = new Map();
    this.environments.forEach((each, at) => groups.set(row.result(at), [...(groups.get(row.result(at)) ?? []), each.environment]));
    const order = WORST.filter((name) => groups.has(name));
    return [el("h3", { class: "said" }, row.label), row.suite ? el("p", { class: "note said" }, row.suite) : null,
      table(["result", "environments", "which"], order.map((name) => [name, number(groups.get(name).length), groups.get(name).join("; ")]), [1])].filter(Boolean);
  },
  /** Return what came of a test in an environment. */
  ofCell(row, at) {
    const each = this.environments[at];
    const result = row.result(at);
    const [message, text, tries] = this.said[`${row.id}/${at}`] ?? [["", 0], ["", 0], 1];
    const kind = { ok: "good", red: "bad", lost: "bad", flaky: "warn" }[CELLS[result][1]] ?? "";
    const ms = row.times[at];
    return [
      el("h3", { class: "said" }, row.label),
      el("p", { class: "where" }, pill(result, kind), each.ref ? itemLink(...each.ref) : each.environment,
        el("span", { class: "note" }, [ms ? duration(ms / 1000) : "", tries > 1 ? `${number(tries)} tries` : ""].filter(Boolean).join(" · "))),
      result === "no result" && each.why ? el("p", { class: "said" }, each.why) : null,
      message[0] ? el("p", { class: "said" }, inline(message)) : null,
      ...(text[0] ? block(text, "report.json") : []),
    ].filter(Boolean);
  },
};
