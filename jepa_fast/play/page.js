// The page: what is drawn, driven and clicked. MODELS, WORLD, PLANNER and PROTOCOL come with it.

const TICK_MS = 50, KEY_STEP_PX = 1.2, PATIENCE_MS = 25, LONGEST_PLAN_MS = 6000, SHOWN_SAMPLES = 60;
const element = (id) => document.getElementById(id);
const loaded = new Map();
const keys = new Set();
const game = {
  model: null, room: { wallX: 32, doorY: 24 }, place: [14, 44], state: null, seen: null,
  truth: [], imagined: [], trail: [], goal: null, tool: "drive", pointer: null, plan: null, isPlanning: false, run: 0,
};

function modelAt(index) {
  if (!loaded.has(index)) loaded.set(index, makeModel(MODELS[index]));
  return loaded.get(index);
}

/** Encode the frame as it is now; what is imagined begins here. */
function imagineFromHere() {
  game.seen = renderFrame(game.place, game.room);
  game.state = game.model.encode(game.seen);
  game.truth = [game.place];
  game.imagined = [game.model.position(game.state.latent)];
  drawSeen();
  draw();
}

/** One action: the agent takes it in the world and in the model's imagination. */
function act(action) {
  const taken = shortened(action);
  game.place = stepWorld(game.place, taken, game.room);
  game.state = game.model.step(game.state, taken);
  game.truth.push(game.place);
  game.trail.push(game.place);
  game.imagined.push(game.model.position(game.state.latent));
}

/** Stop planning and begin anew, with room and agent as they are. */
function restart() {
  stopPlanning();
  game.goal = null;
  game.trail = [game.place];
  say("Drive the agent with the arrow keys, or press and hold where it should go.");
  imagineFromHere();
}

function chooseModel(index) {
  game.model = modelAt(index);
  element("record").textContent = MODELS[index].record;
  game.secondsPerWalk = null;
  restart();
}

/** Move wall and door; an agent that would be inside is moved out to the left. */
function build(wallX, doorY) {
  const limit = (value, [low, high]) => Math.round(Math.min(Math.max(value, low), high));
  game.room = { wallX: limit(wallX, PROTOCOL.walls), doorY: limit(doorY, WORLD.door_rows) };
  const { wallX: wall } = game.room;
  if (!isFree(game.place, game.room)) game.place = [Math.max(wall - 4, WORLD.borders[0] + 1), game.place[1]];
  element("wall").value = wall;
  element("door").value = game.room.doorY;
  const trained = WORLD.wall_columns.includes(wall);
  element("novel").textContent = trained ? "" : "No wall stood in this column in training.";
  restart();
}

// Planning -------------------------------------------------------------------------------------------------------------

function stopPlanning() {
  game.run += 1;
  game.plan = null;
  game.isPlanning = false;
}

/** Seconds of imagining one sequence with this model here. */
function secondsPerWalk() {
  if (game.secondsPerWalk === null) {
    const actions = new Float64Array(2 * PLANNER.horizon), positions = actions.slice(), gaps = actions.slice();
    const start = performance.now();
    let walks = 0;
    do {
      game.model.walk(game.state, actions, positions, game.state.latent, gaps);
      walks += 1;
    } while (performance.now() - start < 40);
    game.secondsPerWalk = (performance.now() - start) / 1000 / walks;
  }
  return game.secondsPerWalk;
}

const nextFrame = () => new Promise((resolve) => setTimeout(resolve, 0));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Plan to `goal` and walk there, planning again after every few steps, until it is reached or the budget is over. */
async function walkTo(goal) {
  stopPlanning();
  game.isPlanning = true;
  game.goal = goal;
  game.trail = [game.place];
  const run = game.run, random = randomNumbers(run), settings = { ...PLANNER };
  // What the planner is after is a frame, with the agent at the goal, as the model sees it.
  const wanted = game.model.encode(renderFrame(goal, game.room)).latent;
  imagineFromHere();
  const most = LONGEST_PLAN_MS / 1000 / secondsPerWalk() / settings.first_iterations;
  settings.first_samples = Math.round(Math.min(settings.first_samples, Math.max(most, 4 * settings.elites)));
  settings.samples = Math.min(settings.samples, settings.first_samples);
  let before = null, taken = 0;
  const distance = () => Math.hypot(game.place[0] - goal[0], game.place[1] - goal[1]);
  while (distance() > PROTOCOL.success && taken < PROTOCOL.budget) {
    if (taken > 0) imagineFromHere();
    let since = performance.now();
    const isTimeUp = () => performance.now() - since > PATIENCE_MS;
    for (const found of plan(game.model, game.state, wanted, settings, random, isTimeUp, before)) {
      if (found) {
        game.plan = found;
        say(`Planning: iteration ${found.iteration + 1} of ${found.iterations}, ${found.samples.length} imagined walks; `
          + `the best arrives after ${found.best.arrival} steps.`);
        draw();
      }
      await nextFrame();
      if (run !== game.run) return;
      since = performance.now();
    }
    const { best } = game.plan;
    const steps = Math.min(settings.execute, best.arrival, PROTOCOL.budget - taken);
    for (let t = 0; t < steps && distance() > PROTOCOL.success; t++) {
      act([best.actions[2 * t], best.actions[2 * t + 1]]);
      taken += 1;
      say(`Walking: step ${taken}, ${distance().toFixed(1)} px to go.`);
      draw();
      await pause(TICK_MS);
      if (run !== game.run) return;
    }
    // What is left of the plan is where the next one begins; after a plan that led nowhere it begins anew.
    before = best.arrival > steps ? best.actions.slice(2 * steps) : null;
  }
  stopPlanning();
  const reached = distance() <= PROTOCOL.success;
  say(reached ? `Reached after ${taken} steps.` : `Not reached in ${taken} steps: ${distance().toFixed(1)} px are left.`);
  draw();
}

// Input ----------------------------------------------------------------------------------------------------------------

const DIRECTIONS = {
  ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], a: [-1, 0], d: [1, 0], w: [0, -1], s: [0, 1],
};

function pointerPlace(event) {
  const box = element("room").getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top].map((value) => (value / box.width) * WORLD.size - 0.5);
}

function point(event) {
  const place = pointerPlace(event);
  if (game.tool === "drive") game.pointer = place;
  else if (game.tool === "wall") build(place[0], place[1]);
  else if (game.tool === "put" && isFree(place, game.room)) {
    game.place = place.map(Math.fround);
    restart();
  }
}

function tick() {
  let action = null;
  const pressed = [...keys].map((key) => DIRECTIONS[key]);
  if (pressed.length) {
    const sum = pressed.reduce(([x, y], [dx, dy]) => [x + dx, y + dy], [0, 0]);
    const length = Math.hypot(...sum);
    if (length > 0) action = sum.map((value) => (value / length) * KEY_STEP_PX);
  } else if (game.pointer) {
    const way = game.pointer.map((value, axis) => value - game.place[axis]);
    if (Math.hypot(...way) >= WORLD.length_range[0]) action = way;
  }
  if (action) {
    if (game.isPlanning) stopPlanning();
    act(action);
    draw();
  }
}

function listen() {
  const canvas = element("room");
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    if (game.tool === "goal") {
      const place = pointerPlace(event);
      if (isFree(place, game.room)) walkTo(place);
      else say("The goal has to be where an agent can stand.");
    } else {
      if (game.tool === "drive") stopPlanning();
      point(event);
    }
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons && game.tool !== "goal") point(event);
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { game.pointer = null; });
  window.addEventListener("keydown", (event) => {
    if (!(event.key in DIRECTIONS) || ["SELECT", "INPUT"].includes(document.activeElement?.tagName)) return;
    event.preventDefault();
    keys.add(event.key);
  });
  window.addEventListener("keyup", (event) => keys.delete(event.key));
  window.addEventListener("blur", () => keys.clear());
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { draw(); drawSeen(); });
  for (const button of document.querySelectorAll("[name=tool]")) {
    button.addEventListener("change", () => {
      game.tool = button.value;
      game.pointer = null;
    });
  }
  element("model").addEventListener("change", (event) => {
    chooseModel(Number(event.target.value));
    event.target.blur();
  });
  for (const id of ["wall", "door"]) {
    element(id).addEventListener("input", () => build(Number(element("wall").value), Number(element("door").value)));
  }
  element("again").addEventListener("click", restart);
}

function start() {
  MODELS.forEach(({ name }, index) => element("model").append(new Option(name, index)));
  Object.assign(element("wall"), { min: PROTOCOL.walls[0], max: PROTOCOL.walls[1] });
  Object.assign(element("door"), { min: WORLD.door_rows[0], max: WORLD.door_rows[1] });
  element("wall").value = game.room.wallX;
  element("door").value = game.room.doorY;
  listen();
  chooseModel(0);
  setInterval(tick, TICK_MS);
}
