// y = act(LN(x) w^T + b) + residual for a few rows: the weights are read once, some rows of them at a time, each of which
// meets all rows of x while it is in L1.
#include "rows_fwd.h"

namespace latte {
namespace LATTE_ISA {

constexpr int64_t kCols = 32;   // results of a work item
constexpr int64_t kTerms = 32;  // vectors of products in a running sum: the error of a longer one grows with its length

// out[i][r] = w_i . x_r for kW rows of weights and kX of x, which is padded with zeros to whole vectors
template <class A, class T, int kW, int kX>
LATTE_INLINE void dots(const T* w, int64_t w_stride, const A* x, int64_t pitch, int64_t d, A* out, int64_t to) {
  constexpr int64_t L = kLanes<A>, run = kTerms * L;
  Vec<A> total[kW][kX] = {};
  for (int64_t first = 0; first < d; first += run) {
    Vec<A> part[kW][kX] = {};
    const int64_t stop = min(d, first + run);
    int64_t k = first;
    for (; k + L <= stop; k += L) {
#pragma GCC unroll 4
      for (int i = 0; i < kW; ++i) {
        const Vec<A> v = load<A>(w + i * w_stride + k);
#pragma GCC unroll 4
        for (int r = 0; r < kX; ++r) part[i][r] = fma(v, load<A>(x + r * pitch + k), part[i][r]);
      }
    }
    if (k < stop)
      for (int i = 0; i < kW; ++i) {
        const Vec<A> v = load<A>(w + i * w_stride + k, static_cast<int>(stop - k));
        for (int r = 0; r < kX; ++r) part[i][r] = fma(v, load<A>(x + r * pitch + k), part[i][r]);
      }
    for (int i = 0; i < kW; ++i)
      for (int r = 0; r < kX; ++r) total[i][r] += part[i][r];
  }
  for (int i = 0; i < kW; ++i)
    for (int r = 0; r < kX; ++r) out[r * to + i] = hsum<A>(total[i][r]);
}

// kW rows of weights with all rows of x, as many at a time as have registers for their sums
template <class A, class T, int kW>
void all_rows(const T* w, int64_t stride, const A* x, int64_t pitch, int64_t rows, int64_t d, A* out, int64_t to) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    dots<A, T, (kW < 2 ? 1 : 2), 4>(w, stride, x + r * pitch, pitch, d, out + r * to, to);
    if (kW == 4) dots<A, T, 2, 4>(w + 2 * stride, stride, x + r * pitch, pitch, d, out + r * to + 2, to);
  }
  for (; r + 2 <= rows; r += 2) dots<A, T, kW, 2>(w, stride, x + r * pitch, pitch, d, out + r * to, to);
  for (; r < rows; ++r) dots<A, T, kW, 1>(w, stride, x + r * pitch, pitch, d, out + r * to, to);
}

template <class A> LATTE_INLINE A exact_gelu(A z) {
  return z * A(0.5) * (A(1) + std::erf(z * static_cast<A>(0.70710678118654752440)));
}

template <class A, class T> void linear(const SmallLinear& a) {
  constexpr int64_t L = kLanes<A>;
  const int64_t d = a.depth, pitch = (d + L - 1) / L * L;
  Scratch<A> x(a.rows * pitch), bias(a.cols), gamma(d), beta(d);
  if (a.bias.p) widen<A>(a.bias, 0, 0, bias, a.cols);
  if (a.gamma.p) widen<A>(a.gamma, 0, 0, gamma, d), widen<A>(a.beta, 0, 0, beta, d);
  for (int64_t r = 0; r < a.rows; ++r) {
    const T* from = row<T>(a.x, r);
    A* to = x + r * pitch;
    std::memset(static_cast<void*>(to), 0, pitch * sizeof(A));
    if (!a.gamma.p) {
      each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA { store<A>(to + i, load<A>(from + i, n), n); });
      continue;
    }
    const Moments<A> m = moments<A>(from, d, a.eps);
    each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA {
      const Vec<A> normed = (load<A>(from + i, n) - m.mean) * m.rstd;
      store<A>(to + i, fma(normed, load<A>(gamma + i, n), load<A>(beta + i, n)), n);
    });
  }
  const T* w = static_cast<const T*>(a.w.p);
  split((a.cols + kCols - 1) / kCols, a.threads, [&](int64_t begin, int64_t end) {
    Scratch<A> sums(a.rows * kCols);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item * kCols, n = min(kCols, a.cols - first);
      int64_t j = 0;
      for (; j + 4 <= n; j += 4)
        all_rows<A, T, 4>(w + (first + j) * a.w.stride, a.w.stride, x, pitch, a.rows, d, sums + j, kCols);
      for (; j < n; ++j)
        all_rows<A, T, 1>(w + (first + j) * a.w.stride, a.w.stride, x, pitch, a.rows, d, sums + j, kCols);
      for (int64_t r = 0; r < a.rows; ++r) {
        A* sum = sums + r * kCols;
        if (a.bias.p) for (int64_t i = 0; i < n; ++i) sum[i] += bias[first + i];
        if (a.gelu) for (int64_t i = 0; i < n; ++i) sum[i] = exact_gelu(sum[i]);
        T* to = row<T>(a.y, r) + first;
        const T* more = a.residual.p ? row<T>(a.residual, r) + first : nullptr;
        each_vec<A>(n, [&](int64_t i, auto lanes) LATTE_LAMBDA {
          const Vec<A> v = load<A>(sum + i, lanes);
          store<A>(to + i, more ? v + load<A>(more + i, lanes) : v, lanes);
        });
      }
    }
  });
}

void small_linear(const SmallLinear& a) {
#if defined(LATTE_ISA_PORTABLE)
  if (a.w.dtype == kF64) return linear<double, double>(a);
#endif
  with_dtype(a.w.dtype, [&](auto t) { linear<float, typename decltype(t)::type>(a); });
}

}  // namespace LATTE_ISA
}  // namespace latte
