// Operands of a bf16 product, packed for tiles_amx.h and tiles_dot.h alike. A rows are padded to 32 columns (64 bytes);
// B is stored as ready tiles of 16 pairs of reduction rows by 16 columns, 1 KiB each, the steps of one column tile side
// by side.
#pragma once
#include "attention.h"

namespace latte {
namespace LATTE_ISA {

constexpr int64_t kTile = 512;  // bf16 values a tile

// A product's reduction: n parts, each at a distance from A's rows and at a place in B
struct Parts { int64_t n; const int64_t *distance, *place; };

LATTE_INLINE Parts one_part() {
  static constexpr int64_t zero = 0;
  return {1, &zero, &zero};
}

// Transposes 16 x 16 values of 32 bits, rows of `from_row` and `to_row` bytes
LATTE_INLINE void transpose16(const void* from, int64_t from_row, void* to, int64_t to_row) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(static_cast<const char*>(from) + i * from_row);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  char* out = static_cast<char*>(to);
  for (int c = 0; c < 4; ++c) {
    const __m512i x = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88), y = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
    const __m512i z = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd), w = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
    _mm512_storeu_si512(out + c * to_row, _mm512_shuffle_i32x4(x, y, 0x88));
    _mm512_storeu_si512(out + (4 + c) * to_row, _mm512_shuffle_i32x4(z, w, 0x88));
    _mm512_storeu_si512(out + (8 + c) * to_row, _mm512_shuffle_i32x4(x, y, 0xdd));
    _mm512_storeu_si512(out + (12 + c) * to_row, _mm512_shuffle_i32x4(z, w, 0xdd));
  }
}

// Copies n rows of `dim` values into rows of `pitch` (a multiple of 32), zero elsewhere and in the rows up to `padded`.
// A row is a few cache lines on a page of its own, which no hardware prefetcher follows: the rows at `ahead`, needed
// soon, are prefetched here.
LATTE_INLINE void pad_rows(const bf16* from, int64_t stride, int64_t n, int64_t padded, int64_t dim, bf16* to,
                           int64_t pitch, const bf16* ahead) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < pitch; k += 32) {
      const int64_t left = dim - k;
      const __mmask32 lanes = left >= 32 ? ~0u : left > 0 ? (1u << left) - 1 : 0;
      _mm512_storeu_si512(to + i * pitch + k, _mm512_maskz_loadu_epi16(lanes, from + i * stride + k));
      _mm_prefetch(reinterpret_cast<const char*>(ahead + i * stride + k), _MM_HINT_T0);
    }
  if (padded > n) std::memset(static_cast<void*>(to + n * pitch), 0, (padded - n) * pitch * sizeof(bf16));
}

// Packs a B whose reduction runs along the rows: column tile j holds rows 16 j to 16 j + 15 in pitch / 32 steps
LATTE_INLINE void pack_columns(const bf16* rows, int64_t n, int64_t pitch, bf16* b) {
  const int64_t steps = pitch / 32;
  for (int64_t j = 0; j < n / 16; ++j)
    for (int64_t s = 0; s < steps; ++s)
      transpose16(rows + j * 16 * pitch + s * 32, pitch * 2, b + (j * steps + s) * kTile, 64);
}

// Packs one column tile of a B whose reduction runs over the n rows
LATTE_INLINE void pack_pairs(const bf16* rows, int64_t n, int64_t pitch, bf16* b) {
  for (int64_t i = 0; i < n; i += 2) {
    const bf16* p = rows + i * pitch;
    const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    const __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(p + pitch)));
    _mm512_storeu_si512(b + i * 16, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
  }
}

// Packs all column tiles of such a B; n is a multiple of 32, cols of 16
LATTE_INLINE void pack_rows(const bf16* rows, int64_t n, int64_t pitch, int64_t cols, bf16* b) {
  for (int64_t j = 0; j < cols; j += 16) pack_pairs(rows + j, n, pitch, b + j * n);
}

}  // namespace LATTE_ISA
}  // namespace latte

#if defined(LATTE_ISA_AMX)
#include "tiles_amx.h"
#else
#include "tiles_dot.h"
#endif
