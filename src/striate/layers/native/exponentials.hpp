// Exponentials and softplus of G vectors at a time: one alone is a chain of some ten instructions that wait for each
// other, side by side they fill each other's gaps.
#pragma once
#include <limits>

#include "lanes.hpp"

template <typename T>
constexpr T LOG2E = T(1.4426950408889634);

template <typename V>
using Number = std::remove_reference_t<decltype(V{}[0])>;

template <typename V, typename F>
ALWAYS_INLINE V each_lane(V x, F f) {
  for (size_t i = 0; i < sizeof(V) / sizeof(x[0]); ++i) x[i] = f(x[i]);
  return x;
}

// x is a polynomial of itself, from the highest power down.
template <int G, typename V, size_t N>
ALWAYS_INLINE void polynomial(const V* x, const float (&c)[N], V* p) {
  for (int j = 0; j < G; ++j) p[j] = x[j] * c[0] + c[1];
  for (size_t i = 2; i < N; ++i)
    for (int j = 0; j < G; ++j) p[j] = p[j] * x[j] + c[i];
}

// 2^(k x) for one k; where k x may reach 128, `grows`.
template <typename V>
struct Exponent {
  static constexpr auto FINITE = std::numeric_limits<Number<V>>::max();
  V k;
  bool grows;
  V most;  // |x| from which on it is 0 or infinite
  Exponent(V by, bool grows)
      : k(by < -FINITE ? V{} - FINITE : (by > FINITE ? V{} + FINITE : by)),
        grows(grows),
        most(151 / (k < 0 ? -k : k)) {}
};

// p = 2^(k x), of which the product is not rounded where there is a multiply-add; within 2 units in the last place.
// Infinite from 2^128 on; 0 below 2^-126, with AVX-512 below 2^-149.
template <int G, typename V>
ALWAYS_INLINE void power_of_two(const V* x, const Exponent<V>& e, V* p) {
  constexpr float c[] = {1.5353361951e-4f, 1.3398874404e-3f, 9.6184373574e-3f, 5.5503324712e-2f,
                         2.4022647914e-1f, 6.9314720286e-1f, 1.0f};
  V n[G], r[G];
  if constexpr (sizeof(Number<V>) == sizeof(double)) {
    for (int j = 0; j < G; ++j) p[j] = each_lane(x[j] * e.k, [](double a) { return std::exp2(a); });
#if defined(__AVX512DQ__)
  } else if constexpr (sizeof(V) == 64) {
    const __m512 k = (__m512)e.k;
    __m512 y[G];
    for (int j = 0; j < G; ++j) y[j] = _mm512_range_ps((__m512)x[j], (__m512)e.most, 2);  // the lesser |x|, its sign
    for (int j = 0; j < G; ++j) n[j] = (V)_mm512_roundscale_ps(y[j] * k, _MM_FROUND_NO_EXC);
    for (int j = 0; j < G; ++j) r[j] = (V)_mm512_fmsub_ps(y[j], k, (__m512)n[j]);
    polynomial<G>(r, c, p);
    for (int j = 0; j < G; ++j) p[j] = (V)_mm512_scalef_ps((__m512)p[j], (__m512)n[j]);
#endif
  } else {
    using Bits = decltype(e.k < e.k);
    constexpr float shift = 12582912.0f;  // 1.5 * 2^23: rounds to a whole number, which stands in the lowest bits
    for (int j = 0; j < G; ++j) n[j] = x[j] * e.k + shift;
    for (int j = 0; j < G; ++j) r[j] = x[j] * e.k - (n[j] - shift);
    polynomial<G>(r, c, p);
    for (int j = 0; j < G; ++j) {
      p[j] = (V)((Bits)p[j] + ((Bits)n[j] << 23));  // the whole number goes into the exponent
      p[j] = n[j] < shift - 126.0f ? V{} : p[j];
    }
    for (int j = 0; e.grows && j < G; ++j) p[j] = n[j] > shift + 127.0f ? V{} + HUGE_VALF : p[j];
  }
}

// log(1 + y) for y in [0, 1].
template <int G, typename V>
ALWAYS_INLINE void log_one_plus(const V* y, V* p) {
  if constexpr (sizeof(Number<V>) == sizeof(double)) {
    for (int j = 0; j < G; ++j) p[j] = each_lane(y[j], [](double a) { return std::log1p(a); });
  } else {
    constexpr float c[] = {5.3661867426e-3f, -3.0071457172e-2f, 7.9214169631e-2f,  -1.3754662804e-1f, 1.9154085247e-1f,
                           -2.4857281986e-1f, 3.3321338739e-1f, -4.9999648768e-1f, 1.0f};
    polynomial<G>(y, c, p);
    for (int j = 0; j < G; ++j) p[j] *= y[j];
  }
}

// The larger one; the second if one is not a number.
template <typename V>
ALWAYS_INLINE V larger(V a, V b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64 && sizeof(Number<V>) == sizeof(float)) return (V)_mm512_max_ps((__m512)a, (__m512)b);
#endif
  return a > b ? a : b;
}

// x becomes softplus(x), and `slope` unless null its slope, sigmoid(x), from one exponential.
template <int G, typename V>
ALWAYS_INLINE void softplus(V* x, V* slope) {
  using T = Number<V>;
  using Bits = decltype(*x < *x);
  const V zero{}, one = zero + T(1);
  const Bits sign = (Bits)-zero;
  const Exponent<V> natural(zero + LOG2E<T>, false);
  V e[G], log[G];
  for (int j = 0; j < G; ++j) e[j] = (V)((Bits)x[j] | sign);
  power_of_two<G>(e, natural, e);
  for (int j = 0; slope && j < G; ++j) slope[j] = (x[j] > zero ? one : e[j]) / (one + e[j]);
  log_one_plus<G>(e, log);
  for (int j = 0; j < G; ++j) x[j] = larger(zero, x[j]) + log[j];
}
