// Layers of the models: plain loops over typed arrays, sums in doubles.

const LAYER_NORM_EPS = 1e-5;

/** Tensors by name from their table [[name, shape], ..] and one base64 block of little-endian float32. */
function unpackTensors(table, base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const all = new Float32Array(bytes.buffer);
  const tensors = {};
  let offset = 0;
  for (const [name, shape] of table) {
    const size = shape.reduce((product, length) => product * length, 1);
    tensors[name] = { shape, data: all.subarray(offset, offset + size) };
    offset += size;
  }
  return tensors;
}

/** W x + b of one vector; the layer's weight is [out, in], its bias may be missing. */
function linear(tensors, name, x) {
  const { shape: [outputs], data } = tensors[`${name}.weight`];
  const y = new Float64Array(outputs);
  dense(data, tensors[`${name}.bias`]?.data ?? new Float32Array(outputs), x, y);
  return y;
}

/** Layer normalisation of x[start .. start + size), in place. */
function normalise(tensors, name, x, start = 0, size = x.length) {
  const gamma = tensors[`${name}.weight`].data;
  const beta = tensors[`${name}.bias`]?.data;
  let mean = 0;
  for (let i = 0; i < size; i++) mean += x[start + i];
  mean /= size;
  let variance = 0;
  for (let i = 0; i < size; i++) variance += (x[start + i] - mean) ** 2;
  const scale = 1 / Math.sqrt(variance / size + LAYER_NORM_EPS);
  for (let i = 0; i < size; i++) x[start + i] = (x[start + i] - mean) * scale * gamma[i] + (beta ? beta[i] : 0);
  return x;
}

/** The error function to 1e-15: a series near zero, a continued fraction beyond. */
function erf(x) {
  const a = Math.abs(x);
  if (a > 6) return Math.sign(x);
  if (a < 2.5) {
    let term = a, sum = a;
    for (let n = 1; term > 1e-17 * sum; n++) {
      term *= (2 * a * a) / (2 * n + 1);
      sum += term;
    }
    return Math.sign(x) * 2 / Math.sqrt(Math.PI) * Math.exp(-a * a) * sum;
  }
  let fraction = a;
  for (let n = 60; n >= 1; n--) fraction = a + n / 2 / fraction;
  return Math.sign(x) * (1 - Math.exp(-a * a) / (Math.sqrt(Math.PI) * fraction));
}

// gelu on a grid with its slopes: cubic pieces of this width are exact to 1e-12.
const GELU_REACH = 8, GELU_STEPS = 128;
let geluTable = null;

function makeGeluTable() {
  const count = 2 * GELU_REACH * GELU_STEPS + 1;
  geluTable = { values: new Float64Array(count), slopes: new Float64Array(count) };
  for (let i = 0; i < count; i++) {
    const x = i / GELU_STEPS - GELU_REACH;
    const share = 0.5 * (1 + erf(x / Math.SQRT2));
    geluTable.values[i] = x * share;
    geluTable.slopes[i] = (share + x * Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI)) / GELU_STEPS;
  }
}

/** x Phi(x), Phi the normal distribution. */
function gelu(x) {
  if (x <= -GELU_REACH) return 0;
  if (x >= GELU_REACH) return x;
  if (geluTable === null) makeGeluTable();
  const place = (x + GELU_REACH) * GELU_STEPS;
  const i = Math.min(Math.floor(place), geluTable.values.length - 2);
  const t = place - i, u = 1 - t;
  const { values, slopes } = geluTable;
  return u * u * ((1 + 2 * t) * values[i] + t * slopes[i]) + t * t * ((3 - 2 * t) * values[i + 1] - u * slopes[i + 1]);
}

/** One ConvNeXt block on x [size * size, C], channels last: x + W2 gelu(W1 LN(dwconv(x))), in place. */
function convnextBlock(tensors, name, x, size) {
  const kernel = tensors[`${name}.dwconv.weight`].data, expand = tensors[`${name}.expand.weight`];
  const project = tensors[`${name}.project.weight`].data;
  const [hiddens, channels] = expand.shape;
  const convolved = new Float64Array(x.length), hidden = new Float64Array(hiddens);
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      const at = (row * size + column) * channels;
      for (let dy = Math.max(-3, -row); dy <= Math.min(3, size - 1 - row); dy++) {
        for (let dx = Math.max(-3, -column); dx <= Math.min(3, size - 1 - column); dx++) {
          const from = at + (dy * size + dx) * channels, tap = (dy + 3) * 7 + dx + 3;
          for (let c = 0; c < channels; c++) convolved[at + c] += kernel[c * 49 + tap] * x[from + c];
        }
      }
    }
  }
  for (let at = 0; at < x.length; at += channels) {
    normalise(tensors, `${name}.norm`, convolved, at, channels);
    for (let h = 0; h < hiddens; h++) {
      let sum = 0;
      for (let c = 0, row = h * channels; c < channels; c++) sum += expand.data[row + c] * convolved[at + c];
      hidden[h] = gelu(sum);
    }
    for (let c = 0; c < channels; c++) {
      let sum = 0;
      for (let h = 0, row = c * hiddens; h < hiddens; h++) sum += project[row + h] * hidden[h];
      x[at + c] += sum;
    }
  }
}

/** Means over 6 x 6 cells of x [size * size, C], [C * 36]. */
function pool(x, size, channels) {
  const side = 6, pooled = new Float64Array(channels * side * side);
  for (let r = 0; r < side; r++) {
    const top = Math.floor(r * size / side), bottom = Math.ceil((r + 1) * size / side);
    for (let s = 0; s < side; s++) {
      const left = Math.floor(s * size / side), right = Math.ceil((s + 1) * size / side);
      for (let row = top; row < bottom; row++) {
        for (let column = left; column < right; column++) {
          for (let c = 0; c < channels; c++) {
            pooled[(c * side + r) * side + s] += x[(row * size + column) * channels + c] / (bottom - top) / (right - left);
          }
        }
      }
    }
  }
  return pooled;
}

/** Where in an image something is: expected (x, y) in pixels under a softmax of logit(row, column). */
function softArgmax(size, logit) {
  let largest = -Infinity, total = 0, x = 0, y = 0;
  const logits = new Float64Array(size * size);
  for (let i = 0; i < logits.length; i++) {
    logits[i] = logit(Math.floor(i / size), i % size);
    largest = Math.max(largest, logits[i]);
  }
  for (let i = 0; i < logits.length; i++) {
    const weight = Math.exp(logits[i] - largest);
    total += weight;
    x += weight * (i % size);
    y += weight * Math.floor(i / size);
  }
  return [x / total, y / total];
}

/** A branch of the ConvNeXt encoder: images, a list of [size * size] planes, to a latent; `white` is seen as 1. */
function branch(tensors, name, planes, size, blocks, white = 1) {
  const { shape: [channels], data: stem } = tensors[`${name}.stem.weight`];
  const x = new Float64Array(size * size * channels);
  for (let i = 0; i < size * size; i++) {
    for (let c = 0; c < channels; c++) {
      for (let p = 0; p < planes.length; p++) x[i * channels + c] += (stem[c * planes.length + p] * planes[p][i]) / white;
    }
  }
  for (let b = 0; b < blocks; b++) convnextBlock(tensors, `${name}.blocks.${b}`, x, size);
  const sharpness = tensors[`${name}.sharpness`]?.data;
  let read;
  if (sharpness) {
    read = new Float64Array(2 * channels);
    for (let c = 0; c < channels; c++) {
      const place = softArgmax(size, (row, column) => sharpness[c] * x[(row * size + column) * channels + c]);
      for (let axis = 0; axis < 2; axis++) read[2 * c + axis] = (place[axis] - (size - 1) / 2) / ((size - 1) / 2);
    }
  } else {
    read = pool(x, size, channels);
  }
  const latent = linear(tensors, `${name}.fc`, read);
  return tensors[`${name}.norm.weight`] ? normalise(tensors, `${name}.norm`, latent) : latent;
}

/** A ReLU network with one output, of layers by name: a function of its input array, without allocations. */
function network(tensors, names) {
  const layers = names.map((name) => ({
    weight: Float64Array.from(tensors[`${name}.weight`].data),
    bias: Float64Array.from(tensors[`${name}.bias`]?.data ?? new Float32Array(tensors[`${name}.weight`].shape[0])),
    out: new Float64Array(tensors[`${name}.weight`].shape[0]),
  }));
  const output = layers[layers.length - 1].out;
  return (input) => {
    let x = input;
    for (const { weight, bias, out } of layers) {
      dense(weight, bias, x, out);
      x = out;
      if (out !== output) for (let o = 0; o < out.length; o++) if (out[o] < 0) out[o] = 0;
    }
    return output[0];
  };
}

/** W x + b, written to `out`; four sums at a time, which do not wait for each other. */
function dense(weight, bias, x, out) {
  const inputs = x.length, outputs = out.length;
  let o = 0;
  for (; o + 4 <= outputs; o += 4) {
    let a = o * inputs, b = a + inputs, c = b + inputs, d = c + inputs;
    let p = bias[o], q = bias[o + 1], r = bias[o + 2], s = bias[o + 3];
    for (let i = 0; i < inputs; i++) {
      const value = x[i];
      p += weight[a++] * value;
      q += weight[b++] * value;
      r += weight[c++] * value;
      s += weight[d++] * value;
    }
    out[o] = p;
    out[o + 1] = q;
    out[o + 2] = r;
    out[o + 3] = s;
  }
  for (; o < outputs; o++) {
    let sum = bias[o];
    for (let i = 0, at = o * inputs; i < inputs; i++) sum += weight[at + i] * x[i];
    out[o] = sum;
  }
}
