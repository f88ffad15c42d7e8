// Charts by Chart.js: on a canvas, so that no label is ever HTML; the same figures stand in a table beside each.

const drawn = new Set();

/** Return a colour of the palette as it is now. */
function colour(name) {
  // A colour that depends on the scheme is only resolved where it is used.
  const probe = document.body.appendChild(el("i", { hidden: true }));
  probe.style.color = `var(--${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** Set what all charts share. */
function prepareCharts() {
  Chart.defaults.animation = false;
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  Chart.defaults.font.size = 12;
  Chart.defaults.maintainAspectRatio = false;
  Chart.defaults.color = colour("muted");
  Chart.defaults.borderColor = colour("line");
}

/**
 * Draw a chart, and again when the theme changes.
 * @param {HTMLCanvasElement} canvas
 * @param {() => object} config created each time, as its colours change
 * @returns {{chart: Chart, redraw: () => void}}
 */
function draw(canvas, config) {
  const entry = { chart: new Chart(canvas, config()) };
  entry.redraw = () => {
    entry.chart.destroy();
    entry.chart = new Chart(canvas, config());
  };
  drawn.add(entry);
  return entry;
}

/** Draw every chart in the colours of now. */
function redrawCharts() {
  prepareCharts();
  for (const entry of drawn) entry.redraw();
}

/**
 * Return a card with stacked bars, and their figures as a table.
 * @param {{title: string, note?: string, labels: string[], sets: {label: string, data: number[], colour: string}[],
 *   show: (value: number) => string, onPick?: (index: number) => void}} told
 */
function barCard(told) {
  const canvas = el("canvas", { role: "img", "aria-label": `${told.title}: bars; the figures follow as a table.` });
  const height = Math.max(96, told.labels.length * 30 + 62);
  const holder = el("div", { class: "canvas" }, canvas);
  holder.style.height = `${height}px`;
  const numeric = told.sets.map((_, column) => column + 1);
  const rows = told.labels.map((label, row) => [label, ...told.sets.map((set) => told.show(set.data[row]))]);
  const figures = el("details", {}, el("summary", {}, "Figures"),
    table(["", ...told.sets.map((set) => set.label)], rows, numeric));
  whenReady(() => draw(canvas, () => barConfig(told)));
  return card(told.title, told.note ? el("p", { class: "note" }, told.note) : null, holder, figures);
}

/** Return what Chart.js needs for stacked bars. */
function barConfig({ labels, sets, show, onPick }) {
  return {
    type: "bar",
    data: {
      labels: labels.map((label) => (label.length > 34 ? `${label.slice(0, 33)}…` : label)),
      datasets: sets.map((set) => ({
        label: set.label, data: set.data, backgroundColor: colour(set.colour), maxBarThickness: 22, borderRadius: 2,
      })),
    },
    options: {
      indexAxis: "y",
      onClick: (_, found) => found.length && onPick?.(found[0].index),
      scales: {
        x: { stacked: true, ticks: { callback: (value) => show(value), maxTicksLimit: 6 }, beginAtZero: true },
        y: { stacked: true, grid: { display: false }, ticks: { autoSkip: false } },
      },
      plugins: {
        legend: { display: sets.length > 1, position: "bottom", labels: { boxWidth: 12, boxHeight: 12 } },
        tooltip: { callbacks: {
          title: ([first]) => labels[first.dataIndex],
          label: (bar) => `${bar.dataset.label}: ${show(bar.raw)}`,
        } },
      },
    },
  };
}
