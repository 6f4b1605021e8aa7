// Deformable convolution on the CPU: bilinear sampling at learned positions, forward and backward.
//
// Images are channels-last, (N, H, W, C): a position is worked out once and then serves a whole run of channels that
// lie side by side in memory. Offsets (N, 2GK, Ho, Wo) and masks (N, GK, Ho, Wo) stay as PyTorch has them. A "row" is
// one line of the output, counted through the batch: n * Ho + ho. Every sum is added up in an order that does not
// depend on the number of threads. Products and sums are not fused: a compiler fuses them in one copy of a loop and not
// in another and chooses between the copies by address, so that the same call would not give the same bits twice.

#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

struct Shape {  // as the Python side packs it
    int64_t n, h, w, c, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
        groups;
    int64_t points() const { return kernel_h * kernel_w; }
    int64_t width() const { return c / groups; }  // channels that share their offsets
};

// Where one kernel point looks: four corners, their bilinear weights, and the modulation m.
template <typename T>
struct Point {
    int64_t at[4];  // of the corner's first channel in the image, or -1 for the zeros outside
    T weight[4];
    T ly, lx, m;
};

constexpr int64_t BLOCK = 16;

template <typename T>
struct Lanes;
template <>
struct Lanes<float> {
    typedef float type __attribute__((vector_size(BLOCK * sizeof(float)), aligned(sizeof(float)), may_alias));
};
template <>
struct Lanes<double> {
    typedef double type __attribute__((vector_size(BLOCK * sizeof(double)), aligned(sizeof(double)), may_alias));
};

template <typename T>
inline typename Lanes<T>::type& lanes(T* at) {
    return *reinterpret_cast<typename Lanes<T>::type*>(at);
}
template <typename T>
inline const typename Lanes<T>::type& lanes(const T* at) {
    return *reinterpret_cast<const typename Lanes<T>::type*>(at);
}

template <typename T>
inline T total(const typename Lanes<T>::type& lane) {
    T sum = 0;
    for (int64_t i = 0; i < BLOCK; ++i) sum += lane[i];
    return sum;
}

template <typename T>
void locate(const Shape& s, const T* offset, const T* mask, int64_t row, int64_t wo, int64_t g, Point<T>* points) {
    const int64_t n = row / s.out_h, ho = row % s.out_h, plane = s.out_h * s.out_w, k_all = s.points();
    const T* off = offset + (n * s.groups + g) * 2 * k_all * plane + ho * s.out_w + wo;
    const T* mod = mask ? mask + (n * s.groups + g) * k_all * plane + ho * s.out_w + wo : nullptr;
    for (int64_t k = 0; k < k_all; ++k) {
        Point<T>& p = points[k];
        const T y = T(ho * s.stride_h - s.pad_h + (k / s.kernel_w) * s.dilation_h) + off[2 * k * plane];
        const T x = T(wo * s.stride_w - s.pad_w + (k % s.kernel_w) * s.dilation_w) + off[(2 * k + 1) * plane];
        p.m = mod ? mod[k * plane] : T(1);
        if (!(y >= -1 && y <= T(s.h) && x >= -1 && x <= T(s.w))) {
            // Off the map: zeros. A NaN position stays visible.
            for (int i = 0; i < 4; ++i) p.at[i] = -1, p.weight[i] = 0;
            if (std::isnan(y) || std::isnan(x)) p.weight[0] = std::numeric_limits<T>::quiet_NaN();
            p.ly = p.lx = 0;
            continue;
        }
        const T y_low = std::floor(y), x_low = std::floor(x);
        p.ly = y - y_low, p.lx = x - x_low;
        for (int i = 0; i < 4; ++i) {
            const int64_t cy = int64_t(y_low) + i / 2, cx = int64_t(x_low) + i % 2;
            const bool inside = cy >= 0 && cy < s.h && cx >= 0 && cx < s.w;
            p.at[i] = inside ? ((n * s.h + cy) * s.w + cx) * s.c + g * s.width() : -1;
            p.weight[i] = (i / 2 ? p.ly : 1 - p.ly) * (i % 2 ? p.lx : 1 - p.lx);
        }
    }
}

template <typename T>
struct Corners {  // a point with its four runs of channels
    const T* v[4];
    T w[4];
    Corners(const Point<T>& p, const T* image, const T* zeros, T scale) {
        for (int i = 0; i < 4; ++i) v[i] = p.at[i] < 0 ? zeros : image + p.at[i], w[i] = p.weight[i] * scale;
    }
    auto block(int64_t c) const {
        return w[0] * lanes(v[0] + c) + w[1] * lanes(v[1] + c) + w[2] * lanes(v[2] + c) + w[3] * lanes(v[3] + c);
    }
    T operator()(int64_t c) const { return w[0] * v[0][c] + w[1] * v[1][c] + w[2] * v[2][c] + w[3] * v[3][c]; }
};

// columns[(row - first) * Wo + wo][k][c] = m * x(position)
template <typename T>
void columns(const T* x, const T* offset, const T* mask, T* out, const Shape& s, int64_t first, int64_t last,
             int threads) {
    const int64_t k_all = s.points(), width = s.width(), whole = width / BLOCK * BLOCK;
    const std::vector<T> zeros(width);
#pragma omp parallel num_threads(threads)
    {
        std::vector<Point<T>> points(k_all);
#pragma omp for schedule(static)
        for (int64_t row = first; row < last; ++row)
            for (int64_t wo = 0; wo < s.out_w; ++wo)
                for (int64_t g = 0; g < s.groups; ++g) {
                    locate(s, offset, mask, row, wo, g, points.data());
                    for (int64_t k = 0; k < k_all; ++k) {
                        const Corners<T> sample(points[k], x, zeros.data(), points[k].m);
                        T* to = out + (((row - first) * s.out_w + wo) * k_all + k) * s.c + g * width;
                        for (int64_t c = 0; c < whole; c += BLOCK) lanes(to + c) = sample.block(c);
                        for (int64_t c = whole; c < width; ++c) to[c] = sample(c);
                    }
                }
    }
}

// out[row * Wo + wo][c] = sum_k weight[k][c] * m * x(position), without columns in memory
template <typename T>
void depthwise(const T* x, const T* offset, const T* mask, const T* weight, T* out, const Shape& s, int threads) {
    const int64_t k_all = s.points(), width = s.width(), whole = width / BLOCK * BLOCK;
    const std::vector<T> zeros(width);
#pragma omp parallel num_threads(threads)
    {
        std::vector<Point<T>> points(k_all);
        std::vector<Corners<T>> samples;
        samples.reserve(k_all);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < s.n * s.out_h; ++row)
            for (int64_t wo = 0; wo < s.out_w; ++wo)
                for (int64_t g = 0; g < s.groups; ++g) {
                    locate(s, offset, mask, row, wo, g, points.data());
                    samples.clear();
                    for (int64_t k = 0; k < k_all; ++k) samples.emplace_back(points[k], x, zeros.data(), points[k].m);
                    const T* by = weight + g * width;
                    T* to = out + (row * s.out_w + wo) * s.c + g * width;
                    for (int64_t c = 0; c < whole; c += BLOCK) {
                        typename Lanes<T>::type sum = {};
                        for (int64_t k = 0; k < k_all; ++k) sum += lanes(by + k * s.c + c) * samples[k].block(c);
                        lanes(to + c) = sum;
                    }
                    for (int64_t c = whole; c < width; ++c) {
                        T sum = 0;
                        for (int64_t k = 0; k < k_all; ++k) sum += by[k * s.c + c] * samples[k](c);
                        to[c] = sum;
                    }
                }
    }
}

// The gradient that reaches the sample of point k: given as columns, or as the output's gradient times the weight.
template <typename T>
struct Upstream {
    const T *grad, *weight;  // weight is null for columns
    int64_t first;           // row that grad starts with
    const T* run(const Shape& s, int64_t row, int64_t wo, int64_t k, int64_t g) const {
        const int64_t pixel = (row - first) * s.out_w + wo;
        return grad + (weight ? pixel : pixel * s.points() + k) * s.c + g * s.width();
    }
    const T* scale(const Shape& s, int64_t k, int64_t g) const {
        return weight ? weight + k * s.c + g * s.width() : nullptr;
    }
};

// Gradients of offsets, masks and (depthwise) weights. weight_rows[row][k][c] is one row's share of the weights' gradient.
template <typename T>
void backward_positions(const T* x, const T* offset, const T* mask, const Upstream<T>& up, T* grad_offset,
                        T* grad_mask, T* weight_rows, const Shape& s, int64_t first, int64_t last, int threads) {
    typedef typename Lanes<T>::type Lane;
    const int64_t k_all = s.points(), width = s.width(), whole = width / BLOCK * BLOCK, plane = s.out_h * s.out_w;
    const std::vector<T> zeros(width);
#pragma omp parallel num_threads(threads)
    {
        std::vector<Point<T>> points(k_all);
#pragma omp for schedule(static)
        for (int64_t row = first; row < last; ++row)
            for (int64_t wo = 0; wo < s.out_w; ++wo)
                for (int64_t g = 0; g < s.groups; ++g) {
                    locate(s, offset, mask, row, wo, g, points.data());
                    for (int64_t k = 0; k < k_all; ++k) {
                        const Point<T>& p = points[k];
                        const Corners<T> sample(p, x, zeros.data(), T(1));
                        const T *from = up.run(s, row, wo, k, g), *by = up.scale(s, k, g);
                        T* share = weight_rows ? weight_rows + (row * k_all + k) * s.c + g * width : nullptr;
                        Lane sums[4] = {};
                        T dot[4];
                        for (int64_t c = 0; c < whole; c += BLOCK) {
                            const Lane grad = by ? lanes(from + c) * lanes(by + c) : lanes(from + c);
                            for (int i = 0; i < 4; ++i) sums[i] += grad * lanes(sample.v[i] + c);
                            if (share) lanes(share + c) += p.m * lanes(from + c) * sample.block(c);
                        }
                        for (int i = 0; i < 4; ++i) dot[i] = total<T>(sums[i]);
                        for (int64_t c = whole; c < width; ++c) {
                            const T grad = by ? from[c] * by[c] : from[c];
                            for (int i = 0; i < 4; ++i) dot[i] += grad * sample.v[i][c];
                            if (share) share[c] += p.m * from[c] * sample(c);
                        }
                        const int64_t n = row / s.out_h, here = row % s.out_h * s.out_w + wo;
                        const int64_t point = (n * s.groups + g) * k_all + k;
                        const T ly = p.ly, lx = p.lx;
                        grad_offset[2 * point * plane + here] =
                            p.m * ((1 - lx) * (dot[2] - dot[0]) + lx * (dot[3] - dot[1]));
                        grad_offset[(2 * point + 1) * plane + here] =
                            p.m * ((1 - ly) * (dot[1] - dot[0]) + ly * (dot[3] - dot[2]));
                        if (grad_mask)
                            grad_mask[point * plane + here] = p.weight[0] * dot[0] + p.weight[1] * dot[1] +
                                                              p.weight[2] * dot[2] + p.weight[3] * dot[3];
                    }
                }
    }
}

// Gradient of the image, added to grad_x. Threads share out images and runs of channels, so that no two write to one
// place.
template <typename T>
void backward_image(const T* offset, const T* mask, const Upstream<T>& up, T* grad_x, const Shape& s, int64_t first,
                    int64_t last, int threads) {
    const int64_t k_all = s.points(), width = s.width();
    const int64_t n_first = first / s.out_h, images = (last - 1) / s.out_h - n_first + 1;
    const int64_t wanted = (threads + images - 1) / images;
    const int64_t run = std::max<int64_t>(BLOCK, (s.c / wanted + BLOCK - 1) / BLOCK * BLOCK);
    const int64_t runs = (s.c + run - 1) / run;
#pragma omp parallel num_threads(threads)
    {
        std::vector<Point<T>> points(k_all);
#pragma omp for schedule(static)
        for (int64_t job = 0; job < images * runs; ++job) {
            const int64_t n = n_first + job / runs, from_c = job % runs * run, to_c = std::min(s.c, from_c + run);
            const int64_t stop = std::min(last, (n + 1) * s.out_h);
            for (int64_t row = std::max(first, n * s.out_h); row < stop; ++row)
                for (int64_t wo = 0; wo < s.out_w; ++wo)
                    for (int64_t g = from_c / width; g * width < to_c; ++g) {
                        locate(s, offset, mask, row, wo, g, points.data());
                        const int64_t start = std::max<int64_t>(0, from_c - g * width);
                        const int64_t end = std::min(width, to_c - g * width);
                        const int64_t whole = start + (end - start) / BLOCK * BLOCK;
                        for (int64_t k = 0; k < k_all; ++k) {
                            const Point<T>& p = points[k];
                            const T *from = up.run(s, row, wo, k, g), *by = up.scale(s, k, g);
                            for (int i = 0; i < 4; ++i) {
                                if (p.at[i] < 0) continue;
                                T* to = grad_x + p.at[i];
                                const T w = p.weight[i] * p.m;
                                for (int64_t c = start; c < whole; c += BLOCK)
                                    lanes(to + c) +=
                                        w * (by ? lanes(from + c) * lanes(by + c) : lanes(from + c));
                                for (int64_t c = whole; c < end; ++c) to[c] += w * (by ? from[c] * by[c] : from[c]);
                            }
                        }
                    }
        }
    }
}

}  // namespace

#define EXPORT(T, SUFFIX)                                                                                            \
    extern "C" void deform_columns_##SUFFIX(const T* x, const T* offset, const T* mask, T* out,                      \
                                            const int64_t* shape, int64_t first, int64_t last, int threads) {        \
        columns(x, offset, mask, out, *reinterpret_cast<const Shape*>(shape), first, last, threads);                 \
    }                                                                                                                \
    extern "C" void deform_depthwise_##SUFFIX(const T* x, const T* offset, const T* mask, const T* weight, T* out,   \
                                              const int64_t* shape, int threads) {                                   \
        depthwise(x, offset, mask, weight, out, *reinterpret_cast<const Shape*>(shape), threads);                    \
    }                                                                                                                \
    extern "C" void deform_backward_##SUFFIX(const T* x, const T* offset, const T* mask, const T* grad,              \
                                             const T* weight, T* grad_x, T* grad_offset, T* grad_mask,               \
                                             T* weight_rows, const int64_t* shape, int64_t first, int64_t last,      \
                                             int threads) {                                                          \
        const Shape& s = *reinterpret_cast<const Shape*>(shape);                                                     \
        const Upstream<T> up{grad, weight, first};                                                                   \
        backward_positions(x, offset, mask, up, grad_offset, grad_mask, weight_rows, s, first, last, threads);       \
        backward_image(offset, mask, up, grad_x, s, first, last, threads);                                           \
    }

EXPORT(float, f32)
EXPORT(double, f64)
