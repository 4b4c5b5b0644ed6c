// Arguments of the CPU kernels: raw pointers, sizes and strides (in elements), no torch. Plain data only: anything with
// code belongs in the namespace of an instruction level, or the linker would keep one level's copy for all of them.
#pragma once
#include <cstdint>

namespace latte {

enum Dtype : int64_t { kF32 = 0, kBF16 = 1, kF16 = 2, kF64 = 3, kI8 = 4, kU8 = 5 };

// Row r of a tensor of at most three leading axes starts at (r / (n1 n2)) s0 + (r / n2 % n1) s1 + (r % n2) s2.
struct Rows {
  void* p;
  int64_t dtype, n1, n2, s0, s1, s2;
};

// Group g of a (G, D) tensor starts at g * stride.
struct Groups {
  void* p;
  int64_t dtype, stride;
};

// x_out = x + gate * (y + y_bias) + pos; h = LN(x_out) * (1 + scale) + shift. A null pointer leaves its term out.
// With h_scale h is integers of -127 .. 127 (kI8), or 128 more (kU8), times the scale of their row.
struct RowForward {
  Rows x, y, pos, x_out, h;
  Groups gate, shift, scale, y_bias;
  int64_t rows, d, groups, threads;
  double eps;
  float* h_scale;
};

// The gradients of the same; dgate, dshift, dscale are (G, D), dy_bias is (D), each contiguous.
struct RowBackward {
  Rows dx_out, dh, x_out, y, dx, dy;
  Groups gate, scale, y_bias, dgate, dshift, dscale, dy_bias;
  int64_t rows, d, groups, threads;
  double eps;
};

// h (outputs, d): the means of runs of `length` rows of LN(x) * (1 + scale) + shift; a group has a run of outputs. In the
// backward h is its gradient, mean (outputs, d) the means of LN(x), in fp32 or float64. h and mean are contiguous.
struct PooledNorm {
  Rows x, dx;
  Groups shift, scale;
  void *h, *mean;
  int64_t dtype;  // of h
  int64_t outputs, length, d, groups, threads;
  double eps;
};

// a = GELU(u * u_scale + b) * factor, with a_scale as integers like h above; u_scale and factor are for these alone.
struct BiasGelu {
  Rows u, a, da, du;
  Groups b, db;
  int64_t rows, d, threads;
  float* a_scale;
  const float* u_scale;
  Groups factor;
};

// out = x * x_scale + b, or with out_scale x as integers.
struct ScaledRows {
  Rows x, out;
  Groups b;
  int64_t rows, d, threads;
  float* out_scale;
  const float* x_scale;
};

// A (B, F, N, H, K) tensor whose last axis is contiguous.
struct Heads {
  void* p;
  int64_t dtype, sb, sf, sn, sh;
};

struct Attention {
  Heads q, k, v, out, dout, dq, dk, dv;
  float* lse;  // (B, F, Nq, H) or null
  const void* bias[3];  // (H * K) of q, k, v in their dtype, or null: biases that the linear layer left out
  const void *cos, *sin;  // (F, K/2) contiguous or null; double where q is, else float
  const uint8_t* key_mask;  // (B, keys) or null, row stride mask_stride
  Groups dbias;  // (3 * H * K) or null: the sums of dq, dk, dv over all tokens
  void* sums;  // (B, sequences of a head, 3, H, K) in fp32, float64 where q is: the same of each sequence
  int64_t b, f, nq, nk, h, dim, mask_stride, threads;
  double scale;
};

// A (B, C, T, H, W) tensor of any strides.
struct Volume {
  void* p;
  int64_t dtype, stride[5];
};

// out = sum over taps and channels of w * in (+ bias), `depth` channels read and `cols` written a group; transposed:
// out index o = in index i * stride - padding + tap * dilation, otherwise the same with i and o exchanged.
struct Correlation {
  Volume in, out;
  const void *w, *bias;  // of in's dtype; bias may be null; the taps of w lie side by side
  int64_t w_stride[3];  // of a group, a channel read, a channel written
  int64_t batch, groups, depth, cols, kernel[3], in_size[3], out_size[3], stride[3], padding[3], dilation[3];
  int64_t transposed, replicate, threads;
};

// dw (groups, taps, channels of x, channels of dy), contiguous, of x's dtype. x is extended by repeated edges, `before`
// pixels ahead of it on each axis; its pixel i meets dy at i * stride - padding + tap * dilation.
struct WeightGradient {
  Volume x;
  Correlation dy;
  void* dw;
  int64_t channels, x_size[3], before[3], threads;
};

// out = SiLU(x * scale + shift), `before` and `after` pixels more on each axis, which repeat the edge. x and dx
// (batch, size, channels), out and dout with the border, all contiguous and of one dtype; scale, shift and their
// gradients (groups, channels) in fp32, or float64 where x is.
struct NormSilu {
  const void *x, *scale, *shift;
  void *out, *dout, *dx, *dscale, *dshift;
  int64_t dtype, batch, channels, groups, size[3], before[3], after[3], threads;
};

// z (rows, width) and e (codes, width), contiguous and of one dtype.
struct NearestCode {
  const void *z, *e;
  int64_t* out;
  int64_t dtype, rows, codes, width, threads;
};

// y = act(LN(x) w^T + b) + residual; w (cols, depth), row n at n * stride; a null pointer leaves its term out. act is
// GELU by erf where `gelu` is not 0.
struct SmallLinear {
  Rows x, residual, y;
  Groups w, bias, gamma, beta;  // gamma and beta are the norm's
  int64_t rows, depth, cols, gelu, threads;
  double eps;
  const float* scale;  // of the rows of w, which are int8 then; else null
};

// out (batch, heads * dim), contiguous: attention of the query in qkv (batch, 3, heads, dim) to keys and values 0 ..
// *position of cache (2, batch, heads, length, dim), whose last axes lie side by side, after those of qkv are written to
// *position.
struct DecodeAttention {
  const void* qkv;
  void *cache, *out;
  const int64_t* position;
  int64_t dtype, qkv_stride[3], cache_stride[4], batch, heads, dim, threads;
  double scale;
};

// A tensor of an optimizer's list, `values` numbers in fp32; `average` may be null, and so may `copy`, the weight in 16
// bits, or in fp32.
struct Trained {
  float* weight;
  const float* gradient;
  float *moment, *square;
  const float* step;  // number of this update, from 1
  float* average;
  void* copy;
  int64_t copy_dtype, values;
};

// One step of AdamW on `count` tensors; afterwards average = decay * average + (1 - decay) * weight, and copy = weight.
struct AdamwEma {
  const Trained* tensors;
  int64_t count, threads;
  double lr, beta1, beta2, eps, weight_decay, decay;
};

#define LATTE_OPS(ns)                                          \
  namespace ns {                                               \
  void norm_modulate_fwd(const RowForward&);                   \
  void norm_modulate_bwd(const RowBackward&);                  \
  void gate_residual_fwd(const RowForward&);                   \
  void gate_residual_bwd(const RowBackward&);                  \
  void gate_residual_norm_modulate_fwd(const RowForward&);     \
  void gate_residual_norm_modulate_bwd(const RowBackward&);    \
  void norm_modulate_int8_fwd(const RowForward&);              \
  void gate_residual_norm_modulate_int8_fwd(const RowForward&); \
  void bias_gelu_int8_fwd(const BiasGelu&);                    \
  void rows_int8_fwd(const ScaledRows&);                       \
  void scale_rows(const ScaledRows&);                          \
  void pooled_norm_fwd(const PooledNorm&);                     \
  void pooled_norm_bwd(const PooledNorm&);                     \
  void bias_gelu_fwd(const BiasGelu&);                         \
  void bias_gelu_bwd(const BiasGelu&);                         \
  void space_attention_fwd(const Attention&);                  \
  void space_attention_bwd(const Attention&);                  \
  void time_attention_fwd(const Attention&);                   \
  void time_attention_bwd(const Attention&);                   \
  void conv_correlate(const Correlation&);                     \
  void conv_weight_gradient(const WeightGradient&);            \
  void norm_silu_halo_fwd(const NormSilu&);                    \
  void norm_silu_halo_bwd(const NormSilu&);                    \
  void nearest_code(const NearestCode&);                       \
  void small_linear(const SmallLinear&);                       \
  void decode_attention(const DecodeAttention&);               \
  void adamw_ema(const AdamwEma&);                             \
  }
LATTE_OPS(portable)
LATTE_OPS(avx2)
LATTE_OPS(avx512)
LATTE_OPS(avx512bf16)
LATTE_OPS(amx)
#undef LATTE_OPS

}  // namespace latte
