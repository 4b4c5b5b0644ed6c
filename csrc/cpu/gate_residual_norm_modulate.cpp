#include "rows_bwd.h"

namespace latte {
namespace LATTE_ISA {

// The residual stream has the dtype of its partners, or is fp32: 15 kernels, not 27.
template <class F> void with_dtypes(int64_t x, int64_t y, int64_t h, F f) {
  with_dtype(y, [&](auto ty) {
    with_dtype(h, [&](auto th) {
      if (x == kF32) f(Type<float>{}, ty, th);
      else if (x == y) f(ty, ty, th);
    });
  });
}

void gate_residual_norm_modulate_fwd(const RowForward& a) {
#if defined(LATTE_ISA_PORTABLE)
  if (a.x.dtype == kF64) return rows_forward<double, double, double, double, true, true>(a);
#endif
  with_dtypes(a.x.dtype, a.y.dtype, a.h.dtype, [&](auto x, auto y, auto h) {
    using X = typename decltype(x)::type;
    using Y = typename decltype(y)::type;
    rows_forward<float, X, Y, typename decltype(h)::type, true, true>(a);
  });
}

void gate_residual_norm_modulate_bwd(const RowBackward& a) {
#if defined(LATTE_ISA_PORTABLE)
  if (a.x_out.dtype == kF64) return rows_backward<double, double, double, double, true, true>(a);
#endif
  with_dtypes(a.x_out.dtype, a.y.dtype, a.dh.dtype, [&](auto x, auto y, auto h) {
    using X = typename decltype(x)::type;
    using Y = typename decltype(y)::type;
    rows_backward<float, X, Y, typename decltype(h)::type, true, true>(a);
  });
}

}  // namespace LATTE_ISA
}  // namespace latte
