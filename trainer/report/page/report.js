"use strict";
(async () => {
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const root = document.documentElement;
  const AXES = [["step", "step"], ["examples", "examples"], ["hours", "hours since the start"], ["through", "trained through"]];
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const STROKES = ["", "6 3", "2 3", "6 3 2 3", "9 4", "9 4 2 4"];
  const COLOURS = 10;
  const MOST_MARKS = 60;
  const KEYS = { line: "since the last log", faint: "since birth", points: "evaluation" };
  const TICKS = { share: { tickformat: ",.3~p" }, seconds: { tickformat: "~s", ticksuffix: "s" }, bytes: { tickformat: "~s", ticksuffix: "B" }, rate: { tickformat: "~s" } };
  const HOVER = { share: ".2%", seconds: ".4~s", bytes: ".4~s", rate: ".4~s" };
  const BOUNDS = Object.fromEntries(AXES.map(([key]) => [key, bounds(key)]));
  const strip = document.getElementById("strip");
  const hiddenRuns = new Set();
  let axis = "step";
  let width = null; // of every plot while it is printed

  // plotly.js takes some markup in what it shows: names of runs and tasks are not markup.
  const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const variable = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const colour = (number) => variable(`--c${number % COLOURS}`);
  const element = (name, attributes, text) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };

  function swatch(number, style, dash) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("width", "20");
    svg.setAttribute("height", "10");
    svg.setAttribute("aria-hidden", "true");
    const ink = number === null ? "var(--soft)" : `var(--c${number % COLOURS})`;
    const path = document.createElementNS(svg.namespaceURI, "path");
    if (style === "area") {
      path.setAttribute("d", "M4 0h12v10h-12z");
      path.setAttribute("style", `fill:${ink}`);
    } else if (style === "points") {
      path.setAttribute("d", "M10 1l4 4l-4 4l-4 -4z");
      path.setAttribute("style", `fill:${ink}`);
    } else {
      path.setAttribute("d", "M0 5h20");
      const dashes = style === "faint" ? "1.5 2.5" : STROKES[dash % STROKES.length];
      path.setAttribute("style", `fill:none;stroke:${ink};stroke-width:2;stroke-dasharray:${dashes || "none"}`);
    }
    svg.append(path);
    return svg;
  }

  // Seconds in the unit in which people say them: [divisor, ticks, hover].
  function units(panel) {
    if (panel.unit !== "seconds") return [1, TICKS[panel.unit] || {}, HOVER[panel.unit] || ".5~g"];
    const most = panel.top || panel.curves.reduce((top, curve) => curve.values.reduce((high, value) => Math.max(high, value || 0), top), 0);
    for (const [divisor, suffix] of [[86400, " d"], [3600, " h"], [60, " min"]]) {
      if (most >= 2 * divisor) return [divisor, { ticksuffix: suffix }, ".4~g"];
    }
    return [1, TICKS.seconds, HOVER.seconds];
  }

  function trace(panel, curve, hidden) {
    const [divisor, ticks, hover] = units(panel);
    const values = panel.x === "layer" ? curve.at : curve.at.map((at) => data.runs[curve.run][axis][at]);
    const ink = colour(curve.colour);
    const few = curve.values.length < 3 || panel.x === "layer";
    const made = {
      type: "scatter", x: values, y: divisor === 1 ? curve.values : curve.values.map((value) => (value === null ? null : value / divisor)),
      name: plain(curve.group && curve.group !== curve.name && panel.curves.length > 1 ? `${curve.group}${KEYS[curve.style] && curve.style !== "line" ? `, ${KEYS[curve.style]}` : ""}` : curve.name),
      mode: curve.style === "points" ? "markers" : few ? "lines+markers" : "lines",
      line: { color: ink, width: curve.style === "faint" ? 1 : 1.7, dash: curve.style === "faint" ? "dot" : DASHES[curve.dash % DASHES.length] },
      marker: { color: ink, size: curve.style === "points" ? 9 : 5, symbol: curve.style === "points" ? "diamond" : "circle", line: { color: variable("--paper"), width: curve.style === "points" ? 1 : 0 } },
      visible: !hiddenRuns.has(curve.run) && !hidden.has(curve.group),
      hovertemplate: `%{y:${hover}}${ticks.ticksuffix || ""}`,
    };
    if (curve.text) {
      made.text = curve.text.map(plain);
      made.hovertemplate += " %{text}";
    }
    if (curve.style === "area") {
      Object.assign(made, { stackgroup: "one", mode: "none", fillcolor: ink });
    }
    return made;
  }

  // The same for all curves, so that what happened stands below each other.
  function bounds(key) {
    const known = data.runs.flatMap((run) => run[key]).filter((value) => value !== null);
    let low = Infinity, high = -Infinity;
    for (const value of known) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    if (key !== "through" && low < high / 5) low = 0;
    const room = (high - low || Math.abs(high) || 1) * 0.015;
    return [low - room, high + room];
  }

  function xAxis(layer) {
    const title = layer ? "layer" : AXES.find(([key]) => key === axis)[1];
    const ticks = layer ? { dtick: 1 } : { range: [...BOUNDS[axis]], ...(axis === "examples" ? { tickformat: "~s" } : {}) };
    return { ...common(), ...ticks, type: !layer && axis === "through" ? "date" : "linear", title: { text: title, standoff: 6, font: { size: 12, color: variable("--soft") } }, nticks: 8, showgrid: false };
  }

  function common() {
    return { gridcolor: variable("--grid"), linecolor: variable("--rule"), tickcolor: variable("--rule"), zeroline: false, tickfont: { size: 12, color: variable("--soft") } };
  }

  function layout(more) {
    return {
      autosize: width === null, ...(width === null ? {} : { width }), margin: { l: 58, r: 14, t: 8, b: 42 }, showlegend: false,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: variable("--ink") },
      hoverlabel: { bgcolor: variable("--paper"), bordercolor: variable("--rule"), font: { color: variable("--ink"), size: 12 }, namelength: 40 }, ...more,
    };
  }

  const SETTINGS = { responsive: true, displaylogo: false, doubleClick: "reset", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

  function marks() {
    const found = data.events.filter((event) => !event.usual && !hiddenRuns.has(event.run)).slice(0, MOST_MARKS);
    return found.map((event) => {
      const x = data.runs[event.run][axis][event.at];
      const ink = data.runs.length > 1 ? colour(event.run) : variable("--mark");
      return { type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, layer: "below", opacity: 0.5, line: { color: ink, width: 1, dash: "dot" } };
    }).filter((mark) => mark.x0 !== null);
  }

  class Plot {
    constructor(place, panel) {
      this.place = place.querySelector(".plot");
      this.panel = panel;
      this.hidden = new Set();
      this.legend(place.querySelector(".legend"));
    }

    legend(box) {
      const groups = new Map();
      for (const curve of this.panel.curves) {
        if (!groups.has(curve.group)) groups.set(curve.group, curve);
      }
      if (groups.size < 2 && data.runs.length < 2 && new Set(this.panel.curves.map((curve) => curve.style)).size < 2) return;
      for (const [group, curve] of groups) {
        const all = this.panel.curves.filter((one) => one.group === group).map((one) => one.style);
        const style = curve.style === "area" ? "area" : all.every((one) => one === "points") ? "points" : "line";
        const button = element("button", { type: "button", "aria-pressed": "true" });
        button.append(swatch(curve.colour, style, curve.dash), element("span", {}, group));
        button.addEventListener("click", () => {
          const shown = this.hidden.delete(group);
          if (!shown) this.hidden.add(group);
          button.setAttribute("aria-pressed", String(shown));
          this.draw();
        });
        box.append(button);
      }
      const styles = ["line", "faint", "points"].filter((style) => this.panel.curves.some((curve) => curve.style === style));
      if (styles.length < 2 || this.panel.x === "layer") return;
      for (const style of styles) {
        const key = element("span", { class: "key" });
        key.append(swatch(null, style, 0), element("span", {}, KEYS[style]));
        box.append(key);
      }
    }

    draw() {
      const layer = this.panel.x === "layer";
      const shared = layer ? {} : { shapes: marks() };
      const [divisor, ticks] = units(this.panel);
      return Plotly.react(
        this.place,
        this.panel.curves.map((curve) => trace(this.panel, curve, this.hidden)),
        layout({ ...shared, hovermode: "x unified", xaxis: xAxis(layer), yaxis: { ...common(), ...ticks, nticks: 6, ...(this.panel.top === null ? {} : { range: [0, this.panel.top / divisor] }) } }),
        SETTINGS,
      );
    }
  }

  class Strip {
    constructor(place) {
      this.place = place.querySelector(".plot");
      this.panel = { x: "run" };
      const usual = [...new Set(data.events.filter((event) => event.usual).map((event) => event.kind))];
      this.kinds = [...usual.reverse(), ...new Set(data.events.filter((event) => !event.usual).map((event) => event.kind))];
      this.place.style.height = `${70 + 26 * this.kinds.length}px`;
    }

    draw() {
      const traces = data.runs.map((run, number) => {
        const events = data.events.filter((event) => event.run === number);
        const inks = events.map((event) => (data.runs.length > 1 ? colour(number) : event.usual ? colour(0) : variable("--mark")));
        return {
          type: "scatter", mode: "markers", name: plain(run.name), visible: !hiddenRuns.has(number),
          x: events.map((event) => run[axis][event.at]), y: events.map((event) => plain(event.kind)),
          text: events.map((event) => `step ${event.step} · ${plain(event.kind)}<br>${wrapped(event.text)}`),
          hovertemplate: `%{text}<extra>${data.runs.length > 1 ? plain(run.name).replaceAll("%", "&#37;") : ""}</extra>`,
          marker: { color: inks, size: 9, symbol: events.map((event) => (event.usual ? "circle-open" : "diamond")), line: { width: 1.5 } },
        };
      });
      const rows = { ...common(), automargin: true, type: "category", categoryorder: "array", categoryarray: this.kinds.map(plain), range: [-0.6, this.kinds.length - 0.4], fixedrange: true, ticks: "" };
      return Plotly.react(this.place, traces, layout({ hovermode: "closest", xaxis: xAxis(false), yaxis: rows }), SETTINGS);
    }
  }

  function wrapped(text) {
    return (text.match(/.{1,90}(?:\s|$)|.{1,90}/g) || []).map((line) => plain(line.trim())).join("<br>");
  }

  async function unpacked(id) {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  async function drawAll(plots) {
    let since = performance.now();
    for (const plot of plots) {
      await plot.draw();
      if (performance.now() - since > 200) { // the page stays alive meanwhile
        await new Promise((resume) => setTimeout(resume));
        since = performance.now();
      }
    }
  }

  function linked(plots) {
    let following = false;
    for (const plot of plots.filter((one) => one.panel.x === "run")) {
      plot.place.on("plotly_relayout", async (change) => {
        if (following || !("xaxis.range[0]" in change || "xaxis.range" in change)) return;
        following = true;
        const shared = { "xaxis.range": change["xaxis.range"] || [change["xaxis.range[0]"], change["xaxis.range[1]"]] };
        for (const other of plots) {
          if (other !== plot && other.panel.x === "run") await Plotly.relayout(other.place, { ...shared });
        }
        following = false;
      });
    }
  }

  function toolbar(plots) {
    const box = document.querySelector(".toolbar");
    const known = AXES.filter(([key]) => data.runs.some((run) => run[key].some((value) => value !== null)));
    const choice = box.querySelector(".switch");
    choice.append(element("span", {}, "curves over"));
    for (const [key, words] of known) {
      const button = element("button", { type: "button", "aria-pressed": String(key === axis), "data-axis": key }, words);
      button.addEventListener("click", () => {
        axis = key;
        for (const other of choice.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
        return drawAll(plots).then(() => { root.dataset.over = key; });
      });
      choice.append(button);
    }
    if (data.runs.length > 1) {
      data.runs.forEach((run, number) => {
        const button = element("button", { type: "button", "aria-pressed": "true" });
        button.append(swatch(number, "line", 0), element("span", {}, run.name));
        button.addEventListener("click", () => {
          const shown = hiddenRuns.delete(number);
          if (!shown) hiddenRuns.add(number);
          button.setAttribute("aria-pressed", String(shown));
          return drawAll(plots).then(() => { root.dataset.without = [...hiddenRuns].join(" "); });
        });
        box.querySelector(".runs").append(button);
      });
    }
    box.hidden = plots.length === 0;
  }

  function kinds() {
    const box = document.querySelector(".kinds");
    const rows = [...document.querySelectorAll("#events tbody tr")];
    const found = new Map();
    for (const row of rows) found.set(row.dataset.kind, (found.get(row.dataset.kind) || 0) + 1);
    if (!box || found.size < 2) return;
    for (const [kind, count] of found) {
      const button = element("button", { type: "button", "aria-pressed": "true" }, `${kind} ${count}`);
      button.addEventListener("click", () => {
        const shown = button.getAttribute("aria-pressed") === "false";
        button.setAttribute("aria-pressed", String(shown));
        for (const row of rows) if (row.dataset.kind === kind) row.hidden = !shown;
      });
      box.append(button);
    }
  }

  function printing(plots) {
    addEventListener("beforeprint", () => {
      root.classList.add("printing");
      width = 680;
      for (const plot of plots) plot.draw();
    });
    addEventListener("afterprint", () => {
      root.classList.remove("printing");
      width = null;
      for (const plot of plots) plot.draw();
    });
  }

  try {
    kinds();
    const places = [...document.querySelectorAll("[data-panel]")];
    const plots = places.map((place) => new Plot(place, data.panels[Number(place.dataset.panel)]));
    if (strip) plots.unshift(new Strip(strip));
    toolbar(plots);
    if (plots.length) {
      document.head.append(element("script", {}, await unpacked("page-plotly")));
      await drawAll(plots);
      linked(plots);
      printing(plots);
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll(plots));
    }
    root.dataset.drawn = String(plots.length);
  } catch (error) {
    const box = document.querySelector("p.failed");
    box.textContent = `The curves could not be drawn by this browser: ${error}. Tables and words are all here.`;
    box.hidden = false;
    root.dataset.drawn = "failed";
  }
})();
