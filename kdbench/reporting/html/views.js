// Views of the boards: suites as tabs, facets by which ranks are computed anew, methods shown and hidden, two methods, shared links.
const boards = JSON.parse(find("#boards-data").textContent);
const CHOICES = { protocol: "Protocol", student: "Student", teacher: "Teacher", fidelity: "Fidelity" };
const view = { suite: "", protocol: "", student: "", teacher: "", fidelity: "", hide: new Set(), flip: false, two: [] };
const suites = [...new Set(boards.map((board) => board.suite))];
const selects = {};
const matrices = [];
const whole = () => !view.student && !view.teacher && !view.fidelity;

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const near = (value) => Math.round(value * 1e9) / 1e9;
function signed(value, decimals) {
  const text = Math.abs(value).toFixed(decimals);
  return Number(text) === 0 ? text : (value < 0 ? "-" : "+") + text;
}

// The pairs and methods of a board that the facets leave; baselines always stay.
function chosen(board) {
  const pairs = board.pairs.map((pair, i) => [pair, i])
    .filter(([pair]) => (!view.student || pair.student === view.student) && (!view.teacher || pair.teacher === view.teacher));
  const methods = board.methods.map((method, i) => [method, i])
    .filter(([method]) => !view.fidelity || !method.competes || method.name === board.reference || method.fidelity === view.fidelity);
  return { pairs: new Set(pairs.map((one) => one[1])), methods: new Set(methods.map((one) => one[1])) };
}

// By pair and method: the finished cells. A cell is [pair, method, seed, value, gain over the reference, gain over scratch].
function grouped(board, pairs, methods) {
  const groups = new Map();
  for (const cell of board.cells) {
    if (!pairs.has(cell[0]) || !methods.has(cell[1])) continue;
    const key = `${cell[0]} ${cell[1]}`;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(cell);
  }
  return groups;
}

// As kdbench.reporting.leaderboard ranks: means over the seeds that both have, then over pairs; who lacks a pair has no place.
function ranked(board) {
  const { pairs, methods } = chosen(board);
  const groups = grouped(board, pairs, methods);
  const known = (cells, column) => (cells || []).map((cell) => cell[column]).filter((value) => value !== null);
  const by = (method, column) => [...pairs].map((pair) => known(groups.get(`${pair} ${method}`), column)).filter((values) => values.length).map(mean);
  const reference = board.methods.findIndex((method) => method.name === board.reference);
  const has = (pair, method) => groups.has(`${pair} ${method}`);
  const needed = [...pairs].filter((pair) => (reference < 0 ? [...methods].some((method) => has(pair, method)) : has(pair, reference)));
  const rows = [...methods].filter((method) => [...pairs].some((pair) => has(pair, method))).map((i) => {
    const gains = by(i, 4), over = by(i, 5), values = by(i, 3);
    const score = reference < 0 ? board.sign * mean(values) : gains.length ? mean(gains) : NaN;
    return {
      method: board.methods[i], i, gains, score: Number.isNaN(score) ? -Infinity : near(score), mean: mean(values), pairs: reference < 0 ? values.length : gains.length,
      over: board.methods[i].name !== "scratch" && over.length ? mean(over) : null, counted: over.length,
      harmed: over.filter((gain) => gain < -1e-9).length, whole: needed.every((pair) => has(pair, i)),
      wins: gains.filter((gain) => gain > board.band + 1e-9).length, losses: gains.filter((gain) => gain < -board.band - 1e-9).length,
    };
  });
  const placed = rows.filter((row) => row.whole && row.method.competes);
  const places = placed.map((row) => row.score).sort((a, b) => b - a);
  for (const row of placed) row.rank = places.indexOf(row.score) + 1;
  averageRanks(board, groups, pairs, placed);
  rows.sort((a, b) => b.whole - a.whole || b.score - a.score || (a.method.name < b.method.name ? -1 : 1));
  return { rows, pairs: needed.length };
}

// Mean places over the pairs, of the means over the seeds that all placed methods have; equal values share a place.
function averageRanks(board, groups, pairs, placed) {
  if (placed.length < 2) return;
  const sums = placed.map(() => 0);
  let count = 0;
  for (const pair of pairs) {
    const own = placed.map((row) => new Map((groups.get(`${pair} ${row.i}`) || []).map((cell) => [cell[2], cell[3]])));
    const seeds = [...own[0].keys()].filter((seed) => own.every((cells) => cells.has(seed)));
    if (!seeds.length) continue;
    const values = own.map((cells) => near(board.sign * mean(seeds.map((seed) => cells.get(seed)))));
    values.forEach((value, k) => {
      sums[k] += 1 + values.filter((other) => other > value).length + (values.filter((other) => other === value).length - 1) / 2;
    });
    count += 1;
  }
  if (count) placed.forEach((row, k) => { row.average = sums[k] / count; });
}

// The leaderboard of a part of the pairs or methods, in the place of the whole one.
function drawFacets(board) {
  const box = find(`#${board.id}-leaderboard-box`);
  if (!box) return;
  find(`#${board.id}-view`)?.remove();
  box.hidden = !whole();
  const title = find(`#${board.id}-leaderboard-title`);
  for (const figure of all(`section[data-part="${board.id}"] [data-whole]`)) figure.hidden = !whole();
  if (whole()) return;
  const { rows, pairs } = ranked(board);
  const holder = make("div", { id: `${board.id}-view` });
  title.after(holder);
  if (!rows.length) { holder.append(make("p", {}, "No pair or method is left.")); return; }
  const over = board.reference ? `gain over ${board.referenceTitle}` : "mean";
  const heads = [["method", "ascending"], ["#", "ascending"], [over, "descending"], ["average rank", "ascending"], ["win/tie/loss", "descending"],
    ["over scratch", "descending"], ["pairs harmed", "ascending"], ["pairs", "descending"]];
  const head = make("tr", {}, ...heads.map(([text, first]) => make("th", { scope: "col", "data-key": "", "data-first": first, ...(text === "method" ? { class: "text" } : {}) }, unbroken(text))));
  const number = (value, text) => make("td", { "data-sort": isEmpty(value) ? "" : value }, isEmpty(value) ? "" : text);
  const body = rows.map((row) => {
    const { method, wins, losses } = row;
    const gain = Number.isFinite(row.score) ? row.score : null;
    const shown = board.reference ? gain : row.mean;
    const tested = board.reference && method.name !== board.reference && row.gains.length;
    const link = method.page ? make("a", { href: method.page }, unbroken(method.title)) : unbroken(method.title);
    return make("tr", {},
      make("th", { scope: "row", class: "text" }, link, make("span", { class: "family" }, method.family)),
      number(row.rank, String(row.rank)), number(shown, board.reference ? shown === null ? "" : signed(shown, board.decimals) : shown.toFixed(board.decimals)),
      number(row.average, row.average?.toFixed(2)), number(tested ? wins : null, `${wins}/${row.gains.length - wins - losses}/${losses}`),
      number(row.over, row.over === null ? "" : signed(row.over, board.decimals)), number(row.counted ? row.harmed : null, `${row.harmed}/${row.counted}`),
      number(row.pairs, `${row.pairs}/${pairs}`));
  });
  const table = make("table", { "data-label": "leaderboard of this view", id: `${board.id}-view-table` }, make("thead", {}, head), make("tbody", {}, ...body));
  holder.append(make("p", { class: "soft" },
    `Computed in this page over ${pairs} of ${board.pairs.length} pairs and ${rows.length} of ${board.methods.length} methods, ` +
    "chosen after the results were known. Intervals and tests are of the whole alone."));
  holder.append(make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "leaderboard of this view" }, table));
  enhance(table);
}

// Pairs by methods: kept as it came, and drawn with what the view shows, as it is or with rows and columns exchanged.
function keepMatrix(board) {
  const table = find(`#${board.id}-matrix`);
  if (!table) return;
  const rows = [...table.tHead.rows, ...table.tBodies[0].rows, ...(table.tFoot ? table.tFoot.rows : [])].map((row) => [...row.cells]);
  const matrix = { board, table, rows, foot: table.tFoot ? table.tFoot.rows.length : 0 };
  matrices.push(matrix);
  const chips = make("details", { class: "chips" }, make("summary", {}, "Methods shown"));
  const group = make("div", { class: "seeds", role: "group", "aria-label": "methods shown" });
  const names = rows[0].map((cell) => cell.dataset.name).filter(Boolean);
  const set = (hidden) => { for (const name of names) view.hide[hidden ? "add" : "delete"](name); draw(); };
  group.append(action("all", () => set(false)), action("none", () => set(true)));
  for (const cell of rows[0].filter((one) => one.dataset.name)) {
    const { name } = cell.dataset;
    group.append(action(cell.textContent, () => { view.hide[view.hide.has(name) ? "delete" : "add"](name); draw(); }, { "data-chip": name }));
  }
  chips.append(group);
  const bar = table.closest(".box").querySelector(".filters");
  bar.append(action("Exchange rows and columns", () => { view.flip = !view.flip; draw(); }, { "data-flip": "" }));
  bar.after(chips);
}

function drawMatrix({ board, table, rows, foot }) {
  const left = chosen(board);
  const names = new Map(board.methods.map((method, i) => [method.name, i]));
  const partial = left.pairs.size < board.pairs.length;
  const columns = rows[0].map((cell, c) => c).filter((c) => {
    const name = rows[0][c].dataset.name;
    return !name || (!view.hide.has(name) && left.methods.has(names.get(name)));
  });
  const body = rows.slice(1, rows.length - foot).filter((row, r) => left.pairs.has(r));
  const last = partial ? [] : rows.slice(rows.length - foot); // means over all pairs are not those of a part
  const sorted = find('th[aria-sort="ascending"], th[aria-sort="descending"]', table);
  const copied = (cell, tag, attributes = {}) => {
    const made = make(tag, attributes);
    for (const { name, value } of cell.attributes) if (/^(class|data-sort|data-name)$/.test(name)) made.setAttribute(name, value);
    const from = find("button", cell) && cell.tagName === "TH" && cell.scope === "col" ? find("button", cell) : cell;
    made.append(...[...from.childNodes].map((node) => node.cloneNode(true)));
    return made;
  };
  const heading = (cell, first) => {
    const made = copied(cell, "th", { scope: "col", "data-key": "", "data-first": first });
    for (const link of all("a", made)) link.replaceWith(link.textContent); // a heading is a button
    return made;
  };
  const line = (cells) => make("tr", {}, ...cells.map((cell, k) => (k ? copied(cell, "td") : copied(cell, "th", { scope: "row" }))));
  let head, lines, below = [];
  if (view.flip) {
    const across = [...body, ...last];
    head = [rows[0][0], ...across.map((row) => row[0])].map((cell, k) => heading(cell, k ? "descending" : "ascending"));
    lines = columns.slice(1).map((c) => line([rows[0][c], ...across.map((row) => row[c])]));
  } else {
    head = columns.map((c) => heading(rows[0][c], rows[0][c].dataset.first));
    lines = body.map((row) => line(columns.map((c) => row[c])));
    below = last.map((row) => line(columns.map((c) => row[c])));
  }
  table.replaceChildren(make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...lines), ...(below.length ? [make("tfoot", {}, ...below)] : []));
  makeSortable(table);
  if (sorted) {
    const again = all("thead th", table).find((header) => header.textContent === sorted.textContent);
    if (again) sortBy(again, sorted.getAttribute("aria-sort"));
  }
  const box = table.closest(".box");
  const input = find("input[type=search]", box);
  if (input?.value) applyFilter(table, input.value);
  for (const chip of all("[data-chip]", box)) chip.setAttribute("aria-pressed", String(!view.hide.has(chip.dataset.chip)));
  find("[data-flip]", box).setAttribute("aria-pressed", String(view.flip));
}

// Two methods on each pair, seed by seed.
function drawTwo() {
  const result = find("#two-result");
  const [id, first, second] = view.two;
  const board = boards.find((one) => one.id === id);
  result.replaceChildren();
  if (!board) return;
  const index = (name) => board.methods.findIndex((method) => method.name === name);
  const cells = (pair, method) => new Map(board.cells.filter((cell) => cell[0] === pair && cell[1] === method).map((cell) => [cell[2], cell[3]]));
  const left = chosen(board).pairs;
  const lines = board.pairs.map((pair, p) => [pair, cells(p, index(first)), cells(p, index(second)), p])
    .filter((line) => left.has(line[3]))
    .map(([pair, a, b]) => ({ pair, a, b, seeds: [...a.keys()].filter((seed) => b.has(seed)).sort((x, y) => x - y) }))
    .filter((line) => line.seeds.length)
    .map((line) => ({ ...line, apart: line.seeds.map((seed) => near(board.sign * (line.b.get(seed) - line.a.get(seed)))) }));
  if (!lines.length) { result.append(make("p", {}, "No pair has both with the same seed.")); return; }
  const points = lines.flatMap((line) => line.apart);
  const low = Math.min(0, ...points), high = Math.max(0, ...points);
  const place = (value) => 6 + (148 * (value - low)) / (high - low || 1);
  const titles = [first, second].map((name) => unbroken(board.methods[index(name)].title));
  const heads = ["pair", ...titles, "difference", "by seed", "seeds"];
  const head = make("tr", {}, ...heads.map((text, k) => make("th", { scope: "col", ...(k === 4 ? {} : { "data-key": "", "data-first": k ? "descending" : "ascending" }) }, text)));
  const body = lines.map(({ pair, a, b, seeds, apart }) => {
    const svg = svgPart("svg", { viewBox: "0 0 160 16", class: "strip", role: "img", "aria-label": apart.map((value) => signed(value, board.decimals)).join(", ") });
    svg.append(svgPart("line", { x1: place(0), x2: place(0), y1: 0, y2: 16 }), ...apart.map((value) => svgPart("circle", { cx: place(value), cy: 8, r: 3.5 })));
    const figure = (value, text) => make("td", { "data-sort": value }, text);
    const [of, to, by] = [mean(seeds.map((seed) => a.get(seed))), mean(seeds.map((seed) => b.get(seed))), mean(apart)];
    return make("tr", {}, make("th", { scope: "row" }, unbroken(pair.title)), figure(of, of.toFixed(board.decimals)), figure(to, to.toFixed(board.decimals)),
      figure(by, signed(by, board.decimals)), make("td", {}, svg), figure(seeds.length, String(seeds.length)));
  });
  const means = lines.map((line) => mean(line.apart));
  const better = means.filter((value) => value > board.band + 1e-9).length, worse = means.filter((value) => value < -board.band - 1e-9).length;
  result.append(make("p", {}, `${titles[1]} minus ${titles[0]}: ${signed(mean(means), board.decimals)} ${board.unit} over ${lines.length} ${lines.length === 1 ? "pair" : "pairs"}; ` +
    `better on ${better}, worse on ${worse}, within ±${board.band} on ${lines.length - better - worse}.`));
  const table = make("table", { "data-label": "two methods", id: "two-table" }, make("thead", {}, head), make("tbody", {}, ...body));
  result.append(make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "two methods" }, table));
  enhance(table);
}

function chooseTwo() {
  const holder = find("#two-choice");
  const board = boards.find((one) => one.id === view.two[0]) || boards[0];
  const options = (list, value) => list.map(([key, text]) => make("option", { value: key, ...(key === value ? { selected: "" } : {}) }, text));
  const pick = (k, label, list) => {
    const select = make("select", {}, ...options(list, view.two[k]));
    select.addEventListener("change", () => {
      view.two[k] = select.value;
      if (k === 0) startTwo(boards.find((one) => one.id === select.value));
      chooseTwo();
      drawTwo();
    });
    return make("label", {}, label, select);
  };
  const methods = board.methods.map((method) => [method.name, method.title]);
  holder.replaceChildren(
    ...(boards.length > 1 ? [pick(0, "Suite and protocol", boards.map((one) => [one.id, `${one.suite}, ${one.protocol}`]))] : []),
    pick(1, "First", methods), pick(2, "Second", methods));
}

// At first: the reference, and the method of the highest rank.
function startTwo(board) {
  const best = ranked(board).rows.find((row) => row.rank === 1)?.method.name;
  const others = board.methods.map((method) => method.name).filter((name) => name !== board.reference);
  view.two = [board.id, board.reference || board.methods[0].name, best && best !== board.reference ? best : others[0] || board.methods[0].name];
}

function draw() {
  const there = new Set();
  for (const board of boards) {
    if ((!view.suite || board.suite === view.suite) && (!view.protocol || board.protocol === view.protocol)) there.add(board.id);
  }
  for (const part of all("section[data-part], nav a[data-part]")) part.hidden = !there.has(part.dataset.part);
  for (const tab of all("#suites button")) tab.setAttribute("aria-selected", String(tab.dataset.suite === view.suite));
  for (const option of selects.protocol?.options || []) {
    option.hidden = option.value !== "" && !boards.some((board) => board.protocol === option.value && (!view.suite || board.suite === view.suite));
  }
  for (const [name, select] of Object.entries(selects)) select.value = view[name];
  boards.forEach(drawFacets);
  matrices.forEach(drawMatrix);
  drawTwo();
  find("#view-status").textContent = whole() ? "" : "The leaderboard, pairs by methods and two methods show what is chosen; everything else is of the whole.";
}

// The view in the address: everything that differs from how the page opens.
function shared() {
  const words = new URLSearchParams();
  for (const name of ["suite", ...Object.keys(CHOICES)]) if (view[name] && !(name === "suite" && view.suite === suites[0])) words.set(name, view[name]);
  if (view.hide.size) words.set("hide", [...view.hide].join(" "));
  if (view.flip) words.set("flip", "1");
  words.set("two", view.two.join(" "));
  for (const header of all("table[data-label] th[aria-sort=ascending], table[data-label] th[aria-sort=descending]")) {
    words.append("sort", [header.closest("table").id, header.cellIndex, header.getAttribute("aria-sort")].join(" "));
  }
  for (const input of all(".box > .filters input, [id$=-view] .filters input")) {
    if (input.value) words.append("find", [find("table", input.closest(".filters").parentElement).id, input.value].join(" "));
  }
  return `#view?${words}`;
}

function restore(query) {
  const words = new URLSearchParams(query);
  for (const name of ["suite", ...Object.keys(CHOICES)]) {
    const value = words.get(name) || "";
    const known = name === "suite" ? suites : [...(selects[name]?.options || [])].map((option) => option.value);
    view[name] = known.includes(value) ? value : name === "suite" && suites.length > 1 ? suites[0] : "";
  }
  if (!boards.some((board) => (!view.suite || board.suite === view.suite) && (!view.protocol || board.protocol === view.protocol))) view.protocol = "";
  view.hide = new Set((words.get("hide") || "").split(" ").filter(Boolean));
  view.flip = words.get("flip") === "1";
  const [id, first, second] = (words.get("two") || "").split(" ");
  const board = boards.find((one) => one.id === id);
  if (board && [first, second].every((name) => board.methods.some((method) => method.name === name))) view.two = [id, first, second];
  chooseTwo();
  draw();
  const table = (id) => { const found = document.getElementById(id); return found && found.tagName === "TABLE" && found.tBodies[0] ? found : null; };
  for (const text of words.getAll("find")) {
    const [id, ...rest] = text.split(" ");
    const box = table(id)?.closest(".wide").parentElement;
    const input = box && find("input[type=search]", box);
    if (input) { input.value = rest.join(" "); applyFilter(table(id), input.value); }
  }
  for (const text of words.getAll("sort")) {
    const [id, column, direction] = text.split(" ");
    const header = table(id)?.tHead.rows[0].cells[Number(column)];
    if (header && header.hasAttribute("aria-sort") && /^(a|de)scending$/.test(direction)) sortBy(header, direction);
  }
}

// A link to what another tab shows opens that tab.
function reveal() {
  const hash = location.hash.slice(1);
  if (hash.startsWith("view?")) { restore(hash.slice(5)); return; }
  const part = hash && document.getElementById(hash)?.closest("section[data-part]");
  if (!part || !part.hidden) return;
  const board = boards.find((one) => one.id === part.dataset.part);
  if (view.suite) view.suite = board.suite;
  view.protocol = "";
  draw();
  document.getElementById(hash).scrollIntoView();
}

if (boards.length) {
  const bar = find("#facets");
  const values = {
    protocol: new Set(boards.map((board) => board.protocol)),
    student: new Set(boards.flatMap((board) => board.pairs.map((pair) => pair.student))),
    teacher: new Set(boards.flatMap((board) => board.pairs.map((pair) => pair.teacher))),
    fidelity: new Set(boards.flatMap((board) => board.methods.filter((method) => method.competes).map((method) => method.fidelity))),
  };
  for (const [name, title] of Object.entries(CHOICES)) {
    const list = [...values[name]].filter(Boolean).sort(collator.compare);
    if (list.length < 2) continue;
    const select = make("select", {}, make("option", { value: "" }, "all"), ...list.map((text) => make("option", { value: text }, text)));
    select.addEventListener("change", () => { view[name] = select.value; draw(); });
    selects[name] = select;
    bar.append(make("label", {}, title, select));
  }
  if (suites.length > 1) {
    view.suite = suites[0];
    const tabs = find("#suites");
    tabs.hidden = false;
    for (const suite of suites) {
      tabs.append(action(unbroken(suite), () => { Object.assign(view, { suite, protocol: "" }); draw(); }, { role: "tab", "data-suite": suite }));
    }
  }
  bar.append(action("Share this view", (event) => {
    history.replaceState(null, "", shared());
    copy(location.href, event.currentTarget);
  }, { id: "share" }));
  boards.forEach(keepMatrix);
  startTwo(boards[0]);
  chooseTwo();
  draw();
  window.addEventListener("hashchange", reveal);
  reveal();
} else {
  find("#two").parentElement.hidden = true;
}
