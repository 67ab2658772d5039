// The list of cells: rows are drawn as they are asked for, a cell is opened. Columns of values; texts as numbers of words in a list.
const data = JSON.parse(find("#cells-data").textContent);
const columns = data.columns;
const named = Object.fromEntries(columns.map((column) => [column.name, column]));
const value = (name, i) => {
  const column = named[name];
  return column.words ? column.words[column.values[i]] : column.values[i];
};
const shown = (column, i) => {
  const raw = value(column.name, i);
  if (isEmpty(raw)) return "";
  return typeof raw === "number" && column.decimals !== undefined ? raw.toFixed(column.decimals) : String(raw);
};
const inTable = columns.filter((column) => !column.aside);
const unbreak = (column, text) => (column.name === "method" || column.name === "pair" ? unbroken(text) : text);
const PAGE = 100;
const table = find("#cells-table");
const count = find("#cells-count");
const more = find("#more");
let order = Array.from({ length: data.count }, (_, i) => i);
let visible = order;
let drawn = 0;

function drawRows(limit) {
  const rows = [];
  for (const i of visible.slice(drawn, limit)) {
    const row = make("tr");
    for (const column of inTable) {
      const first = column === inTable[0];
      const cell = make(first ? "th" : "td", first ? { scope: "row" } : {});
      const text = unbreak(column, shown(column, i));
      if (text && (first || column.decimals !== undefined)) cell.append(make("a", { href: `#cell-${i}` }, text));
      else cell.append(text);
      if (column.words) cell.classList.add("text");
      if (column.name === "state" && text === "failed") cell.classList.add("bad");
      row.append(cell);
    }
    rows.push(row);
  }
  table.tBodies[0].append(...rows);
  drawn = Math.min(limit, visible.length);
  more.hidden = drawn >= visible.length;
  more.textContent = `Show ${Math.min(PAGE, visible.length - drawn)} more`;
  const of = visible.length === data.count ? "" : ` (of ${data.count.toLocaleString()})`;
  count.textContent = `${visible.length.toLocaleString()} cells${of}, ${drawn.toLocaleString()} shown`;
}

function redraw() {
  table.tBodies[0].replaceChildren();
  drawn = 0;
  drawRows(PAGE);
}

const search = find("#search");
const selects = all("select[data-column]");
const haystack = new Array(data.count);
const textColumns = columns.filter((column) => column.words);
function textOf(i) {
  haystack[i] ??= textColumns.map((column) => value(column.name, i)).join("\n").toLowerCase();
  return haystack[i];
}
function applyFilters() {
  const words = plain(search.value).toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = selects.filter((select) => select.value !== "").map((select) => [named[select.dataset.column], Number(select.value)]);
  visible = order.filter(
    (i) => wanted.every(([column, code]) => column.values[i] === code) && words.every((word) => textOf(i).includes(word)),
  );
  redraw();
}
for (const select of selects) {
  const column = named[select.dataset.column];
  const codes = column.words.map((word, code) => [word, code]).sort((a, b) => collator.compare(a[0], b[0]));
  for (const [word, code] of codes) if (word !== "") select.append(make("option", { value: code }, word));
  select.addEventListener("change", applyFilters);
}
search.addEventListener("input", applyFilters);
find("#clear").addEventListener("click", () => {
  search.value = "";
  for (const select of selects) select.value = "";
  applyFilters();
});
more.addEventListener("click", () => {
  const before = drawn;
  drawRows(drawn + PAGE);
  find("a", table.tBodies[0].rows[before])?.focus();
});

const head = make("tr");
for (const column of inTable) {
  const attributes = { scope: "col", "aria-sort": "none", "data-first": column.first || "ascending" };
  const button = make("button", { type: "button" }, column.title);
  const header = make("th", attributes, button);
  if (column.words) header.classList.add("text");
  button.addEventListener("click", () => {
    const descending = markSorted(header);
    order = order
      .map((i) => [value(column.name, i), i])
      .sort((x, y) => compare(x[0], y[0], descending) || x[1] - y[1])
      .map((pair) => pair[1]);
    applyFilters();
  });
  head.append(header);
}
table.tHead.append(head);
redraw();

// Links into the filtered list: #cells?method=NAME&pair=NAME.
function showFiltered(query) {
  const wanted = new URLSearchParams(query);
  search.value = "";
  for (const select of selects) {
    const code = named[select.dataset.column].words.indexOf(wanted.get(select.dataset.column));
    select.value = code < 0 ? "" : String(code);
  }
  applyFilters();
  find("#cells").scrollIntoView();
}

// One cell. Its files lie compressed in blocks of cells, unpacked when one is opened.
const dialog = find("#cell");
let opened = -1;

async function details(i) {
  const block = find(`#details-${Math.floor(i / data.block)}`);
  if (!block) return {};
  const bytes = Uint8Array.from(atob(block.textContent.trim()), (char) => char.charCodeAt(0));
  if (!("DecompressionStream" in window)) return JSON.parse(new TextDecoder().decode(gunzip(bytes)))[i % data.block];
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text())[i % data.block];
}

// For browsers from before 2023: gzip as this page holds it (a header of ten bytes), by RFC 1951.
function gunzip(bytes) {
  const size = new DataView(bytes.buffer).getUint32(bytes.length - 4, true);
  const out = new Uint8Array(size);
  let at = 10, bit = 0, end = 0;
  const take = (count) => {
    let number = 0;
    for (let k = 0; k < count; k++) {
      number |= ((bytes[at] >> bit) & 1) << k;
      if (++bit === 8) { bit = 0; at++; }
    }
    return number;
  };
  // A code: how many words there are of each length, and the symbols in the order of their words.
  const makeCode = (lengths) => {
    const counts = new Array(16).fill(0);
    for (const length of lengths) if (length) counts[length]++;
    const symbols = [...lengths.keys()].filter((symbol) => lengths[symbol]);
    return { counts, symbols: symbols.sort((a, b) => lengths[a] - lengths[b] || a - b) };
  };
  const read = ({ counts, symbols }) => {
    let word = 0, first = 0, passed = 0;
    for (let length = 1; length < 16; length++) {
      word = word * 2 + take(1);
      first *= 2;
      if (word - first < counts[length]) return symbols[passed + word - first];
      first += counts[length];
      passed += counts[length];
    }
    throw new Error("damaged block");
  };
  const steps = (start, group, count) => { // values and extra bits of lengths and distances
    const found = [];
    let value = start;
    for (let k = 0; k < count; k++) {
      const extra = k < 2 * group ? 0 : Math.floor(k / group) - 1;
      found.push([value, extra]);
      value += 2 ** extra;
    }
    return found;
  };
  const lengthSteps = [...steps(3, 4, 28), [258, 0]];
  const distanceSteps = steps(1, 2, 30);
  for (let last = false; !last; ) {
    last = take(1) === 1;
    const kind = take(2);
    if (kind === 0) { // stored as it is
      if (bit) { bit = 0; at++; }
      const count = bytes[at] | (bytes[at + 1] << 8);
      out.set(bytes.subarray(at + 4, at + 4 + count), end);
      at += 4 + count;
      end += count;
      continue;
    }
    let literal, distance;
    if (kind === 1) {
      const fixed = Array.from({ length: 288 }, (_, k) => (k < 144 ? 8 : k < 256 ? 9 : k < 280 ? 7 : 8));
      [literal, distance] = [makeCode(fixed), makeCode(new Array(30).fill(5))];
    } else {
      const literals = take(5) + 257, distances = take(5) + 1, count = take(4) + 4;
      const order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
      const own = new Array(19).fill(0);
      for (let k = 0; k < count; k++) own[order[k]] = take(3);
      const code = makeCode(own);
      const lengths = [];
      while (lengths.length < literals + distances) {
        const symbol = read(code);
        if (symbol < 16) lengths.push(symbol);
        else {
          const [value, times] = symbol === 16 ? [lengths[lengths.length - 1], take(2) + 3] : [0, symbol === 17 ? take(3) + 3 : take(7) + 11];
          for (let k = 0; k < times; k++) lengths.push(value);
        }
      }
      [literal, distance] = [makeCode(lengths.slice(0, literals)), makeCode(lengths.slice(literals))];
    }
    for (let symbol = read(literal); symbol !== 256; symbol = read(literal)) {
      if (symbol < 256) { out[end++] = symbol; continue; }
      const [length, more] = lengthSteps[symbol - 257];
      const count = length + take(more);
      const [reach, further] = distanceSteps[read(distance)];
      const back = reach + take(further);
      for (let k = 0; k < count; k++, end++) out[end] = out[end - back];
    }
  }
  return out;
}

// Browsers from before 2022 have no dialogs: there it is a part of the page that lies above the rest.
const hasDialogs = typeof dialog.showModal === "function";
function showDialog() {
  if (hasDialogs) { if (!dialog.open) dialog.showModal(); return; }
  dialog.className = "plain";
  dialog.setAttribute("open", "");
  find("#cell-close").focus();
}
function closeDialog() {
  if (hasDialogs) { if (dialog.open) dialog.close(); return; }
  if (!dialog.hasAttribute("open")) return;
  dialog.removeAttribute("open");
  dialog.dispatchEvent(new Event("close"));
}
if (!hasDialogs) window.addEventListener("keydown", (event) => { if (event.key === "Escape") closeDialog(); });

function sameCell(i, j) {
  return ["suite", "protocol", "split", "pair", "method"].every((name) => named[name].values[i] === named[name].values[j]);
}

function facts(i, wanted) {
  return columns
    .filter((column) => wanted(column) && shown(column, i))
    .map((column) => {
      const text = shown(column, i);
      const size = text.length > 44 ? { class: "long" } : {};
      return make("div", size, make("dt", {}, column.title), make("dd", {}, text));
    });
}

async function openCell(i) {
  opened = i;
  find("#cell-title").textContent = `${unbroken(value("method", i))} on ${unbroken(value("pair", i))}, seed ${value("seed", i)}`;
  const seeds = find("#cell-seeds");
  seeds.replaceChildren();
  const siblings = Array.from({ length: data.count }, (_, j) => j).filter((j) => sameCell(i, j));
  if (siblings.length > 1) {
    for (const j of siblings.sort((a, b) => value("seed", a) - value("seed", b))) {
      const button = make("button", { type: "button", class: "button", "aria-pressed": String(j === i) }, `seed ${value("seed", j)}`);
      button.addEventListener("click", () => { location.hash = `cell-${j}`; });
      seeds.append(button);
    }
  }
  find("#cell-facts").replaceChildren(...facts(i, (column) => !column.aside || column.name === "reason"));
  const files = find("#cell-files");
  files.replaceChildren(make("p", { class: "soft" }, "unpacking …"));
  showDialog();
  dialog.scrollTop = 0;
  let found;
  try {
    found = await details(i);
  } catch (error) {
    found = { error: `This browser cannot unpack the cell's files (${error.message}).` };
  }
  if (opened !== i) return; // another one was opened meanwhile
  files.replaceChildren();
  if (found.error) files.append(make("p", { class: "bad" }, found.error));
  if (found.history) files.append(...curves(found.history));
  if (found.classes) files.append(byClass(found.classes));
  const rest = facts(i, (column) => column.aside && column.name !== "reason");
  files.append(make("details", {}, make("summary", {}, "Settings and provenance"), make("dl", {}, ...rest)));
  for (const [title, content] of [["Configuration", found.config], ["Result", found.result]]) {
    if (content) files.append(make("details", {}, make("summary", {}, title), make("pre", {}, JSON.stringify(content, null, 1))));
  }
  if (found.log) files.append(make("details", { open: "" }, make("summary", {}, "End of the log"), make("pre", {}, found.log)));
  if (!found.config && !found.error) files.append(make("p", { class: "soft" }, "No files of this cell were found when the report was made."));
}

function byClass({ by, rows, left_out }) {
  const list = make("tbody");
  for (const [name, share, images] of rows) {
    list.append(make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, share.toFixed(1)), make("td", {}, images)));
  }
  const heads = [by, "right (%)", "images"].map((title) => make("th", { scope: "col" }, title));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), list);
  const some = left_out ? `, lowest and highest; ${left_out} between them are not shown` : ", lowest first";
  return make("details", {}, make("summary", {}, `Accuracy by ${by}${some}`), make("div", { class: "wide" }, table));
}

function curves(history) {
  const names = Object.keys(history).filter((name) => name !== "epoch");
  const select = make("select", { "aria-label": "quantity of the curve" });
  for (const name of names) select.append(make("option", { value: name }, name));
  if (names.includes("top1")) select.value = "top1";
  const holder = make("div");
  const draw = () => holder.replaceChildren(curve(history.epoch, history[select.value], select.value));
  select.addEventListener("change", draw);
  draw();
  return [make("h3", {}, "Curve"), select, holder];
}

function curve(epochs, values, name) {
    const W = dialog.clientWidth < 500 ? 360 : 640, H = 240, L = 56, R = 12, T = 10, B = 34;
  const points = epochs.map((x, i) => [x, values[i]]).filter(([, y]) => Number.isFinite(y));
  const svg = svgPart("svg", { viewBox: `0 0 ${W} ${H}`, class: "curve", role: "img" });
  if (!points.length) return make("p", { class: "soft" }, `${name}: no figures`);
  const ys = points.map((point) => point[1]);
  let low = Math.min(...ys), high = Math.max(...ys);
  if (high === low) { low -= 0.5; high += 0.5; }
  const first = points[0][0], last = points[points.length - 1][0];
  const x = (v) => L + ((W - L - R) * (v - first)) / (last - first || 1);
  const y = (v) => H - B - ((H - T - B) * (v - low)) / (high - low);
  const short = (v) => String(Number(v.toPrecision(4)));
  svg.append(svgPart("title", {}, `${name} by epoch: ${short(ys[0])} at epoch ${first}, ${short(ys[ys.length - 1])} at epoch ${last}`));
  for (let i = 0; i <= 4; i++) {
    const v = low + ((high - low) * i) / 4;
    svg.append(svgPart("line", { x1: L, x2: W - R, y1: y(v), y2: y(v), stroke: "currentColor", "stroke-opacity": 0.15 }));
    svg.append(svgPart("text", { x: L - 6, y: y(v) + 4, "text-anchor": "end", "font-size": 12, fill: "currentColor" }, short(v)));
  }
  const ticks = [...new Set([first, Math.round((first + last) / 2), last])];
  for (const v of ticks) svg.append(svgPart("text", { x: x(v), y: H - 14, "text-anchor": "middle", "font-size": 12, fill: "currentColor" }, v));
  svg.append(svgPart("text", { x: (L + W - R) / 2, y: H - 1, "text-anchor": "middle", "font-size": 12, fill: "currentColor" }, "epoch"));
  const path = points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
  svg.append(svgPart("path", { d: path, fill: "none", stroke: "currentColor", "stroke-width": 2, "stroke-linejoin": "round" }));
  return svg;
}

function follow() {
  const hash = location.hash.slice(1);
  const cell = /^cell-(\d+)$/.exec(hash);
  if (cell && Number(cell[1]) < data.count) { openCell(Number(cell[1])); return; }
  closeDialog();
  if (hash.startsWith("cells?")) showFiltered(hash.slice(6));
}
dialog.addEventListener("close", () => {
  opened = -1;
  if (location.hash.startsWith("#cell-")) history.replaceState(null, "", location.pathname + location.search);
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) closeDialog(); });
find("#cell-close").addEventListener("click", closeDialog);
window.addEventListener("hashchange", follow);
follow();
