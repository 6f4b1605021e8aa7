// The selective scan and its gradient in one pass over the data.
//
// Everything is contiguous: u, delta, y (batch, dim, L); A (dim, N); B, C (batch, groups, N, L); D, bias (dim) or null;
// last (batch, dim, N); starts (batch, blocks, N, dim), the state at the start of every `block` steps.
// A task takes W channels of one group, one in each lane of a vector, along the whole sequence: a step of the
// recurrence is then one multiply-add for all of them, next to exponentials that do not wait for it. Rows are
// transposed in registers on the way in and out, W steps at a time. Steps and channels past the end are zeros, with a
// step size of zero: they leave every state and every sum as it is.
#include "lanes.hpp"

namespace {

constexpr int64_t LONGEST = 64;  // steps of a block

template <typename T>
struct Shape {
  const T *u, *delta, *A, *B, *C, *D, *bias;
  int64_t batch, dim, groups, N, L, block;  // block: a multiple of every W, at most LONGEST
  bool soft;
  int64_t blocks() const { return (L + block - 1) / block; }
};

// W channels of one group; only the first `used` exist.
template <typename T, int W>
struct Tile {
  using V = Lanes<T, W>;
  const Shape<T>& s;
  const int64_t b, first, used, row = b * s.dim + first, group = b * s.groups + first / (s.dim / s.groups);
  const V shift = each(s.bias), skip = each(s.D);
  const bool grows = !s.soft || any_positive();  // whether a decay may be above 1

  // A parameter of every channel.
  V each(const T* from, int64_t stride = 1, int64_t at = 0) const {
    V found{};
    for (int64_t c = 0; from && c < used; ++c) found[c] = from[(first + c) * stride + at];
    return found;
  }

  bool any_positive() const {
    const T* from = s.A + first * s.N;
    return std::any_of(from, from + used * s.N, [](T a) { return a > 0; });
  }

  // Steps [start, start + n) of every channel: steps[t] holds step start + t. The rows are far apart, and more than
  // hardware foresees: what lies `ahead` steps from start is asked for here, into the outer caches.
  ALWAYS_INLINE void load(const T* from, int64_t start, int64_t n, int64_t ahead, V* steps) const {
    for (int64_t c = 0; c < W; ++c) {
      const T* at = from + (row + c) * s.L + start;
      if (used == W && n >= W) {  // a size known to the compiler is one instruction
        std::memcpy(&steps[c], at, sizeof(V));
        __builtin_prefetch(at + ahead, 0, 1);
      } else {
        steps[c] = V{};
        if (c < used) std::memcpy(&steps[c], at, std::min<int64_t>(n, W) * sizeof(T));
      }
    }
    transpose<T, W>(steps);
  }

  ALWAYS_INLINE void store(V* steps, int64_t start, int64_t n, int64_t ahead, T* to) const {
    transpose<T, W>(steps);
    for (int64_t c = 0; c < W; ++c) {
      T* at = to + (row + c) * s.L + start;
      if (used == W && n >= W) {
        std::memcpy(at, &steps[c], sizeof(V));
        __builtin_prefetch(at + ahead, 1, 1);
      } else if (c < used) {
        std::memcpy(at, &steps[c], std::min<int64_t>(n, W) * sizeof(T));
      }
    }
  }

  // How far to ask ahead when going backwards.
  static int64_t back(int64_t start) { return start < 8 * W ? 0 : -8 * W; }

  // Where the states i at the start of a block are.
  int64_t start_of(int64_t number, int64_t i) const { return ((b * s.blocks() + number) * s.N + i) * s.dim + first; }

  // Step sizes from delta, in place, and their slopes unless null.
  ALWAYS_INLINE void sizes(V* dt, V* slope, int64_t n) const {
    for (int64_t t = 0; t < W; ++t) {
      if (s.soft) {
        dt[t] = softplus(dt[t] + shift, slope ? slope + t : nullptr);
      } else {
        dt[t] += shift;
        if (slope) slope[t] = V{} + T(1);
      }
    }
    for (int64_t t = n; t < W; ++t) {
      dt[t] = V{};
      if (slope) slope[t] = V{};
    }
  }

  // Steps [start, start + n) of a row of B or C; of a piece that is not whole, a copy filled up with zeros.
  const T* shared(const T* from, int64_t i, int64_t start, int64_t n, T* spare) const {
    const T* at = from + (group * s.N + i) * s.L + start;
    if (n >= W) return at;
    std::fill_n(std::copy_n(at, n, spare), W - n, T(0));
    return spare;
  }
};

template <typename T, int W>
void forward_tile(const Tile<T, W>& tile, T* y, T* last, T* starts) {
  using V = Lanes<T, W>;
  const Shape<T>& s = tile.s;
  std::vector<V> decay(s.N), state(s.N, V{});
  for (int64_t i = 0; i < s.N; ++i) decay[i] = tile.each(s.A, s.N, i) * LOG2E<T>;
  for (int64_t start = 0; start < s.L; start += W) {
    const int64_t n = std::min<int64_t>(W, s.L - start), ahead = start + 8 * W < s.L ? 8 * W : 0;
    if (start % s.block == 0)
      for (int64_t i = 0; i < s.N; ++i)
        std::memcpy(starts + tile.start_of(start / s.block, i), &state[i], tile.used * sizeof(T));
    V u[W], dt[W], out[W];
    tile.load(s.u, start, n, ahead, u);
    tile.load(s.delta, start, n, ahead, dt);
    tile.sizes(dt, nullptr, n);
    for (int64_t t = 0; t < W; ++t) {
      out[t] = tile.skip * u[t];
      u[t] *= dt[t];
    }
    for (int64_t i = 0; i < s.N; ++i) {
      T spare[2][W];
      const T *B = tile.shared(s.B, i, start, n, spare[0]), *C = tile.shared(s.C, i, start, n, spare[1]);
      const V power = decay[i];
      V h = state[i];
      for (int64_t t = 0; t < W; ++t) {
        h = power_of_two(dt[t], power, tile.grows) * h + u[t] * B[t];
        out[t] += h * C[t];
      }
      state[i] = h;
    }
    tile.store(out, start, n, ahead, y);
  }
  for (int64_t i = 0; i < s.N; ++i)
    for (int64_t c = 0; c < tile.used; ++c) last[(tile.row + c) * s.N + i] = state[i][c];
}

template <typename T>
struct Gradients {
  T *u, *delta;         // (batch, dim, L)
  T *A, *D, *bias;      // (batch, dim, N), (batch, dim), (batch, dim): summed over the batch by the caller
  T *B, *C;             // (splits, batch, groups, N, L): summed over splits by the caller
  const T *y, *last;    // of the loss: (batch, dim, L), (batch, dim, N)
};

// What the gradient needs to know of a step. Side by side: arrays of a power of two of bytes would share cache lines.
template <typename V>
struct Step {
  V u, dt, slope, dy, a, h;  // the decay, and the state before the step
  V through_x, through_a;    // the gradient of dt u, and of dt by way of a; sums over the states up to now
};

template <typename T, int W>
void backward_tile(const Tile<T, W>& tile, const Gradients<T>& g, int64_t split, const T* starts) {
  using V = Lanes<T, W>;
  const Shape<T>& s = tile.s;
  std::vector<V> all_A(s.N), carries(s.N, V{}), dA(s.N, V{});
  for (int64_t i = 0; i < s.N; ++i) all_A[i] = tile.each(s.A, s.N, i);
  V dD{}, dbias{};
  for (int64_t i = 0; i < s.N; ++i)
    for (int64_t c = 0; c < tile.used; ++c) carries[i][c] = g.last[(tile.row + c) * s.N + i];
  Step<V> block[LONGEST];
  for (int64_t number = s.blocks(); number-- > 0;) {
    const int64_t from = number * s.block, steps = std::min(s.block, s.L - from), end = (steps + W - 1) / W * W;
    for (int64_t at = end - W; at >= 0; at -= W) {  // downwards, for that is how the hardware reads ahead here
      const int64_t start = from + at, n = steps - at, ahead = tile.back(start);
      V u[W], dt[W], slope[W], dy[W];
      tile.load(s.u, start, n, ahead, u);
      tile.load(s.delta, start, n, ahead, dt);
      tile.load(g.y, start, n, ahead, dy);
      tile.sizes(dt, slope, n);
      for (int64_t t = 0; t < W; ++t) {
        Step<V>& step = block[at + t];
        step.u = u[t];
        step.dt = dt[t];
        step.slope = slope[t];
        step.dy = dy[t];
        dD += dy[t] * u[t];
      }
    }
    for (int64_t i = 0; i < s.N; ++i) {
      const bool fresh = i == 0, done = i + 1 == s.N;  // whether through_* are still to be set, and complete after this
      const V A = all_A[i], power = A * LOG2E<T>;
      V h{}, later = carries[i], sum{};
      std::memcpy(&h, starts + tile.start_of(number, i), tile.used * sizeof(T));
      T spare[2][W];
      for (int64_t at = 0; at < end; at += W) {
        const T* B = tile.shared(s.B, i, from + at, steps - at, spare[0]);
        for (int64_t t = 0; t < W; ++t) {
          Step<V>& step = block[at + t];
          step.h = h;
          step.a = power_of_two(step.dt, power, tile.grows);
          h = step.a * h + step.dt * step.u * B[t];
        }
      }
      for (int64_t at = end - W; at >= 0; at -= W) {
        const int64_t n = std::min<int64_t>(W, steps - at), ahead = tile.back(from + at);
        const T* B = tile.shared(s.B, i, from + at, n, spare[0]);
        const T* C = tile.shared(s.C, i, from + at, n, spare[1]);
        V dB[W], dC[W], du[W], ddelta[W];
        for (int64_t t = W; t-- > 0;) {
          Step<V>& step = block[at + t];
          const V G = step.dy * C[t] + later;
          dC[t] = step.dy * h;
          h = step.h;
          later = step.a * G;
          dB[t] = G * (step.dt * step.u);
          const V turned = later * h;  // dL/da a
          sum += turned * step.dt;
          const V through_x = G * B[t] + (fresh ? V{} : step.through_x);
          const V through_a = turned * A + (fresh ? V{} : step.through_a);
          if (!done) {
            step.through_x = through_x;
            step.through_a = through_a;
            continue;
          }
          ddelta[t] = (through_a + through_x * step.u) * step.slope;
          du[t] = through_x * step.dt + tile.skip * step.dy;
          dbias += ddelta[t];
        }
        const int64_t row = ((split * s.batch * s.groups + tile.group) * s.N + i) * s.L + from + at;
        const V total_B = sum_lanes<T, W>(dB), total_C = sum_lanes<T, W>(dC);
        for (int64_t t = 0; t < n; ++t) g.B[row + t] += total_B[t];
        for (int64_t t = 0; t < n; ++t) g.C[row + t] += total_C[t];
        if (!done) continue;
        tile.store(du, from + at, n, ahead, g.u);
        tile.store(ddelta, from + at, n, ahead, g.delta);
      }
      carries[i] = later;
      dA[i] += sum;
    }
  }
  for (int64_t c = 0; c < tile.used; ++c) {
    for (int64_t i = 0; i < s.N; ++i) g.A[(tile.row + c) * s.N + i] = dA[i][c];
    g.D[tile.row + c] = dD[c];
    g.bias[tile.row + c] = dbias[c];
  }
}

// Calls work(tile) for channels [first, end) of a group: as wide as vectors are, then of the narrowest ones.
template <typename T, typename Work>
void tiles(const Shape<T>& s, int64_t b, int64_t first, int64_t end, Work work) {
  constexpr int WIDE = VECTOR_BYTES / sizeof(T), NARROW = 16 / sizeof(T);
  const auto left = [&](int64_t most) { return std::min(most, end - first); };
  for (; end - first > WIDE - NARROW; first += WIDE) work(Tile<T, WIDE>{s, b, first, left(WIDE)});
  for (; first < end; first += NARROW) work(Tile<T, NARROW>{s, b, first, left(NARROW)});
}

template <typename T>
void forward(const Shape<T>& s, T* y, T* last, T* starts, int threads) {
  constexpr int64_t WIDE = VECTOR_BYTES / sizeof(T);
  const int64_t per_group = s.dim / s.groups, parts = (per_group + WIDE - 1) / WIDE;
  parallel_for(s.batch * s.groups * parts, threads, [&](int64_t task) {
    const int64_t b = task / (s.groups * parts), group = task / parts % s.groups, part = task % parts;
    const int64_t first = group * per_group + part * WIDE, end = std::min(first + WIDE, (group + 1) * per_group);
    tiles(s, b, first, end, [&](const auto& tile) { forward_tile(tile, y, last, starts); });
  });
}

template <typename T>
void backward(const Shape<T>& s, const Gradients<T>& g, const T* starts, int64_t splits, int threads) {
  const int64_t per_group = s.dim / s.groups;
  parallel_for(s.batch * s.groups * splits, threads, [&](int64_t task) {
    const int64_t b = task / (s.groups * splits), group = task / splits % s.groups, split = task % splits;
    const int64_t first = group * per_group + per_group * split / splits;
    const int64_t end = group * per_group + per_group * (split + 1) / splits;
    tiles(s, b, first, end, [&](const auto& tile) { backward_tile(tile, g, split, starts); });
  });
}

}  // namespace

#define EXPORT(T, name)                                                                                                \
  extern "C" void scan_forward_##name(const T* u, const T* delta, const T* A, const T* B, const T* C, const T* D,      \
                                      const T* bias, T* y, T* last, T* starts, int64_t batch, int64_t dim,             \
                                      int64_t groups, int64_t N, int64_t L, int64_t block, int soft, int threads) {    \
    const Shape<T> s{u, delta, A, B, C, D, bias, batch, dim, groups, N, L, block, soft != 0};                          \
    forward(s, y, last, starts, threads);                                                                              \
  }                                                                                                                    \
  extern "C" void scan_backward_##name(const T* u, const T* delta, const T* A, const T* B, const T* C, const T* D,     \
                                       const T* bias, const T* starts, const T* dy, const T* dlast, T* du, T* ddelta,  \
                                       T* dA, T* dB, T* dC, T* dD, T* dbias, int64_t batch, int64_t dim,               \
                                       int64_t groups, int64_t N, int64_t L, int64_t block, int soft, int64_t splits,  \
                                       int threads) {                                                                  \
    const Shape<T> s{u, delta, A, B, C, D, bias, batch, dim, groups, N, L, block, soft != 0};                          \
    backward(s, Gradients<T>{du, ddelta, dA, dD, dbias, dB, dC, dy, dlast}, starts, splits, threads);                  \
  }

EXPORT(float, f32)
EXPORT(double, f64)
