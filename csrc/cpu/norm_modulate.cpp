#include "rows_bwd.h"

namespace latte {
namespace LATTE_ISA {

void norm_modulate_fwd(const RowForward& a) {
#if defined(LATTE_ISA_PORTABLE)
  if (a.x.dtype == kF64) return rows_forward<double, double, double, double, false, true>(a);
#endif
  with_dtype(a.x.dtype, [&](auto x) {
    with_dtype(a.h.dtype, [&](auto h) {
      using X = typename decltype(x)::type;
      rows_forward<float, X, X, typename decltype(h)::type, false, true>(a);
    });
  });
}

void norm_modulate_bwd(const RowBackward& a) {
#if defined(LATTE_ISA_PORTABLE)
  if (a.x_out.dtype == kF64) return rows_backward<double, double, double, double, false, true>(a);
#endif
  with_dtype(a.x_out.dtype, [&](auto x) {
    with_dtype(a.dh.dtype, [&](auto h) {
      using X = typename decltype(x)::type;
      rows_backward<float, X, X, typename decltype(h)::type, false, true>(a);
    });
  });
}

}  // namespace LATTE_ISA
}  // namespace latte
