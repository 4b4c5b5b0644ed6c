// The row kernels whose result leaves as 8-bit integers, and the scaling of a product of such rows.
#include "gelu.h"
#include "rows_fwd.h"

namespace latte {
namespace LATTE_ISA {

void norm_modulate_int8_fwd(const RowForward& a) {
  with_dtype(a.x.dtype, [&](auto x) {
    using X = typename decltype(x)::type;
    rows_forward<float, X, X, int8_t, false, true>(a);
  });
}

// The residual stream has the dtype of its partners, or is fp32
void gate_residual_norm_modulate_int8_fwd(const RowForward& a) {
  with_dtype(a.y.dtype, [&](auto y) {
    using Y = typename decltype(y)::type;
    if (a.x.dtype == kF32) rows_forward<float, float, Y, int8_t, true, true>(a);
    else if (a.x.dtype == a.y.dtype) rows_forward<float, Y, Y, int8_t, true, true>(a);
  });
}

void bias_gelu_int8_fwd(const BiasGelu& a) {
  with_dtype(a.u.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    split(a.rows, a.threads, [&](int64_t begin, int64_t end) {
      Scratch<float> bias(a.d), wide(a.d), factor(a.factor.p ? a.d : 0);
      widen<float>(a.b, 0, 0, bias, a.d);
      if (a.factor.p) widen<float>(a.factor, 0, 0, factor, a.d);
      for (int64_t r = begin; r < end; ++r) {
        const T* u = row<T>(a.u, r);
        const Vec<float> u_scale = splat(a.u_scale ? a.u_scale[r] : 1.0f);
        a.a_scale[r] = rounded_row(a.d, wide, row<int8_t>(a.a, r), a.a.dtype == kU8,
                                   [&](int64_t i, auto n) LATTE_LAMBDA {
          const Vec<float> z = fma(load<float>(u + i, n), u_scale, load<float>(bias + i, n));
          const Vec<float> v = gated<sizeof(T) == 2 ? 4 : 6, false>(z, exponent(z));
          return a.factor.p ? v * load<float>(factor + i, n) : v;
        });
      }
    });
  });
}

void rows_int8_fwd(const ScaledRows& a) {
  with_dtype(a.x.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    split(a.rows, a.threads, [&](int64_t begin, int64_t end) {
      Scratch<float> wide(a.d);
      for (int64_t r = begin; r < end; ++r) {
        const T* x = row<T>(a.x, r);
        a.out_scale[r] = rounded_row(a.d, wide, row<int8_t>(a.out, r), a.out.dtype == kU8,
                                     [&](int64_t i, auto n) LATTE_LAMBDA { return load<float>(x + i, n); });
      }
    });
  });
}

void scale_rows(const ScaledRows& a) {
  with_dtype(a.x.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    split(a.rows, a.threads, [&](int64_t begin, int64_t end) {
      Scratch<float> bias(a.d);
      if (a.b.p) widen<float>(a.b, 0, 0, bias, a.d);
      else std::memset(bias, 0, a.d * sizeof(float));
      for (int64_t r = begin; r < end; ++r) {
        const T* x = row<T>(a.x, r);
        T* out = row<T>(a.out, r);
        const Vec<float> scale = splat(a.x_scale[r]);
        each_vec<float>(a.d, [&](int64_t i, auto n) LATTE_LAMBDA {
          store<float>(out + i, fma(load<float>(x + i, n), scale, load<float>(bias + i, n)), n);
        });
      }
    });
  });
}

}  // namespace LATTE_ISA
}  // namespace latte
