// Blocks of steps through both networks of the gate, forward and backward, for one instruction set.
#pragma once

#include <math.h>

#include "cpu/convnext/locate_kernels.h"
#include "feature_gate.h"

namespace jepa_fast {
namespace {

JEPA_FAST_INLINE float logarithm_of_one_more(float x) { return log1pf(x); }
JEPA_FAST_INLINE double logarithm_of_one_more(double x) { return log1p(x); }
JEPA_FAST_INLINE float magnitude_of(float x) { return __builtin_fabsf(x); }
JEPA_FAST_INLINE double magnitude_of(double x) { return __builtin_fabs(x); }
JEPA_FAST_INLINE float root_of(float x) { return __builtin_sqrtf(x); }
JEPA_FAST_INLINE double root_of(double x) { return __builtin_sqrt(x); }

// A network without biases whose layers but the last have a ReLU: inputs -> hidden -> (hidden ->) 1.
template <typename T>
struct GateNetwork {
  static constexpr int width = vector_bytes / static_cast<int>(sizeof(T));
  using V = typename Lanes<T, width>::type;
  int64_t inputs, hidden;
  bool is_deep;
  const T *middle, *project;       // [H, H], [H]
  T *expand_t, *middle_t;          // [inputs, H], [H, H]
  T *x, *first, *second, *out;     // [rows, inputs], [rows, H] twice, [rows]
  T *to_first, *to_second, *to_x;  // their gradients; to_x may be null
  T *expand_sums, *middle_sums, *project_sums;

  GateNetwork(Pieces& pieces, int64_t inputs, int64_t hidden, int64_t rows, const void* middle, const void* project)
      : inputs(inputs), hidden(hidden), is_deep(middle != nullptr), middle(static_cast<const T*>(middle)),
        project(static_cast<const T*>(project)) {
    expand_t = pieces.take<T>(inputs * hidden);
    middle_t = pieces.take<T>(is_deep ? hidden * hidden : 0);
    x = pieces.take<T>(rows * inputs);
    first = pieces.take<T>(rows * hidden);
    second = pieces.take<T>(is_deep ? rows * hidden : 0);
    out = pieces.take<T>(rows);
    to_first = pieces.take<T>(rows * hidden);
    to_second = pieces.take<T>(is_deep ? rows * hidden : 0);
    to_x = pieces.take<T>(rows * inputs);
    expand_sums = pieces.take<T>(inputs * hidden);
    middle_sums = pieces.take<T>(is_deep ? hidden * hidden : 0);
    project_sums = pieces.take<T>(hidden);
  }

  // What is the same for all blocks.
  void begin(const void* expand) {
    for (int64_t i = 0; i < inputs; ++i) {
      for (int64_t h = 0; h < hidden; ++h) expand_t[i * hidden + h] = static_cast<const T*>(expand)[h * inputs + i];
    }
    if (!is_deep) return;
    for (int64_t i = 0; i < hidden; ++i) {
      for (int64_t h = 0; h < hidden; ++h) middle_t[i * hidden + h] = middle[h * hidden + i];
    }
  }

  static void rectify(T* values, int64_t count) {
    for (int64_t i = 0; i < count; i += width) {
      const V value = load<V>(values + i);
      store(values + i, value > V{} ? value : V{});
    }
  }

  const T* last() const { return is_deep ? second : first; }

  __attribute__((noinline)) void forward(int64_t count) {
    product<T, width>(count, hidden, inputs, x, inputs, 1, expand_t, first);
    rectify(first, count * hidden);
    if (is_deep) {
      product<T, width>(count, hidden, hidden, first, hidden, 1, middle_t, second);
      rectify(second, count * hidden);
    }
    for (int64_t row = 0; row < count; ++row) out[row] = inner(last() + row * hidden, project);
  }

  T inner(const T* a, const T* b) const {
    V sum{};
    for (int64_t h = 0; h < hidden; h += width) sum += load<V>(a + h) * load<V>(b + h);
    return sum_lanes<width>(sum)[0];
  }

  // After `forward`: to_x and the parameters' gradients of this block, from `to_out` [rows].
  __attribute__((noinline)) void backward(int64_t count, const T* to_out) {
    T* const to_last = is_deep ? to_second : to_first;
    fill_zero(project_sums, hidden);
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t h = 0; h < hidden; h += width) {
        const V value = load<V>(last() + row * hidden + h);
        store(project_sums + h, load<V>(project_sums + h) + value * to_out[row]);
        store(to_last + row * hidden + h, value > V{} ? load<V>(project + h) * to_out[row] : V{});
      }
    }
    if (is_deep) {
      product<T, width>(hidden, hidden, count, first, 1, hidden, to_second, middle_sums);
      product<T, width>(count, hidden, hidden, to_second, hidden, 1, middle, to_first);
      for (int64_t i = 0; i < count * hidden; i += width) {
        store(to_first + i, load<V>(first + i) > V{} ? load<V>(to_first + i) : V{});
      }
    }
    product<T, width>(inputs, hidden, count, x, 1, inputs, to_first, expand_sums);
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t i = 0; i < inputs; ++i) to_x[row * inputs + i] = inner(to_first + row * hidden, expand_t + i * hidden);
    }
  }
};

template <typename T>
struct GateBlock {
  static constexpr int gates = 4;
  const FeatureGate& gate;
  GateNetwork<T> border, wall;
  T *logits, *to_logits;  // of the border's rows, then of the wall's

  GateBlock(const FeatureGate& gate, Pieces& pieces)
      : gate(gate), border(pieces, 3, gate.border_hidden, 2 * gate_block, nullptr, gate.border_project),
        wall(pieces, 5, gate.wall_hidden, 2 * gate_block, gate.wall_middle, gate.wall_project) {
    logits = pieces.take<T>(gates * gate_block);
    to_logits = pieces.take<T>(gates * gate_block);
  }

  void begin() {
    border.begin(gate.border_expand);
    wall.begin(gate.wall_expand);
  }

  // What lies around one step: distances to lines in units of its length.
  struct Around {
    T length, direction[2], distance[2][2][2];  // borders and wall, x and y, low and high
    bool is_cut[2][2][2], is_mirrored[2];

    Around(const FeatureGate& gate, int64_t step) {
      const T* const position = static_cast<const T*>(gate.positions) + 2 * step;
      const T* const layout = static_cast<const T*>(gate.layout) + 8 * (step / gate.steps);
      const T* const action = static_cast<const T*>(gate.actions) + 2 * step;
      constexpr T tiny = static_cast<T>(1.17549435e-38f);
      length = most(root_of(action[0] * action[0] + action[1] * action[1]), tiny);
      const T reach = static_cast<T>(gate.reach);
      for (int axis = 0; axis < 2; ++axis) {
        direction[axis] = action[axis] / length;
        is_mirrored[axis] = action[axis] < 0;
        for (int kind = 0; kind < 2; ++kind) {
          for (int end = 0; end < 2; ++end) {
            const T value = (layout[4 * kind + 2 * axis + end] - position[axis]) / length;
            is_cut[kind][axis][end] = value < -reach || value > reach;
            distance[kind][axis][end] = most(-reach, least(reach, value));
          }
        }
      }
    }

    // Mirrored so that the motion leads up.
    T ahead(int kind, int axis, int end) const {
      return is_mirrored[axis] ? -distance[kind][axis][1 - end] : distance[kind][axis][end];
    }
  };

  // Logits of steps [step, step + count).
  void forward(int64_t step, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const Around around(gate, step + i);
      for (int axis = 0; axis < 2; ++axis) {
        T* const x = border.x + 3 * (2 * i + axis);
        x[0] = around.ahead(0, axis, 0);
        x[1] = around.ahead(0, axis, 1);
        x[2] = magnitude_of(around.direction[axis]);
      }
      for (int piece = 0; piece < 2; ++piece) {
        T* const x = wall.x + 5 * (2 * i + piece);
        x[0] = around.ahead(1, 0, 0);
        x[1] = around.ahead(1, 0, 1);
        x[2] = piece == 0 ? around.distance[1][1][0] : -around.distance[1][1][1];
        x[3] = magnitude_of(around.direction[0]);
        x[4] = piece == 0 ? -around.direction[1] : around.direction[1];
      }
    }
    border.forward(2 * count);
    wall.forward(2 * count);
    const T surest = static_cast<T>(gate.surest);
    for (int64_t i = 0; i < count; ++i) {
      for (int g = 0; g < gates; ++g) {
        const T raw = g < 2 ? border.out[2 * i + g] : wall.out[2 * i + g - 2];
        logits[gates * i + g] = raw / (1 + magnitude_of(raw) / surest);
      }
    }
  }

  // log sigmoid(x)
  static T log_sigmoid(T x) { return least(x, T(0)) - logarithm_of_one_more(exponential(-magnitude_of(x))); }

  // Logarithms that gates are open one after the other, and that each is the first that is closed.
  struct Chances {
    T log_open[gates], log_closed[gates], log_move = 0, largest, sum = 0;

    explicit Chances(const T* logits) {
      for (int g = 0; g < gates; ++g) {
        log_open[g] = log_sigmoid(logits[g]);
        log_closed[g] = log_open[g] - logits[g] + log_move;
        log_move += log_open[g];
        largest = g == 0 ? log_closed[0] : most(largest, log_closed[g]);
      }
      for (int g = 0; g < gates; ++g) sum += exponential(log_closed[g] - largest);
    }
  };

  // to_positions of the block, after `forward`; the networks' sums are left in them.
  void backward(int64_t step, int64_t count, const T* to_stay, const T* to_move, T* to_positions) {
    const T surest = static_cast<T>(gate.surest);
    for (int64_t i = 0; i < count; ++i) {
      const T* const at = logits + gates * i;
      const Chances chances(at);
      T later = 0;
      for (int g = gates - 1; g >= 0; --g) {
        const T closed = to_stay[step + i] * exponential(chances.log_closed[g] - chances.largest) / chances.sum;
        const T open = to_move[step + i] + closed + later;
        later += closed;
        const T odds = 1 / (1 + exponential(at[g]));  // of being closed
        // raw / (1 + |raw| / surest) turned round: its derivative is (1 - |logit| / surest)^2.
        const T slope = 1 - magnitude_of(at[g]) / surest;
        const T to_raw = (open * odds - closed) * slope * slope;
        // Rows of the borders first.
        to_logits[(g < 2 ? 0 : 2 * count) + 2 * i + g % 2] = to_raw;
      }
    }
    border.backward(2 * count, to_logits);
    wall.backward(2 * count, to_logits + 2 * count);
    for (int64_t i = 0; i < count; ++i) {
      const Around around(gate, step + i);
      T to_distance[2][2][2] = {};
      const auto add_ahead = [&](int kind, int axis, int end, T slope) {
        if (around.is_mirrored[axis]) {
          to_distance[kind][axis][1 - end] -= slope;
        } else {
          to_distance[kind][axis][end] += slope;
        }
      };
      for (int axis = 0; axis < 2; ++axis) {
        for (int end = 0; end < 2; ++end) add_ahead(0, axis, end, border.to_x[3 * (2 * i + axis) + end]);
      }
      for (int piece = 0; piece < 2; ++piece) {
        const T* const slopes = wall.to_x + 5 * (2 * i + piece);
        for (int end = 0; end < 2; ++end) add_ahead(1, 0, end, slopes[end]);
        to_distance[1][1][piece] += piece == 0 ? slopes[2] : -slopes[2];
      }
      for (int axis = 0; axis < 2; ++axis) {
        T sum = 0;
        for (int kind = 0; kind < 2; ++kind) {
          for (int end = 0; end < 2; ++end) {
            if (!around.is_cut[kind][axis][end]) sum -= to_distance[kind][axis][end];
          }
        }
        to_positions[2 * (step + i) + axis] = sum / around.length;
      }
    }
  }

  void add_sums(double* sums) const {
    const auto add = [&](const T* from, int64_t count) {
      for (int64_t i = 0; i < count; ++i) *sums++ += static_cast<double>(from[i]);
    };
    add(border.expand_sums, 3 * border.hidden);
    add(border.project_sums, border.hidden);
    add(wall.expand_sums, 5 * wall.hidden);
    add(wall.middle_sums, wall.hidden * wall.hidden);
    add(wall.project_sums, wall.hidden);
  }
};

// Calls f(block, first step, their number) for the steps in blocks, after their forward pass.
template <typename T, typename F>
JEPA_FAST_INLINE void for_blocks(const FeatureGate& gate, int64_t first, int64_t last, const F& f) {
  Pieces counted{nullptr};
  GateBlock<T>(gate, counted);
  Pieces pieces{static_cast<char*>(convnext_work_space(counted.used))};
  GateBlock<T> block(gate, pieces);
  block.begin();
  for (int64_t step = first; step < last; step += gate_block) {
    const int64_t count = least(gate_block, last - step);
    block.forward(step, count);
    f(block, step, count);
  }
}

template <typename T>
void gate_forward(const FeatureGate& gate, void* log_stay, void* log_move, int64_t first, int64_t last) {
  for_blocks<T>(gate, first, last, [&](const GateBlock<T>& block, int64_t step, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const typename GateBlock<T>::Chances chances(block.logits + 4 * i);
      static_cast<T*>(log_stay)[step + i] = chances.largest + static_cast<T>(log(chances.sum));
      static_cast<T*>(log_move)[step + i] = chances.log_move;
    }
  });
}

template <typename T>
void gate_backward(
    const FeatureGate& gate, const void* to_stay, const void* to_move, void* to_positions, double* sums, int64_t first,
    int64_t last) {
  for_blocks<T>(gate, first, last, [&](GateBlock<T>& block, int64_t step, int64_t count) {
    block.backward(
        step, count, static_cast<const T*>(to_stay), static_cast<const T*>(to_move), static_cast<T*>(to_positions));
    block.add_sums(sums);
  });
}

}  // namespace
}  // namespace jepa_fast
