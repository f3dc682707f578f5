// The models: frames to latents, latents and actions to the next ones, and positions read off latents.
//
// A model encodes one frame, two planes of side * side numbers in the range of the data (agent, wall), as a state
// {latent, room, past}, and steps from a state by an action (x, y) in pixels. Positions are in pixels.

/** Logits of gates, kept within 20. */
const bounded = (logit) => logit / (1 + Math.abs(logit) / 20);
const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));

/** What the gated models share: latents that stand for positions W p, and a step that is taken with a chance g. */
class Gated {
  constructor(tensors, config, lift, action) {
    this.tensors = tensors;
    this.config = config;
    this.side = config.frame;
    this.half = (config.frame - 1) / 2;
    this.columns = orthogonal(tensors[`${lift}.weight`].data, config.dim, config.spread);
    // What an action of one half frame adds to a latent, [2][D].
    this.moves = action(this);
    // The same as positions: what a pixel of an action adds, in pixels, [2][2].
    this.pixels = this.moves.map((move) => this.columns.map((column) => dot(column, move) / config.spread ** 2));
  }

  /** Latent of a position in pixels. */
  embed(x, y) {
    const p = [(x - this.half) / this.half, (y - this.half) / this.half];
    return Float64Array.from(this.columns[0], (value, i) => value * p[0] + this.columns[1][i] * p[1]);
  }

  /** Position in pixels whose latent comes closest. */
  position(latent) {
    return this.columns.map((column) => this.half + this.half * dot(column, latent) / this.config.spread ** 2);
  }

  step(state, [ax, ay]) {
    const [x, y] = this.position(state.latent);
    const chance = this.chance(state.room, x, y, ax, ay);
    const [across, down] = this.moves;
    const latent = state.latent.map((z, i) => z + chance * (across[i] * ax + down[i] * ay) / this.half);
    return { ...state, latent };
  }

  /**
   * Positions after each of the actions [H * 2], written to `out` [H * 2], and how far its latent is from that of a
   * goal, written to `gaps` [H]: the same rollout, in sums of what was moved across and down. A latent is
   * z + across a + down b, and the square of a distance a polynomial in a and b.
   */
  walk(state, actions, out, goal, gaps) {
    let [x, y] = this.position(state.latent);
    const [[xx, xy], [yx, yy]] = this.pixels, [across, down] = this.moves;
    const from = state.latent.map((z, i) => z - goal[i]);
    const [none, one, other] = [dot(from, from), 2 * dot(from, across), 2 * dot(from, down)];
    const [squareOne, both, squareOther] = [dot(across, across), 2 * dot(across, down), dot(down, down)];
    for (let t = 0, a = 0, b = 0; t < actions.length; t += 2) {
      const ax = actions[t], ay = actions[t + 1];
      const chance = this.chance(state.room, x, y, ax, ay);
      x += chance * (xx * ax + yx * ay);
      y += chance * (xy * ax + yy * ay);
      a += (chance * ax) / this.half;
      b += (chance * ay) / this.half;
      out[t] = x;
      out[t + 1] = y;
      const square = none + a * (one + a * squareOne + b * both) + b * (other + b * squareOther);
      gaps[t / 2] = Math.sqrt(Math.max(square, 0));
    }
  }
}

/** The two columns of a lift [D, 2], made orthogonal and of one length. */
function orthogonal(weight, dim, length) {
  const columns = [0, 1].map((c) => Float64Array.from({ length: dim }, (_, i) => weight[2 * i + c]));
  const scaled = (column, to) => {
    const norm = Math.max(Math.sqrt(dot(column, column)), 1e-12);
    return column.map((value) => (value * to) / norm);
  };
  const x = scaled(columns[0], 1);
  const shared = dot(x, columns[1]);
  const y = scaled(columns[1].map((value, i) => value - shared * x[i]), length);
  return [x.map((value) => value * length), y];
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** Columns [2][D] of an action's layer [D, 2], times a factor. */
function actionColumns(tensors, name, factor) {
  const { shape: [dim], data } = tensors[`${name}.weight`];
  return [0, 1].map((c) => Float64Array.from({ length: dim }, (_, i) => factor * data[2 * i + c]));
}

/** The model on features: the agent's centre of brightness, and where lines are. */
class GatedFeatures extends Gated {
  constructor(tensors, config) {
    super(tensors, config, "encoder", () => actionColumns(tensors, "predictor.action", config.spread));
    this.border = network(tensors, ["predictor.border.0", "predictor.border.2"]);
    this.wall = network(tensors, ["predictor.wall.0", "predictor.wall.2", "predictor.wall.4"]);
    this.inputs = [new Float64Array(3), new Float64Array(5)];
  }

  encode(frame) {
    const [x, y] = brightest(frame[0], this.side);
    return { latent: this.embed(x, y), room: readLayout(frame[1], this.side) };
  }

  chance(room, x, y, ax, ay) {
    const length = Math.max(Math.sqrt(ax * ax + ay * ay), 1.1754943508222875e-38), reach = this.config.reach;
    const away = (line, place) => Math.min(Math.max((line - place) / length, -reach), reach);
    // Distances of two lines in the direction of motion.
    const lookAhead = (into, lines, place, action) => {
      const low = away(lines[0], place), high = away(lines[1], place);
      into[0] = action < 0 ? -high : low;
      into[1] = action < 0 ? -low : high;
    };
    const [borderX, borderY, wallX, doorY] = room, border = this.inputs[0], wall = this.inputs[1];
    lookAhead(border, borderX, x, ax);
    border[2] = Math.abs(ax) / length;
    let chance = sigmoid(bounded(this.border(border)));
    lookAhead(border, borderY, y, ay);
    border[2] = Math.abs(ay) / length;
    chance *= sigmoid(bounded(this.border(border)));
    // The pieces of wall above and below the door.
    lookAhead(wall, wallX, x, ax);
    wall[2] = away(doorY[0], y);
    wall[3] = Math.abs(ax) / length;
    wall[4] = -ay / length;
    chance *= sigmoid(bounded(this.wall(wall)));
    wall[2] = -away(doorY[1], y);
    wall[4] = ay / length;
    return chance * sigmoid(bounded(this.wall(wall)));
  }
}

/** Centre of brightness (x, y) of a plane; of a black one, its corner. */
function brightest(plane, side) {
  let total = 0, x = 0, y = 0;
  for (let i = 0; i < plane.length; i++) {
    total += plane[i];
    x += plane[i] * (i % side);
    y += plane[i] * Math.floor(i / side);
  }
  total = Math.max(total, 1.1754943508222875e-38);
  return [x / total, y / total];
}

/** Borders and wall of a plane: [border x, border y, wall x, door y], each (low, high) in pixels. */
function readLayout(plane, side) {
  const solid = (row, column) => (plane[row * side + column] > 0 ? 1 : 0);
  const range = [...Array(side).keys()];
  const ends = (marked, low, high) => {
    const places = range.filter(marked);
    return places.length ? [places[0], places[places.length - 1]] : [low * side, high * side];
  };
  const full = range.map((line) => [range.every((row) => solid(row, line)), range.every((column) => solid(line, column))]);
  const borderX = ends((x) => full[x][0], -1, 2), borderY = ends((y) => full[y][1], -1, 2);
  const insideX = range.filter((x) => x > borderX[0] && x < borderX[1]);
  const insideY = range.filter((y) => y > borderY[0] && y < borderY[1]);
  const wallX = ends((x) => insideX.includes(x) && insideY.some((y) => solid(y, x)), 2, 2);
  const doorY = ends((y) => insideY.includes(y) && !insideX.some((x) => solid(y, x)), 2, 2);
  return [borderX, borderY, wallX, doorY];
}

/** The model on pixels: two convolutions and a softmax, a gate that looks at the wall around the agent and its aim. */
class GatedPixels extends Gated {
  constructor(tensors, config) {
    super(tensors, config, "encoder.lift", () => actionColumns(tensors, "predictor.action", config.spread));
    this.gate = network(tensors, ["predictor.gate.0", "predictor.gate.2", "predictor.gate.4"]);
    this.seen = new Float64Array(2 * config.lattice ** 2 + 2);
  }

  encode(frame) {
    const { kernel, channels, white } = this.config, side = this.side, margin = kernel - 1, wide = side + margin;
    const look = this.tensors["encoder.look.weight"].data, spread = this.tensors["encoder.spread.weight"].data;
    const temperature = Math.exp(this.tensors["encoder.log_temperature"].data[0]);
    const logits = new Float64Array((wide + margin) ** 2);
    for (let row = 0; row < wide; row++) {
      for (let column = 0; column < wide; column++) {
        for (let c = 0; c < channels; c++) {
          let sum = 0;
          for (let k = 0; k < kernel * kernel; k++) {
            const y = row + Math.floor(k / kernel) - margin, x = column + (k % kernel) - margin;
            if (y >= 0 && y < side && x >= 0 && x < side) sum += look[c * kernel * kernel + k] * frame[0][y * side + x] / white;
          }
          if (sum <= 0) continue;
          for (let k = 0; k < kernel * kernel; k++) {
            const to = (row + Math.floor(k / kernel)) * (wide + margin) + column + (k % kernel);
            logits[to] += sum * spread[c * kernel * kernel + k];
          }
        }
      }
    }
    const [x, y] = softArgmax(side, (row, column) => logits[(row + margin) * (wide + margin) + column + margin] / temperature);
    return { latent: this.embed(x, y), room: Float64Array.from(frame[1], (value) => value / white) };
  }

  chance(room, x, y, ax, ay) {
    const { lattice } = this.config, reach = (lattice - 1) / 2, seen = this.seen;
    const sx = ax < 0 ? -1 : 1, sy = ay < 0 ? -1 : 1;
    let at = 0;
    for (const [cx, cy] of [[x, y], [x + ax, y + ay]]) {
      for (let r = -reach; r <= reach; r++) {
        for (let s = -reach; s <= reach; s++) seen[at++] = this.sample(room, cx + sx * s, cy + sy * r);
      }
    }
    seen[at++] = Math.abs(ax);
    seen[at] = Math.abs(ay);
    return sigmoid(bounded(this.gate(seen)));
  }

  /** The room's image between pixels; black outside. */
  sample(room, x, y) {
    const side = this.side, column = Math.floor(x), row = Math.floor(y), u = x - column, v = y - row;
    const at = (r, c) => (r >= 0 && r < side && c >= 0 && c < side ? room[r * side + c] : 0);
    return (1 - v) * ((1 - u) * at(row, column) + u * at(row, column + 1))
      + v * ((1 - u) * at(row + 1, column) + u * at(row + 1, column + 1));
  }
}

/** The model on ConvNeXt branches, whose gate goes by lines that the wall's latent shifts. */
class GatedConvNeXt extends Gated {
  constructor(tensors, config) {
    super(tensors, config, "predictor.action", (model) => model.columns);
    this.mix = network(tensors, ["predictor.gate.mix.0", "predictor.gate.mix.2", "predictor.gate.mix.4"]);
    this.inputs = new Float64Array(2 * config.hidden + 2);
  }

  encode(frame) {
    const [latent, wall] = ["agent", "wall"].map((name, i) =>
      branch(this.tensors, `encoder.${name}`, [frame[i]], this.side, this.config.blocks));
    return { latent, room: linear(this.tensors, "predictor.gate.shift", wall) };
  }

  chance(room, x, y, ax, ay) {
    const unit = 2, { hidden } = this.config, inputs = this.inputs;
    const weight = this.tensors["predictor.gate.lines.weight"].data, bias = this.tensors["predictor.gate.lines.bias"].data;
    // Positions here are seen from the frame's centre.
    const px = (x - this.half) / unit, py = (y - this.half) / unit;
    for (let h = 0; h < hidden; h++) {
      const before = weight[2 * h] * px + weight[2 * h + 1] * py + bias[h] + room[h];
      inputs[h] = Math.tanh(before);
      inputs[hidden + h] = Math.tanh(before + (weight[2 * h] * ax + weight[2 * h + 1] * ay) / unit);
    }
    inputs[2 * hidden] = ax;
    inputs[2 * hidden + 1] = ay;
    return sigmoid(bounded(this.mix(inputs)));
  }
}

/** ConvNeXt branches and an MLP that is rolled out; positions are a probe's reading. */
class JEPA {
  constructor(tensors, config) {
    this.tensors = tensors;
    this.config = config;
    this.side = config.frame;
  }

  encode(frame) {
    const { tensors, config } = this;
    const planes = config.fusion ? [[frame[0]], [frame[1]], frame] : [[frame[0]], [frame[1]]];
    const latent = new Float64Array(config.dim);
    planes.forEach((some, i) => {
      const part = branch(tensors, `encoder.${["agent", "wall", "fusion"][i]}`, some, this.side, config.blocks, config.white ?? 1);
      for (let d = 0; d < latent.length; d++) latent[d] += part[d];
    });
    if (config.norm_after_add) normalise(tensors, "encoder.norm", latent);
    return { latent, past: [] };
  }

  step(state, action) {
    const { tensors, config } = this, dim = config.dim;
    const normed = normalise(tensors, "predictor.state_norm", state.latent.slice());
    const moved = normalise(tensors, "predictor.action_norm", linear(tensors, "predictor.action", action));
    const fused = normed.map((value, i) => value + moved[i]);
    const read = new Float64Array(dim * (1 + config.history));
    read.set(fused);
    const past = state.past.slice(0, config.history);
    past.forEach((latent, age) => {
      const old = normalise(tensors, "predictor.state_norm", latent.slice());
      read.set(old.map((value) => value * config.history_decay ** (age + 1)), dim * (age + 1));
    });
    let hidden = linear(tensors, "predictor.expand", read);
    if (config.activation === "before_norm") hidden = normalise(tensors, "predictor.norm", hidden.map(gelu));
    else hidden = normalise(tensors, "predictor.norm", hidden).map(gelu);
    const latent = linear(tensors, "predictor.project", hidden);
    const residual = config.residual === "sum" ? fused : normed;
    for (let d = 0; d < dim; d++) latent[d] += residual[d];
    return { latent, past: config.history ? [state.latent, ...past] : [] };
  }

  position(latent) {
    const { tensors } = this, mean = tensors["probe.mean"].data, std = tensors["probe.std"].data;
    const hidden = linear(tensors, "probe.0", latent.map((value, i) => (value - mean[i]) / std[i]));
    const place = linear(tensors, "probe.2", hidden.map((value) => Math.max(value, 0)));
    return [0, 1].map((axis) => place[axis] * tensors["probe.location_std"].data[axis] + tensors["probe.location_mean"].data[axis]);
  }

  /** Positions after each of the actions, and distances of their latents from that of a goal, as in `Gated`. */
  walk(state, actions, out, goal, gaps) {
    for (let t = 0; t < actions.length; t += 2) {
      state = this.step(state, [actions[t], actions[t + 1]]);
      [out[t], out[t + 1]] = this.position(state.latent);
      gaps[t / 2] = Math.sqrt(state.latent.reduce((sum, z, i) => sum + (z - goal[i]) ** 2, 0));
    }
  }
}

const KINDS = { gated_features: GatedFeatures, gated_pixels: GatedPixels, gated_convnext: GatedConvNeXt, jepa: JEPA };

/** A model from what the page holds of it: {kind, config, table, weights}. */
function makeModel({ kind, config, table, weights }) {
  return new KINDS[kind](unpackTensors(table, weights), config);
}
