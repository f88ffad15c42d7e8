// The merged value with its rules and tables, and how the run was set up.

/** Build the view of the result. */
function renderResult(view) {
  const { value, prose, rules, tables } = report;
  const name = "report.json";
  view.append(card("Merged value", value === null ? el("p", { class: "note" }, "There is none.") : prose
    ? [el("div", { class: "prose said" }, value[0]), value[1] ? el("p", { class: "cut" }, `… ${counted(value[1], "more character")} in ${name}.`) : null]
    : block(value, name)));
  if (rules) view.append(card("How the answers were merged", el("p", { class: "prose said" }, rules)));
  for (const each of tables) view.append(tableCard(each));
}

/** Return a table of the integrator's. */
function tableCard(told) {
  const cut = told.of > told.rows.length ? `The first ${number(told.rows.length)} of ${number(told.of)} rows; ${told.name}.csv has all.` : null;
  const head = el("h3", {}, told.title, " ", el("small", {}, counted(told.of, "row")));
  const note = told.note ? el("p", { class: "note said" }, told.note) : null;
  const plain = () => table(told.columns, told.rows.slice(0, 200).map((row) => row.map(figure)), told.columns.map((_, column) => column).filter((column) => told.rows.every((row) => typeof row[column] !== "string")));
  if (told.rows.length <= 12) return el("section", { class: "card stack" }, head, note, told.rows.length ? plain() : "No rows.");
  const holder = el("div", { class: "figures" });
  whenReady(() => grid(holder, told.title, {
    rowData: told.rows,
    columnDefs: told.columns.map((headerName, column) => ({
      colId: String(column), headerName, flex: 1, minWidth: 110, valueGetter: ({ data }) => data[column], valueFormatter: ({ value }) => figure(value),
      type: told.rows.some((row) => typeof row[column] === "string") ? undefined : "rightAligned",
    })),
  }));
  return el("section", { class: "card stack" }, head, note, cut ? el("p", { class: "note" }, cut) : null, holder, el("div", { class: "plain-print" }, plain()));
}

/** Return a figure of a table as text. */
function figure(value) {
  if (value === null || value === undefined) return "";
  return typeof value === "number" ? String(Math.round(value * 1e6) / 1e6) : String(value);
}

/** Build the view of the run. */
function renderRun(view) {
  const { run, plan, version, licences } = report;
  const said = (value) => (value !== null && typeof value === "object" ? el("pre", { class: "said" }, JSON.stringify(value, null, 2)) : String(value ?? "–"));
  const known = [
    ["Flow run", run.flow_run?.name ?? "–"], ["Id", run.flow_run?.id ?? "–"], ["Started", run.started ? moment(run.started) : "–"],
    ["Took", duration(run.seconds)], ["Executor", said(run.executor)], ["Integrator", said(run.integrator)], ["Limits", said(run.limits)],
    ["Merged fields traced", run.fields_traced ? "yes" : "no: the integrator is held to its ledger only"],
    ...Object.entries(run.versions ?? {}),
  ];
  view.append(card("The run", factList(known)));
  if (plan.advice) view.append(card("The plan", el("p", {}, plan.advice), plan.integrator ? el("p", {}, plan.integrator) : null));
  view.append(card("Briefs", Object.entries(report.briefs).map(([name, brief]) => el("details", {}, el("summary", {}, name),
    el("div", { class: "stack" }, [brief.scope, brief.instructions, ...brief.constraints].filter((text) => text[0]).map((text) => el("p", { class: "prose" }, inline(text))), block(pretty(brief.output), "the job"))))));
  view.append(el("section", { class: "card" }, el("h3", {}, "About this page"),
    el("p", { class: "note" }, `Written by prefect-dispatch ${version}. It asks nobody for anything: everything on it stands in this file. Texts of more than ${number(report.length)} characters are cut on the pages of items; report.json and outcomes.jsonl beside it are whole.`),
    licences.map((each) => el("details", {}, el("summary", {}, `${each.name} ${each.version} (MIT), ${each.home}`), el("pre", {}, each.text)))));
}
