// Forward-backward and Viterbi on linear chains, one sentence a task.
//
// Contiguous: unary (batch, steps, K); pairwise (K, K), or (batch, steps - 1, K, K) whose entry t - 1 leads into step t;
// lengths (batch), each in [1, steps]; node like unary; edges (batch, K, K) summed over steps, or like pairwise.
//
// The fast way works on probabilities that are normalised at every step, so that a step is one product with
// exp(pairwise). What a state's probability loses to underflow at one step can matter later by at most
// exp(largest - smallest pairwise), the most by which two states' futures can differ: the fast way is taken where that
// is harmless. Otherwise, and where transitions are forbidden (minus infinity), the sums are taken in the log domain.
#include <limits>

#include "kernel.hpp"

namespace {

template <typename T>
constexpr T MINUS_INF = -std::numeric_limits<T>::infinity();

template <typename T>
struct Chain {
  const T *unary, *pairwise;
  const int64_t* lengths;
  int64_t batch, steps, K;
  bool shared;

  int64_t width() const { return (K + 7) / 8 * 8; }  // rows are padded to whole vectors
  const T* at(int64_t b, int64_t t) const { return unary + (b * steps + t) * K; }
  const T* into(int64_t b, int64_t t) const {
    return shared ? pairwise : pairwise + (b * (steps - 1) + t - 1) * K * K;
  }
};

template <typename T>
T largest(const T* x, int64_t n) {
  T top = x[0];
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < n; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

template <typename T>
T sum_of(const T* x, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}

template <typename T>
void scale(T* x, T factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

template <typename T>
bool harmless(const T* pairwise, int64_t n) {
  T low = pairwise[0], high = pairwise[0];
#pragma omp simd reduction(min : low) reduction(max : high)
  for (int64_t i = 0; i < n; ++i) {
    low = pairwise[i] < low ? pairwise[i] : low;
    high = pairwise[i] > high ? pairwise[i] : high;
  }
  return high - low < (sizeof(T) == 4 ? T(40) : T(300));  // false for minus infinity and for NaN
}

// exp(pairwise - its largest) with padded rows; returns the largest.
template <typename T>
T exponentials(const T* pairwise, int64_t K, int64_t width, T* E) {
  const T top = largest(pairwise, K * K);
  for (int64_t i = 0; i < K; ++i) {
#pragma omp simd
    for (int64_t j = 0; j < K; ++j) E[i * width + j] = exponential(pairwise[i * K + j] - top);
    std::fill(E + i * width + K, E + (i + 1) * width, T(0));
  }
  return top;
}

template <typename T>
struct Shared {  // what all sentences have in common where the pairwise scores are shared
  std::vector<T> E;
  T top = 0;
};

template <typename T>
double scaled(const Chain<T>& c, const Shared<T>& common, int64_t b, T* node, T* edges) {
  const int64_t K = c.K, W = c.width(), n = c.lengths[b];
  const bool keep = node != nullptr;
  std::vector<T> a(n * W, T(0)), e(n * W, T(0)), s(W), own(c.shared ? 0 : (keep ? n : 1) * K * W);
  const auto matrix = [&](int64_t t) { return c.shared ? common.E.data() : own.data() + (keep ? t * K * W : 0); };
  double total = 0;
  for (int64_t t = 0; t < n; ++t) {
    const T* u = c.at(b, t);
    const T high = largest(u, K);
    T *now = &e[t * W], *out = &a[t * W];
#pragma omp simd
    for (int64_t j = 0; j < K; ++j) now[j] = exponential(u[j] - high);
    if (t == 0) {
      std::copy_n(now, W, out);
    } else {
      if (!c.shared) total += exponentials(c.into(b, t), K, W, const_cast<T*>(matrix(t)));
      else total += common.top;
      const T *E = matrix(t), *before = &a[(t - 1) * W];
      std::fill(s.begin(), s.end(), T(0));
      for (int64_t i = 0; i < K; ++i) {
        const T p = before[i];
#pragma omp simd
        for (int64_t j = 0; j < W; ++j) s[j] += p * E[i * W + j];
      }
#pragma omp simd
      for (int64_t j = 0; j < W; ++j) out[j] = s[j] * now[j];
    }
    const T sum = sum_of(out, W);
    scale(out, T(1) / sum, W);
    total += high + std::log(static_cast<double>(sum));
  }
  if (!keep) return total;

  std::vector<T> beta(W, T(1)), w(W), q(W, T(0)), counts(c.shared ? K * W : 0, T(0));
  for (int64_t t = n; t-- > 0;) {
    const T* p = &a[t * W];
#pragma omp simd
    for (int64_t j = 0; j < W; ++j) w[j] = p[j] * beta[j];
    const T inverse = T(1) / sum_of(w.data(), W);
    T* out = node + (b * c.steps + t) * K;
    for (int64_t j = 0; j < K; ++j) out[j] = w[j] * inverse;
    if (t == 0) break;
    const T *E = matrix(t), *before = &a[(t - 1) * W], *now = &e[t * W];
#pragma omp simd
    for (int64_t j = 0; j < W; ++j) w[j] = now[j] * beta[j];
    scale(w.data(), T(1) / largest(w.data(), W), W);
    T z = 0;
    for (int64_t i = 0; i < K; ++i) {
      T dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t j = 0; j < W; ++j) dot += E[i * W + j] * w[j];
      q[i] = dot;
      z += before[i] * dot;
    }
    T* step = c.shared ? nullptr : edges + (b * (c.steps - 1) + t - 1) * K * K;
    for (int64_t i = 0; i < K; ++i) {
      const T from = before[i] / z;
      if (c.shared) {
#pragma omp simd
        for (int64_t j = 0; j < W; ++j) counts[i * W + j] += from * w[j];
      } else {
#pragma omp simd
        for (int64_t j = 0; j < K; ++j) step[i * K + j] = from * w[j] * E[i * W + j];
      }
    }
    const T high = T(1) / largest(q.data(), K);
    for (int64_t i = 0; i < K; ++i) beta[i] = q[i] * high;
  }
  if (c.shared)
    for (int64_t i = 0; i < K; ++i)
      for (int64_t j = 0; j < K; ++j) edges[(b * K + i) * K + j] = counts[i * W + j] * common.E[i * W + j];
  return total;
}

// x - its largest, whose value is returned; nothing is left to subtract where all is minus infinity.
template <typename T>
T centre(T* x, int64_t n) {
  const T top = largest(x, n);
  if (top == MINUS_INF<T>) return top;
  for (int64_t i = 0; i < n; ++i) x[i] -= top;
  return top;
}

template <typename T>
double in_logs(const Chain<T>& c, int64_t b, T* node, T* edges) {
  const int64_t K = c.K, n = c.lengths[b];
  std::vector<T> alpha(n * K), high(K), sum(K);
  std::copy_n(c.at(b, 0), K, alpha.data());
  double total = centre(alpha.data(), K);
  for (int64_t t = 1; t < n; ++t) {
    const T *P = c.into(b, t), *u = c.at(b, t), *before = &alpha[(t - 1) * K];
    T* out = &alpha[t * K];
    std::fill(high.begin(), high.end(), MINUS_INF<T>);
    std::fill(sum.begin(), sum.end(), T(0));
    for (int64_t i = 0; i < K; ++i) {
      const T from = before[i];
#pragma omp simd
      for (int64_t j = 0; j < K; ++j) high[j] = from + P[i * K + j] > high[j] ? from + P[i * K + j] : high[j];
    }
    for (int64_t j = 0; j < K; ++j) high[j] = high[j] == MINUS_INF<T> ? T(0) : high[j];
    for (int64_t i = 0; i < K; ++i) {
      const T from = before[i];
#pragma omp simd
      for (int64_t j = 0; j < K; ++j) sum[j] += exponential(from + P[i * K + j] - high[j]);
    }
    for (int64_t j = 0; j < K; ++j) out[j] = std::log(sum[j]) + high[j] + u[j];
    total += centre(out, K);
  }
  {
    double rest = 0;
    for (int64_t j = 0; j < K; ++j) rest += std::exp(static_cast<double>(alpha[(n - 1) * K + j]));
    total += std::log(rest);
  }
  if (node == nullptr || total == -std::numeric_limits<double>::infinity()) return total;  // no path: no marginals

  std::vector<T> beta(K, T(0)), w(K), xi(K * K);
  for (int64_t t = n; t-- > 0;) {
    for (int64_t j = 0; j < K; ++j) w[j] = alpha[t * K + j] + beta[j];
    centre(w.data(), K);
    for (int64_t j = 0; j < K; ++j) w[j] = exponential(w[j]);
    const T inverse = T(1) / sum_of(w.data(), K);
    for (int64_t j = 0; j < K; ++j) node[(b * c.steps + t) * K + j] = w[j] * inverse;
    if (t == 0) break;
    const T *P = c.into(b, t), *u = c.at(b, t), *before = &alpha[(t - 1) * K];
    for (int64_t j = 0; j < K; ++j) w[j] = u[j] + beta[j];
    for (int64_t i = 0; i < K; ++i) {
      T* row = &xi[i * K];
#pragma omp simd
      for (int64_t j = 0; j < K; ++j) row[j] = P[i * K + j] + w[j];
      const T top = largest(row, K);
      T rest = 0;
      if (top > MINUS_INF<T>)
#pragma omp simd reduction(+ : rest)
        for (int64_t j = 0; j < K; ++j) rest += exponential(row[j] - top);
      beta[i] = top == MINUS_INF<T> ? top : std::log(rest) + top;
#pragma omp simd
      for (int64_t j = 0; j < K; ++j) row[j] += before[i];
    }
    centre(xi.data(), K * K);
#pragma omp simd
    for (int64_t k = 0; k < K * K; ++k) xi[k] = exponential(xi[k]);
    const T share = T(1) / sum_of(xi.data(), K * K);
    T* out = edges + (c.shared ? b : b * (c.steps - 1) + t - 1) * K * K;
    for (int64_t k = 0; k < K * K; ++k) out[k] += xi[k] * share;
    centre(beta.data(), K);
  }
  return total;
}

template <typename T>
void partition(const Chain<T>& c, T* logz, T* node, T* edges, int threads) {
  Shared<T> common;
  bool fast = true;
  if (c.shared) {
    fast = harmless(c.pairwise, c.K * c.K);
    common.E.resize(c.K * c.width());
    if (fast) common.top = exponentials(c.pairwise, c.K, c.width(), common.E.data());
  }
  parallel_for(c.batch, threads, [&](int64_t b) {
    bool own = fast;
    for (int64_t t = 0; own && t < c.lengths[b]; ++t) {
      own = largest(c.at(b, t), c.K) > MINUS_INF<T>;  // false too where a whole step is forbidden or NaN
      if (own && t > 0 && !c.shared) own = harmless(c.into(b, t), c.K * c.K);
    }
    logz[b] = static_cast<T>(own ? scaled(c, common, b, node, edges) : in_logs(c, b, node, edges));
  });
}

template <typename T>
void viterbi(const Chain<T>& c, int64_t* path, T* score, int threads) {
  const int64_t K = c.K, W = c.width();
  std::vector<T> common(c.shared ? K * W : 0, MINUS_INF<T>);
  if (c.shared)
    for (int64_t i = 0; i < K; ++i) std::copy_n(c.pairwise + i * K, K, &common[i * W]);
  parallel_for(c.batch, threads, [&](int64_t b) {
    const int64_t n = c.lengths[b];
    std::vector<T> best(W, MINUS_INF<T>), next(W), own(c.shared ? 0 : W, MINUS_INF<T>);
    std::vector<int32_t> from(n * W);
    std::copy_n(c.at(b, 0), K, best.data());
    for (int64_t t = 1; t < n; ++t) {
      const T *P = c.into(b, t), *u = c.at(b, t);
      int32_t* back = &from[t * W];
      std::fill(next.begin(), next.end(), MINUS_INF<T>);
      std::fill_n(back, W, 0);
      for (int64_t i = 0; i < K; ++i) {
        const T* row = &common[i * W];
        if (!c.shared) {
          std::copy_n(P + i * K, K, own.data());
          row = own.data();
        }
        const T before = best[i];
        const int32_t mark = static_cast<int32_t>(i);
#pragma omp simd
        for (int64_t j = 0; j < W; ++j) {
          const T value = before + row[j];
          const bool better = value > next[j];
          next[j] = better ? value : next[j];
          back[j] = better ? mark : back[j];
        }
      }
      for (int64_t j = 0; j < K; ++j) next[j] += u[j];
      std::swap(best, next);
    }
    int64_t state = 0;
    for (int64_t j = 1; j < K; ++j) state = best[j] > best[state] ? j : state;
    score[b] = best[state];
    for (int64_t t = n; t-- > 0;) {
      path[b * c.steps + t] = state;
      state = t > 0 ? from[t * W + state] : state;
    }
  });
}

}  // namespace

#define EXPORT(T, name)                                                                                               \
  extern "C" void chain_partition_##name(const T* unary, const T* pairwise, const int64_t* lengths, T* logz, T* node, \
                                         T* edges, int64_t batch, int64_t steps, int64_t K, int shared, int threads) { \
    partition(Chain<T>{unary, pairwise, lengths, batch, steps, K, shared != 0}, logz, node, edges, threads);          \
  }                                                                                                                   \
  extern "C" void chain_viterbi_##name(const T* unary, const T* pairwise, const int64_t* lengths, int64_t* path,      \
                                       T* score, int64_t batch, int64_t steps, int64_t K, int shared, int threads) {  \
    viterbi(Chain<T>{unary, pairwise, lengths, batch, steps, K, shared != 0}, path, score, threads);                  \
  }

EXPORT(float, f32)
EXPORT(double, f64)
