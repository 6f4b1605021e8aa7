// What the selective scan reads and writes, W channels at a time.
#pragma once
#include "exponentials.hpp"

constexpr int64_t LONGEST = 64;  // steps of a block

template <typename T>
constexpr int64_t AHEAD = 192 / sizeof(T);  // what is asked for early: three lines; two to four are alike, eight slower

template <typename T>
struct Shape {
  const T *u, *delta, *A, *B, *C, *D, *bias;
  int64_t batch, dim, groups, N, L, block;  // block: a multiple of every W, at most LONGEST
  bool soft;
  int64_t blocks() const { return (L + block - 1) / block; }

  // Whether a result of the size of u is better not kept in the caches: at 2 MB that makes no difference any more to
  // work that reads it right afterwards, at 10 MB both together take 8 % less time.
  bool streams(const T* to) const {
    return CAN_STREAM && batch * dim * L * sizeof(T) >= 1 << 21 && L * sizeof(T) % 64 == 0 && uintptr_t(to) % 64 == 0;
  }
};

// W channels of one group; only the first `used` exist.
template <typename T, int W>
struct Tile {
  using V = Lanes<T, W>;
  static constexpr int K = QUAD<T>, SQUARES = W / K;
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

  // exp(A dt) of every state.
  std::vector<Exponent<V>> decays() const {
    std::vector<Exponent<V>> found;
    for (int64_t i = 0; i < s.N; ++i) found.emplace_back(each(s.A, s.N, i) * LOG2E<T>, grows);
    return found;
  }

  bool any_positive() const {
    const T* from = s.A + first * s.N;
    return std::any_of(from, from + used * s.N, [](T a) { return a > 0; });
  }

  template <bool WHOLE>
  ALWAYS_INLINE void load(const T* from, int64_t n, int64_t ahead, V* steps) const {
    const int64_t stride = s.L;
    for (int r = 0; r < K; ++r) {
      V part[SQUARES];
      for (int i = 0; i < SQUARES; ++i) {
        const int c = i * K + r;
        const T* at = from + c * stride;
        if constexpr (WHOLE) {  // a size known to the compiler is one instruction
          std::memcpy(&part[i], at, sizeof(V));
          __builtin_prefetch(at + ahead, 0, 1);
        } else {
          part[i] = V{};
          if (c < used) std::memcpy(&part[i], at, std::min<int64_t>(n, W) * sizeof(T));
        }
      }
      exchange<T, W>(part);
      for (int i = 0; i < SQUARES; ++i) steps[i * K + r] = part[i];
    }
  }

  template <bool WHOLE>
  ALWAYS_INLINE void store(const V* steps, int64_t n, int64_t ahead, bool streaming, T* to) const {
    const int64_t stride = s.L;
    for (int r = 0; r < K; ++r) {
      V part[SQUARES];
      for (int i = 0; i < SQUARES; ++i) part[i] = steps[i * K + r];
      exchange<T, W>(part);
      for (int i = 0; i < SQUARES; ++i) {
        const int c = i * K + r;
        T* at = to + c * stride;
        if constexpr (WHOLE) {
          if (streaming) {
            stream(part[i], at);
          } else {
            std::memcpy(at, &part[i], sizeof(V));
            __builtin_prefetch(at + ahead, 1, 1);
          }
        } else if (c < used) {
          std::memcpy(at, &part[i], std::min<int64_t>(n, W) * sizeof(T));
        }
      }
    }
  }

  // Steps [start, start + n) of every channel; after a `turn` of its quad, steps[t] holds step start + t. The rows are
  // far apart, and more than hardware foresees: what lies `ahead` steps from start is asked for here, into the outer
  // caches.
  ALWAYS_INLINE void load(const T* from, int64_t start, int64_t n, int64_t ahead, V* steps) const {
    from += row * s.L + start;
    used == W && n >= W ? load<true>(from, n, ahead, steps) : load<false>(from, n, ahead, steps);
  }

  // The reverse, of quads that are turned back.
  ALWAYS_INLINE void store(const V* steps, int64_t start, int64_t n, int64_t ahead, T* to) const {
    const bool streaming = sizeof(V) == 64 && s.streams(to);
    to += row * s.L + start;
    used == W && n >= W ? store<true>(steps, n, ahead, streaming, to) : store<false>(steps, n, ahead, streaming, to);
  }

  // Steps [0, n) of a sum over channels, to which this tile is the first to contribute or not.
  ALWAYS_INLINE void add(V part, int64_t n, bool first, T* to) const {
    if (n < W) {
      for (int64_t t = 0; t < n; ++t) to[t] = first ? part[t] : to[t] + part[t];
    } else {
      V sum{};
      if (!first) std::memcpy(&sum, to, sizeof(V));
      sum += part;
      std::memcpy(to, &sum, sizeof(V));
    }
  }

  // How far to ask ahead when going backwards.
  static int64_t back(int64_t start) { return start < AHEAD<T> ? 0 : -AHEAD<T>; }

  // Where the states i at the start of a block are.
  int64_t start_of(int64_t number, int64_t i) const { return ((b * s.blocks() + number) * s.N + i) * s.dim + first; }

  // The next step sizes from delta, in place, and their slopes unless null; only n are before the end.
  ALWAYS_INLINE void sizes(V* dt, V* slope, int64_t n) const {
    for (int t = 0; t < K; ++t) dt[t] += shift;
    if (s.soft) {
      softplus<K>(dt, slope);
    } else {
      for (int t = 0; slope && t < K; ++t) slope[t] = V{} + T(1);
    }
    for (int t = 0; n < K && t < K; ++t) {
      if (t < n) continue;
      dt[t] = V{};
      if (slope) slope[t] = V{};
    }
  }

  // Steps [start, start + n) of all rows of B or C, W each, with zeros past the end.
  void shared(const T* from, int64_t start, int64_t n, T* to) const {
    for (int64_t i = 0; i < s.N; ++i, to += W) {
      const T* at = from + (group * s.N + i) * s.L + start;
      if (n >= W) {
        std::memcpy(to, at, sizeof(V));
      } else {
        std::fill_n(std::copy_n(at, n, to), W - n, T(0));
      }
    }
  }
};
