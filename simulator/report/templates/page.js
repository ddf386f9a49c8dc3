"use strict";
// Draws the figures once they scroll near, in the colours of the page, and the page for one request.

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
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

const CONFIG = { responsive: true, displayModeBar: false };
const drawn = new Map();

function draw(place, plot) {
  drawn.set(place, plot);
  const layout = wrapped(reflow(plot.layout, place.clientWidth), place.clientWidth);
  place.style.height = layout.height + "px";
  Plotly.react(place, plot.data, themed(layout), CONFIG);
}

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    near.unobserve(entry.target);
    drawPlace(entry.target);
  }
}, { rootMargin: "600px" });

function drawPlace(place) {
  const script = place.querySelector('script[type="application/json"]');
  if (!script) return;
  const plot = JSON.parse(script.textContent);
  script.remove();
  draw(place, plot);
}

document.querySelectorAll(".plot").forEach((place) => near.observe(place));
window.addEventListener("beforeprint", () => document.querySelectorAll(".plot").forEach(drawPlace));
const redraw = () => drawn.forEach((plot, place) => draw(place, plot));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

// Tables that go on to the right say so.
function hint() {
  document.querySelectorAll(".scrolled").forEach((box) => {
    const wide = box.querySelector(".wide");
    box.classList.toggle("on", wide.scrollWidth > wide.clientWidth + 1);
  });
}
let resized = 0;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => { redraw(); hint(); }, 150); });
document.querySelectorAll("details").forEach((box) => box.addEventListener("toggle", hint));
hint();

// -- where one is on the page

const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.getAttribute("href").slice(1), a]));
function follow() {
  let here = null;
  for (const section of document.querySelectorAll("section")) if (section.getBoundingClientRect().top < 140) here = section.id;
  links.forEach((a, id) => a.classList.toggle("here", id === here));
}
addEventListener("scroll", follow, { passive: true });
follow();

// -- one request

const COLOURS = ["#4f83b5", "#dd9a3c", "#9d6bb5", "#3a9c9c", "#c75f5f", "#8f8a3c"];

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}

function pageForOneRequest(root, data) {
  const linked = location.hash.startsWith("#request=") ? data.requests.findIndex((r) => r.id === decodeURIComponent(location.hash.slice(9))) : -1;
  const state = { request: Math.max(linked, 0), run: 0, stage: -1 };
  const queryOf = (r) => (r.query ? `“${r.query}”` : r.has_query ? "query not available" : "no query");
  const whole = (n) => (n === null || n === undefined ? "" : n.toLocaleString("en"));
  const short = (x) => (x === null || x === undefined ? "" : Math.abs(x) >= 1000 ? whole(Math.round(x)) : String(x));
  const item = (id) => {
    const known = data.items[id];
    const title = known && known[0];
    const more = title ? [known[1], id].filter(Boolean).join(" · ") : "";
    return el("span", { class: "item", title: [title, known && known[1], id, known && known[2] !== null ? `list price ${known[2]} ${data.currency || ""}` : null].filter(Boolean).join("\n") },
      title || id, more ? el("i", {}, " " + more) : null);
  };
  const outcome = (reason, stages) => {
    if (reason === "kept") return "kept by the last stage";
    if (reason === "not eligible") return "not eligible";
    if (reason === "index") return "missed by the index";
    return reason === stages[0].name ? "not recalled" : `cut by ${reason}`;
  };

  function ago(days) {
    if (days === null) return "";
    if (days < 1 / 24) return `${Math.max(1, Math.round(days * 1440))} min before`;
    if (days < 1) return `${Math.round(days * 24)} h before`;
    return `${Math.round(days)} d before`;
  }

  function picker() {
    const groups = new Map();
    data.requests.forEach((r, i) => {
      const name = outcome(r.outcome, data.stages[0]);
      if (!groups.has(name)) groups.set(name, el("optgroup", { label: name }));
      const text = `${r.id} · ${queryOf(r)} · user ${r.user ?? "unknown"}`;
      groups.get(name).append(el("option", i === state.request ? { value: i, selected: "" } : { value: i }, text));
    });
    const go = (to) => {
      state.request = to;
      history.replaceState(null, "", "#request=" + encodeURIComponent(data.requests[to].id)); // a link to this request
      render();
    };
    const step = (by) => () => go((state.request + by + data.requests.length) % data.requests.length);
    const runs = data.names.length > 1
      ? data.names.map((name, i) => el("button", { class: i === state.run ? "on" : null, onclick: () => { state.run = i; state.stage = -1; render(); } }, name)) : [];
    return el("div", { class: "picker" },
      el("button", { onclick: step(-1), "aria-label": "previous request" }, "←"), el("button", { onclick: step(1), "aria-label": "next request" }, "→"),
      el("select", { onchange: (e) => go(+e.target.value), "aria-label": "request" }, [...groups.values()]), runs);
  }

  function details(r) {
    const facts = [r.ts, r.user ? `user ${r.user}${r.new_user ? " (new)" : ""}` : null, r.source, `${whole(r.eligible)} eligible items`, r.shown ? `${whole(r.shown)} items were shown` : null];
    const chips = [...r.filters.map((f) => "filter " + f), ...r.context];
    // text decoded from a user embedding; the table below has the relevant items
    const readings = r.runs.flatMap((run, i) => Object.entries((run && run.reads) || {}).map(([name, words]) =>
      el("p", { class: "note" }, `The user embedding of ${name}${data.names.length > 1 ? ` (${data.names[i]})` : ""} reads: `, el("b", {}, words))));
    const history = r.history === null || r.history === undefined ? null
      : r.history.length === 0 ? el("p", { class: "note" }, "History: nothing before this request.")
      : [el("p", { class: "note" }, `History, latest first (last ${r.history.length}):`),
         el("div", { class: "chips" }, r.history.map((h) => {
           const known = data.items[h.item];
           return el("span", { class: "chip" + (h.action === "purchase" ? " buy" : ""), title: (known && known[0]) || h.item },
             el("span", {}, (known && known[0]) || h.item), el("i", {}, `${h.action === "purchase" ? "bought" : "clicked"} ${ago(h.days)}`));
         }))];
    return el("div", { class: "ask" },
      el("div", { class: "query" + (r.query ? "" : " none") }, r.query || queryOf(r)), el("div", { class: "sub" }, facts.filter(Boolean).join(" · ")),
      chips.length ? el("div", { class: "chips" }, chips.map((c) => el("span", { class: "chip" }, c))) : null, history, readings);
  }

  function scrolled(look, head, rows) {
    return el("div", { class: "scrolled" }, el("p", { class: "hint" }, "Scroll sideways to see the rest of the table."),
      el("div", { class: look, tabindex: 0 }, el("table", {}, el("thead", {}, head), el("tbody", {}, rows))));
  }

  function truthTable(one, stages) {
    const head = el("tr", {}, el("th", {}, `${data.label === "purchase" ? "purchased" : "clicked"} item`), el("th", { class: "num" }, "money"), el("th", {}, "kind"),
      stages.map((s) => el("th", { class: "num", title: `rank after ${s.name}, which keeps ${whole(s.k)}` }, s.name)), el("th", {}, "outcome"));
    const rows = one.truth.map((t) => {
      const cells = stages.map((s, j) => {
        if (t.ranks[j] !== null) return el("td", { title: `score ${short(t.scores[j])}` }, whole(t.ranks[j]));
        if (t.would[j] === null || t.would[j] === undefined) return el("td", { class: "ghost" }, "–");
        return el("td", { class: "ghost", title: `rank that it has or would have here; score ${short(t.scores[j])}` }, `(${whole(t.would[j])})`);
      });
      const least = t.lost === stages[0].name ? "at least " : "";
      const by = t.lost && t.margin ? `, ${least}${whole(t.margin)} rank${t.margin === 1 ? "" : "s"} short` : "";
      const score = t.lost && t.margin_score !== null ? `score short by ${short(t.margin_score)}` : null;
      return el("tr", {}, el("th", {}, item(t.item)), el("td", {}, t.money === null ? "n/a" : `${t.money.toLocaleString("en", { minimumFractionDigits: 2 })} ${data.currency || ""}`),
        el("td", { style: "text-align:left" }, [t.target, t.repeat ? "repeat" : null].filter(Boolean).join(", ")), cells,
        el("td", { style: "text-align:left" }, el("span", { class: "fate" + (t.lost ? "" : " kept"), title: score }, t.lost ? outcome(t.lost, stages) + by : "kept")));
    });
    return scrolled("wide wants", head, rows);
  }

  function candidates(one, stages, at) {
    const truth = new Set(one.truth.map((t) => t.item));
    const rows = one.rows.filter((c) => c.ranks[at] !== null).sort((a, b) => a.ranks[at] - b.ranks[at]).slice(0, 12);
    const head = el("tr", {}, el("th", {}, "item"), stages.map((s) => el("th", { class: "num" }, s.name)), el("th", { class: "num" }, "score"), el("th", {}, "channels"),
      el("th", { class: "num", title: "position in the logged list" }, "logged"));
    const lines = rows.map((c) => el("tr", { class: truth.has(c.item) ? "truth" : null }, el("th", {}, item(c.item)),
      c.ranks.map((rank, j) => el("td", j === at ? {} : { class: "ghost" }, rank === null ? "–" : whole(rank))),
      el("td", {}, short(c.scores[at])), el("td", { class: "channels", title: c.channel }, (c.channel || "").split("+").join(", ")), el("td", { class: "ghost" }, whole(c.position))));
    return scrolled("wide", head, lines);
  }

  function paths(one, stages) {
    const names = stages.map((s) => plain(s.name));
    const truth = new Map(one.truth.map((t) => [t.item, t]));
    const name = (id) => ((data.items[id] && data.items[id][0]) || id).slice(0, 60);
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

  function render() {
    const r = data.requests[state.request];
    const stages = data.stages[state.run];
    const one = r.runs[state.run];
    const at = state.stage < 0 || state.stage >= stages.length ? stages.length - 1 : state.stage;
    drawn.forEach((_, place) => { if (root.contains(place)) drawn.delete(place); });
    root.replaceChildren(picker(), details(r));
    if (!one) {
      root.append(el("p", { class: "absent" }, el("b", {}, "n/a"), "this Run did not replay this request."));
      return;
    }
    const plot = el("div", { class: "plot", style: "height:340px" });
    const flow = stages.map((s, j) => `${s.name} ${whole(one.n[j])} → ${whole(one.out[j])}`).join(" · ");
    const buttons = stages.map((s, j) => el("button", { class: j === at ? "on" : null, onclick: () => { state.stage = j; render(); } }, s.name));
    root.append(
      el("h3", {}, "Relevant items and where they were lost"), truthTable(one, stages),
      el("p", { class: "note" }, "Rank of each relevant item after each stage; in brackets, for an item that was lost, the rank that its score would have given it there. Rows in and out: " + flow + "."),
      el("div", { class: "two" },
        el("div", {}, el("h3", {}, "Best candidates of ", el("span", { class: "picker", style: "display:inline-flex;margin:0 0 0 6px" }, buttons)), candidates(one, stages, at)),
        el("div", {}, el("h3", {}, "Rank by stage"), plot,
          el("p", { class: "note" }, "Colour: relevant items, × where lost. Grey: the last stage's top 10. Dotted: cutoff of each stage."))));
    draw(plot, paths(one, stages));
    hint();
  }
  render();
  if (linked >= 0) root.parentElement.scrollIntoView();
}

const found = document.getElementById("one-data");
if (found) pageForOneRequest(document.getElementById("one"), JSON.parse(found.textContent));
