"use strict";
const root = document.documentElement;
function showCode(shown) {
  root.classList.toggle("no-code", !shown);
  try { localStorage.setItem("harvis-code", shown ? "shown" : "hidden"); } catch { /* not remembered here */ }
}
try { root.classList.toggle("no-code", localStorage.getItem("harvis-code") === "hidden"); } catch { /* nor read */ }
addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("code"), dialog = document.getElementById("large");
  const say = () => { button.textContent = root.classList.contains("no-code") ? "show code" : "hide code"; };
  if (button) {
    button.hidden = false;
    button.addEventListener("click", () => { showCode(root.classList.contains("no-code")); say(); });
    say();
  }
  for (const picture of dialog ? document.querySelectorAll("main img") : []) {
    const enlarge = () => {
      Object.assign(dialog.firstChild, { src: picture.src, alt: picture.alt });
      dialog.lastChild.textContent = picture.alt;
      dialog.showModal();
    };
    Object.assign(picture, { tabIndex: 0, title: "click to enlarge" });
    picture.setAttribute("role", "button");
    picture.addEventListener("click", enlarge);
    picture.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); enlarge(); }
    });
  }
  dialog?.addEventListener("click", () => dialog.close());
});
