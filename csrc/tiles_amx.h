// bf16 products on AMX tiles.
#pragma once

namespace latte {
namespace LATTE_ISA {

// Every tile is 16 rows of 64 bytes; one object a thread, for as long as it multiplies.
struct Tiles {
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t width[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t height[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() { _tile_release(); }
};

// C (16 kM x 16 kN) (+)= the sum over `parts` of A B, each part `steps` of 32 at its own distance in A and place in B.
// A's rows start at a0 and, the second 16, at a1; B's column tiles lie `steps` tiles apart.
template <int kM, int kN>
LATTE_INLINE void tile_product(const bf16* a0, const bf16* a1, int64_t lda, Parts parts, int64_t steps, const bf16* b,
                               float* c, int64_t ldc, bool add) {
  const int64_t c_row = ldc * 4, a_row = lda * 2;
  __asm__ volatile("" ::: "memory");  // the intrinsics do not tell the compiler that tile loads read memory
  if (add) {
    _tile_loadd(0, c, c_row);
    if (kN == 2) _tile_loadd(1, c + 16, c_row);
    if (kM == 2) _tile_loadd(2, c + 16 * ldc, c_row);
    if (kM == 2 && kN == 2) _tile_loadd(3, c + 16 * ldc + 16, c_row);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < parts.n; ++k) {
    const bf16 *p0 = a0 + parts.distance[k], *p1 = a1 + parts.distance[k], *q = b + parts.place[k];
    for (int64_t s = 0; s < steps; ++s) {
      _tile_loadd(4, p0 + s * 32, a_row);
      _tile_loadd(6, q + s * kTile, 64);
      _tile_dpbf16ps(0, 4, 6);
      if (kN == 2) {
        _tile_loadd(7, q + (steps + s) * kTile, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if (kM == 2) {
        _tile_loadd(5, p1 + s * 32, a_row);
        _tile_dpbf16ps(2, 5, 6);
      }
      if (kM == 2 && kN == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, c_row);
  if (kN == 2) _tile_stored(1, c + 16, c_row);
  if (kM == 2) _tile_stored(2, c + 16 * ldc, c_row);
  if (kM == 2 && kN == 2) _tile_stored(3, c + 16 * ldc + 16, c_row);
}

// C (rows x cols tiles of 16) (+)= A B over `steps` of 32
static void tile_gemm(int64_t rows, int64_t cols, int64_t steps, const bf16* a, int64_t lda, const bf16* b, float* c,
                      int64_t ldc, bool add) {
  for (int64_t j = 0; j < cols; j += 2)
    for (int64_t i = 0; i < rows; i += 2) {
      const bf16 *a0 = a + i * 16 * lda, *a1 = a0 + 16 * lda, *pb = b + j * steps * kTile;
      float* pc = c + i * 16 * ldc + j * 16;
      const bool m2 = i + 1 < rows, n2 = j + 1 < cols;
      if (m2 && n2) tile_product<2, 2>(a0, a1, lda, one_part(), steps, pb, pc, ldc, add);
      else if (m2) tile_product<2, 1>(a0, a1, lda, one_part(), steps, pb, pc, ldc, add);
      else if (n2) tile_product<1, 2>(a0, a0, lda, one_part(), steps, pb, pc, ldc, add);
      else tile_product<1, 1>(a0, a0, lda, one_part(), steps, pb, pc, ldc, add);
    }
}

}  // namespace LATTE_ISA
}  // namespace latte
