// The page of one item: what was asked, what came back, what was sent back, and what became of it.

/** Return the address of an item on this page. */
function itemAddress(id) {
  const { brief, item } = ledger.rows[id];
  return `#item=${encodeURIComponent(item)}${briefNames().length > 1 ? `&brief=${encodeURIComponent(brief)}` : ""}`;
}

/** Return the place of the item that an address names; undefined if it names none, -1 if this page has no such row. */
function itemOfAddress(hash) {
  const [, place] = /^#item\/(\d+)$/.exec(hash) ?? [];
  if (place !== undefined) return ledger.rows[Number(place)] ? Number(place) : -1;
  if (!hash.startsWith("#item=")) return undefined;
  const wanted = new URLSearchParams(hash.slice(1));
  const brief = wanted.get("brief");
  const names = brief === null ? briefNames() : [brief];
  return names.map((name) => ledger.find(name, wanted.get("item"))).find((id) => id !== undefined) ?? -1;
}

/** Open the page of an item. */
function openItem(id) {
  const hash = itemAddress(id);
  if (location.hash === hash) showItem(id);
  else location.hash = hash;
}

/** Show the page of an item, over whatever view there is. */
function showItem(id) {
  const row = ledger.rows[id];
  const dialog = byId("item");
  if (row) {
    const shown = ledger.page(id);
    dialog.replaceChildren(sheetHead(row), el("div", { class: "sheet" }, shown ? sheet(row, shown) : el("p", { class: "note" }, "This item's page is still being read; open it again in a moment.")));
  } else {
    const name = new URLSearchParams(location.hash.slice(1)).get("item") ?? "";
    dialog.onkeydown = null;
    dialog.replaceChildren(el("div", { class: "sheet-head" }, el("h2", { id: "item-title", tabindex: -1 }, "Not on this page"), el("div", { class: "moves" }, closeButton())),
      el("div", { class: "sheet" }, el("p", { class: "said" }, `This page has no row for the item ${name}. It may be of another run, or among the rows that only report.json has.`)));
  }
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  byId("item-title").focus();
}

/** Return the button that closes the page of an item. */
function closeButton() {
  return el("button", { class: "button", type: "button", onclick: () => byId("item").close() }, "Close");
}

/** Return the head of an item's page. */
function sheetHead(row) {
  const order = ledgerView.order();
  const place = order.indexOf(row.id);
  const go = (step) => order[place + step] !== undefined && openItem(order[place + step]);
  byId("item").onkeydown = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && !event.altKey && !event.ctrlKey && !event.metaKey && !(event.target.closest("pre"))) go(step);
  };
  const button = (label, step) => el("button", { class: "button", type: "button", disabled: order[place + step] === undefined, onclick: () => go(step) }, label);
  return el("div", { class: "sheet-head" },
    el("div", {}, el("h2", { id: "item-title", tabindex: -1 }, row.item),
      el("div", { class: "pills" }, row.brief ? pill(row.brief) : null, row.disposition ? pill(row.disposition) : null, row.change ? pill(row.change) : null, row.origin ? pill(row.origin, "") : null, row.model ? pill(row.model, "") : null)),
    el("div", { class: "moves" }, copyLinkButton(row.id), button("← Previous", -1), button("Next →", 1), closeButton()));
}

/** Return the button that copies the address of an item. */
function copyLinkButton(id) {
  const button = actionButton("Copy link", async () => {
    await copyText(`${location.href.split("#")[0]}${itemAddress(id)}`);
    return "Link copied";
  });
  button.classList.remove("small");
  return button;
}

/** Return the parts of an item's page. */
function sheet(row, shown) {
  return [
    outcome(row, shown),
    shown.gave.length || shown.lost.length ? merged(shown) : null,
    prompt(row, shown),
    attempts(row, shown),
    facts(row, shown),
  ].filter(Boolean);
}

/** Return how it ended: the answer or why there is none, and what the ledger says. */
function outcome(row, shown) {
  return el("section", { class: "card stack" },
    el("h3", {}, shown.answer ? "Answer" : "No answer"),
    shown.answer ? block(shown.answer) : null,
    shown.error ? block(shown.error) : null,
    row.reason || row.by ? el("p", { class: "said" }, el("b", {}, "Ledger: "), [row.disposition.replaceAll("_", " "), row.by].filter(Boolean).join(" "), row.reason ? `: ${row.reason}` : "") : null,
    row.change ? el("p", {}, el("b", {}, "Since the last run: "), row.change) : null,
    shown.joined ? el("p", { class: "said" }, el("b", {}, "Made of parts: "), shown.joined) : null);
}

/** Return what it gave to the merged value, and what of it was not kept. */
function merged(shown) {
  const lines = (entries) => entries.map(([path, value, rule]) => [el("code", {}, path || "/"), el("span", { class: "said" }, inline(value)), rule]);
  return el("section", { class: "card stack even" }, el("h3", {}, "In the merged value"),
    shown.gave.length ? table(["gave", "value", "rule"], lines(shown.gave)) : null,
    shown.lost.length ? table(["was not kept at", "value", "rule"], lines(shown.lost)) : null);
}

/** Return what was asked. */
function prompt(row, shown) {
  const brief = { ...(report.briefs[row.brief] ?? {}), ...(shown.prompt ?? {}) };
  const part = (title, content) => (content ? el("div", { class: "field" }, el("h4", {}, title), content) : null);
  const said = (text) => (text && text[0] ? el("p", { class: "prose" }, inline(text)) : null);
  return el("section", { class: "card stack" }, el("h3", {}, "What was asked"),
    brief.instructions ? [
      part("Scope", said(brief.scope)), part("Instructions", said(brief.instructions)),
      part("Constraints", brief.constraints.length ? el("ul", { class: "stack" }, brief.constraints.map((each) => el("li", { class: "said" }, inline(each)))) : null),
      el("details", {}, el("summary", {}, `Form of the answer${brief.checks.length ? " and checks" : ""}`), block(pretty(brief.output), "the job"), brief.checks.map((check) => el("p", { class: "said" }, inline(check))))]
      : el("p", { class: "note" }, "The report was written without the job's briefs."),
    shown.value ? part("Item", block(shown.value, "the item")) : null);
}

/** Return JSON to be read, if it is JSON and whole. */
function pretty(text) {
  try {
    return [JSON.stringify(JSON.parse(text[0]), null, 2)];
  } catch {
    return text;
  }
}

/** Return every attempt. */
function attempts(row, shown) {
  const when = { stored: "in the run that stored the answer", shared: "for the equal item that shares its answer" }[row.origin] ?? "in this run";
  if (!shown.attempts.length) return null;
  return el("section", { class: "card" },
    el("h3", {}, "Attempts ", el("small", {}, when)),
    shown.earlier ? el("p", { class: "note" }, `The last ${shown.attempts.length} of ${shown.earlier + shown.attempts.length}; outcomes.jsonl has all.`) : null,
    shown.attempts.map((each, place) => attempt(each, shown.earlier + place + 1, place + 1 === shown.attempts.length)));
}

/** Return one attempt: what it took, what was not valid, how it ended. */
function attempt(told, place, last) {
  const usage = told.usage ?? {};
  const facts = [
    told.part ? `part ${told.part}` : null,
    told.started ? moment(told.started) : null, told.seconds ? duration(told.seconds) : null,
    told.waits || told.waited_s ? `waited ${duration(told.waited_s ?? 0)}` : null,
    usage.requests ? counted(usage.requests, "request") : null,
    usage.prompt_tokens || usage.completion_tokens ? `${number(usage.prompt_tokens ?? 0)} tokens in, ${number(usage.completion_tokens ?? 0)} out` : null,
    usage.cost_usd === null ? "cost unknown" : usage.cost_usd ? usd(usage.cost_usd) : null,
    usage.unsettled ? counted(usage.unsettled, "call whose cost nobody told", "calls whose cost nobody told") : null,
  ].filter(Boolean).join(" · ");
  return el("div", { class: "attempt" },
    el("h4", {}, `Attempt ${place} `, told.error ? pill("failed") : last ? pill("succeeded") : null),
    el("p", { class: "note" }, facts),
    told.rejections.map(([text, problems], turn) => rejection(text, problems, turn < (told.reasks ?? 0))),
    told.escalations.map((each) => el("p", { class: "said" }, el("b", {}, "Gave up a model: "), each)),
    told.error ? el("p", { class: "said" }, el("b", {}, "Ended: "), told.error) : null);
}

/** Return an answer that was not valid, and what was told of it. */
function rejection(text, problems, again) {
  return el("div", { class: "sent" },
    el("p", { class: "note" }, again ? "An invalid answer, sent back:" : "An invalid answer, the last one:"), block(text),
    el("ul", {}, problems.map((problem) => el("li", { class: "said" }, problem))));
}

/** Return the rest. */
function facts(row, shown) {
  const entries = [
    ["Fingerprint", el("code", {}, shown.fingerprint || "–")],
    ["Priority", `brief ${shown.priority[0]}, item ${shown.priority[1]}`],
    ["Tokens", number(row.tokens)],
    ["Cost", usd(row.cost)],
  ];
  return el("section", { class: "card" }, el("h3", {}, "Figures"), factList(entries));
}

/** Return names and values. */
function factList(entries) {
  return el("dl", { class: "facts" }, entries.map(([name, value]) => [el("dt", {}, name), el("dd", { class: "said" }, value)]));
}
