// The first view: how the run ended, what needs a look, what it took, and what changed.

const VERDICTS = { complete: ["Complete", "good"], gaps: ["Complete with gaps", "warn"], failed: ["Failed", "bad"] };

/** Build it: how the run ended and its result, then gaps and changes, then figures; methods are last, and folded. */
function renderSummary(view) {
  const [, kind] = VERDICTS[report.status];
  view.append(
    el("section", { class: `card verdict ${kind}` }, el("p", { class: "said" }, report.message)),
    ...headline(),
    todo(),
    ...[changesCard()].filter(Boolean),
    tiles(),
    el("div", { class: "grid2" }, [spendCards(), dispositionCard(), failureCard()].flat().filter(Boolean)),
    folded("Methods: how the answers were merged, the plan, how it went",
      report.rules ? [el("h4", {}, "How the answers were merged"), el("p", { class: "prose said" }, report.rules)] : null,
      planCard(), billCard(), courseCard()),
  );
}

/** Most rows of the result in the summary. */
const FIRST_ROWS = 8;

/** Return the result at a glance: the finding, the winner, or the first rows. */
function headline() {
  const { value, prose, view } = report;
  const all = (text) => el("p", { class: "no-print" }, el("a", { href: "#result" }, text));
  if (prose) return [el("section", { class: "card stack" }, el("h3", {}, "Finding"), el("div", { class: "prose said short" }, value[0].slice(0, 3000)), all("Read the full text"))];
  if (view.winners.length) return winnerCards();
  const first = view.tables[0];
  if (!first) return [];
  if (isSideBySide(first)) {
    const holder = el("div", {});
    const link = all("See all items");
    whenReady(() => {
      const shown = sideBySideTable(itemRows().slice(0, FIRST_ROWS));
      shown.classList.add("brief");
      holder.append(shown);
      link.firstChild.textContent = itemRows().length > FIRST_ROWS ? `All ${counted(itemRows().length, "item")}, to filter and download` : "Filter and download";
    });
    return [el("section", { class: "card stack" }, el("h3", {}, "Answers, briefs side by side"), holder, link)];
  }
  // A column with one brief's name says nothing.
  const kept = first.columns.map((_, place) => place).filter((place) => first.columns[place] !== "brief" || Object.keys(report.briefs).length > 1).slice(0, 9);
  const rows = first.rows.slice(0, FIRST_ROWS);
  const refOf = itemOfRow(first.columns);
  const cell = (row, place) => (first.columns[place] === "item" && refOf(row) ? itemLink(...refOf(row), String(row[place])) : clipped(row[place], 160));
  const numeric = kept.map((place, column) => [rows.every((row) => ["number"].includes(typeof row[place]) || row[place] === null), column]).filter(([is]) => is).map(([, column]) => column);
  const shown = table(kept.map((place) => first.columns[place]), rows.map((row) => kept.map((place) => cell(row, place))), numeric);
  shown.classList.add("data", "brief");
  for (const [name, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", titleOf(first.name)]]) shown.setAttribute(name, value);
  return [el("section", { class: "card stack" }, el("h3", {}, titleOf(first.name), " ", el("small", {}, counted(first.of, "row"))), shown,
    all(first.of > FIRST_ROWS ? `All ${counted(first.of, "row")}, to sort and download` : "Sort and download"))];
}

/** Return the figures that matter most. */
function tiles() {
  const { usage, run, counts, rows } = report;
  const answered = rows[1] - counts.gaps;
  const tile = (name, figure, more) => el("div", { class: "tile" }, el("dt", {}, name), el("dd", {}, figure, more ? el("small", {}, more) : null));
  const origins = [["asked", usage.asked], ["stored", usage.cached], ["shared", usage.shared]].filter(([, count]) => count);
  return el("dl", { class: "tiles" },
    tile("Answered", `${number(answered)} / ${number(rows[1])}`, origins.map(([name, count]) => `${number(count)} ${name}`).join(" · ")),
    tile("Requests", number(usage.requests), [[usage.reasks, "re-ask"], [sum(usage.retried), "retry", "retries"], [sum(usage.escalated), "escalation"]].filter(([count]) => count).map(([count, one, many]) => counted(count, one, many)).join(" · ")),
    tile("Tokens", short.format(usage.tokens), `${number(usage.prompt_tokens)} in · ${number(usage.completion_tokens)} out`),
    tile("Cost", usd(usage.cost_usd), usage.unsettled ? counted(usage.unsettled, "call of unknown cost", "calls of unknown cost") : "in US dollars"),
    tile("Time", duration(run.seconds), run.waited_s ? `${duration(run.waited_s)} waited, all calls together` : ""));
}

/** Return the sum of the values of an object. */
function sum(counts) {
  return Object.values(counts ?? {}).reduce((all, count) => all + count, 0);
}

/** Return what needs a look, each with the way there. */
function todo() {
  const { counts } = report;
  const entries = [
    [report.matrix?.red, "environment that did not pass", "environments that did not pass", "bad", "#matrix"],
    [counts.violations, "difference that the audit found", "differences that the audit found", "bad"],
    [report.shortfalls.length, "step that could not be done", "steps that could not be done", "warn"],
    [report.requirements.filter((each) => each.verdict === "violated").length, "requirement that the merged value violates", "requirements that the merged value violates", "bad"],
    [counts.gaps, "item without an answer", "items without an answer", "bad"],
    [counts.conflicts, "field in which answers conflict", "fields in which answers conflict", "warn"],
    [counts.proposals, "pair to decide on", "pairs to decide on", "warn"],
    [counts.flags, "place not to be taken on trust", "places not to be taken on trust", "warn"],
  ].filter(([count]) => count);
  if (!entries.length) return card("", el("p", {}, pill("✓", "good"), " Nothing needs attention: no gaps, no conflicts, nothing open, nothing doubtful."));
  return card("To look at", el("ul", { class: "todo" }, entries.map(([count, one, many, kind, href = "#findings"]) =>
    el("li", {}, el("a", { href }, el("b", { class: kind }, number(count)), el("span", {}, count === 1 ? one : many))))));
}

/** Return cost and tokens by brief and model. */
function spendCards() {
  const rows = report.spending;
  if (!rows.length) return [];
  const several = new Set(rows.map(([brief]) => brief)).size > 1;
  const labels = rows.map(([brief, model]) => [several ? brief : null, model || "no answer"].filter(Boolean).join(" · "));
  const priced = rows.some((row) => row[6]);
  const unknown = rows.some((row) => row[6] === null);
  return [
    priced ? barCard({ title: "Cost by brief and model", note: unknown ? "The price of some calls is unknown; they count as 0 here." : "", labels, show: usd, sets: [{ label: "US dollars", data: rows.map((row) => row[6] ?? 0), colour: "c3" }] }) : null,
    rows.every((row) => !row[4] && !row[5]) ? null : barCard({ title: "Tokens by brief and model", note: priced ? "" : unknown ? "The price of these calls is unknown." : "", labels, show: (value) => short.format(value), sets: [
      { label: "prompt", data: rows.map((row) => row[4]), colour: "c1" },
      { label: "completion", data: rows.map((row) => row[5]), colour: "c2" }] }),
  ].filter(Boolean);
}

/** Return where outcomes ended. */
function dispositionCard() {
  const names = Object.keys(report.dispositions);
  if (!names.length) return null;
  const colours = { merged: "c2", duplicate_of: "c1", overridden: "c4", failed: "c5", skipped: "c3" };
  return barCard({
    title: "Result of every item", labels: ["items"], show: number,
    sets: names.map((name) => ({ label: name.replaceAll("_", " "), data: [report.dispositions[name]], colour: colours[name] ?? "c6" })),
  });
}

/** Return failures by class: what has no answer, and what was overcome. */
function failureCard() {
  const { failures, usage } = report;
  const labels = [...new Set([failures, usage.retried, usage.escalated].flatMap((counts) => Object.keys(counts ?? {})))];
  if (!labels.length) return null;
  const set = (label, counts, colour) => ({ label, data: labels.map((kind) => counts?.[kind] ?? 0), colour });
  const sets = [set("items without an answer", failures, "c5"), set("retries", usage.retried, "c3"), set("escalations", usage.escalated, "c4")];
  return barCard({
    title: "Failures by class", labels, show: number, sets: sets.filter((each) => each.data.some(Boolean)),
    onPick: (place) => failures[labels[place]] && showLedger({ kind: labels[place] }),
  });
}

/** Return the plan beside what happened. */
function planCard() {
  const { usage, plan, integration, run } = report;
  const rows = [
    ["answers from the store", plan.stored, usage.cached, integration.cached],
    ["shared with an equal item", plan.shared, usage.shared, integration.shared],
    ["asked", plan.to_ask, usage.asked, integration.asked],
    ["requests", plan.to_ask, usage.requests, integration.requests],
    ["prompt tokens", plan.prompt_tokens, usage.prompt_tokens, integration.prompt_tokens],
    ["completion tokens", plan.completion_tokens, usage.completion_tokens, integration.completion_tokens],
  ].map(([name, ...figures]) => [name, ...figures.map(number)]);
  rows.push(["cost", usd(plan.cost_usd), usd(usage.cost_usd), usd(integration.cost_usd)], ["time", duration(plan.seconds_in_parallel), duration(run.seconds), ""]);
  const own = integration.asked + integration.cached + integration.shared > 0;
  const header = ["", "planned", "happened", "of that the integrator's own"];
  return el("div", { class: "stack" }, el("h4", {}, "Plan and actual usage"), table(header.slice(0, own ? 4 : 3), rows.map((row) => row.slice(0, own ? 4 : 3)), [1, 2, 3]),
    plan.basis ? el("p", { class: "note" }, plan.basis, ".") : null);
}

/** Return what cost how much, by each column of the bill that has several values, and what was paid for before. */
function billCard() {
  const { rows, before } = report.bill;
  if (!rows.length && !before) return null;
  const cells = rows.map(([by, value, ...figures]) => [by, value, ...figures.slice(0, 4).map(number), typeof figures[4] === "number" ? usd(figures[4]) : figures[4]]);
  return el("div", { class: "stack" }, el("h4", {}, "What cost how much"),
    rows.length ? table(["by", "", "requests", "tokens sent", "of that cached", "tokens received", "cost"], cells, [2, 3, 4, 5, 6]) : null,
    before ? el("p", { class: "note" }, `Paid before this run, for the answers from the store: ${before}.`) : null);
}

/** Return what changed since the last run of the job. */
function changesCard() {
  const { changes, run } = report;
  if (changes.earlier === "none") return null;
  const since = run.since ? `Compared with the run ${run.since.flow_run?.name ?? ""} of ${moment(run.since.started)}: ` : "";
  return card("Since the last run", el("p", { class: "said" }, `${since}${changes.said}.`),
    Object.entries(changes.names).map(([name, refs]) => el("details", { open: refs.length <= 10 }, el("summary", {}, `${name} (${number(changes.counts[name])})`),
      el("p", { class: "said" }, refs.slice(0, 200).map(([brief, item], place) => [place ? ", " : "", name === "gone" ? item : itemLink(brief, item)]),
        changes.counts[name] > 200 ? ` and ${number(changes.counts[name] - 200)} more in report.json` : null))));
}

/** Return what did not go smoothly. */
function courseCard() {
  return report.course.length ? [el("h4", {}, "How it went"), table(["", "how many", "by class"], report.course.map((each) => [each.what, number(each.times), each.why]), [1])] : null;
}
