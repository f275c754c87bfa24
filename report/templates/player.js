"use strict";
// The player of a report: draws bytes of the sheets through colour tables; all state is in one object.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const { frames, height, width } = data;
  const [dy, dx] = data.spacing;
  const size = { x: width * dx, y: height * dy }; // of the image, in mm or pixels
  const pixels = height * width;
  const named = (name) => data.series.find((one) => one.name === name);
  const [reference, ours] = [named("reference"), named("gldm")];

  const state = {
    frame: 0, playing: false, window: 0, level: 0, // window and level in bytes of the sheets
    view: "image", gain: 5, angle: 0, offset: (data.row + 0.5) * dy - size.y / 2, wipe: 0.5, left: null, right: null,
  };

  // ------------------------------------------------------------------------------ values
  async function values(sheet) {
    // all frames of a sheet, one byte per pixel
    const picture = new Image();
    picture.src = sheet;
    await picture.decode();
    const { canvas, context } = surface(document.createElement("canvas"), width, height);
    const out = new Uint8Array(frames * pixels);
    for (let frame = 0; frame < frames; frame++) {
      const row = Math.floor(frame / data.columns);
      context.drawImage(picture, -width * (frame % data.columns), -height * row);
      const bytes = context.getImageData(0, 0, canvas.width, canvas.height).data;
      for (let i = 0; i < pixels; i++) out[frame * pixels + i] = bytes[4 * i];
    }
    return out;
  }

  const written = (byte) => String(Number(((byte / 255) * data.top).toPrecision(3))); // in the units of the input

  // ----------------------------------------------------------------------------- colours
  const INFERNO = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];
  const tables = { grey: new Uint32Array(256), error: new Uint32Array(256), likely: new Uint32Array(65536) };
  const packed = (r, g, b) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0; // RGBA in memory

  function inferno(share) {
    const place = Math.min(1, Math.max(0, share)) * (INFERNO.length - 1);
    const low = Math.min(INFERNO.length - 2, Math.floor(place));
    return INFERNO[low].map((value, i) => value + (place - low) * (INFERNO[low + 1][i] - value));
  }

  function makeTables() {
    const low = state.level - state.window / 2;
    const greyOf = (byte) => Math.round(255 * Math.min(1, Math.max(0, (byte - low) / state.window)));
    const perByte = state.gain / state.window;
    for (let byte = 0; byte < 256; byte++) {
      const grey = greyOf(byte);
      tables.grey[byte] = packed(grey, grey, grey);
      tables.error[byte] = packed(...inferno(byte * perByte).map(Math.round));
    }
    if (!data.likely) return;
    const scale = (data.likely.top / data.top) * perByte;
    for (let error = 0; error < 256; error++) {
      const share = Math.min(1, error * scale);
      const colour = inferno(share);
      for (let byte = 0; byte < 256; byte++) {
        const grey = greyOf(byte) * (1 - share);
        tables.likely[(error << 8) | byte] = packed(...colour.map((value) => Math.round(grey + share * value)));
      }
    }
  }

  // The colour of a pixel of a series, from its byte, the reference's and the likely error's.
  function colouring(series) {
    if (state.view === "error" && reference && series !== reference) return (v, r) => tables.error[Math.abs(v - r)];
    if (state.view === "likely" && series === ours) return (v, r, e) => tables.likely[(e << 8) | v];
    return (v) => tables.grey[v];
  }

  const NOTHING = new Uint8Array(0); // read as undefined, which no colouring uses then
  const beside = () => [reference ? reference.values : NOTHING, data.likely ? data.likely.values : NOTHING];

  // ------------------------------------------------------------------------------ panels
  function surface(canvas, columns, rows) {
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const image = context.createImageData(columns, rows);
    return { canvas, context, image, words: new Uint32Array(image.data.buffer) };
  }

  const show = (target) => target.context.putImageData(target.image, 0, 0);

  function makePanel(series) {
    const figure = byId(`panel-${series.name}`);
    const [image, profile] = figure.querySelectorAll("canvas");
    const stage = figure.querySelector(".stage");
    const [line, now] = [figure.querySelector(".line"), figure.querySelector(".now")];
    series.panel = { figure, image: surface(image, width, height), profile, line, now };
    listen(stage, image);
  }

  function drawImage(series) {
    const colour = colouring(series);
    const [r, e] = beside();
    const { image } = series.panel;
    for (let i = 0, at = state.frame * pixels; i < pixels; i++, at++) {
      image.words[i] = colour(series.values[at], r[at], e[at]);
    }
    show(image);
    series.panel.now.style.top = `${(100 * (state.frame + 0.5)) / frames}%`;
  }

  function drawWipe() {
    const edge = Math.round(state.wipe * width);
    const [r, e] = beside();
    const [left, right] = [colouring(state.left), colouring(state.right)];
    for (let i = 0, at = state.frame * pixels; i < pixels; i++, at++) {
      const [series, colour] = i % width < edge ? [state.left, left] : [state.right, right];
      wipe.words[i] = colour(series.values[at], r[at], e[at]);
    }
    show(wipe);
    byId("wipe-line").style.left = `${100 * state.wipe}%`;
  }

  // -------------------------------------------------------------------------- the x–t line
  // The line is offset · normal + s · direction from the centre of the image, and lies in it for low < s < high; the
  // largest offset that crosses it is `most`.
  function lineNow() {
    const angle = (state.angle * Math.PI) / 180;
    const [ux, uy, nx, ny] = [Math.cos(angle), -Math.sin(angle), Math.sin(angle), Math.cos(angle)];
    let [low, high] = [-Infinity, Infinity];
    for (const [u, n, half] of [[ux, nx, size.x / 2], [uy, ny, size.y / 2]]) {
      if (Math.abs(u) < 1e-9) continue;
      const ends = [(-half - state.offset * n) / u, (half - state.offset * n) / u].sort((a, b) => a - b);
      [low, high] = [Math.max(low, ends[0]), Math.min(high, ends[1])];
    }
    const most = (Math.abs(nx) * (size.x - dx) + Math.abs(ny) * (size.y - dy)) / 2;
    const at = (s) => ({ x: state.offset * nx + s * ux, y: state.offset * ny + s * uy });
    return { nx, ny, low, high, most, at };
  }

  // For each sample on the line, its four neighbours in a frame and their weights (bilinear).
  function samplesOnLine({ low, high, at }) {
    const count = Math.max(2, Math.round((high - low) / Math.min(dx, dy)));
    return Array.from({ length: count }, (_, i) => {
      const place = at(low + ((i + 0.5) / count) * (high - low));
      const x = Math.min(width - 1, Math.max(0, (place.x + size.x / 2) / dx - 0.5));
      const y = Math.min(height - 1, Math.max(0, (place.y + size.y / 2) / dy - 0.5));
      const [x0, y0] = [Math.min(width - 2, Math.floor(x)), Math.min(height - 2, Math.floor(y))];
      const [fx, fy] = [x - x0, y - y0];
      return [y0 * width + x0, (1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy];
    });
  }

  function drawLine() {
    const line = lineNow();
    const samples = samplesOnLine(line);
    const [r, e] = beside();
    const foot = line.at(0);
    const style = {
      left: `${50 + (100 * foot.x) / size.x}%`, top: `${50 + (100 * foot.y) / size.y}%`,
      width: `${300 * Math.max(1, size.y / size.x)}%`, transform: `translate(-50%, -50%) rotate(${-state.angle}deg)`,
    };
    for (const series of visible()) {
      Object.assign(series.panel.line.style, style);
      const target = surface(series.panel.profile, samples.length, frames);
      const colour = colouring(series);
      for (let frame = 0; frame < frames; frame++) {
        samples.forEach(([place, a, b, c, d], i) => {
          const at = frame * pixels + place;
          const read = (bytes) => Math.round(
            a * bytes[at] + b * bytes[at + 1] + c * bytes[at + width] + d * bytes[at + width + 1]);
          target.words[frame * samples.length + i] = colour(read(series.values), read(r), read(e));
        });
      }
      show(target);
    }
  }

  function setLine(offset) {
    const { most } = lineNow();
    state.offset = Math.min(most, Math.max(-most, offset));
    const slider = byId("offset");
    [slider.min, slider.max, slider.step] = [-most, most, Math.min(dx, dy) / 2];
    slider.value = state.offset;
    byId("offset-value").textContent = `${state.offset.toFixed(1)} ${data.unit}`;
    byId("angle-value").textContent = `${state.angle}°`;
    drawLine();
  }

  function placeIn(stage, event) {
    const box = stage.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }

  function onDrag(stage, moved, refused = () => false) {
    stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || refused(event)) return;
      stage.setPointerCapture(event.pointerId);
      moved(event);
    });
    stage.addEventListener("pointermove", (event) => { if (stage.hasPointerCapture(event.pointerId)) moved(event); });
  }

  function listen(stage, canvas) {
    const moveTo = (event) => {
      const { x, y } = placeIn(stage, event);
      const { nx, ny } = lineNow();
      setLine((x - 0.5) * size.x * nx + (y - 0.5) * size.y * ny);
    };
    // a finger beside the line scrolls the page; a tap there is a click
    onDrag(stage, moveTo, (event) => event.pointerType === "touch" && event.target === canvas);
    stage.addEventListener("click", moveTo);
    stage.addEventListener("pointermove", (event) => readValues(placeIn(stage, event)));
  }

  function readValues({ x, y }) {
    const [column, row, k] = [Math.floor(x * width), Math.floor(y * height), data.coarsening];
    if (column < 0 || row < 0 || column >= width || row >= height) return;
    const at = state.frame * pixels + row * width + column;
    const each = visible().map((one) => `${one.label} ${written(one.values[at])}`);
    byId("readout").textContent = `row ${row * k}, column ${column * k}: ${each.join(", ")}`;
  }

  // ----------------------------------------------------------------------------- controls
  const visible = () => data.series.filter((one) => !one.panel.figure.hidden);

  function drawFrame() {
    byId("frame").value = state.frame + 1; // people count from 1
    const time = data.frameTime ? `, ${Math.round(state.frame * data.frameTime)} ms` : "";
    byId("frame-value").textContent = `${state.frame + 1} of ${frames}${time}`;
    visible().forEach(drawImage);
    drawWipe();
  }

  function drawAll() {
    makeTables();
    byId("window").value = state.window;
    byId("level").value = state.level;
    byId("window-value").textContent = written(state.window);
    byId("level-value").textContent = written(state.level);
    byId("scale-bar").hidden = state.view === "image";
    byId("scale-high").textContent = `${written(state.window / state.gain)} and above`;
    drawFrame();
    setLine(state.offset);
  }

  function resetWindow() {
    state.window = Math.max(2, Math.round((255 * data.white) / data.top));
    state.level = Math.round(state.window / 2);
    drawAll();
  }

  function step(by) {
    state.frame = (state.frame + by + frames) % frames;
    drawFrame();
  }

  let begun = 0; // when the frame that is shown was due
  function play(on) {
    state.playing = on;
    byId("play").textContent = on ? "Pause" : "Play";
    begun = performance.now();
    if (on) requestAnimationFrame(tick);
  }

  function tick(now) {
    if (!state.playing) return;
    const each = 1000 / Number(byId("speed").value);
    const due = Math.max(0, Math.floor((now - begun) / each));
    begun += due * each;
    if (due > 0) step(due % frames);
    requestAnimationFrame(tick);
  }

  function onChange(id, change) {
    const control = byId(id);
    if (control) control.addEventListener("input", () => change(control.value));
  }

  function connect() {
    byId("play").addEventListener("click", () => play(!state.playing));
    byId("reset").addEventListener("click", resetWindow);
    onChange("speed", (value) => (byId("speed-value").textContent = `${value} frames/s`));
    byId("speed").dispatchEvent(new Event("input"));
    onChange("frame", (value) => step(Number(value) - 1 - state.frame));
    for (const id of ["window", "level", "gain", "view"]) {
      onChange(id, (value) => { state[id] = id === "view" ? value : Number(value); drawAll(); });
    }
    onChange("offset", (value) => setLine(Number(value)));
    onChange("angle", (value) => { state.angle = Number(value); setLine(state.offset); });
    onChange("wipe", (value) => { state.wipe = value / 100; drawWipe(); });
    for (const side of ["left", "right"]) {
      byId(side).value = state[side].name;
      onChange(side, (value) => { state[side] = named(value); drawWipe(); });
    }
    for (const box of document.querySelectorAll(".method")) {
      box.addEventListener("change", () => { named(box.value).panel.figure.hidden = !box.checked; drawAll(); });
    }
    onDrag(byId("wipe-stage"), (event) => {
      state.wipe = Math.min(1, Math.max(0, placeIn(byId("wipe-stage"), event).x));
      byId("wipe").value = 100 * state.wipe;
      drawWipe();
    });
    byId("copy").addEventListener("click", copyCommand);
    document.addEventListener("keydown", onKey);
  }

  async function copyCommand() {
    try {
      await navigator.clipboard.writeText(byId("command").textContent);
      byId("copied").textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(byId("command"));
      byId("copied").textContent = "The command is selected; copy it with the keyboard.";
    }
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { target } = event;
    const onSlider = target.type === "range";
    if (!onSlider && target.matches("input, select, button, summary, a, .scroll")) return;
    const pixel = Math.min(dx, dy);
    const actions = {
      " ": () => play(!state.playing),
      ...(!onSlider && { ArrowLeft: () => step(-1), ArrowRight: () => step(1) }),
      ...(target === byId("panels") && {
        ArrowUp: () => setLine(state.offset - pixel), ArrowDown: () => setLine(state.offset + pixel),
      }),
    };
    if (event.key in actions) {
      event.preventDefault();
      actions[event.key]();
    }
  }

  // -------------------------------------------------------------------------------- begin
  const wipe = surface(byId("wipe-canvas"), width, height);
  async function begin() {
    const all = data.likely ? [...data.series, data.likely] : data.series;
    await Promise.all(all.map(async (one) => { one.values = await values(one.sheet); }));
    data.series.forEach(makePanel);
    [state.left, state.right] = [named("nearest_merge"), ours];
    connect();
    resetWindow();
    document.body.dataset.ready = "yes";
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play(true);
  }
  begin();
})();
