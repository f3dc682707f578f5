"use strict";
const episodes = JSON.parse(document.getElementById("data").textContent);
const at = (name) => document.getElementById(name);
const half = 0.5; // a pixel's centre has whole coordinates
const points = (path) => path.map(([x, y]) => `${x + half},${y + half}`).join(" ");
const put = (name, place) => {
  at(name).setAttribute("visibility", place ? "visible" : "hidden");
  if (place) { at(name).setAttribute("cx", place[0] + half); at(name).setAttribute("cy", place[1] + half); }
};
let shown = null;
let timer = null;

function draw() {
  const step = Number(at("step").value);
  at("walked").setAttribute("points", points(shown.path.slice(0, step + 1)));
  put("agent", shown.path[step]);
  const plan = shown.plans.filter((one) => one.time <= step).at(-1);
  at("imagined").setAttribute("points", plan ? points(plan.path) : "");
  put("dreamt", plan ? plan.path[Math.min(step - plan.time, plan.path.length - 1)] : null);
  const [x, y] = shown.path[step];
  const distance = Math.hypot(x - shown.goal[0], y - shown.goal[1]);
  at("words").textContent = `${shown.words}. Step ${step} of ${shown.path.length - 1}: ${distance.toFixed(2)} px from the goal.`;
}

function show(number) {
  shown = episodes[number];
  at("walls").replaceChildren(...shown.solid.map(([x, y, width, height]) => {
    const part = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    Object.entries({ x, y, width, height }).forEach(([name, value]) => part.setAttribute(name, value));
    return part;
  }));
  put("goal", shown.goal);
  put("near", shown.goal);
  at("near").setAttribute("r", shown.success_px);
  at("step").max = shown.path.length - 1;
  at("step").value = 0;
  document.querySelectorAll("[data-number]").forEach((each) => each.setAttribute("aria-pressed", each.dataset.number === String(number)));
  draw();
}

function stop() { clearInterval(timer); timer = null; at("play").textContent = "play"; }

at("step").addEventListener("input", () => { stop(); if (shown) draw(); });
at("play").addEventListener("click", () => {
  if (timer) { stop(); return; }
  if (Number(at("step").value) >= Number(at("step").max)) at("step").value = 0;
  at("play").textContent = "pause";
  timer = setInterval(() => {
    if (Number(at("step").value) >= Number(at("step").max)) { stop(); return; }
    at("step").value = Number(at("step").value) + 1;
    draw();
  }, 80);
});
document.querySelectorAll("[data-number]").forEach((each) => each.addEventListener("click", () => { stop(); show(Number(each.dataset.number)); scrollTo({ top: 0, behavior: "smooth" }); }));
if (episodes.length) show(0);
