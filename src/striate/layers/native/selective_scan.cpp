// The selective scan and its gradient in one pass over the data.
//
// Everything is contiguous: u, delta, y (batch, dim, L); A (dim, N); B, C (batch, groups, N, L); D, bias (dim) or null;
// last (batch, dim, N); starts (batch, dim, blocks, N), the state at the start of every block of L.
// A task takes W channels of one group through all blocks. Within a block what does not depend on the state is done for
// the whole block with vector instructions; the recurrence itself runs W independent chains side by side, which hides
// the latency of a multiply-add.
#include "kernel.hpp"

namespace {

constexpr int64_t BLOCK = 128;

template <typename T>
struct Shape {
  const T *u, *delta, *A, *B, *C, *D, *bias;
  int64_t batch, dim, groups, N, L;
  bool soft;
  int64_t blocks() const { return (L + BLOCK - 1) / BLOCK; }
};

// Asks for a block that will be needed next: rows are short and far apart, so that no hardware foresees it.
template <typename T, int WRITE = 0>
void fetch(const T* at, int64_t n) {
  for (int64_t t = 0; t < n; t += 64 / sizeof(T)) __builtin_prefetch(at + t, WRITE, 2);
}

// Step sizes of one channel's block, and their slope by delta.
template <typename T>
void steps(const Shape<T>& s, int64_t b, int64_t d, int64_t start, int64_t n, T* dt, T* slope) {
  const T* delta = s.delta + (b * s.dim + d) * s.L + start;
  const T shift = s.bias ? s.bias[d] : T(0);
  if (s.soft) {
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) dt[t] = softplus(delta[t] + shift, slope[t]);
  } else {
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) dt[t] = delta[t] + shift;
    std::fill_n(slope, n, T(1));
  }
}

template <typename T, int W>
void forward_channels(const Shape<T>& s, int64_t b, int64_t first, T* y, T* last, T* starts) {
  const int64_t group = first / (s.dim / s.groups);
  alignas(64) T dt[W][BLOCK], x[W][BLOCK], a[W][BLOCK], h[W][BLOCK], out[W][BLOCK];
  std::vector<T> state(W * s.N, T(0));
  for (int64_t block = 0; block < s.blocks(); ++block) {
    const int64_t start = block * BLOCK, n = std::min(BLOCK, s.L - start);
    for (int c = 0; c < W; ++c) {
      const int64_t d = first + c;
      const T* u = s.u + (b * s.dim + d) * s.L + start;
      const T skip = s.D ? s.D[d] : T(0);
      const int64_t ahead = std::min(BLOCK, s.L - start - n);
      fetch(u + n, ahead);
      fetch(s.delta + (u - s.u) + n, ahead);
      steps(s, b, d, start, n, dt[c], x[c]);
#pragma omp simd
      for (int64_t t = 0; t < n; ++t) x[c][t] = dt[c][t] * u[t];
#pragma omp simd
      for (int64_t t = 0; t < n; ++t) out[c][t] = skip * u[t];
      std::copy_n(&state[c * s.N], s.N, starts + ((b * s.dim + d) * s.blocks() + block) * s.N);
    }
    for (int64_t i = 0; i < s.N; ++i) {
      const T* B = s.B + ((b * s.groups + group) * s.N + i) * s.L + start;
      const T* C = s.C + ((b * s.groups + group) * s.N + i) * s.L + start;
      for (int c = 0; c < W; ++c) {
        const T decay = s.A[(first + c) * s.N + i];
#pragma omp simd
        for (int64_t t = 0; t < n; ++t) a[c][t] = exponential(dt[c][t] * decay);
#pragma omp simd
        for (int64_t t = 0; t < n; ++t) h[c][t] = x[c][t] * B[t];
      }
      T now[W];
      for (int c = 0; c < W; ++c) now[c] = state[c * s.N + i];
      for (int64_t t = 0; t < n; ++t)
        for (int c = 0; c < W; ++c) h[c][t] = now[c] = a[c][t] * now[c] + h[c][t];
      for (int c = 0; c < W; ++c) {
        state[c * s.N + i] = now[c];
#pragma omp simd
        for (int64_t t = 0; t < n; ++t) out[c][t] += C[t] * h[c][t];
      }
    }
    for (int c = 0; c < W; ++c) std::copy_n(out[c], n, y + (b * s.dim + first + c) * s.L + start);
  }
  std::copy(state.begin(), state.end(), last + (b * s.dim + first) * s.N);
}

template <typename T>
struct Gradients {
  T *u, *delta;         // (batch, dim, L)
  T *A, *D, *bias;      // (batch, dim, N), (batch, dim), (batch, dim): summed over the batch by the caller
  T *B, *C;             // (splits, batch, groups, N, L): summed over splits by the caller
  const T *y, *last;    // of the loss: (batch, dim, L), (batch, dim, N)
};

template <typename T, int W>
void backward_channels(const Shape<T>& s, const Gradients<T>& g, int64_t b, int64_t first, int64_t split, const T* starts) {
  const int64_t group = first / (s.dim / s.groups);
  alignas(64) T slope[W][BLOCK], dt[W][BLOCK], a[W][BLOCK], h[W][BLOCK + 1], G[W][BLOCK], ddt[W][BLOCK], du[W][BLOCK];
  std::vector<T> carry(g.last + (b * s.dim + first) * s.N, g.last + (b * s.dim + first + W) * s.N);
  for (int64_t block = s.blocks(); block-- > 0;) {
    const int64_t start = block * BLOCK, n = std::min(BLOCK, s.L - start);
    for (int c = 0; c < W; ++c) {
      const int64_t d = first + c, at = (b * s.dim + d) * s.L + start;
      const T skip = s.D ? s.D[d] : T(0);
      if (block > 0) {
        for (const T* row : {s.u, s.delta, g.y}) fetch(row + at - BLOCK, BLOCK);
        for (T* row : {g.u, g.delta}) fetch<T, 1>(row + at, n);
      }
      steps(s, b, d, start, n, dt[c], slope[c]);
      T sum = T(0);
#pragma omp simd reduction(+ : sum)
      for (int64_t t = 0; t < n; ++t) sum += g.y[at + t] * s.u[at + t];
      g.D[b * s.dim + d] += sum;
#pragma omp simd
      for (int64_t t = 0; t < n; ++t) {
        du[c][t] = skip * g.y[at + t];
        ddt[c][t] = T(0);
      }
    }
    for (int64_t i = 0; i < s.N; ++i) {
      const int64_t row = ((b * s.groups + group) * s.N + i) * s.L + start;
      const T *B = s.B + row, *C = s.C + row;
      const int64_t apart = split * s.batch * s.groups * s.N * s.L + row;
      T *dB = g.B + apart, *dC = g.C + apart;
      for (int c = 0; c < W; ++c) {
        const int64_t d = first + c, at = (b * s.dim + d) * s.L + start;
        const T decay = s.A[d * s.N + i];
#pragma omp simd
        for (int64_t t = 0; t < n; ++t) a[c][t] = exponential(dt[c][t] * decay);
        h[c][0] = starts[((b * s.dim + d) * s.blocks() + block) * s.N + i];
#pragma omp simd
        for (int64_t t = 0; t < n; ++t) h[c][t + 1] = dt[c][t] * s.u[at + t] * B[t];
#pragma omp simd
        for (int64_t t = 0; t < n; ++t) G[c][t] = g.y[at + t] * C[t];
      }
      T now[W];
      for (int c = 0; c < W; ++c) now[c] = h[c][0];
      for (int64_t t = 0; t < n; ++t)
        for (int c = 0; c < W; ++c) h[c][t + 1] = now[c] = a[c][t] * now[c] + h[c][t + 1];
      for (int c = 0; c < W; ++c) now[c] = carry[c * s.N + i];
      for (int64_t t = n; t-- > 0;)
        for (int c = 0; c < W; ++c) {
          G[c][t] += now[c];
          now[c] = a[c][t] * G[c][t];
        }
      for (int c = 0; c < W; ++c) {
        carry[c * s.N + i] = now[c];
        const int64_t d = first + c, at = (b * s.dim + d) * s.L + start;
        const T decay = s.A[d * s.N + i];
        T sum = T(0);
#pragma omp simd reduction(+ : sum)
        for (int64_t t = 0; t < n; ++t) {
          const T turned = G[c][t] * h[c][t] * a[c][t];  // dL/da a
          sum += turned * dt[c][t];
          const T in = G[c][t] * B[t];
          ddt[c][t] += turned * decay + in * s.u[at + t];
          du[c][t] += in * dt[c][t];
        }
        g.A[(b * s.dim + d) * s.N + i] += sum;
#pragma omp simd
        for (int64_t t = 0; t < n; ++t) {
          dB[t] += G[c][t] * dt[c][t] * s.u[at + t];
          dC[t] += g.y[at + t] * h[c][t + 1];
        }
      }
    }
    for (int c = 0; c < W; ++c) {
      const int64_t d = first + c, at = (b * s.dim + d) * s.L + start;
      T sum = T(0);
#pragma omp simd reduction(+ : sum)
      for (int64_t t = 0; t < n; ++t) {
        const T slow = ddt[c][t] * slope[c][t];
        sum += slow;
        g.delta[at + t] = slow;
      }
      g.bias[b * s.dim + d] += sum;
      std::copy_n(du[c], n, g.u + at);
    }
  }
}

constexpr int64_t CHAINS = 8;  // channels of a task, side by side

template <typename T>
void forward(const Shape<T>& s, T* y, T* last, T* starts, int threads) {
  const int64_t per_group = s.dim / s.groups, parts = (per_group + CHAINS - 1) / CHAINS;
  parallel_for(s.batch * s.groups * parts, threads, [&](int64_t task) {
    const int64_t b = task / (s.groups * parts), group = task / parts % s.groups, part = task % parts;
    const int64_t first = group * per_group + part * CHAINS, end = std::min(first + CHAINS, (group + 1) * per_group);
    if (end - first == CHAINS) return forward_channels<T, CHAINS>(s, b, first, y, last, starts);
    for (int64_t d = first; d < end; ++d) forward_channels<T, 1>(s, b, d, y, last, starts);
  });
}

template <typename T>
void backward(const Shape<T>& s, const Gradients<T>& g, const T* starts, int64_t splits, int threads) {
  const int64_t per_group = s.dim / s.groups;
  parallel_for(s.batch * s.groups * splits, threads, [&](int64_t task) {
    const int64_t b = task / (s.groups * splits), group = task / splits % s.groups, split = task % splits;
    int64_t d = group * per_group + per_group * split / splits;
    const int64_t end = group * per_group + per_group * (split + 1) / splits;
    for (; d + CHAINS <= end; d += CHAINS) backward_channels<T, CHAINS>(s, g, b, d, split, starts);
    for (; d < end; ++d) backward_channels<T, 1>(s, g, b, d, split, starts);
  });
}

}  // namespace

#define EXPORT(T, name)                                                                                                \
  extern "C" void scan_forward_##name(const T* u, const T* delta, const T* A, const T* B, const T* C, const T* D,      \
                                      const T* bias, T* y, T* last, T* starts, int64_t batch, int64_t dim,             \
                                      int64_t groups, int64_t N, int64_t L, int soft, int threads) {                   \
    forward(Shape<T>{u, delta, A, B, C, D, bias, batch, dim, groups, N, L, soft != 0}, y, last, starts, threads);      \
  }                                                                                                                    \
  extern "C" void scan_backward_##name(const T* u, const T* delta, const T* A, const T* B, const T* C, const T* D,     \
                                       const T* bias, const T* starts, const T* dy, const T* dlast, T* du, T* ddelta,  \
                                       T* dA, T* dB, T* dC, T* dD, T* dbias, int64_t batch, int64_t dim,               \
                                       int64_t groups, int64_t N, int64_t L, int soft, int64_t splits, int threads) {  \
    backward(Shape<T>{u, delta, A, B, C, D, bias, batch, dim, groups, N, L, soft != 0},                                \
             Gradients<T>{du, ddelta, dA, dD, dbias, dB, dC, dy, dlast}, starts, splits, threads);                     \
  }                                                                                                                    \
  extern "C" int64_t scan_block_##name() { return BLOCK; }

EXPORT(float, f32)
EXPORT(double, f64)
