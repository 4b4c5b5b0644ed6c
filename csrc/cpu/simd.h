// One vector type for every level: GCC/Clang vector extensions, with intrinsics only where the compilers do worse.
// Vec<float> carries fp32, bf16 and fp16 (all accumulate in fp32); Vec<double> exists for float64 on the portable
// level.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if !defined(LATTE_ISA_PORTABLE)
#include <immintrin.h>
#endif
#if defined(LATTE_ISA_AVX512BF16) || defined(LATTE_ISA_AMX)
#define LATTE_TILED 1  // bf16 products by tiles.h
#endif
#if defined(LATTE_ISA_AVX512) || defined(LATTE_TILED)
#define LATTE_512 1
#endif
#define LATTE_INLINE inline __attribute__((always_inline))
#define LATTE_LAMBDA __attribute__((always_inline))

namespace latte {
namespace LATTE_ISA {

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

#if defined(LATTE_512)
constexpr int kBytes = 64;
#elif defined(LATTE_ISA_AVX2)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <class T, int bytes> struct VecOf { typedef T type __attribute__((vector_size(bytes))); };
template <class A> using Vec = typename VecOf<A, kBytes>::type;
template <class A> constexpr int kLanes = kBytes / static_cast<int>(sizeof(A));
using U32 = Vec<uint32_t>;
using U16 = VecOf<uint16_t, kBytes / 2>::type;

struct Full {};  // "all lanes" as a count known at compile time

// x - 0 is x for every x, so that this is one broadcast; 0 + x is not where x is -0, and is added
template <class A> LATTE_INLINE Vec<A> splat(A x) { return x - Vec<A>{}; }

template <class To, class From> LATTE_INLINE To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "bits: sizes differ");
  To y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

template <class T> LATTE_INLINE T raw(const void* p) {
  T x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}

LATTE_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, rest = h & 0x7fff;
  if (rest >= 0x7c00) return bits<float>(sign | 0x7f800000 | rest << 13);
  // subnormal halves come out right because the multiplication is exact
  return bits<float>(sign | bits<uint32_t>(bits<float>(rest << 13) * 0x1p112f));
}

LATTE_INLINE uint16_t float_to_half(float x) {
  const uint32_t u = bits<uint32_t>(x), sign = u >> 16 & 0x8000, rest = u & 0x7fffffff;
  if (rest > 0x7f800000) return sign | 0x7e00;
  if (rest >= 0x477ff000) return sign | 0x7c00;
  if (rest < 0x38800000) return sign | (bits<uint32_t>(bits<float>(rest) + 0.5f) - 0x3f000000);
  return sign | ((rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13);
}

template <class A> LATTE_INLINE Vec<A> load(const A* p) { return raw<Vec<A>>(p); }

template <class A> LATTE_INLINE Vec<float> load(const bf16* p) {
#if defined(LATTE_512)
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
#elif defined(LATTE_ISA_AVX2)
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
#else
  return bits<Vec<float>>(__builtin_convertvector(raw<U16>(p), U32) << 16);
#endif
}

template <class A> LATTE_INLINE Vec<float> load(const f16* p) {
#if defined(LATTE_512)
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(LATTE_ISA_AVX2)
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  Vec<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = half_to_float(p[i].bits);
  return v;
#endif
}

template <class A> LATTE_INLINE Vec<A> load(const int8_t* p) {
#if defined(LATTE_512)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(LATTE_ISA_AVX2)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  Vec<A> v;
  for (int i = 0; i < kLanes<A>; ++i) v[i] = static_cast<A>(p[i]);
  return v;
#endif
}

template <class A> LATTE_INLINE void store(A* p, Vec<A> v) { std::memcpy(p, &v, sizeof(v)); }

// fp32 bits rounded to the nearest even bf16, in the high half
LATTE_INLINE U32 round_bf16(Vec<float> v) {
  const U32 u = bits<U32>(v), rounded = u + 0x7fff + (u >> 16 & 1);
  return v == v ? rounded : (u | 0x400000);
}

LATTE_INLINE void store(bf16* p, Vec<float> v) {
#if defined(LATTE_TILED)
  const auto h = _mm512_cvtneps_pbh(v);
  std::memcpy(p, &h, sizeof(h));
#elif defined(LATTE_512)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)(round_bf16(v) >> 16)));
#elif defined(LATTE_ISA_AVX2)
  const __m256i u = (__m256i)(round_bf16(v) >> 16);
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1)));
#else
  const U16 h = __builtin_convertvector(round_bf16(v) >> 16, U16);
  std::memcpy(p, &h, sizeof(h));
#endif
}

LATTE_INLINE void store(f16* p, Vec<float> v) {
#if defined(LATTE_512)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(LATTE_ISA_AVX2)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes<float>; ++i) p[i].bits = float_to_half(v[i]);
#endif
}

// The first n lanes; the others are read as zero and not written.
template <class A, class T> LATTE_INLINE Vec<A> load(const T* p, int n) {
  T full[kLanes<A>] = {};
  std::memcpy(full, p, n * sizeof(T));
  return load<A>(full);
}
template <class A, class T> LATTE_INLINE Vec<A> load(const T* p, Full) { return load<A>(p); }
template <class A, class T> LATTE_INLINE void store(T* p, Vec<A> v, int n) {
  T full[kLanes<A>];
  store(full, v);
  std::memcpy(p, full, n * sizeof(T));
}
template <class A, class T> LATTE_INLINE void store(T* p, Vec<A> v, Full) { store(p, v); }

template <class A> LATTE_INLINE Vec<A> keep(Vec<A> v, int n) {
  for (int i = n; i < kLanes<A>; ++i) v[i] = 0;
  return v;
}
template <class A> LATTE_INLINE Vec<A> keep(Vec<A> v, Full) { return v; }

// Calls f(i, lanes) over 0..d in vectors; `lanes` is Full but for the last one, and a number there
template <class A, class F> LATTE_INLINE void each_vec(int64_t d, F f) {
  int64_t i = 0;
  for (; i + kLanes<A> <= d; i += kLanes<A>) f(i, Full{});
  if (i < d) f(i, static_cast<int>(d - i));
}

template <class V> LATTE_INLINE V fma(V a, V b, V c) {
#if defined(LATTE_512)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(LATTE_ISA_AVX2)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

template <class V> LATTE_INLINE V max(V a, V b) {
#if defined(LATTE_512)
  return _mm512_max_ps(a, b);
#elif defined(LATTE_ISA_AVX2)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

template <class V> LATTE_INLINE V lesser(V a, V b) {
#if defined(LATTE_512)
  return _mm512_min_ps(a, b);
#elif defined(LATTE_ISA_AVX2)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

LATTE_INLINE Vec<float> root(Vec<float> v) {
#if defined(LATTE_512)
  return _mm512_sqrt_ps(v);
#elif defined(LATTE_ISA_AVX2)
  return _mm256_sqrt_ps(v);
#else
  for (int i = 0; i < kLanes<float>; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

template <class A> LATTE_INLINE A hsum(Vec<A> v) {
#if defined(LATTE_512)
  return _mm512_reduce_add_ps(v);
#else
  A s = 0;
  for (int i = 0; i < kLanes<A>; ++i) s += v[i];
  return s;
#endif
}

template <class A> LATTE_INLINE A hmax(Vec<A> v) {
#if defined(LATTE_512)
  return _mm512_reduce_max_ps(v);
#else
  A s = v[0];
  for (int i = 1; i < kLanes<A>; ++i) s = v[i] > s ? v[i] : s;
  return s;
#endif
}

// 1 / d for positive d: to the last bit or two of fp32, or to 14 bits where the result is rounded to 16-bit
template <bool kRough> LATTE_INLINE Vec<float> reciprocal(Vec<float> d) {
#if defined(LATTE_512)
  const Vec<float> r = _mm512_rcp14_ps(d);
  return kRough ? r : r * _mm512_fnmadd_ps(d, r, splat(2.0f));
#else
  return 1.0f / d;
#endif
}
template <bool> LATTE_INLINE Vec<double> reciprocal(Vec<double> d) { return 1.0 / d; }

// 2^x for x <= 128, where it is infinity; exactly 0 below -126, NaN for NaN; relative error 1e-4 (degree 3, for bf16
// results), 3e-6 (4, for fp16) and 2e-7 (6)
template <int kDegree> LATTE_INLINE Vec<float> exp2(Vec<float> x) {
  const Vec<float> shifted = x + 0x1.8p23f, r = x - (shifted - 0x1.8p23f);
  Vec<float> p;
  if constexpr (kDegree == 3) {
    p = fma(r, splat(0.0550089292f), splat(0.242210969f));
    p = fma(r, p, splat(0.693282902f));
  } else if constexpr (kDegree == 4) {
    p = fma(r, splat(0.00958284456f), splat(0.0559064262f));
    p = fma(r, p, splat(0.240240991f));
    p = fma(r, p, splat(0.693124175f));
  } else {
    p = fma(r, splat(0.000153533547f), splat(0.0013398875f));
    p = fma(r, p, splat(0.009618437849f));
    p = fma(r, p, splat(0.0555033237f));
    p = fma(r, p, splat(0.240226477f));
    p = fma(r, p, splat(0.693147182f));
  }
  p = fma(r, p, splat(1.0f));
#if defined(LATTE_512)
  const __mmask16 normal = _mm512_cmp_ps_mask(x, splat(-126.0f), _CMP_NLT_UQ);
  return _mm512_castsi512_ps(_mm512_maskz_add_epi32(normal, _mm512_castps_si512(p),
                                                    _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
#else
  const U32 scaled = bits<U32>(p) + (bits<U32>(shifted) << 23), tiny = bits<U32>(x < -126.0f);
  return bits<Vec<float>>(scaled & ~tiny);
#endif
}
template <int> LATTE_INLINE Vec<double> exp2(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp2(x[i]);
  return x;
}

// v / (1 + 2^x), which is v * 0 from x = 128 on: -0, and NaN for v = -inf, as torch has it. The order of
// the arguments of `lesser` keeps a NaN.
template <int kDegree, bool kRough> LATTE_INLINE Vec<float> gated(Vec<float> v, Vec<float> x) {
  const Vec<float> d = exp2<kDegree>(lesser(splat(128.0f), x)) + 1.0f;
#if defined(LATTE_512)
  if constexpr (kRough) return v * reciprocal<true>(d);
  // the Newton step makes a NaN of 1 / infinity
  const __mmask16 finite = _mm512_cmp_ps_mask(d, splat(__builtin_inff()), _CMP_NEQ_UQ);
  return v * _mm512_maskz_mov_ps(finite, reciprocal<false>(d));
#else
  return v / d;
#endif
}
template <int, bool> LATTE_INLINE Vec<double> gated(Vec<double> v, Vec<double> x) { return v / (exp2<6>(x) + 1.0); }

}  // namespace LATTE_ISA
}  // namespace latte
