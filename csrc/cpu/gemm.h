// A register-blocked product for blocks that fit in cache: C (+)= A B, any strides in A, rows of B and C contiguous.
#pragma once
#include "simd.h"

namespace latte {
namespace LATTE_ISA {

#if defined(LATTE_512)
constexpr int kTileRows = 8, kTileVecs = 3;
#else
constexpr int kTileRows = 4, kTileVecs = 2;
#endif

template <class T> struct Matrix { T* p; int64_t row, col; };

template <class A, int kVecs>
LATTE_INLINE void tile(Matrix<const A> a, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t depth, bool add) {
  constexpr int L = kLanes<A>;
  Vec<A> acc[kTileRows][kVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < kVecs; ++j) acc[i][j] = Vec<A>{};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<A> rhs[kVecs];
#pragma GCC unroll 3
    for (int j = 0; j < kVecs; ++j) rhs[j] = load<A>(b + k * ldb + j * L);
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const Vec<A> lhs = splat<A>(a.p[i * a.row + k * a.col]);
  #pragma GCC unroll 3
    for (int j = 0; j < kVecs; ++j) acc[i][j] = fma(lhs, rhs[j], acc[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < kVecs; ++j) {
      A* to = c + i * ldc + j * L;
      store<A>(to, add ? load<A>(to) + acc[i][j] : acc[i][j]);
    }
}

// Sums longer than this are added up from parts: the error of one running fp32 sum grows with its length
constexpr int64_t kSum = 32;

// rows is a multiple of kTileRows and cols of the lanes: the buffers are padded
template <class A, int64_t kTerms = kSum>
void gemm(int64_t rows, int64_t cols, int64_t depth, Matrix<const A> a, const A* b, int64_t ldb, A* c, int64_t ldc,
          bool add) {
  constexpr int L = kLanes<A>;
  for (int64_t j = 0; j < cols;) {
    const bool wide = j + kTileVecs * L <= cols;
    for (int64_t i = 0; i < rows; i += kTileRows) {
      for (int64_t k = 0; k < depth; k += kTerms) {
        const Matrix<const A> block{a.p + i * a.row + k * a.col, a.row, a.col};
        const int64_t part = depth - k < kTerms ? depth - k : kTerms;
        if (wide) tile<A, kTileVecs>(block, b + k * ldb + j, ldb, c + i * ldc + j, ldc, part, add || k);
        else tile<A, 1>(block, b + k * ldb + j, ldb, c + i * ldc + j, ldc, part, add || k);
      }
    }
    j += wide ? kTileVecs * L : L;
  }
}

}  // namespace LATTE_ISA
}  // namespace latte
