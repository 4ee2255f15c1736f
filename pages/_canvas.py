"""A sheet to draw a digit on, with mouse, finger or keyboard; it hands over a PNG picture as text. Works offline."""

import streamlit as st

HTML = """
<div class="frame">
  <canvas width="280" height="280" tabindex="0" role="application" aria-describedby="help"
    aria-label="Sheet to draw a digit on, white on black"></canvas>
  <div class="brush" hidden></div>
</div>
<div class="row">
  <button type="button" class="undo">Undo</button>
  <button type="button" class="clear">Clear</button>
</div>
<p id="help">Draw with mouse or finger. Keyboard: Tab to the sheet, <b>arrow keys</b> move the brush,
  <b>Space</b> puts it down or lifts it, <b>Backspace</b> takes the last stroke back.</p>
<p class="said" role="status" aria-live="polite"></p>
"""

CSS = """
.frame { position: relative; width: 280px; max-width: 100%; aspect-ratio: 1; }
canvas { width: 100%; height: 100%; background: #000; border: 1px solid var(--st-border-color);
  border-radius: var(--st-base-radius); touch-action: none; cursor: crosshair; display: block; box-sizing: border-box; }
canvas:focus-visible { outline: 3px solid var(--st-primary-color); outline-offset: 2px; }
.brush { position: absolute; width: 20px; height: 20px; margin: -10px 0 0 -10px; border-radius: 50%;
  border: 2px dashed #d55e00; pointer-events: none; box-sizing: border-box; }
.brush.down { border-style: solid; background: rgba(213, 94, 0, .5); }
.brush[hidden] { display: none; }
.row { display: flex; gap: 8px; margin-top: 8px; }
button { font: inherit; color: var(--st-text-color); background: var(--st-background-color); cursor: pointer;
  border: 1px solid var(--st-border-color); border-radius: var(--st-base-radius); padding: 4px 14px; }
button:hover, button:focus-visible { border-color: var(--st-primary-color); }
p { color: var(--st-text-color); font-family: var(--st-font); font-size: 14px; margin: 8px 0 0; max-width: 320px;
  opacity: .8; }
.said { min-height: 1.2em; }
"""

# The function runs again whenever the page does: what has been set up once lies on the canvas element itself.
JS = """
export default function ({ parentElement, data, setStateValue }) {
  const find = (selector) => parentElement.querySelector(selector);
  const canvas = find("canvas"), brush = find(".brush"), said = find(".said");
  canvas.send = () => setStateValue("drawing", canvas.blank ? null : canvas.toDataURL("image/png"));
  if (canvas.ready) return;
  canvas.ready = true;
  const side = 280, step = 10, pen = canvas.getContext("2d", { willReadFrequently: true });
  const before = [];
  let at = { x: side / 2, y: side / 2 }, down = false, drawing = null;
  canvas.blank = true;
  Object.assign(pen, { lineWidth: 20, lineCap: "round", lineJoin: "round", strokeStyle: "#fff", fillStyle: "#000" });
  pen.fillRect(0, 0, side, side);
  if (data?.drawing) {
    const picture = new Image();
    picture.onload = () => { pen.drawImage(picture, 0, 0, side, side); canvas.blank = false; };
    picture.src = data.drawing;
  }
  const line = (from, to) => {
    pen.beginPath();
    pen.moveTo(from.x, from.y);
    pen.lineTo(to.x + 0.01, to.y);
    pen.stroke();
    canvas.blank = false;
  };
  const remember = () => {
    before.push({ pixels: pen.getImageData(0, 0, side, side), blank: canvas.blank });
    if (before.length > 30) before.shift();
  };
  const back = () => {
    const last = before.pop();
    if (!last) return;
    pen.putImageData(last.pixels, 0, 0);
    canvas.blank = last.blank;
    canvas.send();
  };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) * side / box.width, y: (event.clientY - box.top) * side / box.height };
  };
  canvas.onpointerdown = (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    brush.hidden = true;
    remember();
    drawing = place(event);
    line(drawing, drawing);
  };
  canvas.onpointermove = (event) => {
    if (!drawing) return;
    const parts = event.getCoalescedEvents?.() ?? [];
    for (const part of parts.length ? parts : [event]) {
      const next = place(part);
      line(drawing, next);
      drawing = next;
    }
  };
  canvas.onpointerup = canvas.onpointercancel = () => {
    if (drawing) canvas.send();
    drawing = null;
  };
  const show = (words) => {
    brush.hidden = false;
    brush.style.left = `${100 * at.x / side}%`;
    brush.style.top = `${100 * at.y / side}%`;
    brush.classList.toggle("down", down);
    said.textContent = words ?? `Brush ${down ? "down" : "up"}, row ${at.y / step}, column ${at.x / step} of 28.`;
  };
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.onkeydown = (event) => {
    const inside = (value) => Math.min(side - step, Math.max(step, value));
    if (moves[event.key]) {
      const next = { x: inside(at.x + step * moves[event.key][0]), y: inside(at.y + step * moves[event.key][1]) };
      if (down) line(at, next);
      at = next;
    } else if (event.key === " ") {
      down = !down;
      if (down) { remember(); line(at, at); } else canvas.send();
    } else if (event.key === "Backspace") {
      down = false;
      back();
    } else return;
    event.preventDefault();
    show();
  };
  canvas.onblur = () => {
    if (down) { down = false; canvas.send(); }
    brush.hidden = true;
    said.textContent = "";
  };
  find(".undo").onclick = back;
  find(".clear").onclick = () => {
    remember();
    pen.fillRect(0, 0, side, side);
    canvas.blank = true;
    canvas.send();
  };
}
"""

_sheet = st.components.v2.component("pacd_lab_sheet", html=HTML, css=CSS, js=JS)


def drawing(key: str) -> object:
    """What was drawn, as the browser sends it (whoever reads it must check it), or None while the sheet is empty."""
    _sheet(key=key, data={"drawing": st.session_state.get(_kept(key))}, on_drawing_change=lambda: _keep(key))
    return st.session_state.get(_kept(key))


def put(key: str, picture: str | None) -> None:
    """Lays a picture (data URL) on a sheet that is not yet on the page."""
    st.session_state[_kept(key)] = picture


def _keep(key: str) -> None:
    """The component forgets its state when another page is opened."""
    st.session_state[_kept(key)] = st.session_state[key].drawing


def _kept(key: str) -> str:
    return f"{key} kept"
