// Vectors of W numbers as GCC and clang have them on every processor, and what the scan does with them.
#pragma once
#include <type_traits>
#include <utility>

#include "kernel.hpp"

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

template <typename T>
constexpr T LOG2E = T(1.4426950408889634);

// Lanes of a and b in turn, from their lower halves (UPPER = 0) or their upper halves (UPPER = W / 2).
template <int UPPER, typename V, size_t... I>
ALWAYS_INLINE V zip(V a, V b, std::index_sequence<I...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, (I / 2 + I % 2 * sizeof...(I) + UPPER)...);
#else
  return __builtin_shuffle(a, b, decltype(a < b){(I / 2 + I % 2 * sizeof...(I) + UPPER)...});
#endif
}

// The W by W matrix with rows v, transposed: every round is a perfect shuffle of all its W^2 numbers.
template <typename T, int W>
ALWAYS_INLINE void transpose(Lanes<T, W>* v) {
  constexpr std::make_index_sequence<W> all;
  for (int round = 1; round < W; round *= 2) {
    Lanes<T, W> next[W];
    for (int i = 0; i < W / 2; ++i) {
      next[2 * i] = zip<0>(v[i], v[i + W / 2], all);
      next[2 * i + 1] = zip<W / 2>(v[i], v[i + W / 2], all);
    }
    for (int i = 0; i < W; ++i) v[i] = next[i];
  }
}

// Lane i is the sum of the lanes of v[i]; v is lost.
template <typename T, int W>
ALWAYS_INLINE Lanes<T, W> sum_lanes(Lanes<T, W>* v) {
  constexpr std::make_index_sequence<W> all;
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) v[i] = zip<0>(v[i], v[i + half], all) + zip<W / 2>(v[i], v[i + half], all);
  return v[0];
}

// 2^(x k), of which the product is not rounded where there is a multiply-add; within 2 units in the last place. 0 below
// 2^-126. Where x k may reach 128, `grows` makes it infinite.
template <typename V>
ALWAYS_INLINE V power_of_two(V x, V k, bool grows) {
  if constexpr (sizeof(x[0]) == sizeof(double)) {
    for (size_t i = 0; i < sizeof(V) / sizeof(double); ++i) x[i] = std::exp2(x[i] * k[i]);
    return x;
  } else {
    using Bits = decltype(x < x);
    const V zero{};
    const V shifted = x * k + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number, which stands in the lowest bits
    const V r = x * k - (shifted - 12582912.0f);
    V p = r * 1.5353361951e-4f + 1.3398874404e-3f;
    p = p * r + 9.6184373574e-3f;
    p = p * r + 5.5503324712e-2f;
    p = p * r + 2.4022647914e-1f;
    p = p * r + 6.9314720286e-1f;
    p = p * r + 1.0f;
    p = (V)((Bits)p + ((Bits)shifted << 23));  // the whole number goes into the exponent
    p = shifted < 12582912.0f - 126.0f ? zero : p;
    if (grows) p = shifted > 12582912.0f + 127.0f ? zero + HUGE_VALF : p;
    return p;
  }
}

// log(1 + y) for y in [0, 1].
template <typename V>
ALWAYS_INLINE V log_one_plus(V y) {
  if constexpr (sizeof(y[0]) == sizeof(double)) {
    for (size_t i = 0; i < sizeof(V) / sizeof(double); ++i) y[i] = std::log1p(y[i]);
    return y;
  } else {
    V p = y * 5.3661867426e-3f - 3.0071457172e-2f;
    p = p * y + 7.9214169631e-2f;
    p = p * y - 1.3754662804e-1f;
    p = p * y + 1.9154085247e-1f;
    p = p * y - 2.4857281986e-1f;
    p = p * y + 3.3321338739e-1f;
    p = p * y - 4.9999648768e-1f;
    p = p * y + 1.0f;
    return p * y;
  }
}

// softplus(x), and unless null its slope, sigmoid(x), from one exponential.
template <typename V>
ALWAYS_INLINE V softplus(V x, V* slope) {
  using T = std::remove_reference_t<decltype(x[0])>;
  const V zero{}, one = zero + T(1);
  const V e = power_of_two(x > zero ? -x : x, zero + LOG2E<T>, false);
  if (slope) *slope = (x > zero ? one : e) / (one + e);
  return (x > zero ? x : zero) + log_one_plus(e);
}
