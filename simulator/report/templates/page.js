"use strict";
// One script for every page: the theme, figures, tables, printing, and the viewer of single requests.

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}

// -- light and dark

const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const KEY = "karmafunnel-theme"; // "light" or "dark" where the reader chose one
const remembered = {
  get theme() { try { return localStorage.getItem(KEY); } catch { return null; } },
  set theme(value) { try { localStorage.setItem(KEY, value); } catch { /* no storage: this page only */ } },
};

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
}

function showTheme() {
  const button = document.getElementById("theme");
  button.hidden = false;
  button.textContent = isDark() ? "Light" : "Dark";
  button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
}

if (["light", "dark"].includes(remembered.theme)) root.dataset.theme = remembered.theme;
document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  remembered.theme = root.dataset.theme;
  showTheme();
  redraw();
});
system.addEventListener("change", () => { showTheme(); redraw(); });
showTheme();

// -- figures: drawn once they scroll near, in the colours of the page

const probe = document.body.appendChild(el("i", { hidden: "" }));
const css = (name) => { probe.style.color = `var(${name})`; return getComputedStyle(probe).color; };
const FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif";

function themed(layout) {
  const out = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: FONT, size: 12.5, color: css("--ink") } };
  out.hoverlabel = { bgcolor: css("--panel"), bordercolor: css("--line"), font: { family: FONT, color: css("--ink") }, align: "left" };
  for (const key of Object.keys(layout)) {
    if (!/^[xy]axis\d*$/.test(key)) continue;
    const title = layout[key].title ? { ...layout[key].title, font: { color: css("--dim"), size: 12 } } : undefined;
    out[key] = { gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, ticks: "", tickfont: { color: css("--dim") }, ...layout[key] };
    if (key[0] === "y" && layout[key].showticklabels !== false) out[key].tickfont = { color: css("--ink") };
    if (title) out[key].title = title;
  }
  return out;
}

// What plotly would read as markup of its own: `plain` in simulator/report/page.py does the same for figures made there.
const plain = (text) => String(text).replace(/[&<>]|%(?=\{)/g, (c) => `&#${c.codePointAt(0)};`);

// Panes side by side go below each other where the page is too narrow for them.
const LEAST = 250; // pixels of a pane
function reflow(layout, width) {
  const names = Object.keys(layout).filter((key) => /^xaxis\d*$/.test(key)).map((key) => key.slice(5)).sort((a, b) => (a || 1) - (b || 1));
  const panes = names.map((i) => ({ x: layout["xaxis" + i].domain, y: (layout["yaxis" + i] || {}).domain }));
  if (panes.length < 2 || panes.some((p) => !p.x || !p.y)) return layout;
  const wide = panes[0].x[1] - panes[0].x[0], high = panes[0].y[1] - panes[0].y[0];
  if (panes.some((p) => Math.abs(p.x[1] - p.x[0] - wide) > 1e-6 || Math.abs(p.y[1] - p.y[0] - high) > 1e-6)) return layout;
  const columns = new Set(panes.map((p) => p.x[0])).size;
  const { l, r, t, b } = layout.margin;
  const fit = Math.max(1, Math.min(columns, Math.floor((width - l - r) / LEAST)));
  if (fit === columns) return layout;
  const inner = layout.height - t - b;
  const size = high * inner, tops = [...new Set(panes.map((p) => p.y[1]))].sort((a, c) => c - a);
  const gap = tops.length > 1 ? (tops[0] - tops[1]) * inner - size : 64;
  const rows = Math.ceil(panes.length / fit), total = rows * size + (rows - 1) * gap;
  const between = fit > 1 ? 0.14 : 0, across = (1 - between * (fit - 1)) / fit;
  const out = { ...layout, height: total + t + b };
  const moved = panes.map((p, i) => {
    const left = (i % fit) * (across + between), top = 1 - (Math.floor(i / fit) * (size + gap)) / total;
    return { was: p, x: [left, left + across], y: [Math.max(top - size / total, 0), top] };
  });
  moved.forEach((p, i) => {
    out["xaxis" + names[i]] = { ...layout["xaxis" + names[i]], domain: p.x };
    out["yaxis" + names[i]] = { ...layout["yaxis" + names[i]], domain: p.y, showticklabels: true };
  });
  out.annotations = (layout.annotations || []).map((a) => {
    const pane = a.xref === "paper" && a.yref === "paper" && moved.find((p) => p.was.x[0] === a.x && p.was.y[1] === a.y);
    return pane ? { ...a, x: pane.x[0], y: pane.y[1] } : a;
  });
  return out;
}

// Titles of panes in as many lines as they need.
function wrapped(layout, width) {
  const names = Object.keys(layout).filter((key) => /^xaxis\d*$/.test(key)).map((key) => key.slice(5));
  const inner = width - layout.margin.l - layout.margin.r;
  const annotations = (layout.annotations || []).map((a) => {
    if (a.xref !== "paper" || a.yref !== "paper") return a;
    const own = names.find((i) => layout["xaxis" + i].domain && layout["xaxis" + i].domain[0] === a.x && layout["yaxis" + i].domain[1] === a.y);
    const share = own === undefined ? 1 : layout["xaxis" + own].domain[1] - a.x;
    const most = Math.max(12, Math.floor((share * inner) / (0.56 * a.font.size)));
    const seen = (token) => (/^<[^>]*>$/.test(token) ? 0 : 1); // tags take no place, entities that of one letter
    let line = 0, text = "";
    for (const word of a.text.split(" ")) {
      const tokens = word.match(/<[^>]*>|&[^;]*;|[^]/g) || [];
      const size = tokens.reduce((sum, token) => sum + seen(token), 0);
      const fits = line + size < most;
      if (text) text += fits ? " " : "<br>";
      line = text && fits ? line + 1 : 0;
      for (const token of tokens) {
        if (line >= most && seen(token)) { text += "<br>"; line = 0; } // a name without a blank
        text += token;
        line += seen(token);
      }
    }
    return { ...a, text, align: "left" };
  });
  return { ...layout, annotations };
}

const CONFIG = { responsive: false, displayModeBar: false };
const drawn = new Map();

function draw(place, plot) {
  drawn.set(place, plot);
  const width = place.clientWidth;
  if (!width) return; // inside something folded: drawn when that is opened
  const layout = wrapped(reflow(plot.layout, width), width);
  place.style.height = layout.height + "px";
  Plotly.react(place, plot.data, { ...themed(layout), width }, CONFIG);
}

function drawPlace(place) {
  const script = place.querySelector('script[type="application/json"]');
  if (!script) return;
  const plot = JSON.parse(script.textContent);
  script.remove();
  draw(place, plot);
}

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    near.unobserve(entry.target);
    drawPlace(entry.target);
  }
}, { rootMargin: "600px" });
document.querySelectorAll(".plot").forEach((place) => near.observe(place));
function redraw() { drawn.forEach((plot, place) => draw(place, plot)); }

let resized = 0;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => { redraw(); hint(); }, 150);
});
document.querySelectorAll("details").forEach((box) => box.addEventListener("toggle", () => {
  drawn.forEach((plot, place) => { if (box.contains(place)) draw(place, plot); });
  hint();
}));

// -- tables: sorted by their heads, filtered by words

// Tables that go on to the right say so.
function hint() {
  document.querySelectorAll(".scrolled").forEach((box) => {
    const wide = box.querySelector(".wide");
    box.classList.toggle("on", wide.scrollWidth > wide.clientWidth + 1);
  });
}

const SIZES = { k: 1e3, m: 1e6, bn: 1e9 };

// What a cell is sorted by: its number or, failing that, its text; null where it says nothing.
function sortValue(cell) {
  const bar = cell.querySelector(".bar");
  if (bar) return parseFloat(bar.style.width);
  const text = (cell.querySelector(".v, .plain") || cell).textContent.trim();
  const found = /^[+±<≥]?\s*(−?[\d,]*\.?\d+(?:e[+-]?\d+)?)(k|m|bn)?(?![\w.:/-])/.exec(text);
  if (found) return parseFloat(found[1].replace("−", "-").replaceAll(",", "")) * (SIZES[found[2]] || 1);
  return text && text !== "n/a" && text !== "–" ? text : null;
}

// Numbers before texts; what says nothing stays last whatever the direction.
function compared(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return direction * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
}

const LEAST_ROWS = 8; // of a table with a filter

function interactive(table) {
  const body = table.tBodies[0], head = table.tHead && table.tHead.rows;
  const rows = body ? [...body.rows] : [];
  if (!head || head.length !== 1 || rows.length < 2) return;
  const heads = [...head[0].cells];
  const state = { column: -1, direction: 0, words: [] };

  function show() {
    const order = rows.map((row, i) => ({ row, i }));
    if (state.direction) {
      const key = new Map(rows.map((row) => [row, sortValue(row.cells[state.column])]));
      const last = (one) => one.row.classList.contains("reference"); // such as ceiling and random
      order.sort((a, b) => last(a) - last(b)
        || (last(a) ? 0 : compared(key.get(a.row), key.get(b.row), state.direction)) || a.i - b.i);
    }
    body.append(...order.map((one) => one.row));
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !state.words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    table.classList.toggle("mixed", state.direction !== 0 || shown < rows.length);
    heads.forEach((th, i) => {
      if (!th.firstElementChild) return;
      const name = i !== state.column ? "none" : ["descending", "none", "ascending"][state.direction + 1];
      th.setAttribute("aria-sort", name);
    });
    return shown;
  }

  heads.forEach((th, i) => {
    const button = el("button", { type: "button" });
    button.append(...th.childNodes);
    if (!button.textContent.trim()) return;
    th.append(button);
    th.setAttribute("aria-sort", "none");
    const first = th.classList.contains("num") ? -1 : 1; // the largest number first
    button.addEventListener("click", () => {
      const turns = state.column === i ? [first, -first, 0] : [first];
      state.direction = turns[(turns.indexOf(state.direction) + 1) % turns.length];
      state.column = i;
      show();
    });
  });

  if (rows.length < LEAST_ROWS) return;
  const count = el("output", {});
  const input = el("input", { type: "search", placeholder: "Filter rows", "aria-label": "Filter the rows of the table" });
  input.addEventListener("input", () => {
    state.words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = show();
    count.textContent = state.words.length ? `${shown} of ${rows.length} rows` : "";
    hint();
  });
  table.closest(".scrolled").prepend(el("div", { class: "filter" }, input, count));
}

document.querySelectorAll("main table").forEach(interactive);
hint();

// -- on paper: light, in the width of a page, nothing folded, no figure missing, no table cut

const unfolded = new Set();

addEventListener("beforeprint", () => {
  root.classList.add("printing");
  document.querySelectorAll("details:not([open])").forEach((box) => { unfolded.add(box); box.open = true; });
  document.querySelectorAll(".plot").forEach(drawPlace);
  redraw();
  document.querySelectorAll(".wide").forEach((wide) => {
    const table = wide.querySelector("table");
    if (table.scrollWidth > wide.clientWidth) table.style.zoom = wide.clientWidth / table.scrollWidth;
  });
});
addEventListener("afterprint", () => {
  root.classList.remove("printing");
  unfolded.forEach((box) => { box.open = false; });
  unfolded.clear();
  document.querySelectorAll(".wide > table").forEach((table) => { table.style.zoom = ""; });
  redraw();
  hint();
});

// -- where one is on the page

const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.getAttribute("href").slice(1), a]));
function follow() {
  let here = null;
  for (const section of document.querySelectorAll("section")) {
    if (section.getBoundingClientRect().top < 140) here = section.id;
  }
  links.forEach((a, id) => {
    a.classList.toggle("here", id === here);
    if (id === here) a.setAttribute("aria-current", "true"); else a.removeAttribute("aria-current");
  });
}
addEventListener("scroll", follow, { passive: true });
follow();

// -- single requests: one at a time, in one Run or in two side by side

const COLOURS = ["#4f83b5", "#dd9a3c", "#9d6bb5", "#3a9c9c", "#c75f5f", "#8f8a3c"];

function requestViewer(place, data) {
  const state = { request: 0, runs: data.names.length > 1 ? [0, 1] : [0], stage: [-1, -1], words: [] };
  const several = data.names.length > 1;
  const whole = (n) => (n === null || n === undefined ? "" : n.toLocaleString("en"));
  const short = (x) => (x === null || x === undefined ? "" : Math.abs(x) >= 1000 ? whole(Math.round(x)) : String(x));
  const queryOf = (r) => (r.query ? `“${r.query}”` : r.has_query ? "query not available" : "no query");
  const titleOf = (id) => (data.items[id] && data.items[id][0]) || id;
  const verb = data.label === "purchase" ? "purchased" : "clicked";

  function item(id) {
    const [title, kind, price] = data.items[id] || [null, null, null];
    const more = title ? [kind, id].filter(Boolean).join(" · ") : "";
    const cost = price === null || price === undefined ? null : `list price ${price} ${data.currency || ""}`;
    return el("span", { class: "item", title: [title, kind, id, cost].filter(Boolean).join("\n") },
      title || id, more ? el("i", {}, " " + more) : null);
  }

  function outcome(reason, stages) {
    if (reason === "kept") return "kept by the last stage";
    if (reason === "not eligible") return "not eligible";
    if (reason === "index") return "missed by the index";
    return reason === stages[0].name ? "not recalled" : `cut by ${reason}`;
  }

  function ago(days) {
    if (days === null) return "";
    if (days < 1 / 24) return `${Math.max(1, Math.round(days * 1440))} min before`;
    if (days < 1) return `${Math.round(days * 24)} h before`;
    return `${Math.round(days)} d before`;
  }

  // The picker stays while what is below it is drawn anew, so that the focus is not lost.
  const search = el("input", { type: "search", placeholder: "Search id, user or query", "aria-label": "Search requests by id, user or query" });
  const choice = el("select", { "aria-label": "Request" });
  const count = el("output", {});
  const shown = el("div", { class: "shown" });

  const texts = data.requests.map((r) => `${r.id} ${r.user ?? ""} ${r.query ?? ""}`.toLowerCase());
  const found = () => data.requests.map((_, i) => i).filter((i) => state.words.every((word) => texts[i].includes(word)));

  function choices() {
    const groups = new Map();
    for (const i of found()) {
      const r = data.requests[i];
      const name = outcome(r.outcome, data.stages[0]);
      if (!groups.has(name)) groups.set(name, el("optgroup", { label: name }));
      const text = `${r.id} · ${queryOf(r)} · user ${r.user ?? "unknown"}`;
      groups.get(name).append(el("option", { value: i, selected: i === state.request ? "" : null }, text));
    }
    choice.replaceChildren(...groups.values());
  }

  function go(to) {
    state.request = to;
    history.replaceState(null, "", "#request=" + encodeURIComponent(data.requests[to].id)); // a link to this request
    choices();
    render();
  }

  function step(by) {
    const all = found();
    if (all.length) go(all[(all.indexOf(state.request) + by + all.length) % all.length]);
  }

  search.addEventListener("input", () => {
    state.words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const all = found();
    count.textContent = !state.words.length ? "" : all.length ? `${all.length} of ${texts.length}`
      : `none of the ${texts.length} requests drawn for this page`;
    if (all.length && !all.includes(state.request)) go(all[0]); else choices();
  });
  choice.addEventListener("change", () => go(+choice.value));

  function runChoice(side) {
    const options = data.names.map((name, i) => el("option", { value: i, selected: state.runs[side] === i ? "" : null }, name));
    if (side) options.unshift(el("option", { value: -1 }, "no other Run"));
    return el("select", { class: "run", "aria-label": side ? "Run beside it" : "Run", onchange: (event) => {
      state.runs[side] = +event.target.value;
      state.stage[side] = -1;
      render();
    } }, options);
  }

  place.append(
    el("div", { class: "picker" },
      el("button", { type: "button", onclick: () => step(-1), "aria-label": "Previous request" }, "←"),
      el("button", { type: "button", onclick: () => step(1), "aria-label": "Next request" }, "→"), search, choice, count),
    several ? el("div", { class: "picker" }, runChoice(0), "beside", runChoice(1)) : "",
    shown);

  function about(r) {
    const user = r.user ? `user ${r.user}${r.new_user ? " (new)" : ""}` : null;
    const facts = [r.ts, user, r.source, `${whole(r.eligible)} eligible items`, r.shown ? `${whole(r.shown)} items were shown` : null];
    const chips = [...r.filters.map((f) => "filter " + f), ...r.context];
    // text decoded from a user embedding; the table below has the relevant items
    const readings = r.runs.flatMap((run, i) => Object.entries((run && run.reads) || {}).map(([name, words]) =>
      el("p", { class: "note" }, `The user embedding of ${name}${several ? ` (${data.names[i]})` : ""} reads: `, el("b", {}, words))));
    const event = (h) => el("span", { class: "chip" + (h.action === "purchase" ? " buy" : ""), title: titleOf(h.item) },
      el("span", {}, titleOf(h.item)), el("i", {}, `${h.action === "purchase" ? "bought" : "clicked"} ${ago(h.days)}`));
    const past = !r.history ? null
      : !r.history.length ? el("p", { class: "note" }, "History: nothing before this request.")
      : [el("p", { class: "note" }, `History, latest first (last ${r.history.length}):`), el("div", { class: "chips" }, r.history.map(event))];
    return el("div", { class: "ask" },
      el("div", { class: "query" + (r.query ? "" : " none") }, r.query || queryOf(r)),
      el("div", { class: "sub" }, facts.filter(Boolean).join(" · ")),
      chips.length ? el("div", { class: "chips" }, chips.map((c) => el("span", { class: "chip" }, c))) : null, past, readings);
  }

  function scrolled(look, heads, rows) {
    const table = el("table", {}, el("thead", {}, heads), el("tbody", {}, rows));
    return el("div", { class: "scrolled" },
      el("p", { class: "hint" }, "Scroll sideways to see the rest of the table."),
      el("div", { class: look, tabindex: 0, role: "region", "aria-label": "Table" }, table));
  }

  const column = (text, more) => el("th", { scope: "col", ...more }, text);

  // Rank of a relevant item after each stage of a Run, and its outcome there.
  function fates(t, stages, begins) {
    if (!t) return el("td", { class: "ghost" + begins, colspan: stages.length + 1, style: "text-align:left" }, "not replayed");
    const cells = stages.map((s, j) => {
      const look = j ? "" : begins;
      if (t.ranks[j] !== null) return el("td", { class: look, title: `score ${short(t.scores[j])}` }, whole(t.ranks[j]));
      if (t.would[j] === null || t.would[j] === undefined) return el("td", { class: "ghost" + look }, "–");
      return el("td", { class: "ghost" + look, title: `rank that it has or would have here; score ${short(t.scores[j])}` }, `(${whole(t.would[j])})`);
    });
    // at recall the rank of what is not returned is unknown
    const by = t.lost && t.margin && t.lost !== stages[0].name ? `, ${whole(t.margin)} rank${t.margin === 1 ? "" : "s"} short` : "";
    const score = t.lost && t.margin_score !== null ? `score short by ${short(t.margin_score)}` : null;
    const words = t.lost ? outcome(t.lost, stages) + by : "kept";
    return [cells, el("td", { style: "text-align:left" }, el("span", { class: "fate" + (t.lost ? "" : " kept"), title: score }, words))];
  }

  function relevant(r, runs) {
    const stages = runs.map((i) => data.stages[i]);
    const begins = (side) => (side ? " begins" : "");
    const names = runs.map((i, side) => el("th", { class: "run" + begins(side), scope: "colgroup", colspan: stages[side].length + 1 }, data.names[i]));
    const each = stages.map((of, side) => [
      of.map((s, j) => column(s.name, { class: "num" + (j ? "" : begins(side)), title: `rank after ${s.name}, which keeps ${whole(s.k)}` })),
      column("outcome")]);
    const heads = [column(`${verb} item`), column("money", { class: "num" }), column("kind"), each.flat(2)];
    const top = runs.length > 1 ? el("tr", {}, el("td", { colspan: 3 }), names) : null;
    const ids = [...new Set(runs.flatMap((i) => (r.runs[i] ? r.runs[i].truth.map((t) => t.item) : [])))];
    const rows = ids.map((id) => {
      const fate = runs.map((i) => r.runs[i] && r.runs[i].truth.find((t) => t.item === id));
      const t = fate.find(Boolean);
      const money = t.money === null ? "n/a" : `${t.money.toLocaleString("en", { minimumFractionDigits: 2 })} ${data.currency || ""}`;
      return el("tr", {}, el("th", { scope: "row" }, item(id)), el("td", {}, money),
        el("td", { style: "text-align:left" }, [t.target, t.repeat ? "repeat" : null].filter(Boolean).join(", ")),
        fate.flatMap((one, side) => fates(one, stages[side], begins(side))).flat());
    });
    return scrolled("wide wants", [top, el("tr", {}, heads.flat())].filter(Boolean), rows);
  }

  // Without its last two columns where two Runs stand side by side.
  function candidates(one, stages, at, narrow) {
    const truth = new Set(one.truth.map((t) => t.item));
    const rows = one.rows.filter((c) => c.ranks[at] !== null).sort((a, b) => a.ranks[at] - b.ranks[at]).slice(0, 12);
    const head = el("tr", {}, column("item"), stages.map((s) => column(s.name, { class: "num" })),
      column("score", { class: "num" }),
      narrow ? [] : [column("channels"), column("logged", { class: "num", title: "position in the logged list" })]);
    const lines = rows.map((c) => el("tr", { class: truth.has(c.item) ? "truth" : null }, el("th", { scope: "row" }, item(c.item)),
      c.ranks.map((rank, j) => el("td", j === at ? {} : { class: "ghost" }, rank === null ? "–" : whole(rank))),
      el("td", { title: c.channel }, short(c.scores[at])),
      narrow ? [] : [el("td", { class: "channels", title: c.channel }, (c.channel || "").split("+").join(", ")),
        el("td", { class: "ghost" }, whole(c.position))]));
    return scrolled("wide", head, lines);
  }

  function paths(one, stages) {
    const names = stages.map((s) => plain(s.name));
    const truth = new Map(one.truth.map((t) => [t.item, t]));
    const name = (id) => titleOf(id).slice(0, 60);
    const last = stages.length - 1;
    const traces = one.rows.filter((c) => c.ranks[last] !== null && c.ranks[last] <= 10 && !truth.has(c.item)).map((c) => ({
      type: "scatter", mode: "lines+markers", x: names, y: c.ranks, line: { color: "rgba(139,145,153,0.45)", width: 1.3 }, marker: { size: 4 }, connectgaps: false,
      hovertemplate: `${plain(name(c.item))}<br>%{x}: rank %{y}<extra></extra>`,
    }));
    one.truth.forEach((t, i) => {
      const colour = COLOURS[(i + 1) % COLOURS.length];
      const end = t.ranks.findIndex((rank) => rank === null);
      const y = t.ranks.map((rank, j) => (rank !== null ? rank : j === end && t.lost !== "not eligible" ? t.would[j] ?? null : null));
      const gone = y.map((_, j) => t.lost !== null && j === end);
      traces.push({
        type: "scatter", mode: "lines+markers", x: names, y, line: { color: colour, width: 2.6 }, connectgaps: false,
        marker: { size: gone.map((g) => (g ? 11 : 8)), symbol: gone.map((g) => (g ? "x" : "circle")), color: colour },
        hovertemplate: `<b>${plain(name(t.item))}</b><br>%{x}: rank %{y}<extra></extra>`,
      });
    });
    const shapes = stages.map((s, j) => ({ type: "line", x0: j - 0.3, x1: j + 0.3, y0: s.k, y1: s.k, line: { color: css("--dim"), width: 1, dash: "dot" } }));
    const most = Math.max(...stages.map((s) => s.k), ...traces.flatMap((t) => t.y.filter((v) => v !== null)));
    const ticks = [1, 10, 100, 1000, 10000, 100000].filter((t) => t <= most * 1.3);
    const layout = {
      height: 340, margin: { l: 46, r: 10, t: 10, b: 30 }, showlegend: false, shapes, hovermode: "closest",
      xaxis: { type: "category", range: [-0.35, stages.length - 0.65], showgrid: false, fixedrange: true },
      yaxis: { type: "log", range: [Math.log10(most * 1.5), -0.15], tickvals: ticks, ticktext: ticks.map(whole), title: { text: "rank", standoff: 4 }, fixedrange: true },
    };
    return { data: traces, layout };
  }

  // One Run: its best candidates, and the ranks by stage.
  function side(r, index) {
    const run = state.runs[index], one = r.runs[run], stages = data.stages[run];
    const title = several ? el("h3", {}, data.names[run]) : null;
    if (!one) return { node: el("div", { class: "side" }, title, el("p", {}, "This Run did not replay this request.")) };
    const at = state.stage[index] < 0 ? stages.length - 1 : state.stage[index];
    const buttons = stages.length < 2 ? [] : stages.map((s, j) => el("button", {
      type: "button", class: j === at ? "on" : null, "aria-pressed": String(j === at), "data-stage": `${index} ${j}`,
      onclick: () => { state.stage[index] = j; render(); shown.querySelector(`[data-stage="${index} ${j}"]`).focus(); },
    }, s.name));
    const plot = el("div", { class: "plot", role: "img", "aria-label": "Rank by stage of relevant items and of the last stage's top 10", style: "height:340px" });
    const flow = stages.map((s, j) => `${s.name} ${whole(one.n[j])} → ${whole(one.out[j])}`).join(" · ");
    const node = el("div", { class: "side" }, title,
      el("div", {}, el("h4", {}, `Best candidates of ${buttons.length ? "" : stages[0].name}`, el("span", { class: "picker" }, buttons)),
        candidates(one, stages, at, state.runs.every((i) => i >= 0) && several), el("p", { class: "note" }, "Rows in and out: " + flow + ".")),
      el("div", {}, el("h4", {}, "Rank by stage"), plot));
    return { node, plot, figure: paths(one, stages) };
  }

  function render() {
    const r = data.requests[state.request];
    const runs = state.runs.filter((run) => run >= 0);
    drawn.forEach((_, plot) => { if (shown.contains(plot)) drawn.delete(plot); });
    const sides = state.runs.flatMap((run, index) => (run < 0 ? [] : [side(r, index)]));
    shown.replaceChildren(about(r),
      el("h3", {}, "Relevant items, stage by stage"), relevant(r, runs),
      el("p", { class: "note" }, "Rank of each relevant item after each stage; in brackets, for an item that was lost, the rank that its score would have given it there."),
      el("div", { class: sides.length > 1 ? "sides pair" : "sides" }, sides.map((one) => one.node)),
      el("p", { class: "note" }, "Colour: relevant items, × where lost. Grey: the last stage's top 10. Dotted: cutoff of each stage."));
    sides.forEach((one) => { if (one.plot) draw(one.plot, one.figure); });
    hint();
  }

  function linked() {
    if (!location.hash.startsWith("#request=")) return false;
    const at = data.requests.findIndex((r) => r.id === decodeURIComponent(location.hash.slice(9)));
    if (at >= 0) state.request = at;
    return at >= 0;
  }
  const jump = linked();
  choices();
  render();
  if (jump) place.parentElement.scrollIntoView();
  addEventListener("hashchange", () => {
    if (!linked()) return;
    choices();
    render();
    place.parentElement.scrollIntoView();
  });
}

const told = document.getElementById("one-data");
if (told) requestViewer(document.getElementById("one"), JSON.parse(told.textContent));
