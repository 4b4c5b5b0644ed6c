// The nearest of K codes to each row: the largest z . e - |e|^2 / 2, a block of rows against a block of codes at a time,
// so that no matrix of distances is kept.
#include <limits>

#include "gemm.h"
#include "parallel.h"

namespace latte {
namespace LATTE_ISA {

constexpr int64_t kCodes = 64, kRows = 64;  // codes of a block, which stays in L2 with the rows; multiples of a tile

template <class A> void search(const NearestCode& a) {
  const int64_t blocks = (a.codes + kCodes - 1) / kCodes, d = a.width;
  Scratch<A> packed(blocks * d * kCodes), half(blocks * kCodes);
  const A* from = static_cast<const A*>(a.e);
  split(blocks, a.threads, [&](int64_t begin, int64_t end) {  // blocks (width, codes)
    for (int64_t b = begin; b < end; ++b)
      for (int64_t j = 0; j < kCodes; ++j) {
        const int64_t code = b * kCodes + j;
        const bool real = code < a.codes;
        double square = 0;
        for (int64_t i = 0; i < d; ++i) {
          const A v = real ? from[code * d + i] : A(0);
          packed[(b * d + i) * kCodes + j] = v;
          square += static_cast<double>(v) * v;
        }
        half[code] = real ? static_cast<A>(square / 2) : std::numeric_limits<A>::infinity();
      }
  });
  split((a.rows + kRows - 1) / kRows, a.threads, [&](int64_t begin, int64_t end) {
    Scratch<A> z(kRows * d), products(kRows * kCodes), best(kRows);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item * kRows, n = min(kRows, a.rows - first);
      int64_t* out = a.out + first;
      std::memcpy(static_cast<void*>(z), static_cast<const A*>(a.z) + first * d, n * d * sizeof(A));
      std::memset(static_cast<void*>(z + n * d), 0, (kRows - n) * d * sizeof(A));
      for (int64_t r = 0; r < n; ++r) best[r] = -std::numeric_limits<A>::infinity(), out[r] = 0;
      for (int64_t b = 0; b < blocks; ++b) {
        gemm<A>(kRows, kCodes, d, {z, d, 1}, packed + b * d * kCodes, kCodes, products, kCodes, false);
        const A* less = half + b * kCodes;
        for (int64_t r = 0; r < n; ++r) {
          const A* p = products + r * kCodes;
          // most blocks hold no better code, which their largest tells without a branch for each
          Vec<A> most = splat(-std::numeric_limits<A>::infinity());
          for (int64_t j = 0; j < kCodes; j += kLanes<A>) most = max(most, load<A>(p + j) - load<A>(less + j));
          A largest = most[0];
          for (int j = 1; j < kLanes<A>; ++j) largest = most[j] > largest ? most[j] : largest;
          if (!(largest > best[r])) continue;
          best[r] = largest;
          int64_t j = 0;
          while (j < kCodes - 1 && p[j] - less[j] != largest) ++j;
          out[r] = b * kCodes + j;
        }
      }
    }
  });
}

void nearest_code(const NearestCode& a) {
#if defined(LATTE_ISA_PORTABLE)
  if (a.dtype == kF64) return search<double>(a);
#endif
  search<float>(a);
}

}  // namespace LATTE_ISA
}  // namespace latte
