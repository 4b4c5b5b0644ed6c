// y = act(LN(x) w^T + b) + residual for a few rows: a row of weights is read as it lies in memory, and meets all rows of
// x while it is in L1. Weights are of x's type T, or int8 with a scale a row, which its sums are multiplied by.
#include "rows_fwd.h"

namespace latte {
namespace LATTE_ISA {

constexpr int64_t kCols = 32;   // results of a work item
constexpr int64_t kTerms = 32;  // products in a lane's running sum: the error of a longer one grows with its length

// Two vectors of weights, and where their products' other halves are. Of bf16 the first are those at even places and the
// second those at odd ones, as two operations make both of one load; x is laid out likewise.
template <class A, class T> struct Pair {
  static constexpr bool kSplit = false;
  Vec<A> a, b;
  LATTE_INLINE explicit Pair(const T* w) : a(load<A>(w)), b(load<A>(w + kLanes<A>)) {}
};
template <class A> struct Pair<A, bf16> {
  static constexpr bool kSplit = true;
  Vec<A> a, b;
  LATTE_INLINE explicit Pair(const bf16* w) {
    const U32 both = raw<U32>(w);
    a = bits<Vec<float>>(both << 16), b = bits<Vec<float>>(both & 0xffff0000u);
  }
};

// w_i . x_r for kW rows of weights, `gap` apart, and kX of x, which are padded with zeros to whole pairs. The order of a
// sum does not depend on kW and kX.
template <class A, class T, int kW, int kX>
LATTE_INLINE void dots(const T* w, int64_t gap, const A* x, int64_t pitch, int64_t d, A* out, int64_t out_gap) {
  constexpr int64_t L = kLanes<A>, step = 2 * L;
  Vec<A> total[kW][kX] = {};
  const int64_t whole = d - d % step;
  for (int64_t k = 0; k < whole;) {
    Vec<A> sum[kW][kX][2] = {};
    const int64_t stop = min(whole, k + kTerms * step);
    for (; k < stop; k += step)
#pragma GCC unroll 4
      for (int i = 0; i < kW; ++i) {
        const Pair<A, T> v(w + i * gap + k);
#pragma GCC unroll 2
        for (int r = 0; r < kX; ++r) {
          const A* from = x + r * pitch + k;
          sum[i][r][0] = fma(v.a, load<A>(from), sum[i][r][0]);
          sum[i][r][1] = fma(v.b, load<A>(from + L), sum[i][r][1]);
        }
      }
    for (int i = 0; i < kW; ++i)
      for (int r = 0; r < kX; ++r) total[i][r] += sum[i][r][0] + sum[i][r][1];
  }
  if (whole < d)
    for (int i = 0; i < kW; ++i) {
      T last[step] = {};
      std::memcpy(static_cast<void*>(last), w + i * gap + whole, (d - whole) * sizeof(T));
      const Pair<A, T> v(last);
      for (int r = 0; r < kX; ++r) {
        const A* from = x + r * pitch + whole;
        total[i][r] = fma(v.a, load<A>(from), fma(v.b, load<A>(from + L), total[i][r]));
      }
    }
  for (int i = 0; i < kW; ++i)
    for (int r = 0; r < kX; ++r) out[r * kCols + i * out_gap] = hsum<A>(total[i][r]);
}

// kW rows of weights with all rows of x: two at a time, whose sums the registers hold
template <class A, class T, int kW>
void all_rows(const T* w, int64_t gap, const A* x, int64_t pitch, int64_t rows, int64_t d, A* out, int64_t out_gap) {
  constexpr int kHalf = kW > 2 ? kW / 2 : kW;
  int64_t r = 0;
  for (; r + 2 <= rows; r += 2)
    for (int i = 0; i < kW; i += kHalf)
      dots<A, T, kHalf, 2>(w + i * gap, gap, x + r * pitch, pitch, d, out + r * kCols + i * out_gap, out_gap);
  if (r < rows) dots<A, T, kW, 1>(w, gap, x + r * pitch, pitch, d, out + r * kCols, out_gap);
}

template <class A> LATTE_INLINE A exact_gelu(A z) {
  return z * A(0.5) * (A(1) + std::erf(z * static_cast<A>(0.70710678118654752440)));
}

template <class A, class T, class W> void linear(const SmallLinear& a) {
  constexpr int64_t L = kLanes<A>;
  const int64_t d = a.depth, pitch = (d + 2 * L - 1) / (2 * L) * (2 * L);
  Scratch<A> x(a.rows * pitch), bias(a.cols), gamma(d), beta(d), straight(pitch);
  if (a.bias.p) widen<A>(a.bias, 0, 0, bias, a.cols);
  if (a.gamma.p) widen<A>(a.gamma, 0, 0, gamma, d), widen<A>(a.beta, 0, 0, beta, d);
  for (int64_t r = 0; r < a.rows; ++r) {
    const T* from = row<T>(a.x, r);
    A* to = Pair<A, W>::kSplit ? straight.p : x + r * pitch;
    std::memset(static_cast<void*>(to), 0, pitch * sizeof(A));
    const Moments<A> m = a.gamma.p ? moments<A>(from, d, a.eps) : Moments<A>{};
    each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA {
      Vec<A> v = load<A>(from + i, n);
      if (a.gamma.p) v = fma((v - m.mean) * m.rstd, load<A>(gamma + i, n), load<A>(beta + i, n));
      store<A>(to + i, v, n);
    });
    if (Pair<A, W>::kSplit)
      for (int64_t k = 0; k < pitch; k += 2 * L)
        for (int64_t j = 0; j < L; ++j) {
          x[r * pitch + k + j] = to[k + 2 * j];
          x[r * pitch + k + L + j] = to[k + 2 * j + 1];
        }
  }
  const W* w = static_cast<const W*>(a.w.p);
  split((a.cols + kCols - 1) / kCols, a.threads, [&](int64_t begin, int64_t end) {
    Scratch<A> sums(a.rows * kCols);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item * kCols, n = min(kCols, a.cols - first);
      const W* from = w + first * a.w.stride;
      // memory answers four readers that are apart sooner than one
      if (n == kCols)
        for (int64_t j = 0; j < kCols / 4; ++j)
          all_rows<A, W, 4>(from + j * a.w.stride, kCols / 4 * a.w.stride, x, pitch, a.rows, d, sums + j, kCols / 4);
      else
        for (int64_t j = 0; j < n; ++j)
          all_rows<A, W, 1>(from + j * a.w.stride, 0, x, pitch, a.rows, d, sums + j, 0);
      for (int64_t r = 0; r < a.rows; ++r) {
        A* sum = sums + r * kCols;
        if (a.scale) for (int64_t i = 0; i < n; ++i) sum[i] *= a.scale[first + i];
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
  if (a.w.dtype == kF64) return a.scale ? linear<double, double, int8_t>(a) : linear<double, double, double>(a);
#endif
  with_dtype(a.w.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    a.scale ? linear<float, T, int8_t>(a) : linear<float, T, T>(a);
  });
}

}  // namespace LATTE_ISA
}  // namespace latte
