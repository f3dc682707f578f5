// What the page shows, in the colours of the reader's system.

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** A canvas as sharp as the screen, its context in `width` x `height` units. */
function surface(canvas, width, height) {
  const shown = canvas.clientWidth || width, sharp = Math.round(shown * (window.devicePixelRatio || 1));
  if (canvas.width !== sharp) {
    canvas.width = sharp;
    canvas.height = Math.round((sharp * height) / width);
  }
  const context = canvas.getContext("2d");
  context.setTransform(canvas.width / width, 0, 0, canvas.height / height, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** A path of places, pixels' centres at whole numbers, with a dot for every tenth step. */
function drawPath(context, places, ink, width, alpha = 1, dots = true) {
  context.globalAlpha = alpha;
  context.strokeStyle = context.fillStyle = ink;
  context.lineWidth = width;
  context.lineJoin = context.lineCap = "round";
  context.beginPath();
  places.forEach(([x, y], i) => (i ? context.lineTo(x + 0.5, y + 0.5) : context.moveTo(x + 0.5, y + 0.5)));
  context.stroke();
  if (dots) {
    for (let i = 10; i < places.length; i += 10) {
      context.beginPath();
      context.arc(places[i][0] + 0.5, places[i][1] + 0.5, width, 0, 2 * Math.PI);
      context.fill();
    }
  }
  context.globalAlpha = 1;
}

function drawWalls(context) {
  const { size, borders: [near, far], wall_half_width: half, door_half_height: jamb } = WORLD;
  const { wallX, doorY } = game.room;
  context.fillStyle = color("wall");
  for (const line of [near, far]) {
    context.fillRect(line, 0, 1, size);
    context.fillRect(0, line, size, 1);
  }
  context.fillRect(wallX - half, 0, 2 * half + 1, doorY - jamb);
  context.fillRect(wallX - half, doorY + jamb + 1, 2 * half + 1, size - doorY - jamb - 1);
}

/** Places of a plan's sequence, from where the agent is to where it arrives. */
function placesOf({ positions, arrival }) {
  const places = [game.imagined[0]];
  for (let t = 0; t < arrival; t++) places.push([positions[2 * t], positions[2 * t + 1]]);
  return places;
}

function draw() {
  const context = surface(element("room"), WORLD.size, WORLD.size);
  drawWalls(context);
  if (game.plan) {
    const { samples, best } = game.plan;
    const some = samples.slice(0, SHOWN_SAMPLES);
    for (const sample of some.reverse()) drawPath(context, placesOf(sample), color("series-4"), 0.25, 0.35, false);
    drawPath(context, placesOf(best), color("series-4"), 0.8, 1, false);
  }
  if (game.goal) {
    const [x, y] = game.goal;
    context.strokeStyle = color("series-3");
    context.lineWidth = 0.6;
    for (const radius of [0.8, PROTOCOL.success + 0.6]) {
      context.beginPath();
      context.arc(x + 0.5, y + 0.5, radius, 0, 2 * Math.PI);
      context.stroke();
    }
  }
  drawPath(context, game.trail, color("series-1"), 0.5, 0.6, false);
  drawPath(context, game.truth, color("series-1"), 0.9);
  drawPath(context, game.imagined, color("series-2"), 0.6);
  const [x, y] = game.place, [u, v] = game.imagined[game.imagined.length - 1];
  context.fillStyle = color("series-1");
  context.beginPath();
  context.arc(x + 0.5, y + 0.5, 1.5, 0, 2 * Math.PI);
  context.fill();
  context.strokeStyle = color("series-2");
  context.lineWidth = 0.5;
  context.beginPath();
  context.arc(u + 0.5, v + 0.5, 2.1, 0, 2 * Math.PI);
  context.stroke();
  drawErrors();
}

/** How far imagination is from the truth, step by step. */
function drawErrors() {
  const errors = game.truth.map(([x, y], i) => Math.hypot(x - game.imagined[i][0], y - game.imagined[i][1]));
  const last = errors[errors.length - 1];
  element("steps").textContent = errors.length - 1;
  element("error").textContent = `${last.toFixed(last < 0.1 ? 3 : 1)} px`;
  const width = 100, height = 30, top = Math.max(1, ...errors);
  const context = surface(element("errors"), width, height);
  context.strokeStyle = color("grid");
  context.lineWidth = 0.3;
  context.strokeRect(0.2, 0.2, width - 0.4, height - 0.4);
  context.fillStyle = color("muted");
  context.font = "4px system-ui, sans-serif";
  context.fillText(`${top.toFixed(1)} px`, 1, 5);
  context.strokeStyle = color("series-2");
  context.lineWidth = 0.7;
  context.beginPath();
  errors.forEach((error, i) => {
    const x = (i / Math.max(errors.length - 1, 1)) * (width - 2) + 1, y = height - 1 - (error / top) * (height - 8);
    if (i) context.lineTo(x, y);
    else context.moveTo(x, y);
  });
  context.stroke();
}

/** The one frame that the model has seen. */
function drawSeen() {
  const { size } = WORLD, canvas = element("seen"), context = canvas.getContext("2d");
  const image = context.createImageData(size, size), white = WORLD.scale * 255;
  for (let i = 0; i < size * size; i++) {
    const agent = (255 * game.seen[0][i]) / white, wall = (255 * game.seen[1][i]) / white;
    image.data.set([agent, Math.max(agent, wall * 0.55), wall * 0.8, 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

function say(words) {
  element("said").textContent = words;
}
