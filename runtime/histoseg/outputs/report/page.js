
"use strict";
(() => {
  const MAX_ZOOM = 32, STEP = 1.5, PAN = 60;
  const find = (id) => document.getElementById(id);
  const view = find("view"), stage = find("stage"), slide = find("slide"), scale = find("scale");
  const shown = { zoom: 1, x: 0, y: 0 };
  const pointers = new Map();

  document.body.classList.add("live");
  for (const part of document.querySelectorAll(".controls, .buttons, #scale, .class input")) part.hidden = false;

  // layers

  const opacity = find("opacity");
  const fade = () => {
    find("layers").style.opacity = opacity.value / 100;
    find("opacity-words").value = `${opacity.value}\u202f%`;
    opacity.setAttribute("aria-valuetext", `${opacity.value} percent`);
  };
  opacity.addEventListener("input", fade);
  fade();
  for (const box of document.querySelectorAll("[data-layer]")) {
    const show = () => { find(box.dataset.layer).hidden = !box.checked; };
    box.addEventListener("change", show);
    show();
  }

  // zoom and pan: `x` and `y` are where the stage's corner lies in the view

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  const draw = (eased) => {
    shown.x = clamp(shown.x, view.clientWidth * (1 - shown.zoom), 0);
    shown.y = clamp(shown.y, view.clientHeight * (1 - shown.zoom), 0);
    stage.classList.toggle("eased", eased);
    stage.style.transform = `translate(${shown.x}px, ${shown.y}px) scale(${shown.zoom})`;
    view.classList.toggle("zoomed", shown.zoom > 1);
    find("zoom-words").value = `${Math.round(100 * shown.zoom)}\u202f%`;
    drawScale();
  };

  const drawScale = () => {
    const width = slide.getAttribute("width"), height = slide.getAttribute("height");
    const fit = Math.min(view.clientWidth / width, view.clientHeight / height);
    const umPerPixel = scale.dataset.um / (fit * shown.zoom);
    const exponent = 10 ** Math.floor(Math.log10(120 * umPerPixel));
    const um = exponent * [5, 2, 1].find((digit) => digit * exponent <= 120 * umPerPixel);
    find("scale-bar").style.width = `${um / umPerPixel}px`;
    find("scale-words").textContent = um < 1000 ? `${+um.toPrecision(1)} µm` : `${um / 1000} mm`;
  };

  const zoomAt = (factor, x, y, eased) => {
    const zoom = clamp(shown.zoom * factor, 1, MAX_ZOOM), ratio = zoom / shown.zoom;
    Object.assign(shown, { zoom, x: x - (x - shown.x) * ratio, y: y - (y - shown.y) * ratio });
    draw(eased);
  };
  const zoomMiddle = (factor) => zoomAt(factor, view.clientWidth / 2, view.clientHeight / 2, true);
  const move = (dx, dy, eased) => { shown.x += dx; shown.y += dy; draw(eased); };
  const fit = () => { Object.assign(shown, { zoom: 1, x: 0, y: 0 }); draw(true); };
  const place = (event) => {
    const box = view.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  const keys = {
    "+": () => zoomMiddle(STEP), "=": () => zoomMiddle(STEP), "-": () => zoomMiddle(1 / STEP), "0": fit,
    ArrowLeft: () => move(PAN, 0, true), ArrowRight: () => move(-PAN, 0, true),
    ArrowUp: () => move(0, PAN, true), ArrowDown: () => move(0, -PAN, true),
  };
  view.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    // a picture that is shown whole leaves the arrow keys to the page
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.startsWith("Arrow") && shown.zoom === 1) return;
    event.preventDefault();
    act();
  });
  find("zoom-in").addEventListener("click", () => zoomMiddle(STEP));
  find("zoom-out").addEventListener("click", () => zoomMiddle(1 / STEP));
  find("zoom-fit").addEventListener("click", fit);
  view.addEventListener("dblclick", (event) => zoomAt(2, ...place(event), true));
  view.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoomAt(Math.exp(-event.deltaY / 300), ...place(event), false);
  }, { passive: false });

  view.addEventListener("pointerdown", (event) => {
    view.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, place(event));
    view.classList.add("dragging");
  });
  view.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = place(event), other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    pointers.set(event.pointerId, now);
    move(...(other ? [(now[0] - before[0]) / 2, (now[1] - before[1]) / 2] : [now[0] - before[0], now[1] - before[1]]), false);
    if (other) {
      const reach = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
      zoomAt(reach(now) / reach(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2, false);
    }
  });
  const drop = (event) => {
    pointers.delete(event.pointerId);
    view.classList.toggle("dragging", pointers.size > 0);
  };
  view.addEventListener("pointerup", drop);
  view.addEventListener("pointercancel", drop);
  new ResizeObserver(() => draw(false)).observe(view);
})();
