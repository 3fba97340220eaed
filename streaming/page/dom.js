// Small helpers for the page's elements.

export const $ = (id) => document.getElementById(id);

export const seconds = (s) => `${s.toFixed(s < 10 ? 1 : 0)} s`;

/** Seconds as m:ss or h:mm:ss. */
export function clock(s) {
  const parts = [Math.floor(s / 3600), Math.floor(s / 60) % 60, Math.floor(s) % 60].map((part) => String(part).padStart(2, "0"));
  return parts.join(":").replace(/^00:0?/, "").replace(/^0(\d:\d\d:)/, "$1");
}

/** Changes a text only when it differs, so that screen readers are not told the same again. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A new element with these properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** A drawing of one path on 24 by 24 units. */
export function icon(d) {
  const [svg, path] = ["svg", "path"].map((name) => document.createElementNS("http://www.w3.org/2000/svg", name));
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", d);
  svg.append(path);
  return svg;
}

let hiding;

/** Says something in passing, on screen and to screen readers. */
export function say(text) {
  const notice = $("notice");
  notice.textContent = text;
  notice.dataset.shown = "";
  clearTimeout(hiding);
  hiding = setTimeout(() => delete notice.dataset.shown, 4000 + 40 * text.length);
}
