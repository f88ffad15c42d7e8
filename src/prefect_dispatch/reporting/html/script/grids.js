// Tables of many rows by AG Grid: only what is in sight is in the document; rows are walked by arrow keys.

/** Rows up to which a table is as high as they are. */
const FEW = 12;

/** Return the look of a grid; its colours are those of the page, light or dark. */
function gridTheme() {
  gridTheme.made ??= agGrid.themeQuartz.withParams({
    backgroundColor: "var(--surface)",
    foregroundColor: "var(--text)",
    headerBackgroundColor: "var(--raised)",
    headerTextColor: "var(--muted)",
    borderColor: "var(--line)",
    accentColor: "var(--focus)",
    rowHoverColor: "var(--raised)",
    browserColorScheme: "inherit",
    fontFamily: "inherit",
    fontSize: 13,
    headerFontWeight: 500,
    spacing: 6,
    wrapperBorderRadius: 10,
  });
  return gridTheme.made;
}

/**
 * Make a grid.
 * @param {HTMLElement} holder
 * @param {string} name what a screen reader calls it
 * @param {object} options AG Grid's
 */
function grid(holder, name, options) {
  const few = options.rowData.length <= FEW;
  holder.classList.toggle("few", few);
  const api = agGrid.createGrid(holder, {
    theme: gridTheme(),
    domLayout: few ? "autoHeight" : "normal",
    styleNonce: document.body.dataset.nonce,
    suppressMovableColumns: true,
    ensureDomOrder: true,
    enableCellTextSelection: true,
    animateRows: false,
    rowBuffer: 4,
    tooltipShowDelay: 500,
    defaultColDef: { sortable: true, resizable: true, suppressHeaderMenuButton: true, minWidth: 70 },
    ...options,
  });
  api.setGridAriaProperty("label", name);
  return api;
}

/** Make a grid as high as its rows if they are few. */
function fitHeight(api, holder, count) {
  holder.classList.toggle("few", count <= FEW);
  api.setGridOption("domLayout", count <= FEW ? "autoHeight" : "normal");
}

/** Return controls in a row; on a narrow window they fold. */
function foldable(title, controls) {
  return el("details", { class: "fold", open: innerWidth > 640 }, el("summary", {}, title), el("div", { class: "bar" }, controls));
}

/** Return a column of numbers. */
function figureColumn(field, headerName, show = number, width = 96) {
  return {
    field, headerName, width, type: "rightAligned", sortingOrder: ["desc", "asc", null],
    valueFormatter: ({ value }) => (value === 0 && show === number ? "" : show(value)),
    comparator: (a, b) => (a ?? -1) - (b ?? -1),
  };
}

/** Return a column of coloured words. */
function pillColumn(field, headerName, width) {
  return { field, headerName, width, cellRenderer: ({ value }) => (value ? pill(value) : document.createTextNode("")) };
}
