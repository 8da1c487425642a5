"use strict";
// Colours follow the system until the reader chooses; the page's own script redraws the charts on "theme".
const theme = (() => {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  const kept = () => { try { return localStorage.getItem("quantkit-theme"); } catch { return null; } };
  let choice = kept() || "auto", printing = false;
  const apply = () => {
    const dark = !printing && (choice === "dark" || (choice === "auto" && system.matches));
    root.dataset.theme = dark ? "dark" : "light";
    dispatchEvent(new Event("theme"));
  };
  const next = () => {
    choice = { auto: "light", light: "dark", dark: "auto" }[choice] || "auto";
    try { localStorage.setItem("quantkit-theme", choice); } catch { /* a page from disk may keep nothing */ }
    apply();
    return choice;
  };
  system.addEventListener("change", apply);
  apply();
  return { next, name: () => choice, print: (on) => { printing = on; apply(); } };
})();
