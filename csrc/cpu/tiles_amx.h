// bf16 products on AMX tiles.
#pragma once

namespace latte {
namespace LATTE_ISA {

// Configures a thread's tiles, 16 rows of 64 bytes each, for the lifetime of the object.
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

// The products of attention of at most 16 queries and keys, as in tiles_dot.h
struct ShortProducts {
  Tiles tiles;
  Scratch<bf16> p, pairs;
  Scratch<float> s, o;
  const int64_t pitch;
  explicit ShortProducts(int64_t columns) : p(16 * 32), pairs(32 * columns), s(256), o(16 * columns), pitch(columns) {
    std::memset(static_cast<void*>(p.p), 0, 16 * 32 * sizeof(bf16));
    std::memset(static_cast<void*>(pairs.p), 0, 32 * columns * sizeof(bf16));
  }

  LATTE_INLINE void scores(const bf16* k, int64_t lda, const bf16* q, int64_t, Vec<float>* w) {
    tile_gemm(1, 1, pitch / 32, k, lda, q, s, 16, false);
    for (int j = 0; j < 16; ++j) w[j] = load(s + j * 16);
  }

  LATTE_INLINE void over_keys(const Vec<float>* w, const bf16* b, int64_t lda, int64_t dim, bf16* out, int64_t stride,
                              int64_t n) {
    transpose16(w, 64, s, 64);
    for (int i = 0; i < 16; ++i) store(p + i * 32, load(s + i * 16));
    product(b, lda, dim, out, stride, n);
  }

  LATTE_INLINE void over_queries(const Vec<float>* w, const bf16* b, int64_t lda, int64_t dim, bf16* out,
                                 int64_t stride, int64_t n) {
    for (int j = 0; j < 16; ++j) store(p + j * 32, w[j]);
    product(b, lda, dim, out, stride, n);
  }

 private:
  LATTE_INLINE void product(const bf16* b, int64_t lda, int64_t dim, bf16* out, int64_t stride, int64_t n) {
    const int64_t wide = (dim + 15) / 16 * 16;
    for (int64_t c = 0; c < wide; c += 16) pack_pairs(b + c, 16, lda, pairs + c * 32);
    tile_gemm(1, wide / 16, 1, p, 32, pairs, o, wide, false);
    for (int64_t i = 0; i < n; ++i)
      each_vec<float>(dim, [&](int64_t c, auto lanes) LATTE_LAMBDA {
        store<float>(out + i * stride + c, load(o + i * wide + c), lanes);
      });
  }
};

}  // namespace LATTE_ISA
}  // namespace latte
