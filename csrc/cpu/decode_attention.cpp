// One query a sequence against a static cache of keys and values, into which the new token's are written first.
#include <limits>

#include "parallel.h"

namespace latte {
namespace LATTE_ISA {

constexpr int64_t kRun = 32;  // keys in a running sum of values: the error of a longer one grows with its length
constexpr int kAtOnce = 4;    // vectors of a head that are summed in registers

// s[n] = q . k_n for n rows; returns the largest
template <class A, class T>
LATTE_INLINE A scores(const A* q, const T* k, int64_t stride, int64_t count, int64_t d, A* s) {
  A largest = -std::numeric_limits<A>::infinity();
  for (int64_t n = 0; n < count; ++n, k += stride) {
    Vec<A> sum = {};
    each_vec<A>(d, [&](int64_t i, auto lanes) LATTE_LAMBDA {
      sum = fma(load<A>(k + i, lanes), load<A>(q + i, lanes), sum);
    });
    s[n] = hsum<A>(sum);
    largest = s[n] > largest ? s[n] : largest;
  }
  return largest;
}

// to[0 .. n) += the sum of p_n v_n over kRun keys or fewer, for kVecs whole vectors or one of n lanes
template <class A, class T, int kVecs, class N>
LATTE_INLINE void weighted(const A* p, const T* v, int64_t stride, int64_t count, A* to, N lanes) {
  constexpr int64_t L = kLanes<A>;
  Vec<A> sum[kVecs] = {};
  for (int64_t n = 0; n < count; ++n, v += stride) {
    const Vec<A> weight = splat<A>(p[n]);
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) sum[j] = fma(weight, load<A>(v + j * L, lanes), sum[j]);
  }
  for (int j = 0; j < kVecs; ++j) store<A>(to + j * L, load<A>(to + j * L, lanes) + sum[j], lanes);
}

template <class A, class T> void decode(const DecodeAttention& a) {
  constexpr int64_t L = kLanes<A>;
  const int64_t d = a.dim, at = *a.position, count = at + 1;
  split(a.batch * a.heads, a.threads, [&](int64_t begin, int64_t end) {
    Scratch<A> q(d), out(d), s(count + L);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / a.heads, h = item % a.heads;
      const T* from = static_cast<const T*>(a.qkv) + b * a.qkv_stride[0] + h * a.qkv_stride[2];
      T* keys = static_cast<T*>(a.cache) + b * a.cache_stride[1] + h * a.cache_stride[2];
      T* values = keys + a.cache_stride[0];
      const int64_t row = a.cache_stride[3];
      std::memcpy(static_cast<void*>(keys + at * row), from + a.qkv_stride[1], d * sizeof(T));
      std::memcpy(static_cast<void*>(values + at * row), from + 2 * a.qkv_stride[1], d * sizeof(T));
      each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA { store<A>(q + i, load<A>(from + i, n), n); });
      const A largest = scores<A>(q, keys, row, count, d, s.p);
      const A factor = static_cast<A>(a.scale * 1.4426950408889634);
      Vec<A> sum = {};
      each_vec<A>(count, [&](int64_t i, auto n) LATTE_LAMBDA {
        // the largest is taken off before it is scaled, or its rounding would be that of a large exponent
        const Vec<A> p = keep<A>(exp2<6>((load<A>(s + i, n) - largest) * factor), n);
        sum += p;
        store<A>(s + i, p, n);
      });
      std::memset(static_cast<void*>(out), 0, d * sizeof(A));
      for (int64_t first = 0; first < count; first += kRun) {
        const int64_t n = min(kRun, count - first);
        const T* v = values + first * row;
        int64_t i = 0;
        for (; i + kAtOnce * L <= d; i += kAtOnce * L)
          weighted<A, T, kAtOnce>(s + first, v + i, row, n, out + i, Full{});
        for (; i + L <= d; i += L) weighted<A, T, 1>(s + first, v + i, row, n, out + i, Full{});
        if (i < d) weighted<A, T, 1>(s + first, v + i, row, n, out + i, static_cast<int>(d - i));
      }
      const A share = A(1) / hsum<A>(sum);
      T* to = static_cast<T*>(a.out) + item * d;
      each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA { store<A>(to + i, load<A>(out + i, n) * share, n); });
    }
  });
}

void decode_attention(const DecodeAttention& a) {
#if defined(LATTE_ISA_PORTABLE)
  if (a.dtype == kF64) return decode<double, double>(a);
#endif
  with_dtype(a.dtype, [&](auto t) { decode<float, typename decltype(t)::type>(a); });
}

}  // namespace LATTE_ISA
}  // namespace latte
