"use strict";
// Making parts of the page. Text is only ever set as text: nothing that a run says is read as HTML.

/** An element with properties, and with elements or texts in it. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made && !name.startsWith("aria")) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const isPrinting = () => "printing" in document.documentElement.dataset;

/** Text for Plotly, which reads a little HTML in names and labels. */
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** A labelled choice; `options` are [value, label] pairs. */
function selectBox(label, options, value, changed) {
  const box = element("select", {}, ...options.map(([key, text]) => element("option", { value: key }, text)));
  box.value = value;
  box.addEventListener("change", () => changed(box.value));
  return element("label", { className: "choice" }, `${label} `, box);
}
