// Every page: tables are sorted, filtered, and taken away as CSV, LaTeX, JSON or by copying. Reads only this file.
const find = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
const isEmpty = (value) => value === null || value === undefined || value === "";
// Names are shown with hyphens at which no line breaks.
const unbroken = (text) => text.replace(/(?<=[\p{L}\p{N}])-(?=[\p{L}\p{N}])/gu, "\u2011");
const plain = (text) => text.replace(/\u2011/g, "-").replace(/\s+/g, " ").trim();

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children); // text, never markup
  return element;
}

function svgPart(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function action(title, act, attributes = {}) {
  const button = make("button", { type: "button", class: "button", ...attributes }, title);
  button.addEventListener("click", act);
  return button;
}

// Empty values stay at the end in both directions.
function compare(a, b, descending) {
  if (isEmpty(a) || isEmpty(b)) return isEmpty(a) - isEmpty(b);
  const order = typeof a === "number" && typeof b === "number" ? a - b : collator.compare(String(a), String(b));
  return descending ? -order : order;
}

// A column begins with the direction that shows the best first.
function nextDirection(header) {
  const now = header.getAttribute("aria-sort");
  if (now === "ascending") return "descending";
  if (now === "descending") return "ascending";
  return header.dataset.first || "ascending";
}

function markSorted(header, direction = nextDirection(header)) {
  for (const other of all("th[aria-sort]", header.parentElement)) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", direction);
  return direction === "descending";
}

function sortBy(header, direction) {
  const descending = markSorted(header, direction);
  const body = header.closest("table").tBodies[0];
  const key = (row) => {
    const cell = row.cells[header.cellIndex];
    const given = cell.dataset.sort;
    if (given === undefined) return cell.textContent.trim();
    return given === "" ? null : Number(given);
  };
  const rows = [...body.rows].map((row) => [key(row), row]);
  rows.sort((x, y) => compare(x[0], y[0], descending));
  body.append(...rows.map((pair) => pair[1]));
}

// Puts buttons into the headings of a table that stands in the page whole.
function makeSortable(table) {
  for (const header of all("thead th[data-key]", table)) {
    const button = make("button", { type: "button" });
    button.append(...header.childNodes);
    header.append(button);
    header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sortBy(header));
  }
}

function applyFilter(table, wanted) {
  const words = plain(wanted).toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of table.tBodies[0].rows) {
    const text = plain(row.textContent).toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
}

// What a table shows now: its headings, and the texts of the rows that are in sight.
function contentOf(table) {
  const text = (cell) => {
    const copy = cell.cloneNode(true);
    for (const aside of all(".family, sup, svg", copy)) aside.remove();
    return plain(copy.textContent);
  };
  const rows = [...table.tBodies, ...(table.tFoot ? [table.tFoot] : [])].flatMap((part) => [...part.rows]);
  return {
    heads: [...table.tHead.rows[0].cells].map(text),
    rows: rows.filter((row) => !row.hidden).map((row) => [...row.cells].map(text)),
  };
}

const isNumber = (text) => /^[+\-\u2212]?[\d.,]+( ?[%×])?$/.test(text);

// A spreadsheet would take a text that begins like a formula for one.
const field = (text) => {
  const safe = /^[=+\-@]/.test(text) && !isNumber(text) ? `'${text}` : text;
  return /[",\n]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
};

const LATEX = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "→": "$\\rightarrow$", "±": "$\\pm$",
  "×": "$\\times$", "\u2212": "$-$", "†": "$\\dagger$", "§": "\\S{}", "<": "$<$", ">": "$>$", "–": "--", "ρ": "$\\rho$", "⁹": "$^9$" };
const latex = (text) => text.replace(/[&%$#_{}]/g, "\\$&")
  .replace(/\\(?![&%$#_{}])|[~^→±×\u2212†§<>–ρ⁹]/g, (char) => LATEX[char]);

const WRITERS = {
  CSV: ({ heads, rows }) => [heads, ...rows].map((row) => row.map(field).join(",")).join("\n") + "\n",
  LaTeX: ({ heads, rows }) => {
    const lines = (part) => part.map((row) => `${row.map(latex).join(" & ")} \\\\`).join("\n");
    return `\\begin{tabular}{l${"r".repeat(heads.length - 1)}}\n\\toprule\n${lines([heads])}\n\\midrule\n${lines(rows)}\n` +
      "\\bottomrule\n\\end{tabular}\n";
  },
  JSON: ({ heads, rows }) =>
    JSON.stringify(rows.map((row) => Object.fromEntries(row.map((text, i) => [heads[i] || `column ${i + 1}`, text]))), null, 1) + "\n",
};
const ENDINGS = { CSV: "csv", LaTeX: "tex", JSON: "json" };

function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  const link = make("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

async function copy(text, button) {
  let done = false;
  try {
    await navigator.clipboard.writeText(text);
    done = true;
  } catch { // no permission, or an older browser
    const area = make("textarea", { readonly: "" });
    area.value = text;
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
  }
  const title = button.dataset.title || (button.dataset.title = button.textContent);
  button.textContent = done ? "Copied" : "Not copied";
  setTimeout(() => { button.textContent = title; }, 1500);
}

function takeAway(table) {
  const group = make("div", { class: "take", role: "group", "aria-label": `take ${table.dataset.label} away` });
  for (const [name, write] of Object.entries(WRITERS)) {
    group.append(action(name, () => download(`${table.id || "table"}.${ENDINGS[name]}`, write(contentOf(table)))));
  }
  const tabbed = ({ heads, rows }) => [heads, ...rows].map((row) => row.join("\t")).join("\n");
  group.append(action("Copy", (event) => copy(tabbed(contentOf(table)), event.currentTarget)));
  return group;
}

function enhance(table) {
  if (!table.tBodies[0]) return;
  makeSortable(table);
  const bar = make("div", { class: "filters" });
  if (table.tBodies[0].rows.length > 3) {
    const input = make("input", { type: "search", autocomplete: "off", placeholder: "words, all must occur" });
    input.addEventListener("input", () => applyFilter(table, input.value));
    bar.append(make("label", {}, `Filter: ${table.dataset.label}`, input));
  }
  bar.append(takeAway(table));
  table.closest(".wide").before(bar);
}
all("table[data-label]").forEach(enhance);
