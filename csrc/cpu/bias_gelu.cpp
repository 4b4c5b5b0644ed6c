#include "gelu.h"

namespace latte {
namespace LATTE_ISA {

// The degree of exp2's polynomial: bf16 keeps 8 bits and fp16 11, so lower degrees serve them
template <class A, class T> constexpr int kDegreeOf = sizeof(T) != 2 ? 6 : std::is_same<T, bf16>::value ? 3 : 4;

template <class A> struct Sigmoid { Vec<A> z, s, rest; };

// z, the sigmoid of 2 w, and 1 - sigmoid without the cancellation. Below -9.95 the sigmoid is under 2^-126 and z is
// clamped, so that exp2 is in range and the result below 2e-37; the order of max's arguments keeps a NaN.
template <class A, class T> LATTE_INLINE Sigmoid<A> sigmoid(Vec<A> z) {
  z = max(splat(A(sizeof(A) == 4 ? -9.95 : -20)), z);
  const Vec<A> e = exp2<kDegreeOf<A, T>>(exponent(z));
  const Vec<A> s = reciprocal<sizeof(T) == 2>(e + A(1));
  return {z, s, e * s};
}

template <class A, class T> void forward(const BiasGelu& a) {
  const int64_t d = a.d;
  split(a.rows, a.threads, [&](int64_t begin, int64_t end) {
    Scratch<A> bias(d);
    widen<A>(a.b, 0, 0, bias, d);
    for (int64_t r = begin; r < end; ++r) {
      const T* u = row<T>(a.u, r);
      T* out = row<T>(a.a, r);
      each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA {
        const Vec<A> z = load<A>(u + i, n) + load<A>(bias + i, n);
        store<A>(out + i, gated<kDegreeOf<A, T>, sizeof(T) == 2>(z, exponent(z)), n);
      });
    }
  });
}

template <class A, class T> void backward(const BiasGelu& a) {
  constexpr int64_t kChunk = 32;  // independent of the threads: db is the same on any number of them
  const int64_t d = a.d, chunks = (a.rows + kChunk - 1) / kChunk;
  Scratch<A> partial(chunks * d);
  split(chunks, a.threads, [&](int64_t begin, int64_t end) {
    Scratch<A> bias(d);
    widen<A>(a.b, 0, 0, bias, d);
    for (int64_t c = begin; c < end; ++c) {
      A* db = partial + c * d;
      std::memset(db, 0, d * sizeof(A));
      for (int64_t r = c * kChunk; r < min(a.rows, (c + 1) * kChunk); ++r) {
        const T *u = row<T>(a.u, r), *da = row<T>(a.da, r);
        T* du = row<T>(a.du, r);
        each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA {
          const auto [z, s, rest] = sigmoid<A, T>(load<A>(u + i, n) + load<A>(bias + i, n));
          const Vec<A> dw = fma(z * z, splat(static_cast<A>(6 * kC * kK)), splat(static_cast<A>(2 * kC)));
          const Vec<A> slope = fma(z * s * rest, dw, s), g = load<A>(da + i, n) * slope;
          store<A>(du + i, g, n);
          store<A>(db + i, load<A>(db + i, n) + g, n);
        });
      }
    }
  });
  Scratch<double> total(d);
  std::memset(total, 0, d * sizeof(double));
  for (int64_t c = 0; c < chunks; ++c)
    for (int64_t i = 0; i < d; ++i) total[i] += partial[c * d + i];
  for (int64_t i = 0; i < d; ++i) partial[i] = static_cast<A>(total[i]);
  narrow<A>(partial, a.db, 0, d);
}

void bias_gelu_fwd(const BiasGelu& a) {
#if defined(LATTE_ISA_PORTABLE)
  if (a.u.dtype == kF64) return forward<double, double>(a);
#endif
  with_dtype(a.u.dtype, [&](auto u) { forward<float, typename decltype(u)::type>(a); });
}

void bias_gelu_bwd(const BiasGelu& a) {
#if defined(LATTE_ISA_PORTABLE)
  if (a.u.dtype == kF64) return backward<double, double>(a);
#endif
  with_dtype(a.u.dtype, [&](auto u) { backward<float, typename decltype(u)::type>(a); });
}

}  // namespace LATTE_ISA
}  // namespace latte
