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
