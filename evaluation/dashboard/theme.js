"use strict";
// Light and dark, and the colours and shapes of the charts.

/** Okabe and Ito's colours, which people with any kind of colour vision can tell apart; on dark, lighter ones. */
const COLOURS = {
  light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c8c8c"],
  dark: ["#3f9ee0", "#f0803c", "#26bf94", "#e09bc3", "#a3daf8", "#f2b83f", "#a6a6a6"],
};
/** As many as do not divide evenly into the colours, so that the two together repeat late. */
const SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "pentagon", "star", "triangle-down"];

const PATTERNS = ["", "/", ".", "\\", "x", "-", "|", "+"];
const DASHES = ["solid", "dash", "dot", "dashdot"];

/** What stands at the place of an arm in a list that is gone through again and again. */
const ofArm = (list, arm) => list[ARMS.indexOf(arm) % list.length];
const armColour = (arm) => ofArm(COLOURS[isDark() ? "dark" : "light"], arm);
/** Lines, which have no shape, are dashed where the colours begin again. */
const armDash = (arm) => DASHES[Math.floor(ARMS.indexOf(arm) / COLOURS.light.length) % DASHES.length];
const armShape = (arm) => ofArm(SHAPES, arm);
const armPattern = (arm) => ofArm(PATTERNS, arm);

/** Colours that were asked for since the theme last changed: asking makes the browser lay the page out. */
const themeColours = new Map();

/** The value of a colour of page.css in the theme that is shown. */
function themeColour(name) {
  if (!themeColours.has(name)) themeColours.set(name, computedColour(name));
  return themeColours.get(name);
}

function computedColour(name) {
  const probe = document.body.appendChild(element("span"));
  probe.style.color = `var(--${name})`;
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}

const isDark = () =>
  (document.documentElement.dataset.theme ??
    (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

function watchTheme(changed) {
  const button = document.getElementById("theme");
  const update = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`);
    changed();
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    update();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
  update();
}
