// out = SiLU(x * scale + shift) with its edge repeated, one row of pixels at a time: computed into its first place in
// the border's layout, copied to the others while it is in cache. Channels lie side by side.
#include <type_traits>

#include "parallel.h"

namespace latte {
namespace LATTE_ISA {

constexpr double kLog2 = 1.4426950408889634;

template <class A, class T> constexpr int kTerms = sizeof(T) != 2 ? 6 : std::is_same<T, bf16>::value ? 3 : 4;

template <class A> struct Gate { Vec<A> z, s, rest; };

// v from -80 on, its sigmoid, and 1 - sigmoid without the cancellation: below, the sigmoid stays at 1e-35, so that exp2
// is in range, and v with it; the order of max's arguments hands a NaN on
template <class A, class T> LATTE_INLINE Gate<A> gate(Vec<A> v) {
  const Vec<A> z = max(splat(A(sizeof(A) == 4 ? -80 : -700)), v);
  const Vec<A> e = exp2<kTerms<A, T>>(z * splat(static_cast<A>(-kLog2)));
  const Vec<A> s = reciprocal<sizeof(T) == 2>(e + A(1));
  return {z, s, e * s};
}

// Places along one padded axis that show element i: first, and one beyond the last.
struct Places { int64_t first, end; };

LATTE_INLINE Places places(const NormSilu& a, int axis, int64_t i) {
  const int64_t at = i + a.before[axis], last = a.size[axis] - 1;
  return {i == 0 ? 0 : at, (i == last ? at + a.after[axis] : at) + 1};
}

// Where row (n, t, h) of the padded tensor begins
template <class T> LATTE_INLINE T* padded_row(const NormSilu& a, void* p, int64_t n, int64_t t, int64_t h) {
  const int64_t high = a.before[1] + a.size[1] + a.after[1], wide = a.before[2] + a.size[2] + a.after[2];
  const int64_t deep = a.before[0] + a.size[0] + a.after[0];
  return static_cast<T*>(p) + ((n * deep + t) * high + h) * wide * a.channels;
}

template <class A, class T> void forward(const NormSilu& a) {
  const int64_t c = a.channels, wide = a.before[2] + a.size[2] + a.after[2];
  split(a.batch * a.size[0] * a.size[1], a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t h = r % a.size[1], t = r / a.size[1] % a.size[0], n = r / a.size[1] / a.size[0];
      const A* scale = static_cast<const A*>(a.scale) + (a.groups > 1 ? n * c : 0);
      const A* shift = static_cast<const A*>(a.shift) + (a.groups > 1 ? n * c : 0);
      const T* x = static_cast<const T*>(a.x) + r * a.size[2] * c;
      const Places pt = places(a, 0, t), ph = places(a, 1, h);
      T* row = padded_row<T>(a, a.out, n, pt.first, ph.first);
      T* out = row + a.before[2] * c;
      for (int64_t w = 0; w < a.size[2]; ++w)
        each_vec<A>(c, [&](int64_t i, auto lanes) LATTE_LAMBDA {
          const Vec<A> v = fma(load<A>(x + w * c + i, lanes), load<A>(scale + i, lanes), load<A>(shift + i, lanes));
          store<A>(out + w * c + i, gated<kTerms<A, T>, sizeof(T) == 2>(v, v * splat(static_cast<A>(-kLog2))), lanes);
        });
      for (int64_t w = 0; w < a.before[2]; ++w) std::memcpy(static_cast<void*>(row + w * c), out, c * sizeof(T));
      const T* last = out + (a.size[2] - 1) * c;
      for (int64_t w = a.before[2] + a.size[2]; w < wide; ++w)
        std::memcpy(static_cast<void*>(row + w * c), last, c * sizeof(T));
      for (int64_t to = pt.first; to < pt.end; ++to)
        for (int64_t ho = ph.first; ho < ph.end; ++ho) {
          T* copy = padded_row<T>(a, a.out, n, to, ho);
          if (copy != row) std::memcpy(static_cast<void*>(copy), row, wide * c * sizeof(T));
        }
    }
  });
}

// What all places of a row's pixels receive, added up: sums (W, C) of dout (padded)
template <class A, class T> void gather(const NormSilu& a, int64_t n, int64_t t, int64_t h, A* sums) {
  const int64_t c = a.channels, wide = a.size[2];
  const Places pt = places(a, 0, t), ph = places(a, 1, h);
  for (int64_t to = pt.first; to < pt.end; ++to)
    for (int64_t ho = ph.first; ho < ph.end; ++ho) {
      const T* row = padded_row<T>(a, a.dout, n, to, ho);
      const bool first = to == pt.first && ho == ph.first;
      for (int64_t w = 0; w < wide; ++w) {
        const Places pw = places(a, 2, w);
        for (int64_t wo = pw.first; wo < pw.end; ++wo)
          each_vec<A>(c, [&](int64_t i, auto lanes) LATTE_LAMBDA {
            const Vec<A> v = load<A>(row + wo * c + i, lanes);
            A* sum = sums + w * c + i;
            store<A>(sum, first && wo == pw.first ? v : load<A>(sum, lanes) + v, lanes);
          });
      }
    }
}

template <class A, class T> void backward(const NormSilu& a) {
  const int64_t c = a.channels, planes = a.batch * a.size[0];
  Scratch<A> partial(planes * 2 * c);  // of a plane each: the same on any number of threads
  split(planes, a.threads, [&](int64_t begin, int64_t end) {
    Scratch<A> sums(a.size[2] * c);
    for (int64_t p = begin; p < end; ++p) {
      const int64_t t = p % a.size[0], n = p / a.size[0];
      const A* scale = static_cast<const A*>(a.scale) + (a.groups > 1 ? n * c : 0);
      const A* shift = static_cast<const A*>(a.shift) + (a.groups > 1 ? n * c : 0);
      A *dscale = partial + p * 2 * c, *dshift = dscale + c;
      std::memset(static_cast<void*>(dscale), 0, 2 * c * sizeof(A));
      for (int64_t h = 0; h < a.size[1]; ++h) {
        gather<A, T>(a, n, t, h, sums);
        const int64_t at = (p * a.size[1] + h) * a.size[2] * c;
        const T* x = static_cast<const T*>(a.x) + at;
        T* dx = static_cast<T*>(a.dx) + at;
        for (int64_t w = 0; w < a.size[2]; ++w)
          each_vec<A>(c, [&](int64_t i, auto lanes) LATTE_LAMBDA {
            const Vec<A> u = load<A>(x + w * c + i, lanes), k = load<A>(scale + i, lanes);
            const Vec<A> v = fma(u, k, load<A>(shift + i, lanes));
            const Gate<A> g = gate<A, A>(v);  // the sums are fp32 whatever x is
            const Vec<A> dv = load<A>(sums + w * c + i, lanes) * fma(g.z * g.s, g.rest, g.s);
            store<A>(dx + w * c + i, dv * k, lanes);
            store<A>(dscale + i, fma(dv, u, load<A>(dscale + i, lanes)), lanes);
            store<A>(dshift + i, load<A>(dshift + i, lanes) + dv, lanes);
          });
      }
    }
  });
  const int64_t each = planes / a.groups;
  for (int64_t g = 0; g < a.groups; ++g)
    for (int64_t i = 0; i < c; ++i) {
      double scale = 0, shift = 0;
      for (int64_t p = g * each; p < (g + 1) * each; ++p) {
        scale += partial[p * 2 * c + i];
        shift += partial[p * 2 * c + c + i];
      }
      static_cast<A*>(a.dscale)[g * c + i] = static_cast<A>(scale);
      static_cast<A*>(a.dshift)[g * c + i] = static_cast<A>(shift);
    }
}

void norm_silu_halo_fwd(const NormSilu& a) {
#if defined(LATTE_ISA_PORTABLE)
  if (a.dtype == kF64) return forward<double, double>(a);
#endif
  with_dtype(a.dtype, [&](auto t) { forward<float, typename decltype(t)::type>(a); });
}

void norm_silu_halo_bwd(const NormSilu& a) {
#if defined(LATTE_ISA_PORTABLE)
  if (a.dtype == kF64) return backward<double, double>(a);
#endif
  with_dtype(a.dtype, [&](auto t) { backward<float, typename decltype(t)::type>(a); });
}

}  // namespace LATTE_ISA
}  // namespace latte
