#include "rows_bwd.h"

namespace latte {
namespace LATTE_ISA {

void gate_residual_fwd(const RowForward& a) {
#if defined(LATTE_ISA_PORTABLE)
  if (a.x.dtype == kF64) return rows_forward<double, double, double, double, true, false>(a);
#endif
  with_dtype(a.x.dtype, [&](auto x) {
    with_dtype(a.y.dtype, [&](auto y) {
      using X = typename decltype(x)::type;
      rows_forward<float, X, typename decltype(y)::type, X, true, false>(a);
    });
  });
}

void gate_residual_bwd(const RowBackward& a) {
#if defined(LATTE_ISA_PORTABLE)
  if (a.dx_out.dtype == kF64) return rows_backward<double, double, double, double, true, false>(a);
#endif
  with_dtype(a.dx_out.dtype, [&](auto x) {
    with_dtype(a.y.dtype, [&](auto y) {
      using X = typename decltype(x)::type;
      rows_backward<float, X, typename decltype(y)::type, X, true, false>(a);
    });
  });
}

}  // namespace LATTE_ISA
}  // namespace latte
