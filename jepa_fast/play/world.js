// The two-room world as the simulator has it: how an agent moves, and what a frame shows. WORLD holds its measures.

/** Where the agent is after an action: moved, or exactly where it was if anything is in the way. */
function stepWorld([x, y], [ax, ay], { wallX, doorY }) {
  const start = [Math.fround(x), Math.fround(y)];
  const goal = [Math.fround(start[0] + ax), Math.fround(start[1] + ay)];
  const [near, far] = WORLD.borders;
  for (const axis of [0, 1]) {
    if ((start[axis] - near) * (goal[axis] - near) <= 0 || (start[axis] - far) * (goal[axis] - far) <= 0) return start;
  }
  const hx = start[0] - wallX, hy = start[1] - doorY, tx = goal[0] - wallX, ty = goal[1] - doorY;
  const mx = tx - hx, my = ty - hy;
  for (const face of [-WORLD.wall_half_width, WORLD.wall_half_width]) {
    const crosses = (hx - face) * (tx - face) < 0;
    if (crosses && Math.abs(hy * mx + (face - hx) * my) > WORLD.door_half_height * Math.abs(mx)) return start;
  }
  return isSolid(goal, { wallX, doorY }) ? start : goal;
}

/** Whether a place lies in the wall's solid part, faces included. */
function isSolid([x, y], { wallX, doorY }) {
  return Math.abs(x - wallX) <= WORLD.wall_half_width && Math.abs(y - doorY) > WORLD.door_half_height;
}

/** Whether the agent can stand there. */
function isFree(place, room) {
  const [near, far] = WORLD.borders;
  return place.every((value) => value > near && value < far) && !isSolid(place, room);
}

/** Rounds halves to even numbers, as NumPy does. */
function rint(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}

/** The frame as the data have it: two planes, agent and wall, Float32Array of uint8 times the scale. */
function renderFrame([x, y], { wallX, doorY }) {
  const size = WORLD.size, scale = Math.fround(WORLD.scale);
  const agent = new Float32Array(size * size), wall = new Float32Array(size * size);
  const profile = (centre) => Array.from({ length: size }, (_, i) =>
    (Math.abs(i - centre) <= WORLD.dot_reach ? Math.exp(((i - centre) ** 2) / (-2 * WORLD.dot_std ** 2)) : 0));
  const columns = profile(Math.fround(x)), rows = profile(Math.fround(y));
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      const at = row * size + column;
      agent[at] = rint(255 * rows[row] * columns[column]) * scale;
      const inWall = Math.abs(column - wallX) <= WORLD.wall_half_width && Math.abs(row - doorY) > WORLD.door_half_height;
      const isSolidHere = inWall || WORLD.borders.includes(row) || WORLD.borders.includes(column);
      wall[at] = isSolidHere ? 255 * scale : 0;
    }
  }
  return [agent, wall];
}

/** An action no longer than the data's longest. */
function shortened([ax, ay], longest = WORLD.length_range[1]) {
  const factor = Math.min(1, longest / Math.max(Math.hypot(ax, ay), 1e-12));
  return [ax * factor, ay * factor];
}
