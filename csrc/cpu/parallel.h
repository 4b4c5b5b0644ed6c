// Rows, element types and threads shared by the CPU kernels.
#pragma once
#include <omp.h>

#include <cstdlib>

#include "ops.h"
#include "simd.h"

namespace latte {
namespace LATTE_ISA {

template <class T> struct Type { using type = T; };

// std::min would be one shared symbol, compiled for whichever level the linker met first
LATTE_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Calls f(Type<element>) for a dtype code; float64 exists on the portable level alone
template <class F> LATTE_INLINE void with_dtype(int64_t dtype, F f) {
  if (dtype == kF32) f(Type<float>{});
  if (dtype == kBF16) f(Type<bf16>{});
  if (dtype == kF16) f(Type<f16>{});
}

template <class T> LATTE_INLINE T* row(const Rows& t, int64_t r) {
  const int64_t i2 = r % t.n2, outer = r / t.n2;
  return static_cast<T*>(t.p) + (outer / t.n1) * t.s0 + (outer % t.n1) * t.s1 + i2 * t.s2;
}

// Aligned memory of one thread for one call.
template <class T> struct Scratch {
  T* p;
  explicit Scratch(int64_t n) : p(static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 127) / 64 * 64))) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(p); }
  operator T*() const { return p; }
};

// Writes row g of a (G, D) tensor, widened, plus `plus` to `to`.
template <class A> void widen(const Groups& t, int64_t g, A plus, A* to, int64_t d) {
  auto copy = [&](auto type) {
    using T = typename decltype(type)::type;
    const T* p = static_cast<const T*>(t.p) + g * t.stride;
    each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA { store<A>(to + i, load<A>(p + i, n) + plus, n); });
  };
  if constexpr (sizeof(A) == 8) copy(Type<double>{});
  else with_dtype(t.dtype, copy);
}

// Writes `from`, narrowed, to row g of a (G, D) tensor.
template <class A> void narrow(const A* from, const Groups& t, int64_t g, int64_t d) {
  auto copy = [&](auto type) {
    using T = typename decltype(type)::type;
    T* p = static_cast<T*>(t.p) + g * t.stride;
    each_vec<A>(d, [&](int64_t i, auto n) LATTE_LAMBDA { store<A>(p + i, load<A>(from + i, n), n); });
  };
  if constexpr (sizeof(A) == 8) copy(Type<double>{});
  else with_dtype(t.dtype, copy);
}

// Calls f(begin, end) on ranges of 0..n that depend on n and `threads` alone; other threads take the ranges of one that
// is delayed
template <class F> void split(int64_t n, int64_t threads, F f) {
  if (threads <= 1 || n <= 1) {
    if (n > 0) f(int64_t(0), n);
    return;
  }
  const int64_t parts = min(n, 4 * threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(static_cast<int>(min(n, threads)))
  for (int64_t i = 0; i < parts; ++i) f(n * i / parts, n * (i + 1) / parts);
}

}  // namespace LATTE_ISA
}  // namespace latte
