// Vectors of W numbers as GCC and clang have them on every processor, and how their lanes are moved.
#pragma once
#include <type_traits>
#include <utility>

#include "kernel.hpp"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define ALWAYS_INLINE __attribute__((always_inline)) inline

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

template <typename T, int W>
struct LanesOf {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
};
template <typename T, int W>
using Lanes = typename LanesOf<T, W>::type;

// Lanes in 16 bytes: shuffles that stay within these are the fastest everywhere.
template <typename T>
constexpr int QUAD = 16 / sizeof(T);

// Which of the 2 W lanes of two vectors goes to lane i: those of the lower (UPPER = 0) or upper halves of every QUAD in
// turn, and every second QUAD. Each is one instruction.
template <int W, int K, int UPPER>
struct Zip {
  static constexpr int at(int i) { return i / K * K + UPPER * K / 2 + i % K / 2 + i % 2 * W; }
};
template <int W, int K, int UPPER>
struct Unzip {
  static constexpr int at(int i) { return (i / K * 2 + UPPER) * K + i % K; }
};

template <typename From, typename V, size_t... I>
ALWAYS_INLINE V shuffle(V a, V b, std::index_sequence<I...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, From::at(I)...);
#else
  return __builtin_shuffle(a, b, decltype(a < b){From::at(I)...});
#endif
}

template <typename T, int W, int UPPER>
ALWAYS_INLINE Lanes<T, W> zip(Lanes<T, W> a, Lanes<T, W> b) {
  return shuffle<Zip<W, QUAD<T>, UPPER>>(a, b, std::make_index_sequence<W>());
}

template <typename T, int W, int UPPER>
ALWAYS_INLINE Lanes<T, W> unzip(Lanes<T, W> a, Lanes<T, W> b) {
  return shuffle<Unzip<W, QUAD<T>, UPPER>>(a, b, std::make_index_sequence<W>());
}

// A W by W matrix consists of QUAD by QUAD squares. It is transposed by `exchange` of the squares, for which v are the
// rows of one number in all squares below each other, and by `turn` of every square, for which v are the QUAD rows of
// all squares beside each other, in any order. So few vectors are in use at a time that they stay in registers.
template <typename T, int W>
ALWAYS_INLINE void exchange(Lanes<T, W>* v) {
  constexpr int SQUARES = W / QUAD<T>;
  for (int round = 1; round < SQUARES; round *= 2) {
    Lanes<T, W> next[SQUARES];
    for (int i = 0; i < SQUARES / 2; ++i) {
      next[i] = unzip<T, W, 0>(v[2 * i], v[2 * i + 1]);
      next[i + SQUARES / 2] = unzip<T, W, 1>(v[2 * i], v[2 * i + 1]);
    }
    for (int i = 0; i < SQUARES; ++i) v[i] = next[i];
  }
}

template <typename T, int W>
ALWAYS_INLINE void turn(Lanes<T, W>* v) {
  constexpr int K = QUAD<T>;
  for (int round = 1; round < K; round *= 2) {
    Lanes<T, W> next[K];
    for (int i = 0; i < K / 2; ++i) {
      next[2 * i] = zip<T, W, 0>(v[i], v[i + K / 2]);
      next[2 * i + 1] = zip<T, W, 1>(v[i], v[i + K / 2]);
    }
    for (int i = 0; i < K; ++i) v[i] = next[i];
  }
}

// The sums of the lanes of W vectors, one in each lane: `sum_quad` of every QUAD of them, then `sum_squares` of these.
template <typename T, int W>
ALWAYS_INLINE Lanes<T, W> sum_quad(Lanes<T, W>* v) {
  for (int half = QUAD<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) v[i] = zip<T, W, 0>(v[i], v[i + half]) + zip<T, W, 1>(v[i], v[i + half]);
  return v[0];
}

template <typename T, int W>
ALWAYS_INLINE Lanes<T, W> sum_squares(Lanes<T, W>* v) {
  for (int half = W / QUAD<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i)
      v[i] = unzip<T, W, 0>(v[2 * i], v[2 * i + 1]) + unzip<T, W, 1>(v[2 * i], v[2 * i + 1]);
  return v[0];
}

// Past the caches, in lines that are then not read first. Other threads see it after `streamed`.
constexpr bool CAN_STREAM = VECTOR_BYTES == 64;  // a whole line at a time

template <typename V>
ALWAYS_INLINE void stream(V v, void* to) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) return _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)v);
#endif
  std::memcpy(to, &v, sizeof(V));
}

inline void streamed() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}
