// gelu_tanh(z) as z / (1 + exp(-2 w)), w = c (z + k z^3): one exponential and no cancellation in either tail.
#pragma once
#include <type_traits>

#include "parallel.h"

namespace latte {
namespace LATTE_ISA {

constexpr double kC = 0.7978845608028654, kK = 0.044715, kLog2e = 1.4426950408889634;

// -2 w to the base 2
template <class V> LATTE_INLINE V exponent(V z) {
  using A = std::remove_reference_t<decltype(z[0])>;
  constexpr A c1 = static_cast<A>(-2 * kC * kLog2e), c3 = static_cast<A>(-2 * kC * kK * kLog2e);
  return z * fma(z * z, splat(c3), splat(c1));
}

}  // namespace LATTE_ISA
}  // namespace latte
