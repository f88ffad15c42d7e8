// What is shown when: views by the address's hash, the theme, printing.

const VIEWS = {
  summary: ["Summary", renderSummary],
  result: ["Result", renderResult],
  ...(report.matrix ? { matrix: ["Matrix", (view) => heatView.render(view)] } : {}),
  findings: ["Findings", renderFindings],
  ledger: ["Ledger", (view) => ledgerView.render(view)],
  timeline: ["Timeline", (view) => timeline.render(view)],
  compare: ["Compare", renderCompare],
  run: ["Run", renderRun],
};
const built = new Set();
const waiting = [];
let ready = false;
let current = "summary";

/** Do something once the libraries and all data are there. */
function whenReady(act) {
  if (ready) act();
  else waiting.push(act);
}

/** Build a view, once. */
function build(name) {
  if (built.has(name)) return;
  built.add(name);
  VIEWS[name][1](byId(`view-${name}`));
}

/** Show a view. */
function show(name) {
  current = name;
  for (const each of Object.keys(VIEWS)) byId(`view-${each}`).hidden = each !== name;
  for (const link of byId("nav").children) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (name === "summary") build(name);
  else whenReady(() => build(name));
}

/** Show what the address says: a view, or the page of an item over it. */
function route() {
  const name = location.hash.slice(1);
  if (/^item[=/]/.test(name)) {
    whenReady(() => {
      const id = itemOfAddress(location.hash);
      if (id === undefined) return;
      if (!built.size) show("ledger");
      if (current === "ledger" && id >= 0) ledgerView.reveal(id);
      showItem(id);
    });
    return;
  }
  if (byId("item").open) byId("item").close();
  if (name === "main") return;
  const wanted = Object.hasOwn(VIEWS, name) ? name : "summary";
  if (wanted !== current || !built.has(wanted)) {
    show(wanted);
    scrollTo(0, 0);
  }
}

/** Build the head and the links to the views. */
function renderHead() {
  const [word, kind] = VERDICTS[report.status];
  const { run, counts } = report;
  byId("title").append(report.title || "Report", pill(word, kind));
  byId("subtitle").append([run.flow_run?.name, run.started ? moment(run.started) : null, run.seconds === undefined ? null : duration(run.seconds)].filter(Boolean).join(" · "));
  const open = counts.violations + report.shortfalls.length + counts.gaps + counts.conflicts + counts.proposals + counts.flags;
  const { red } = report.matrix ?? {};
  const badges = { matrix: [red, red ? "warn" : ""], ledger: [report.rows[1], ""], findings: [open, open ? "warn" : ""] };
  byId("nav").append(...Object.entries(VIEWS).map(([name, [label]]) => el("a", { href: `#${name}` }, label,
    badges[name] ? el("span", { class: `count ${badges[name][1]}` }, short.format(badges[name][0])) : null)));
}

/** Take the theme that was chosen last, and follow what is chosen. */
function prepareTheme() {
  const control = byId("theme");
  const set = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  };
  let last = "auto";
  try {
    last = localStorage.getItem("prefect-dispatch-theme") ?? "auto";
  } catch { /* a page from the disk may have no storage */ }
  control.value = ["light", "dark"].includes(last) ? last : "auto";
  set(control.value);
  control.addEventListener("change", () => {
    set(control.value);
    if (ready) redrawCharts();
    try {
      localStorage.setItem("prefect-dispatch-theme", control.value);
    } catch { /* see above */ }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => ready && redrawCharts());
}

/** What is only unfolded for the printer. */
const unfolded = [];

/** Build everything for the printer, with the first rows of the ledger as a plain table. */
function beforePrint() {
  if (!ready) return;
  for (const name of Object.keys(VIEWS)) {
    byId(`view-${name}`).hidden = name === "compare";
    build(name);
  }
  for (const each of document.querySelectorAll("main .folded:not([open])")) {
    each.open = true;
    unfolded.push(each);
  }
  if (!byId("print-ledger")) {
    const answer = (row) => (row.cells ? answers.columns(row.brief).map((name) => [name, answers.value(row, name)]).filter(([, value]) => value !== null && value !== "").map(([name, value]) => `${name}: ${shownValue(value)}`).join("; ").slice(0, 400) : row.answer);
    const rows = ledger.rows.slice(0, 500).map((row) => [row.item, row.brief, row.disposition, row.error || [row.reason, answer(row)].filter(Boolean).join(" · ")]);
    byId("view-ledger").append(el("div", { id: "print-ledger", class: "card plain-print" }, table(["item", "brief", "ended", "answer or reason"], rows),
      ledger.rows.length > 500 ? el("p", {}, `The first 500 of ${number(ledger.rows.length)} rows.`) : null));
  }
  for (const entry of drawn) entry.chart.resize();
}

/** Open the search with a key, wherever one doesn't write. */
function shortcuts(event) {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || byId("item").open) return;
  if (event.target.closest?.("input, select, textarea")) return;
  event.preventDefault();
  if (current !== "matrix") location.hash = "#ledger";
  route();
  whenReady(() => (current === "matrix" ? heatView : ledgerView).search.focus());
}

prepareTheme();
renderHead();
route();
addEventListener("hashchange", route);
addEventListener("keydown", shortcuts);
addEventListener("beforeprint", beforePrint);
addEventListener("afterprint", () => {
  for (const each of unfolded.splice(0)) each.open = false;
  show(current);
});
byId("item").addEventListener("close", () => {
  if (/^#item[=/]/.test(location.hash)) history.replaceState(null, "", `#${current}`);
});
byId("item").addEventListener("click", (event) => { if (event.target === byId("item")) byId("item").close(); });
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});
performance.mark("first-sight");
document.addEventListener("DOMContentLoaded", () => {
  ready = true;
  prepareCharts();
  for (const act of waiting.splice(0)) act();
  performance.mark("ready");
});
