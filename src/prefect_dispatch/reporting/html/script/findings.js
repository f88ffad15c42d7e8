// What a reader has to look at: what the audit found, gaps, conflicts with both sides, open proposals, doubtful places.

const PAGE = 50;

/**
 * Return links to the outcomes that a value comes from.
 * @param {{names: string[][], of: number}} sources
 */
function sourceLinks(sources) {
  if (!sources.of) return null;
  const links = sources.names.map(([brief, item], place) => [place ? ", " : "", itemLink(brief, item)]);
  const more = sources.of - sources.names.length;
  return el("p", { class: "sources" }, "from ", links, more > 0 ? ` and ${number(more)} more` : null);
}

/** Return a button that opens the page of an item. */
function itemLink(brief, item, label = "") {
  const several = Object.keys(report.briefs).length > 1;
  const name = label || (several ? `${brief}/${item}` : item);
  return el("button", { class: "link", type: "button", onclick: () => {
    const id = ledger.find(brief, item);
    if (id === undefined) announce(`${name} has no row on this page.`);
    else openItem(id);
  } }, name);
}

/**
 * Return a card with a list of which only the first entries are in the document, until the reader shows more.
 * @param {string} title
 * @param {any[]} entries
 * @param {(entry: any) => Node} make
 * @param {number} of how many there are in all
 * @param {(entry: any) => string} text what is searched
 */
function longCard(title, entries, make, of, text) {
  if (!entries.length) return null;
  const list = el("div", {});
  const more = el("button", { class: "button no-print", type: "button", onclick: () => show(PAGE) });
  const search = el("input", { type: "search", oninput: () => { begin(); } });
  let found = entries;
  let shown = 0;
  const show = (count) => {
    list.append(...found.slice(shown, shown + count).map(make));
    shown = Math.min(shown + count, found.length);
    more.hidden = shown >= found.length;
    more.textContent = `Show ${number(Math.min(PAGE, found.length - shown))} more of ${number(found.length - shown)}`;
  };
  const begin = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    found = entries.filter((entry) => words.every((word) => text(entry).toLowerCase().includes(word)));
    shown = 0;
    list.replaceChildren();
    show(PAGE);
  };
  begin();
  const cut = of > entries.length ? el("p", { class: "note" }, `The first ${number(entries.length)} of ${number(of)}; report.json has all.`) : null;
  return el("section", { class: "card" },
    el("h3", {}, title, " ", el("small", {}, number(of))), cut,
    entries.length > 10 ? el("div", { class: "bar" }, el("label", { class: "wide" }, "Search in these", search)) : null, list, more);
}

/** Return one conflict: what was kept beside what was not. */
function conflict(entry) {
  return el("div", { class: "entry" },
    el("p", { class: "where" }, el("code", {}, entry.path || "/"), pill(`rule: ${entry.rule}`, "info")),
    el("div", { class: "sides" },
      el("div", { class: "side kept" }, el("h4", {}, "Kept"), el("p", { class: "said" }, inline(entry.winner)), sourceLinks(entry.sources)),
      entry.losers.map((loser) => el("div", { class: "side lost" }, el("h4", {}, "Not kept"), el("p", { class: "said" }, inline(loser.value)), sourceLinks(loser.sources)))),
    entry.of > entry.losers.length ? el("p", { class: "note" }, `And ${number(entry.of - entry.losers.length)} more values in report.json.`) : null);
}

/** Return one open proposal. */
function proposal(entry) {
  return el("div", { class: "entry" },
    el("p", { class: "where" }, pill(`${(entry.score * 100).toFixed(1)} % alike`, "warn"), el("span", { class: "said" }, entry.why)),
    el("div", { class: "sides" },
      el("div", { class: "side" }, el("h4", {}, "This"), el("p", { class: "said" }, inline(entry.left)), sourceLinks(entry.leftSources)),
      el("div", { class: "side" }, el("h4", {}, "And this"), el("p", { class: "said" }, inline(entry.right)), sourceLinks(entry.rightSources))));
}

/** Return one place that is not to be taken on trust. */
function flag(entry) {
  return el("div", { class: "entry" },
    el("p", { class: "where" }, pill(entry.kind, "warn"), el("code", {}, entry.path || "/")),
    el("p", { class: "said" }, inline(entry.text)), el("p", { class: "note said" }, entry.message), sourceLinks(entry.sources));
}

const BY_VERDICT = { violated: "bad", not_checkable: "warn", met: "good" };

/** Return one requirement of a brief, with the places that violate it. */
function requirement(entry) {
  const { checked, violations, places } = entry;
  return el("div", { class: "entry" },
    el("p", { class: "where" }, pill(entry.verdict.replace("_", " "), BY_VERDICT[entry.verdict]), `${entry.kind} of `, el("code", {}, entry.brief || "the integrator"),
      checked ? el("span", { class: "note" }, violations ? `${number(violations)} of ${number(checked)} places` : `${number(checked)} compared`) : null),
    el("p", { class: "said" }, inline(entry.text)),
    places.map((place) => el("div", {}, el("p", { class: "where" }, el("code", {}, place.path || "/"), el("span", { class: "said" }, inline(place.message))), sourceLinks(place.sources))),
    entry.note ? el("p", { class: "note said" }, entry.note) : null);
}

/** Return the requirements of the briefs, what is violated first. */
function requirements() {
  const order = Object.keys(BY_VERDICT);
  const rows = [...report.requirements].sort((one, other) => order.indexOf(one.verdict) - order.indexOf(other.verdict));
  return longCard("What the briefs require", rows, requirement, report.counts.requirements, (each) => [each.brief, each.kind, each.text[0], each.verdict, each.note, ...each.places.map((place) => place.path)].join(" "));
}

/** Return what was decided in the run's review. */
function decided() {
  const { same = [], different = [], fields = [] } = report.decided;
  const said = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  const rows = [
    ...same.map(([left, right]) => ["one", said(left), said(right)]),
    ...different.map(([left, right]) => ["two", said(left), said(right)]),
    ...fields.map((each) => [each.field, said(each.record), said(each.value)]),
  ];
  return rows.length ? card("Decided in this run's review", table(["", "this", "and this"], rows)) : null;
}

/** Build the view of all of these. */
function renderFindings(view) {
  const { counts } = report;
  const all = [
    longCard("What the audit found", report.violations, ([law, where, message]) => el("div", { class: "entry" }, el("p", { class: "where" }, pill(law, "bad"), el("code", {}, where)), el("p", { class: "said" }, message)), counts.violations, (each) => each.join(" ")),
    report.shortfalls.length ? card("What could not be done", el("ul", { class: "stack" }, report.shortfalls.map((each) => el("li", { class: "said" }, each)))) : null,
    gaps(),
    longCard("Conflicts", report.conflicts, conflict, counts.conflicts, (each) => [each.path, each.rule, each.winner[0], ...each.losers.map((loser) => loser.value[0]), ...each.sources.names.flat()].join(" ")),
    longCard("To decide: one or two?", report.proposals, proposal, counts.proposals, (each) => [each.left[0], each.right[0], each.why].join(" ")),
    longCard("Not to be taken on trust", report.flags, flag, counts.flags, (each) => [each.path, each.kind, each.text[0], each.message].join(" ")),
    decided(),
  ].filter(Boolean);
  view.append(...(all.length ? all : [card("", el("p", {}, "Nothing needs attention: no gaps, no conflicts, nothing open, nothing doubtful."))]), ...[requirements()].filter(Boolean));
}

/** Return every item without an answer, after how many there are of each class. */
function gaps() {
  const entries = ledger.rows.filter((row) => row.status !== "succeeded");
  const line = (row) => el("div", { class: "entry where" },
    pill(row.kind || row.status, row.status === "skipped" ? "warn" : "bad"), itemLink(row.brief, row.item), el("span", { class: "said note" }, row.error));
  const found = longCard("Gaps", entries, line, report.counts.gaps, (row) => [row.item, row.brief, row.kind, row.error].join(" "));
  found?.querySelector("h3").after(classes());
  return found;
}

/** Return how many failed in each way, each with the way to its rows. */
function classes() {
  return el("p", { class: "classes no-print" }, Object.entries(report.failures).map(([kind, count]) =>
    el("button", { class: "button", type: "button", onclick: () => showLedger({ kind }) }, kind, " ", el("b", {}, number(count)))));
}
