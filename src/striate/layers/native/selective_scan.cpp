// The selective scan and its gradient in one pass over the data.
//
// Everything is contiguous: u, delta, y (batch, dim, L); A (dim, N); B, C (batch, groups, N, L); D, bias (dim) or null;
// last (batch, dim, N); starts (batch, blocks, N, dim), the state at the start of every `block` steps.
// A task takes W channels of one group, one in each lane of a vector, along the whole sequence: a step of the
// recurrence is then one multiply-add for all of them, next to exponentials that do not wait for it. Rows are
// transposed in registers on the way in and out, W steps at a time. Steps and channels past the end are zeros, with a
// step size of zero: they leave every state and every sum as it is.
#include "scan_tile.hpp"

namespace {

template <typename T, int W>
void forward_tile(const Tile<T, W>& tile, T* y, T* last, T* starts) {
  using V = Lanes<T, W>;
  constexpr int K = QUAD<T>;
  const Shape<T>& s = tile.s;
  std::vector<V> state(s.N, V{});
  const std::vector<Exponent<V>> decays = tile.decays();
  std::vector<T> B(s.N * W), C(s.N * W);
  for (int64_t start = 0; start < s.L; start += W) {
    const int64_t n = std::min<int64_t>(W, s.L - start), ahead = start + AHEAD<T> < s.L ? AHEAD<T> : 0;
    if (start % s.block == 0)
      for (int64_t i = 0; i < s.N; ++i)
        std::memcpy(starts + tile.start_of(start / s.block, i), &state[i], tile.used * sizeof(T));
    V u[W], dt[W], out[W];
    tile.load(s.u, start, n, ahead, u);
    tile.load(s.delta, start, n, ahead, dt);
    tile.shared(s.B, start, n, B.data());
    tile.shared(s.C, start, n, C.data());
    for (int64_t at = 0; at < W; at += K) {
      turn<T, W>(u + at);
      turn<T, W>(dt + at);
      tile.sizes(dt + at, nullptr, n - at);
    }
    for (int64_t at = 0; at < W; at += K) {
      V x[K], sum[K], a[K];
      for (int t = 0; t < K; ++t) sum[t] = tile.skip * u[at + t];
      for (int t = 0; t < K; ++t) x[t] = dt[at + t] * u[at + t];
      for (int64_t i = 0; i < s.N; ++i) {
        const T *b = &B[i * W + at], *c = &C[i * W + at];
        power_of_two<K>(dt + at, decays[i], a);
        V h = state[i];
        for (int t = 0; t < K; ++t) {
          h = a[t] * h + x[t] * b[t];
          sum[t] += h * c[t];
        }
        state[i] = h;
      }
      turn<T, W>(sum);
      for (int t = 0; t < K; ++t) out[at + t] = sum[t];
    }
    tile.store(out, start, n, ahead, y);
  }
  for (int64_t i = 0; i < s.N; ++i)
    for (int64_t c = 0; c < tile.used; ++c) last[(tile.row + c) * s.N + i] = state[i][c];
  streamed();
}

template <typename T>
struct Gradients {
  T *u, *delta;         // (batch, dim, L)
  T *A, *D, *bias;      // (dim, N), (dim), (dim); of a tile (batch, dim, N), (batch, dim), (batch, dim)
  T *B, *C;             // (splits, batch, groups, N, L): summed over splits by the caller
  const T *y, *last;    // of the loss: (batch, dim, L), (batch, dim, N) or null
};

// What the gradient needs to know of a step. Side by side: arrays of a power of two of bytes would share cache lines.
template <typename V>
struct Step {
  V u, dt, slope, dy, x;     // x: dt u
  V a, h;                    // of one state: the decay, and the state before the step
  V through_x, through_a;    // the gradient of x, and of dt by way of a; sums over the states up to now
};

template <typename T, int W>
void backward_tile(const Tile<T, W>& tile, const Gradients<T>& g, int64_t split, bool opens, const T* starts) {
  using V = Lanes<T, W>;
  constexpr int K = QUAD<T>;
  const Shape<T>& s = tile.s;
  std::vector<V> all_A(s.N), carries(s.N, V{}), dA(s.N, V{});
  std::vector<T> all_B(LONGEST * s.N), all_C(LONGEST * s.N);
  for (int64_t i = 0; i < s.N; ++i) all_A[i] = tile.each(s.A, s.N, i);
  const std::vector<Exponent<V>> decays = tile.decays();
  V dD{}, dbias{};
  for (int64_t i = 0; i < s.N; ++i)
    for (int64_t c = 0; g.last && c < tile.used; ++c) carries[i][c] = g.last[(tile.row + c) * s.N + i];
  Step<V> block[LONGEST];
  for (int64_t number = s.blocks(); number-- > 0;) {
    const int64_t from = number * s.block, steps = std::min(s.block, s.L - from), end = (steps + W - 1) / W * W;
    for (int64_t first = end - W; first >= 0; first -= W) {  // downwards, for that is how the hardware reads ahead here
      const int64_t start = from + first, n = std::min<int64_t>(W, steps - first), ahead = tile.back(start);
      V u[W], delta[W], dy[W];
      tile.load(s.u, start, n, ahead, u);
      tile.load(s.delta, start, n, ahead, delta);
      tile.load(g.y, start, n, ahead, dy);
      tile.shared(s.B, start, n, &all_B[first * s.N]);
      tile.shared(s.C, start, n, &all_C[first * s.N]);
      for (int64_t at = 0; at < W; at += K) {
        V slope[K];
        turn<T, W>(u + at);
        turn<T, W>(delta + at);
        turn<T, W>(dy + at);
        tile.sizes(delta + at, slope, n - at);
        for (int t = 0; t < K; ++t) {
          Step<V>& step = block[first + at + t];
          step.u = u[at + t];
          step.dt = delta[at + t];
          step.slope = slope[t];
          step.dy = dy[at + t];
          step.x = step.dt * step.u;
          dD += step.dy * step.u;
        }
      }
    }
    for (int64_t i = 0; i < s.N; ++i) {
      const bool fresh = i == 0, done = i + 1 == s.N;  // whether through_* are still to be set, and complete after this
      const V A = all_A[i];
      V h{}, later = carries[i], sum{};
      std::memcpy(&h, starts + tile.start_of(number, i), tile.used * sizeof(T));
      for (int64_t at = 0; at < end; at += K) {
        const T* b = &all_B[at / W * W * s.N + i * W + at % W];
        V dt[K], a[K];
        for (int t = 0; t < K; ++t) dt[t] = block[at + t].dt;
        power_of_two<K>(dt, decays[i], a);
        for (int t = 0; t < K; ++t) {
          Step<V>& step = block[at + t];
          step.h = h;
          step.a = a[t];
          h = a[t] * h + step.x * b[t];
        }
      }
      for (int64_t first = end - W; first >= 0; first -= W) {
        const int64_t n = std::min<int64_t>(W, steps - first), ahead = tile.back(from + first);
        V dB[W / K], dC[W / K], du[W], ddelta[W];
        for (int64_t at = W - K; at >= 0; at -= K) {
          const T *b = &all_B[first * s.N + i * W + at], *c = &all_C[first * s.N + i * W + at];
          V part_B[K], part_C[K], through_x[K], through_a[K];
          for (int t = K; t-- > 0;) {
            const Step<V>& step = block[first + at + t];
            const V G = step.dy * c[t] + later;
            part_C[t] = step.dy * h;
            h = step.h;
            later = step.a * G;
            part_B[t] = G * step.x;
            const V turned = later * h;  // dL/da a
            sum += turned * step.dt;
            through_x[t] = G * b[t];
            through_a[t] = turned * A;
          }
          dB[at / K] = sum_quad<T, W>(part_B);
          dC[at / K] = sum_quad<T, W>(part_C);
          if (!fresh) {
            for (int t = 0; t < K; ++t) through_x[t] += block[first + at + t].through_x;
            for (int t = 0; t < K; ++t) through_a[t] += block[first + at + t].through_a;
          }
          if (!done) {
            for (int t = 0; t < K; ++t) block[first + at + t].through_x = through_x[t];
            for (int t = 0; t < K; ++t) block[first + at + t].through_a = through_a[t];
            continue;
          }
          for (int t = 0; t < K; ++t) {
            const Step<V>& step = block[first + at + t];
            ddelta[at + t] = (through_a[t] + through_x[t] * step.u) * step.slope;
            du[at + t] = through_x[t] * step.dt + tile.skip * step.dy;
            dbias += ddelta[at + t];
          }
          turn<T, W>(du + at);
          turn<T, W>(ddelta + at);
        }
        const int64_t row = ((split * s.batch * s.groups + tile.group) * s.N + i) * s.L + from + first;
        const V total_B = sum_squares<T, W>(dB), total_C = sum_squares<T, W>(dC);
        tile.add(total_B, n, opens, g.B + row);
        tile.add(total_C, n, opens, g.C + row);
        if (!done) continue;
        tile.store(du, from + first, n, ahead, g.u);
        tile.store(ddelta, from + first, n, ahead, g.delta);
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
  streamed();
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
void sum_over_batch(const T* from, int64_t batch, int64_t n, T* to) {
  std::fill_n(to, n, T(0));
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < n; ++i) to[i] += from[b * n + i];
}

template <typename T>
void backward(const Shape<T>& s, const Gradients<T>& g, const T* starts, int64_t splits, int threads) {
  const int64_t per_group = s.dim / s.groups, all = s.batch * s.dim;
  std::vector<T> parts(all * (s.N + 2));  // of an image
  Gradients<T> part = g;
  part.A = parts.data();
  part.D = part.A + all * s.N;
  part.bias = part.D + all;
  parallel_for(s.batch * s.groups * splits, threads, [&](int64_t task) {
    const int64_t b = task / (s.groups * splits), group = task / splits % s.groups, split = task % splits;
    const int64_t first = group * per_group + per_group * split / splits;
    const int64_t end = group * per_group + per_group * (split + 1) / splits;
    tiles(s, b, first, end, [&](const auto& tile) { backward_tile(tile, part, split, tile.first == first, starts); });
  });
  sum_over_batch(part.A, s.batch, s.dim * s.N, g.A);
  sum_over_batch(part.D, s.batch, s.dim, g.D);
  sum_over_batch(part.bias, s.batch, s.dim, g.bias);
}

}  // namespace

#define EXPORT(T, name)                                                                                                \
  extern "C" void scan_forward_##name(const T* u, const T* delta, const T* A, const T* B, const T* C, const T* D,      \
                                      const T* bias, T* y, T* last, T* starts, int64_t batch, int64_t dim,             \
                                      int64_t groups, int64_t N, int64_t L, int64_t block, int64_t soft,               \
                                      int64_t threads, int64_t) {                                                      \
    const Shape<T> s{u, delta, A, B, C, D, bias, batch, dim, groups, N, L, block, soft != 0};                          \
    forward(s, y, last, starts, threads);                                                                              \
  }                                                                                                                    \
  extern "C" void scan_backward_##name(const T* u, const T* delta, const T* A, const T* B, const T* C, const T* D,     \
                                       const T* bias, const T* starts, const T* dy, const T* dlast, T* du, T* ddelta,  \
                                       T* dA, T* dB, T* dC, T* dD, T* dbias, int64_t batch, int64_t dim,               \
                                       int64_t groups, int64_t N, int64_t L, int64_t block, int64_t soft,              \
                                       int64_t threads, int64_t splits) {                                              \
    const Shape<T> s{u, delta, A, B, C, D, bias, batch, dim, groups, N, L, block, soft != 0};                          \
    backward(s, Gradients<T>{du, ddelta, dA, dD, dbias, dB, dC, dy, dlast}, starts, splits, threads);                  \
  }

EXPORT(float, f32)
EXPORT(double, f64)
