// Paths that are walked: a slider under each figure of rooms, and a button that moves it.
for (const figure of document.querySelectorAll("figure:has(.rooms)")) {
  const paths = [...figure.querySelectorAll(".room polyline")].map((line) => ({
    line, points: line.getAttribute("points").split(" "), marks: [...line.parentNode.querySelectorAll(`.mark`)]
      .filter((mark) => mark.dataset.path === line.dataset.path),
  }));
  const last = Math.max(...paths.map(({ points }) => points.length)) - 1;
  if (!(last > 0)) continue;
  const bar = document.createElement("div"), button = document.createElement("button");
  const slider = document.createElement("input"), step = document.createElement("output");
  bar.className = "walk";
  button.type = "button";
  Object.assign(slider, { type: "range", min: 0, max: last, value: last, ariaLabel: "step" });
  bar.append(button, slider, step);
  figure.querySelector(".rooms").before(bar);
  let timer = null;
  const show = () => {
    const now = Number(slider.value);
    step.textContent = `step ${now} of ${last}`;
    button.textContent = timer ? "pause" : "walk";
    for (const { line, points, marks } of paths) {
      line.setAttribute("points", points.slice(0, now + 1).join(" "));
      for (const mark of marks) mark.style.display = Number(mark.dataset.step) <= now ? "" : "none";
    }
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    show();
  };
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (Number(slider.value) === last) slider.value = 0;
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (Number(slider.value) === last) stop();
    }, Math.max(40, 4000 / last));
    show();
  });
  slider.addEventListener("input", stop);
  show();
}
