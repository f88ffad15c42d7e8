// Copy and download of tables, and of addresses.

/** What may precede a formula in a cell; the same rule as in the CSV files of a run. */
const FORMULA = /(?<![;"'\s\0-\x1f\ufeff])[;"'\s\0-\x1f\ufeff]*(?=[=+\-@＝＋－＠])/g;

/** Return a text that no spreadsheet evaluates: a formula gets an apostrophe. */
function withoutFormula(text) {
  return text.replaceAll("\0", "␀").replace(FORMULA, (match, at) => (at === 0 || /[;\t\r\n]/.test(match) ? `${match}'` : match));
}

/** Return a cell of a CSV file. */
function csvCell(value) {
  if (typeof value === "number") return String(value);
  const text = value === null || value === undefined ? "" : withoutFormula(String(value));
  return `"${text.replaceAll('"', '""')}"`;
}

/** Return a table as CSV: first the names of its columns. */
function toCsv({ header, rows }) {
  return [header, ...rows].map((row) => `${row.map(csvCell).join(",")}\n`).join("");
}

/** Return a table as lines of cells with tabs between them, which spreadsheets take from the clipboard. */
function toTabs({ header, rows }) {
  const cell = (value) => (typeof value === "number" ? String(value) : withoutFormula(String(value ?? "").replace(/[\t\r\n]+/g, " ")));
  return [header, ...rows].map((row) => row.map(cell).join("\t")).join("\n");
}

/** Return the rows of a grid as they are filtered and sorted, with the columns that it shows. */
function gridTable(api) {
  const columns = api.getAllDisplayedColumns();
  const rows = [];
  api.forEachNodeAfterFilterAndSort((rowNode) => rows.push(columns.map((colKey) => api.getCellValue({ rowNode, colKey }))));
  return { header: columns.map((column) => column.getColDef().context?.name ?? column.getColDef().headerName), rows };
}

/** Copy a text; where the browser refuses the clipboard to a page from the disk, by way of a selection. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = el("textarea", { class: "sr", readonly: true });
    field.value = text;
    const host = document.querySelector("dialog[open]") ?? document.body;
    const before = document.activeElement;
    host.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    before?.focus();
  }
}

/** Let the browser save a text as a file. */
function saveText(name, text) {
  // The mark at its start tells spreadsheets that the file is UTF-8.
  const url = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv;charset=utf-8" }));
  const link = el("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Return a button that does something and then shows for a moment that it is done. */
function actionButton(label, act) {
  const button = el("button", { class: "button small", type: "button", onclick: async () => {
    const message = await act();
    announce(message);
    button.textContent = message;
    setTimeout(() => { button.textContent = label; }, 1800);
  } }, label);
  return button;
}

/**
 * Return the buttons that copy and download a table.
 * @param {string} name of the file, without its end
 * @param {() => {header: string[], rows: any[][]}} readTable returns exactly what is shown
 */
function exportButtons(name, readTable) {
  const file = `${[report.title, name].join(" ").toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 80)}.csv`;
  return el("div", { class: "exports no-print" },
    actionButton("Copy", async () => {
      const table = readTable();
      await copyText(toTabs(table));
      return `Copied ${counted(table.rows.length, "row")}`;
    }),
    actionButton("Download CSV", () => {
      const table = readTable();
      saveText(file, toCsv(table));
      return `Saved ${counted(table.rows.length, "row")}`;
    }));
}
