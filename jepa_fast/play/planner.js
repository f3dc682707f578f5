// Planning by sampling, iCEM: sequences around a mean, of coloured noise; the best of them make the next mean.
//
// A sequence costs min over t of d_t + haste t: its best moment to stop, and the sooner the better; d_t is the distance
// from the latent that the model imagines after t actions to that of the goal's frame, in full steps: of how far the
// longest action moves a latent where nothing is in its way. What follows that moment is no part of the plan.

/** Numbers in [0, 1) that repeat from a seed (mulberry32). */
function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

/** Coloured noise of unit variance, its power falling with frequency^-colour: a function that gives [H * 2] numbers. */
function colouredNoise(random, horizon, colour) {
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const half = Math.floor(horizon / 2);
  // The mean has the power of the lowest frequency.
  const scales = Array.from({ length: half + 1 }, (_, f) => (Math.max(f, 1) / horizon) ** (-colour / 2));
  const single = (f) => f === 0 || 2 * f === horizon;
  const power = scales.reduce((sum, scale, f) => sum + (single(f) ? 1 : 2) * scale * scale, 0);
  const waves = scales.map((scale, f) => {
    const size = (scale / Math.sqrt(power)) * (single(f) ? 1 : Math.SQRT2);
    const angles = Array.from({ length: horizon }, (_, t) => (2 * Math.PI * f * t) / horizon);
    return [Math.cos, Math.sin].map((wave) => Float64Array.from(angles, (angle) => size * wave(angle)));
  });
  return () => {
    const noise = new Float64Array(2 * horizon);
    for (let axis = 0; axis < 2; axis++) {
      for (let f = 0; f < waves.length; f++) {
        const [even, odd] = waves[f], a = normal(), b = single(f) ? 0 : normal();
        for (let t = 0, at = axis; t < horizon; t++, at += 2) noise[at] += a * even[t] + b * odd[t];
      }
    }
    return noise;
  };
}

/** Shortens the actions [H * 2] of a sequence, in place. */
function shortenAll(actions) {
  for (let t = 0; t < actions.length; t += 2) [actions[t], actions[t + 1]] = shortened([actions[t], actions[t + 1]]);
  return actions;
}

/** How far the longest action moves the latent of a state: the most over eight directions. */
function fullStep(model, state) {
  const ways = [[1, 0], [0, 1], [-1, 0], [0, -1], [1, 1], [1, -1], [-1, 1], [-1, -1]], gap = new Float64Array(1);
  return Math.max(...ways.map(([x, y]) => {
    const length = WORLD.length_range[1] / Math.hypot(x, y);
    model.walk(state, [x * length, y * length], new Float64Array(2), state.latent, gap);
    return gap[0];
  }));
}

/** What a sequence costs by the distances [H] of its latents to the goal's, and after how many actions it arrives. */
function judge(gaps, unit, haste) {
  let cost = Infinity, arrival = 0;
  for (let t = 0; t < gaps.length; t++) {
    const value = gaps[t] / unit + haste * (t + 1);
    if (value < cost) [cost, arrival] = [value, t + 1];
  }
  return { cost, arrival };
}

/**
 * One plan to the latent `goal`, an iteration at a time: yields {samples, best, ..} after each, sequences with actions,
 * positions, cost and arrival, and in between null wherever `isTimeUp()`. `before` are actions that are left of an
 * earlier plan, or null.
 */
function* plan(model, state, goal, settings, random, isTimeUp, before = null) {
  const { horizon, elites, keep, momentum, haste, least_sigma: least } = settings;
  const fresh = before === null;
  const count = fresh ? settings.first_samples : settings.samples;
  const iterations = fresh ? settings.first_iterations : settings.iterations;
  const mean = new Float64Array(2 * horizon);
  if (!fresh) mean.set(before.subarray(0, 2 * horizon));
  const deviation = new Float64Array(2 * horizon).fill(fresh ? settings.sigma : settings.warm_sigma);
  const noise = colouredNoise(random, horizon, settings.colour);
  const unit = fullStep(model, state), gaps = new Float64Array(horizon);
  const tried = (actions) => {
    const positions = new Float64Array(2 * horizon);
    model.walk(state, shortenAll(actions), positions, goal, gaps);
    return { actions, positions, ...judge(gaps, unit, haste) };
  };
  let best = null, kept = [];
  for (let iteration = 0; iteration < iterations; iteration++) {
    const samples = [...kept];
    if (iteration === 0 && !fresh) samples.push(tried(mean.slice()));
    while (samples.length < count) {
      samples.push(tried(noise().map((value, i) => mean[i] + deviation[i] * value)));
      if (isTimeUp()) yield null;
    }
    // The mean itself is one of the last iteration's.
    if (iteration === iterations - 1) samples.push(tried(mean.slice()));
    samples.sort((one, other) => one.cost - other.cost);
    const elite = samples.slice(0, elites);
    for (let i = 0; i < mean.length; i++) {
      const centre = elite.reduce((sum, one) => sum + one.actions[i], 0) / elites;
      const spread = Math.sqrt(elite.reduce((sum, one) => sum + (one.actions[i] - centre) ** 2, 0) / elites);
      mean[i] = momentum * mean[i] + (1 - momentum) * centre;
      deviation[i] = Math.max(least, momentum * deviation[i] + (1 - momentum) * spread);
    }
    kept = elite.slice(0, Math.max(1, Math.floor(keep * elites)));
    if (best === null || elite[0].cost < best.cost) best = elite[0];
    yield { samples, best, iteration, iterations };
  }
}
