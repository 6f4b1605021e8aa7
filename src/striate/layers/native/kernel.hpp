// Threads, and an exponential that compilers turn into vector instructions.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

// Calls work(task) for every task in [0, n), on OpenMP's threads (PyTorch's own pool) where there is OpenMP.
template <typename Work>
void parallel_for(int64_t n, int threads, Work work) {
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
#endif
  for (int64_t i = 0; i < n; ++i) work(i);
}

// exp(x): 2^n times a polynomial in the rest; within 2 units in the last place, 0 below the smallest normal number.
inline float exponential(float x) {
  const float low = -87.33654f, high = 88.72283f;
  const float bounded = x < low ? low : (x > high ? high : x);
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest whole number
  const float n = (bounded * 1.44269504088896341f + shift) - shift;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return x < low ? 0.0f : p * scale;
}

inline double exponential(double x) { return std::exp(x); }

// log(1 + y) for y in [0, 1], as 2 artanh(y / (2 + y)).
inline float log_one_plus(float y) {
  const float s = y / (2.0f + y), q = s * s;
  float p = 1.0f / 15;
  p = p * q + 1.0f / 13;
  p = p * q + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  return 2.0f * (s + s * q * p);
}

inline double log_one_plus(double y) { return std::log1p(y); }

// softplus(x) and its slope, sigmoid(x), from one exponential.
template <typename T>
inline T softplus(T x, T& slope) {
  const T e = exponential(x > T(0) ? -x : x);
  slope = (x > T(0) ? T(1) : e) / (T(1) + e);
  return (x > T(0) ? x : T(0)) + log_one_plus(e);
}
