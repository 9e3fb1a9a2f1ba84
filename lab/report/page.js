"use strict";
// The learning curves of a page that lab/report/report.py wrote. All text goes in as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("curve-data").textContent);
  const box = document.getElementById("curves");
  const svg = box.querySelector("svg");
  const tip = document.getElementById("tip");
  const WIDTH = 960, HEIGHT = 420, LEFT = 52, RIGHT = 14, TOP = 12, BOTTOM = 40;
  const MANY = 8; // runs beyond which the tip lists the nearest one only
  const MEASURES = { accuracy: "accuracy, %", loss: "loss" };
  const KINDS = { test: "test", train: "training" };
  const shown = { accuracy: (value) => (100 * value).toFixed(2), loss: (value) => value.toFixed(4) };
  const state = { measure: "accuracy", hidden: new Set(), epoch: 0, y: 0 };
  const last = Math.max(...data.series.map((series) => series.test_accuracy.length));
  let scale = null; // {x(epoch), y(value), lines}, made by draw

  function make(parent, name, attributes, text) {
    const element = parent.namespaceURI === svg.namespaceURI
      ? document.createElementNS(svg.namespaceURI, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  }

  // About `count` round numbers from low to high.
  function ticks(low, high, count) {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step);
    return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
  }

  function lines() {
    const found = [];
    for (const series of data.series) {
      if (state.hidden.has(series.group)) continue;
      for (const kind of Object.keys(KINDS)) {
        found.push({ series, kind, values: series[`${kind}_${state.measure}`] });
      }
    }
    return found;
  }

  function path(values, x, y) {
    return values.map((value, index) => `${index ? "L" : "M"}${x(index + 1).toFixed(1)},${y(value).toFixed(1)}`).join("");
  }

  function draw() {
    svg.replaceChildren();
    const visible = lines();
    const published = data.published ? data.published[`train_${state.measure}`] : [];
    const all = visible.flatMap((line) => line.values).concat(published);
    let low = all.length ? Math.min(...all) : 0, high = all.length ? Math.max(...all) : 1;
    const margin = 0.04 * (high - low) || 0.01;
    low = Math.max(0, low - margin);
    high = state.measure === "accuracy" ? Math.min(1, high + margin) : high + margin;
    const factor = state.measure === "accuracy" ? 100 : 1;
    const x = (epoch) => LEFT + (WIDTH - LEFT - RIGHT) * (last === 1 ? 0.5 : (epoch - 1) / (last - 1));
    const y = (value) => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * ((value - low) / (high - low));
    const axis = make(svg, "g", { class: "axis" });
    const { found, digits } = ticks(factor * low, factor * high, 6);
    for (const tick of found) {
      const at = y(tick / factor);
      make(axis, "line", { x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at });
      make(axis, "text", { x: LEFT - 8, y: at + 4, "text-anchor": "end" }, tick.toFixed(digits));
    }
    const epochs = last === 1 ? [1] : ticks(1, last, Math.min(12, last)).found.filter(Number.isInteger);
    for (const epoch of new Set([1, ...epochs])) {
      make(axis, "text", { x: x(epoch), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, epoch);
    }
    make(axis, "text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "epoch");
    if (published.length) make(svg, "path", { class: "published", d: path(published, x, y) });
    const marked = all.length <= 400;
    for (const line of visible) {
      const classes = `c${line.series.colour} ${line.kind}`;
      line.element = make(svg, "path", { class: `curve ${classes}`, d: path(line.values, x, y) });
      if (marked || line.values.length === 1) {
        line.values.forEach((value, index) => make(svg, "circle", { class: classes, r: 2.4, cx: x(index + 1), cy: y(value) }));
      }
    }
    svg.classList.toggle("many", data.series.length > MANY);
    scale = { x, y, lines: visible, guide: make(svg, "line", { class: "guide", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" }) };
    point();
  }

  // The guide, the nearest line and the tip at state.epoch; none of them at epoch 0.
  function point() {
    for (const line of scale.lines) line.element.classList.remove("near");
    const here = scale.lines.filter((line) => line.values.length >= state.epoch);
    tip.hidden = !state.epoch || !here.length;
    scale.guide.setAttribute("visibility", tip.hidden ? "hidden" : "visible");
    if (tip.hidden) return;
    const at = scale.x(state.epoch);
    scale.guide.setAttribute("x1", at);
    scale.guide.setAttribute("x2", at);
    const distance = (line) => Math.abs(scale.y(line.values[state.epoch - 1]) - state.y);
    const near = here.reduce((best, line) => (distance(line) < distance(best) ? line : best));
    near.element.classList.add("near");
    fill(here, near);
    const frame = svg.getBoundingClientRect(), around = box.getBoundingClientRect();
    const left = frame.left - around.left + (at / WIDTH) * frame.width; // of the guide, in the box
    tip.style.left = at < WIDTH / 2 ? `${left + 14}px` : "auto";
    tip.style.right = at < WIDTH / 2 ? "auto" : `${around.width - left + 14}px`;
    tip.style.top = `${frame.top - around.top + 14}px`;
  }

  function fill(here, near) {
    const show = shown[state.measure], value = (line) => line.values[state.epoch - 1];
    tip.replaceChildren();
    const table = make(tip, "table"), head = make(table, "tr");
    make(head, "th", { class: "word" }, `epoch ${state.epoch}`);
    for (const kind of Object.values(KINDS)) make(head, "th", {}, kind);
    let listed = [...new Set(here.map((line) => line.series))];
    if (listed.length > MANY) listed = [near.series];
    for (const series of listed) {
      const row = make(table, "tr"), cell = make(row, "td", { class: "word" });
      make(cell, "span", { class: `swatch c${series.colour}` });
      cell.append(series.name);
      for (const kind of Object.keys(KINDS)) {
        make(row, "td", {}, show(value(here.find((line) => line.series === series && line.kind === kind))));
      }
    }
    const published = data.published ? data.published[`train_${state.measure}`][state.epoch - 1] : undefined;
    if (published !== undefined) {
      const row = make(table, "tr"), cell = make(row, "td", { class: "word" });
      make(cell, "span", { class: "swatch p" });
      cell.append("published");
      make(row, "td", {}, "");
      make(row, "td", {}, show(published));
    }
  }

  function controls() {
    const bar = box.querySelector(".bar"), group = make(bar, "span", { class: "switch", role: "group" });
    for (const [measure, text] of Object.entries(MEASURES)) {
      const button = make(group, "button", { type: "button", "aria-pressed": measure === state.measure }, text);
      button.addEventListener("click", () => {
        state.measure = measure;
        for (const other of group.children) other.setAttribute("aria-pressed", other === button);
        draw();
      });
    }
    const legend = make(bar, "span", { class: "legend" });
    for (const { group: name, colour } of new Map(data.series.map((series) => [series.group, series])).values()) {
      const button = make(legend, "button", { type: "button", "aria-pressed": true, title: "show or hide" });
      make(button, "span", { class: `swatch c${colour}` });
      button.append(name);
      button.addEventListener("click", () => {
        if (!state.hidden.delete(name)) state.hidden.add(name);
        button.setAttribute("aria-pressed", !state.hidden.has(name));
        draw();
      });
    }
    if (data.published) {
      const entry = make(legend, "span");
      make(entry, "span", { class: "swatch p" });
      entry.append(data.published.name);
    }
    make(bar, "span", { class: "quiet" }, "solid: test; dashed: training");
  }

  svg.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect();
    const x = ((event.clientX - frame.left) / frame.width) * WIDTH;
    const epoch = Math.round(1 + ((x - LEFT) / (WIDTH - LEFT - RIGHT)) * (last - 1));
    state.epoch = Math.min(last, Math.max(1, epoch || 1));
    state.y = ((event.clientY - frame.top) / frame.height) * HEIGHT;
    point();
  });
  svg.addEventListener("pointerleave", () => {
    state.epoch = 0;
    point();
  });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    state.epoch = Math.min(last, Math.max(1, state.epoch + step));
    point();
  });
  controls();
  draw();
})();
