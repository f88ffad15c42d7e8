// The merged value with its rules and tables, and how the run was set up.

/** Build the view of the result: the finding or the winner, then lists as tables; the rules are last, and folded. */
function renderResult(view) {
  const { value, prose, rules, tables, view: parts } = report;
  const name = "report.json";
  if (prose) {
    view.append(card("Finding", el("div", { class: "prose said" }, value[0]), value[1] ? el("p", { class: "cut" }, `… ${counted(value[1], "more character")} in ${name}.`) : null));
  }
  if (value === null) view.append(card("Result", el("p", { class: "note" }, "There is no merged value.")));
  view.append(...winnerCards());
  for (const each of parts.tables) view.append(isSideBySide(each) ? sideBySideCard() : tableCard({ ...each, title: titleOf(each.name), file: each.name, rest: name }));
  if (parts.facts.length) view.append(card("Further fields", factList(parts.facts.map(([field, text]) => [titleOf(field), inline(text)]))));
  for (const each of tables) view.append(tableCard({ ...each, file: each.name, rest: `${each.name}.csv` }));
  if (value !== null && !prose) {
    const json = folded("The merged value as JSON", block(value, name));
    json.classList.add("no-print");
    view.append(json);
  }
  if (rules) view.append(folded("How the answers were merged", el("p", { class: "prose said" }, rules)));
}

/** Return a field's name as a title. */
function titleOf(name) {
  const text = name.replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Return a folded card. */
function folded(title, ...children) {
  return el("details", { class: "card folded" }, el("summary", {}, title), el("div", { class: "stack" }, children));
}

/** Return whether a table has the answers of several briefs, which are shown side by side. */
function isSideBySide({ name, columns }) {
  return name === "answers" && columns.includes("brief") && columns.includes("item") && Object.keys(report.briefs).length > 1;
}

/** Return the answers of several briefs as a table with one row for each item. */
function sideBySideCard() {
  const holder = el("div", { class: "figures" });
  const shown = el("small", {});
  let api = null;
  const print = el("div", { class: "plain-print" });
  whenReady(() => {
    const rows = itemRows();
    shown.textContent = counted(rows.length, "item");
    api = grid(holder, "Answers", {
      rowData: rows, columnDefs: sideBySideColumns(),
      onCellClicked: (event) => { if (!String(getSelection())) openItem(ledgerView.idOf(event)); },
      onCellKeyDown: (event) => { if (event.event.key === "Enter") openItem(ledgerView.idOf(event)); },
    });
    print.append(sideBySideTable(rows.slice(0, 200), 30));
  });
  return el("section", { class: "card stack" }, el("div", { class: "card-head" }, el("h3", {}, "Answers ", shown), exportButtons("answers", () => gridTable(api))), holder, print);
}

/** Return a card for each winner of a ranking. */
function winnerCards() {
  const { winners } = report.view;
  return winners.map((each) => el("section", { class: "card stack winner" },
    el("h3", {}, winners.length > 1 ? "Tied for first: " : "Winner: ", el("span", { class: "said" }, [each.brief, each.item].filter(Boolean).join(" / ")),
      each.score === null ? null : el("small", {}, ` score ${figure(each.score)}`)),
    el("div", { class: "prose said" }, inline(each.text))));
}

/**
 * Return a table of data with what copies and downloads it; a name of an item leads to its page.
 * @param {{title: string, columns: string[], rows: any[][], of: number, note?: string, more?: number, file: string, rest: string}} data
 */
function tableCard(data) {
  const { title, columns, rows, of } = data;
  const cut = [
    of > rows.length ? `The first ${number(rows.length)} of ${number(of)} rows; ${data.rest} has all.` : "",
    data.more ? `${counted(data.more, "more column")} in ${data.rest}.` : "",
  ].filter(Boolean).join(" ");
  const head = (read) => el("div", { class: "card-head" }, el("h3", {}, title, " ", el("small", {}, counted(of, "row"))), rows.length ? exportButtons(data.file, read) : null);
  const note = data.note ? el("p", { class: "note said" }, data.note) : null;
  const more = cut ? el("p", { class: "note" }, cut) : null;
  const all = () => ({ header: columns, rows });
  if (!rows.length) return el("section", { class: "card stack" }, head(all), note, el("p", { class: "note" }, "No rows."));
  if (rows.length <= FEW) return el("section", { class: "card stack" }, head(all), note, more, plainTable(data, rows));
  const holder = el("div", { class: "figures" });
  let api = null;
  const refOf = itemOfRow(columns);
  whenReady(() => {
    api = grid(holder, title, {
      rowData: rows,
      columnDefs: columns.map((name, place) => valueColumn(name, rows, (row) => row[place], { colId: String(place), ...(name === "item" ? { pinned: "left", lockPinned: true } : {}) })),
      onCellClicked: ({ data: row }) => { if (!String(getSelection())) openRef(refOf(row)); },
      onCellKeyDown: ({ data: row, event }) => { if (event.key === "Enter") openRef(refOf(row)); },
    });
    if (refOf(rows[0])) holder.classList.add("opens");
  });
  return el("section", { class: "card stack" }, head(() => (api ? gridTable(api) : all())), note, more, holder, el("div", { class: "plain-print" }, plainTable(data, rows.slice(0, 200))));
}

/** Return rows of data as a plain table. */
function plainTable({ title, columns }, rows) {
  const numeric = columns.map((_, place) => rows.every((row) => typeof row[place] !== "string" && typeof row[place] !== "boolean"));
  const refOf = itemOfRow(columns);
  const cell = (row, place) => {
    const ref = columns[place] === "item" ? refOf(row) : null;
    return ref ? itemLink(...ref, String(row[place])) : clipped(row[place]);
  };
  return el("div", { class: "scroll data", tabindex: 0, role: "group", "aria-label": title }, el("table", {},
    el("thead", {}, el("tr", {}, columns.map((name, place) => el("th", { scope: "col", class: numeric[place] ? "num" : null }, name)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, columns.map((_, place) => el("td", { class: numeric[place] ? "num" : null }, cell(row, place))))))));
}

/** Return a function that returns the brief and item of a row, or nothing if the columns don't name them. */
function itemOfRow(columns) {
  const [brief, item] = [columns.indexOf("brief"), columns.indexOf("item")];
  const names = Object.keys(report.briefs);
  return (row) => {
    if (item < 0 || typeof row[item] !== "string") return null;
    const name = brief < 0 ? names[0] : row[brief];
    return names.length === 1 || brief >= 0 ? [String(name ?? ""), row[item]] : null;
  };
}

/** Open the page of a brief and item, if there is one. */
function openRef(ref) {
  const id = ref ? ledger.find(...ref) : undefined;
  if (id !== undefined) openItem(id);
}

/** Return a figure of a table as text. */
function figure(value) {
  return typeof value === "number" ? String(Math.round(value * 1e6) / 1e6) : shownValue(value);
}

/** Build the view of the run. */
function renderRun(view) {
  const { run, plan, version, licences } = report;
  const said = (value) => (value !== null && typeof value === "object" ? el("pre", { class: "said" }, JSON.stringify(value, null, 2)) : String(value ?? "–"));
  const known = [
    ["Flow run", run.flow_run?.name ?? "–"], ["Id", run.flow_run?.id ?? "–"], ["Started", run.started ? moment(run.started) : "–"],
    ["Took", duration(run.seconds)], ["Executor", said(run.executor)], ["Integrator", said(run.integrator)], ["Limits", said(run.limits)],
    ["Merged fields traced", run.fields_traced ? "yes" : "no: only the ledger of this integrator is audited"],
    ...Object.entries(run.versions ?? {}),
  ];
  view.append(card("The run", factList(known)));
  if (plan.advice) view.append(card("The plan", el("p", {}, plan.advice), plan.integrator ? el("p", {}, plan.integrator) : null));
  view.append(card("Briefs", Object.entries(report.briefs).map(([name, brief]) => el("details", {}, el("summary", {}, name),
    el("div", { class: "stack" }, [brief.scope, brief.instructions, ...brief.constraints].filter((text) => text[0]).map((text) => el("p", { class: "prose" }, inline(text))), block(pretty(brief.output), "the job"))))));
  view.append(el("section", { class: "card" }, el("h3", {}, "About this page"),
    el("p", { class: "note" }, `Written by prefect-dispatch ${version}. It loads nothing from the network: this file holds all of its content. Texts of more than ${number(report.length)} characters are cut on the pages of items; report.json and outcomes.jsonl beside it are whole.`),
    licences.map((each) => el("details", {}, el("summary", {}, `${each.name} ${each.version} (MIT), ${each.home}`), el("pre", {}, each.text)))));
}
