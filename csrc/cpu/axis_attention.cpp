#include "attention_vector.h"
#if defined(LATTE_TILED)
#include "attention_short.h"
#include "attention_tiles_bwd.h"
#endif

namespace latte {
namespace LATTE_ISA {

static void forward(const Attention& a, bool time) {
  const Axis axis(a, time);
#if defined(LATTE_TILED)
  if (a.q.dtype == kBF16) return is_short(axis) ? short_forward(axis) : tiles_forward(axis);
#endif
#if defined(LATTE_ISA_PORTABLE)
  if (a.q.dtype == kF64) return vector_forward<double, double>(axis);
#endif
  with_dtype(a.q.dtype, [&](auto t) { vector_forward<float, typename decltype(t)::type>(axis); });
}

static void gradients(const Axis& axis) {
  const Attention& a = axis.a;
#if defined(LATTE_TILED)
  if (a.q.dtype == kBF16) return is_short(axis) && !a.cos ? short_backward(axis) : tiles_backward(axis);
#endif
#if defined(LATTE_ISA_PORTABLE)
  if (a.q.dtype == kF64) return vector_backward<double, double>(axis);
#endif
  with_dtype(a.q.dtype, [&](auto t) { vector_backward<float, typename decltype(t)::type>(axis); });
}

template <class A> void backward_with_sums(Attention a, bool time) {
  const Axis axis(a, time);
  Scratch<A> sums(a.b * axis.outer * 3 * a.h * a.dim);
  a.sums = sums;
  gradients(axis);
  sum_sequences<A>(axis);
}

static void backward(const Attention& a, bool time) {
  if (!a.dbias.p) return gradients(Axis(a, time));
#if defined(LATTE_ISA_PORTABLE)
  if (a.q.dtype == kF64) return backward_with_sums<double>(a, time);
#endif
  backward_with_sums<float>(a, time);
}

void space_attention_fwd(const Attention& a) { forward(a, false); }
void space_attention_bwd(const Attention& a) { backward(a, false); }
void time_attention_fwd(const Attention& a) { forward(a, true); }
void time_attention_bwd(const Attention& a) { backward(a, true); }

}  // namespace LATTE_ISA
}  // namespace latte
