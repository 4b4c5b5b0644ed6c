// A row as integers of -127 .. 127 and a scale, its largest magnitude over 127; with 128 added as unsigned ones.
#pragma once
#include "parallel.h"

namespace latte {
namespace LATTE_ISA {

using I32 = Vec<int32_t>;

// v rounded to nearest, ties to even; 0x80 in `flip` adds 128. NaN gives any integer.
LATTE_INLINE void store_int8(int8_t* p, Vec<float> v, uint8_t flip) {
#if defined(LATTE_512)
  const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v));
  _mm_storeu_si128((__m128i*)p, _mm_xor_si128(bytes, _mm_set1_epi8(static_cast<char>(flip))));
#elif defined(LATTE_ISA_AVX2)
  const __m256i wide = _mm256_cvtps_epi32(v);
  const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  const __m128i bytes = _mm_packs_epi16(half, half);
  _mm_storel_epi64((__m128i*)p, _mm_xor_si128(bytes, _mm_set1_epi8(static_cast<char>(flip))));
#else
  for (int i = 0; i < kLanes<float>; ++i) {
    const float x = v[i] == v[i] ? std::nearbyint(v[i]) : 0.0f;
    p[i] = static_cast<int8_t>(static_cast<uint8_t>(static_cast<int>(x)) ^ flip);
  }
#endif
}
LATTE_INLINE void store_int8(int8_t* p, Vec<float> v, uint8_t flip, Full) { store_int8(p, v, flip); }
LATTE_INLINE void store_int8(int8_t* p, Vec<float> v, uint8_t flip, int n) {
  int8_t full[kLanes<float>];
  store_int8(full, v, flip);
  std::memcpy(p, full, n);
}

// Writes the d values that `value` gives, vector by vector, to `to` as integers; returns their scale, at least 2^-100,
// and NaN where a value is not finite. `wide` holds the row in between.
template <class F> LATTE_INLINE float rounded_row(int64_t d, float* wide, int8_t* to, bool with_128, F value) {
  // magnitudes are compared as integers, among which infinity and NaN are the largest
  I32 most = {};
  each_vec<float>(d, [&](int64_t i, auto n) LATTE_LAMBDA {
    const Vec<float> v = keep<float>(value(i, n), n);
    store<float>(wide + i, v, n);
    const I32 magnitude = bits<I32>(v) & 0x7fffffff;
    most = magnitude > most ? magnitude : most;
  });
  int32_t largest = 0;
  for (int i = 0; i < kLanes<float>; ++i) largest = most[i] > largest ? most[i] : largest;
  if (largest >= 0x7f800000) {
    std::memset(to, with_128 ? 128 : 0, d);
    return __builtin_nanf("");
  }
  const float ratio = bits<float>(largest) / 127.0f, scale = ratio > 0x1p-100f ? ratio : 0x1p-100f;
  const Vec<float> inverse = splat(1.0f / scale);
  const uint8_t flip = with_128 ? 0x80 : 0;
  each_vec<float>(d, [&](int64_t i, auto n) LATTE_LAMBDA {
    store_int8(to + i, load<float>(wide + i, n) * inverse, flip, n);
  });
  return scale;
}

}  // namespace LATTE_ISA
}  // namespace latte
