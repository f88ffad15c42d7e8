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

/** Show the page of an item, over the current view. */
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
    // An answer that was kept as it is says the same as the answer above.
    shown.gave.some(([, , rule]) => rule !== "collate") || shown.lost.length ? merged(shown) : null,
    prompt(row, shown),
    attempts(row, shown),
    facts(row, shown),
  ].filter(Boolean);
}

/** Return how it ended: the answer or why there is none, and what the ledger says. */
function outcome(row, shown) {
  return el("section", { class: "card stack" },
    el("h3", {}, shown.answer ? "Answer" : "No answer"),
    shown.answer ? answerParts(row, shown.answer) : null,
    shown.error ? block(shown.error) : null,
    row.reason || row.by ? el("p", { class: "said" }, el("b", {}, "Ledger: "), [row.disposition.replaceAll("_", " "), row.by].filter(Boolean).join(" "), row.reason ? `: ${row.reason}` : "") : null,
    row.change ? el("p", {}, el("b", {}, "Since the last run: "), row.change) : null,
    shown.joined ? el("p", { class: "said" }, el("b", {}, "Joined from the answers to parts: "), shown.joined) : null);
}

/** Return an answer: its fields by name, and the JSON folded; any other answer as text. */
function answerParts(row, text) {
  if (!row.cells) return block(text);
  const fields = answers.columns(row.brief).map((name) => [name, shownValue(answers.value(row, name))]).filter(([, value]) => value !== "");
  return [factList(fields), el("details", {}, el("summary", {}, "As JSON"), block(text))];
}

/** Return the value of an item: the fields of an object by name, anything else as text. */
function itemParts(text) {
  const value = text[1] ? null : parsed(text[0]);
  if (!isObject(value) || !Object.keys(value).length) return block(text, "the item");
  return factList([...flattenFields(value)].map(([name, part]) => [name, plainText(part)]));
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
    shown.value ? part("Item", itemParts(shown.value)) : null);
}

/** Return JSON to be read, if it is JSON and whole. */
function pretty(text) {
  try {
    return [JSON.stringify(JSON.parse(text[0]), null, 2)];
  } catch {
    return text;
  }
}

/** Return every attempt as a transcript; that of the last one is open if it has more than an answer. */
function attempts(row, shown) {
  const when = { stored: "in the run that stored the answer", shared: "for the equal item that shares its answer" }[row.origin] ?? "in this run";
  if (!shown.attempts.length) return null;
  return el("section", { class: "card" },
    el("h3", {}, "Transcript ", el("small", {}, `${counted(shown.attempts.length, "attempt")} ${when}`)),
    shown.earlier ? el("p", { class: "note" }, `The last ${shown.attempts.length} of ${shown.earlier + shown.attempts.length}; outcomes.jsonl has all.`) : null,
    shown.attempts.map((each, place) => transcript(row, shown, each, shown.earlier + place + 1, place + 1 === shown.attempts.length)));
}

/** Return the figures of an attempt in a line. */
function attemptFigures(data) {
  const usage = data.usage ?? {};
  return [
    data.part ? `part ${data.part}` : null, data.model ?? null,
    data.started ? moment(data.started) : null, data.seconds ? duration(data.seconds) : null,
    data.waits || data.waited_s ? `waited ${duration(data.waited_s ?? 0)}` : null,
    usage.requests ? counted(usage.requests, "request") : null,
    usage.prompt_tokens || usage.completion_tokens ? `${number(usage.prompt_tokens ?? 0)} tokens in, ${number(usage.completion_tokens ?? 0)} out` : null,
    usage.cost_usd === null ? "cost unknown" : usage.cost_usd ? usd(usage.cost_usd) : null,
    usage.unsettled ? counted(usage.unsettled, "call of unknown cost", "calls of unknown cost") : null,
  ].filter(Boolean).join(" · ");
}

/** Return one attempt: prompt, each answer with what was wrong with it, what was sent back, and how it ended. */
function transcript(row, shown, data, place, last) {
  const reasks = data.reasks ?? 0;
  const turns = [turn("Prompt", "asked", el("p", { class: "said" }, promptStart(row, shown)))];
  data.rejections.forEach(([text, problems], at) => {
    turns.push(turn(`Answer ${at + 1}, not valid`, "bad", block(text)));
    turns.push(turn(at < reasks ? "Sent back, with what was wrong" : "What was wrong", "asked", el("ul", {}, problems.map((problem) => el("li", { class: "said" }, problem)))));
  });
  for (const each of data.escalations) turns.push(turn("Next model, because the one before failed", "asked", el("p", { class: "said" }, each)));
  if (data.error) turns.push(turn("Ended without an answer", "bad", el("p", { class: "said" }, data.error)));
  else if (shown.answer && last && !data.part) turns.push(turn(`Answer${data.rejections.length ? ` ${data.rejections.length + 1}` : ""}, valid`, "good", block([shown.answer[0].slice(0, 1500), (shown.answer[1] ?? 0) + Math.max(0, shown.answer[0].length - 1500)], "the answer above")));
  for (const note of data.notes ?? []) turns.push(turn("Note", "", el("p", { class: "said" }, note)));
  return el("details", { class: "attempt", open: last && turns.length > 2 },
    el("summary", {}, el("b", {}, `Attempt ${place} `), data.error ? pill("failed") : last ? pill("succeeded") : null, el("span", { class: "note" }, ` ${attemptFigures(data)}`)),
    el("ol", { class: "turns" }, turns));
}

/** Return one turn of a transcript. */
function turn(title, kind, ...content) {
  return el("li", { class: `turn ${kind}` }, el("h4", {}, title), content);
}

/** Return the start of the prompt of an item. */
function promptStart(row, shown) {
  const brief = { ...(report.briefs[row.brief] ?? {}), ...(shown.prompt ?? {}) };
  if (!brief.instructions) return "The report was written without the job's briefs.";
  const text = [brief.scope, brief.instructions].map((each) => each?.[0]).filter(Boolean).join("\n");
  return `${text.slice(0, 240)}${text.length > 240 ? "…" : ""} (the full text is above, under “What was asked”)`;
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
