// When each attempt ran. Bars that don't overlap share a slot, as task runs share the window of a fan-out.

const CLASSES = [
  { label: "returned the answer", colour: "c2" },
  { label: "failed, tried again or ended", colour: "c5" },
  { label: "the integrator's own", colour: "c1" },
];

/** Seconds by which an attempt may end after the next one in its slot starts: times are rounded. */
const ROUNDING_S = 0.003;

/** The timeline's view. */
const timeline = {
  /** Build it. */
  render(view) {
    this.spans = (read("spans") ?? []).map(([row, start, seconds, waited, attempt, failed, name]) => ({
      row, start, seconds, waited, attempt, failed, end: start + seconds,
      name: row < 0 ? name : ledger.rows[row].item, brief: row < 0 ? "" : ledger.rows[row].brief,
    })).sort((one, other) => one.start - other.start);
    const more = [
      report.untimed ? el("p", { class: "note" }, `${counted(report.untimed, "attempt")} in a batch have no times of their own.`) : null,
      report.rows[0] < report.rows[1] ? el("p", { class: "note" }, `Those of the ${number(report.rows[0])} rows that this page shows.`) : null,
    ].filter(Boolean);
    if (!this.spans.length) {
      view.append(card("When each attempt ran", el("p", { class: "note" }, "Nothing was asked live in this run: every answer was stored."), more));
      return;
    }
    this.end = Math.max(report.run.seconds ?? 0, ...[this.spans.reduce((last, span) => Math.max(last, span.end), 0)]);
    this.range = [0, this.end];
    this.items = new Set(this.spans.map((span) => JSON.stringify([span.brief, span.name])));
    this.canvas = el("canvas", { role: "img", "aria-label": `When each of ${counted(this.spans.length, "attempt")} ran; the same follows as a table.` });
    this.holder = el("div", { class: "canvas", tabindex: 0, role: "group", "aria-label": "Timeline. Plus and minus zoom, arrow keys move, 0 shows all.", onkeydown: (event) => this.key(event) }, this.canvas);
    view.append(el("section", { class: "card" }, el("h3", {}, "When each attempt ran ", el("small", {}, this.told())), this.bar(), this.holder, ...more), this.list());
    this.listen();
    this.entry = draw(this.canvas, () => this.config());
    this.fillList();
  },
  /** Return the figures above the chart. */
  told() {
    const busy = this.spans.reduce((sum, span) => sum + span.seconds - span.waited, 0);
    const waited = this.spans.reduce((sum, span) => sum + span.waited, 0);
    return `${counted(this.spans.length, "attempt")}, at most ${number(report.atOnce)} at once; ${duration(busy)} of work${waited >= 1 ? ` and ${duration(waited)} of waiting` : ""} in ${duration(this.end)}`;
  },
  /** Return the controls. */
  bar() {
    const button = (label, act) => el("button", { class: "button", type: "button", onclick: act }, label);
    this.rows = el("select", { onchange: () => this.entry.redraw() }, el("option", { value: "slot" }, "slots"), el("option", { value: "item" }, "items"));
    this.rows.value = this.items.size <= 60 ? "item" : "slot";
    return el("div", { class: "bar" },
      this.items.size <= 400 ? el("label", {}, "Rows", this.rows) : null,
      button("Zoom in", () => this.zoom(0.5)), button("Zoom out", () => this.zoom(2)),
      button("Earlier", () => this.move(-0.5)), button("Later", () => this.move(0.5)), button("All", () => this.zoom(Infinity)));
  },
  /** Give each bar its row; return how many there are. */
  lanes(byItem) {
    if (byItem) {
      const names = new Map();
      for (const span of this.spans) {
        const name = JSON.stringify([span.brief, span.name]);
        if (!names.has(name)) names.set(name, names.size);
        span.lane = names.get(name);
      }
      return names.size;
    }
    const ends = [];
    for (const span of this.spans) {
      const free = ends.findIndex((end) => end <= span.start + ROUNDING_S);
      span.lane = free < 0 ? ends.length : free;
      ends[span.lane] = span.end;
    }
    return ends.length;
  },
  /** Return what Chart.js needs. */
  config() {
    const byItem = this.rows.value === "item" && this.items.size <= 400;
    const count = this.lanes(byItem);
    this.holder.style.height = `${Math.min(Math.max(count * (byItem ? 20 : 26), 110), 4000) + 78}px`;
    const names = Array.from({ length: count }, (_, lane) => `slot ${lane + 1}`);
    if (byItem) for (const span of this.spans) names[span.lane] = span.name;
    const kind = (span) => (span.row < 0 ? 2 : span.failed);
    const datasets = CLASSES.map((each, place) => ({
      label: each.label,
      data: this.spans.filter((span) => kind(span) === place).map((span) => ({ x: [span.start, span.end], y: span.lane, span })),
      backgroundColor: colour(each.colour), grouped: false, minBarLength: 2, barPercentage: 0.86, categoryPercentage: 0.96, borderRadius: 2,
    })).filter((set) => set.data.length);
    return {
      type: "bar",
      data: { labels: names.map((_, lane) => lane), datasets },
      options: {
        indexAxis: "y",
        onClick: (event, found) => found.length && this.open(found[0]),
        onHover: (event, found) => { event.native.target.style.cursor = found.length ? "pointer" : ""; },
        scales: {
          x: { type: "linear", min: this.range[0], max: this.range[1], title: { display: true, text: "since the run started" }, ticks: { callback: (value) => duration(Math.round(value * 1000) / 1000), stepSize: this.step(), autoSkip: false, includeBounds: false } },
          y: { type: "category", grid: { display: false }, ticks: { autoSkip: !byItem, callback: (lane) => (names[lane]?.length > 30 ? `${names[lane].slice(0, 29)}…` : names[lane]) } },
        },
        plugins: {
          legend: { display: datasets.length > 1, position: "bottom", labels: { boxWidth: 12, boxHeight: 12 } },
          tooltip: { callbacks: { title: ([bar]) => bar.raw.span.name, label: (bar) => this.words(bar.raw.span) } },
        },
      },
    };
  },
  /** Return how many seconds lie between two marks of the axis: a round number of them, of minutes or of hours. */
  step() {
    const most = innerWidth < 640 ? 4 : 8;
    const least = (this.range[1] - this.range[0]) / most;
    return [0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400].find((step) => step >= least) ?? least;
  },
  /** Return what a bar is, in lines. */
  words(span) {
    return [
      [span.brief, `attempt ${span.attempt}`, span.failed ? "failed" : "returned the answer"].filter(Boolean).join(" · "),
      `from ${duration(span.start)} for ${duration(span.seconds)}${span.waited ? `, ${duration(span.waited)} of it waiting` : ""}`,
    ];
  },
  /** Open the item of a bar. */
  open({ datasetIndex, index }) {
    const { span } = this.entry.chart.data.datasets[datasetIndex].data[index];
    if (span.row >= 0) openItem(span.row);
  },
  /** Show less or more of the time. */
  zoom(factor, at = (this.range[0] + this.range[1]) / 2) {
    const half = ((this.range[1] - this.range[0]) * factor) / 2;
    const part = (at - this.range[0]) / (this.range[1] - this.range[0]);
    this.show(at - 2 * half * part, at + 2 * half * (1 - part));
  },
  /** Show an earlier or a later part of the time. */
  move(part) {
    const step = (this.range[1] - this.range[0]) * part;
    const bound = Math.min(Math.max(step, -this.range[0]), this.end - this.range[1]);
    this.show(this.range[0] + bound, this.range[1] + bound);
  },
  /** Show a part of the time. */
  show(from, to) {
    this.range = Number.isFinite(from) ? [Math.max(0, from), Math.min(this.end, Math.max(to, from + 0.01))] : [0, this.end];
    const axis = this.entry.chart.options.scales.x;
    Object.assign(axis, { min: this.range[0], max: this.range[1] });
    axis.ticks.stepSize = this.step();
    this.entry.chart.update("none");
    announce(`From ${duration(this.range[0])} to ${duration(this.range[1])}.`);
  },
  /** Move by keys. */
  key(event) {
    const acts = { "+": () => this.zoom(0.5), "-": () => this.zoom(2), 0: () => this.zoom(Infinity), ArrowLeft: () => this.move(-0.25), ArrowRight: () => this.move(0.25) };
    const act = acts[event.key];
    if (act && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      act();
    }
  },
  /** Move by mouse: dragging moves, the wheel zooms with Ctrl held. */
  listen() {
    const perPixel = () => (this.range[1] - this.range[0]) / Math.max(1, this.entry.chart.chartArea.width);
    this.holder.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      const { left } = this.canvas.getBoundingClientRect();
      this.zoom(event.deltaY < 0 ? 0.8 : 1.25, this.range[0] + (event.clientX - left - this.entry.chart.chartArea.left) * perPixel());
    }, { passive: false });
    let from = null;
    this.holder.addEventListener("pointerdown", (event) => { from = event.clientX; });
    addEventListener("pointerup", () => { from = null; });
    this.holder.addEventListener("pointermove", (event) => {
      if (from === null || Math.abs(event.clientX - from) < 4) return;
      this.move(((from - event.clientX) * perPixel()) / (this.range[1] - this.range[0]));
      from = event.clientX;
    });
  },
  /** Return the same as a table. */
  list() {
    this.table = el("div", { class: "attempts" });
    return card("Every attempt", this.table);
  },
  /** Fill the table. */
  fillList() {
    grid(this.table, "Attempts", {
      rowData: this.spans,
      columnDefs: [
        { field: "name", headerName: "Item", flex: 2, minWidth: 160 },
        { field: "brief", headerName: "Brief", width: 160 },
        figureColumn("attempt", "Attempt", number, 90),
        { field: "start", headerName: "Started after", width: 140, type: "rightAligned", sort: "asc", valueFormatter: ({ value }) => duration(value) },
        { field: "seconds", headerName: "Took", width: 100, type: "rightAligned", sortingOrder: ["desc", "asc", null], valueFormatter: ({ value }) => duration(value) },
        { field: "waited", headerName: "Of that waiting", width: 120, type: "rightAligned", sortingOrder: ["desc", "asc", null], valueFormatter: ({ value }) => (value ? duration(value) : "") },
        { headerName: "Ended", width: 130, valueGetter: ({ data }) => (data.failed ? "failed" : "succeeded"), cellRenderer: ({ value }) => pill(value) },
      ],
      onRowClicked: ({ data }) => data.row >= 0 && openItem(data.row),
      onCellKeyDown: ({ data, event }) => { if (event.key === "Enter" && data.row >= 0) openItem(data.row); },
    });
  },
};
