// Python bindings of the CPU kernels: tensors are arrays of integers, absent ones zeros.
#pragma once
#include "launch.h"

namespace latte {

using Shape = std::array<int64_t, 3>;  // rows, d, groups

inline auto row_forward(const Kernel<RowForward> (&levels)[kLevels]) {
  return [&levels](const RowsArg& x, const RowsArg& y, const RowsArg& pos, const RowsArg& x_out, const RowsArg& h,
                   const GroupsArg& gate, const GroupsArg& shift, const GroupsArg& scale, const GroupsArg& y_bias,
                   const Shape& shape, double eps, int64_t threads) {
    RowForward a{rows_of(x), rows_of(y), rows_of(pos), rows_of(x_out), rows_of(h), groups_of(gate), groups_of(shift),
                 groups_of(scale), groups_of(y_bias), shape[0], shape[1], shape[2], threads, eps};
    launch(levels, a, a.x.dtype, a.rows * a.d);
  };
}

// h_scale: a pointer
inline auto row_forward_int8(const Kernel<RowForward> (&levels)[kLevels]) {
  return [&levels](const RowsArg& x, const RowsArg& y, const RowsArg& pos, const RowsArg& x_out, const RowsArg& h,
                   const GroupsArg& gate, const GroupsArg& shift, const GroupsArg& scale, const GroupsArg& y_bias,
                   int64_t h_scale, const Shape& shape, double eps, int64_t threads) {
    RowForward a{rows_of(x), rows_of(y), rows_of(pos), rows_of(x_out), rows_of(h), groups_of(gate), groups_of(shift),
                 groups_of(scale), groups_of(y_bias), shape[0], shape[1], shape[2], threads, eps,
                 reinterpret_cast<float*>(h_scale)};
    launch(levels, a, a.x.dtype, a.rows * a.d);
  };
}

// scales: pointers of a's and u's
inline auto bias_gelu_int8(const Kernel<BiasGelu> (&levels)[kLevels]) {
  return [&levels](const RowsArg& u, const RowsArg& a_out, const GroupsArg& b, const GroupsArg& factor,
                   const std::array<int64_t, 2>& scales, const Shape& shape, int64_t threads) {
    BiasGelu a{rows_of(u), rows_of(a_out), {}, {}, groups_of(b), {}, shape[0], shape[1], threads,
               reinterpret_cast<float*>(scales[0]), reinterpret_cast<const float*>(scales[1]), groups_of(factor)};
    launch(levels, a, a.u.dtype, a.rows * a.d);
  };
}

// scales: pointers of out's and x's
inline auto scaled_rows(const Kernel<ScaledRows> (&levels)[kLevels]) {
  return [&levels](const RowsArg& x, const RowsArg& out, const GroupsArg& b, const std::array<int64_t, 2>& scales,
                   const Shape& shape, int64_t threads) {
    ScaledRows a{rows_of(x), rows_of(out), groups_of(b), shape[0], shape[1], threads,
                 reinterpret_cast<float*>(scales[0]), reinterpret_cast<const float*>(scales[1])};
    launch(levels, a, a.x.dtype, a.rows * a.d);
  };
}

inline auto row_backward(const Kernel<RowBackward> (&levels)[kLevels]) {
  return [&levels](const RowsArg& dx_out, const RowsArg& dh, const RowsArg& x_out, const RowsArg& y, const RowsArg& dx,
                   const RowsArg& dy, const GroupsArg& gate, const GroupsArg& scale, const GroupsArg& y_bias,
                   const GroupsArg& dgate, const GroupsArg& dshift, const GroupsArg& dscale, const GroupsArg& dy_bias,
                   const Shape& shape, double eps, int64_t threads) {
    RowBackward a{rows_of(dx_out), rows_of(dh), rows_of(x_out), rows_of(y), rows_of(dx), rows_of(dy), groups_of(gate),
                  groups_of(scale), groups_of(y_bias), groups_of(dgate), groups_of(dshift), groups_of(dscale),
                  groups_of(dy_bias), shape[0], shape[1], shape[2], threads, eps};
    launch(levels, a, a.x_out.p ? a.x_out.dtype : a.dx_out.dtype, a.rows * a.d);
  };
}

// h: its pointer and dtype; sizes: outputs, length, d, groups
inline auto pooled_norm(const Kernel<PooledNorm> (&levels)[kLevels]) {
  return [&levels](const RowsArg& x, const RowsArg& dx, const GroupsArg& shift, const GroupsArg& scale,
                   const std::array<int64_t, 2>& h, int64_t mean, const std::array<int64_t, 4>& sizes, double eps,
                   int64_t threads) {
    PooledNorm a{rows_of(x), rows_of(dx), groups_of(shift), groups_of(scale), reinterpret_cast<void*>(h[0]),
                 reinterpret_cast<void*>(mean), h[1], sizes[0], sizes[1], sizes[2], sizes[3], threads, eps};
    launch(levels, a, a.x.dtype, a.outputs * a.length * a.d);
  };
}

inline auto bias_gelu(const Kernel<BiasGelu> (&levels)[kLevels]) {
  return [&levels](const RowsArg& u, const RowsArg& a_out, const RowsArg& da, const RowsArg& du, const GroupsArg& b,
                   const GroupsArg& db, const Shape& shape, int64_t threads) {
    BiasGelu a{rows_of(u), rows_of(a_out), rows_of(da), rows_of(du), groups_of(b), groups_of(db), shape[0], shape[1],
               threads};
    launch(levels, a, a.u.dtype, a.rows * a.d);
  };
}

inline auto attention(const Kernel<Attention> (&levels)[kLevels]) {
  return [&levels](const std::array<HeadsArg, 8>& t, const std::array<int64_t, 3>& bias, int64_t lse, int64_t cos,
                   int64_t sin, int64_t key_mask, int64_t mask_stride, const GroupsArg& dbias,
                   const std::array<int64_t, 6>& shape, double scale, int64_t threads) {
    Attention a{heads_of(t[0]), heads_of(t[1]), heads_of(t[2]), heads_of(t[3]), heads_of(t[4]), heads_of(t[5]),
                heads_of(t[6]), heads_of(t[7]), reinterpret_cast<float*>(lse),
                {reinterpret_cast<void*>(bias[0]), reinterpret_cast<void*>(bias[1]), reinterpret_cast<void*>(bias[2])},
                reinterpret_cast<void*>(cos), reinterpret_cast<void*>(sin), reinterpret_cast<const uint8_t*>(key_mask),
                groups_of(dbias), nullptr, shape[0], shape[1], shape[2],
                shape[3], shape[4], shape[5], mask_stride, threads, scale};
    launch(levels, a, a.q.dtype, a.b * a.f * a.nq * a.h * a.dim);
  };
}

using VolumeArg = std::array<int64_t, 7>;
// batch, groups, depth, cols, transposed, replicate, threads
using ConvShape = std::array<int64_t, 7>;
// w_stride, kernel, in_size, out_size, stride, padding, dilation
using Triples = std::array<std::array<int64_t, 3>, 7>;

inline Volume volume_of(const VolumeArg& t) {
  return {reinterpret_cast<void*>(t[0]), t[1], {t[2], t[3], t[4], t[5], t[6]}};
}

inline Correlation correlation_of(const VolumeArg& in, const VolumeArg& out, int64_t w, int64_t bias,
                                  const ConvShape& s, const Triples& t) {
  Correlation a{volume_of(in), volume_of(out), reinterpret_cast<void*>(w), reinterpret_cast<void*>(bias), {}, s[0],
                s[1], s[2], s[3], {}, {}, {}, {}, {}, {}, s[4], s[5], s[6]};
  int64_t* to[] = {a.w_stride, a.kernel, a.in_size, a.out_size, a.stride, a.padding, a.dilation};
  for (int i = 0; i < 7; ++i)
    for (int axis = 0; axis < 3; ++axis) to[i][axis] = t[i][axis];
  return a;
}

inline auto correlate(const Kernel<Correlation> (&levels)[kLevels]) {
  return [&levels](const VolumeArg& in, const VolumeArg& out, int64_t w, int64_t bias, const ConvShape& shape,
                   const Triples& triples) {
    Correlation a = correlation_of(in, out, w, bias, shape, triples);
    launch(levels, a, a.in.dtype, a.batch * a.groups * a.cols * a.out_size[0] * a.out_size[1] * a.out_size[2]);
  };
}

inline auto weight_gradient(const Kernel<WeightGradient> (&levels)[kLevels]) {
  return [&levels](const VolumeArg& x, const VolumeArg& dy, int64_t dw, int64_t channels,
                   const std::array<int64_t, 3>& x_size, const std::array<int64_t, 3>& before,
                   const ConvShape& shape, const Triples& triples) {
    WeightGradient a{volume_of(x), correlation_of(dy, VolumeArg{}, 0, 0, shape, triples), reinterpret_cast<void*>(dw),
                     channels, {}, {}, 0};
    for (int i = 0; i < 3; ++i) a.x_size[i] = x_size[i], a.before[i] = before[i];
    a.threads = a.dy.threads;
    const int64_t* n = a.dy.out_size;
    launch(levels, a, a.x.dtype, a.dy.batch * a.dy.groups * channels * n[0] * n[1] * n[2]);
  };
}

// pointers: x, scale, shift, out, dout, dx, dscale, dshift; sizes: dtype, batch, channels, groups
inline auto norm_silu(const Kernel<NormSilu> (&levels)[kLevels]) {
  return [&levels](const std::array<int64_t, 8>& p, const std::array<int64_t, 4>& sizes,
                   const std::array<std::array<int64_t, 3>, 3>& axes, int64_t threads) {
    auto at = [&](int i) { return reinterpret_cast<void*>(p[i]); };
    NormSilu a{at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), sizes[0], sizes[1], sizes[2], sizes[3],
               {}, {}, {}, threads};
    int64_t* to[] = {a.size, a.before, a.after};
    for (int i = 0; i < 3; ++i)
      for (int axis = 0; axis < 3; ++axis) to[i][axis] = axes[i][axis];
    launch(levels, a, a.dtype, a.batch * a.channels * a.size[0] * a.size[1] * a.size[2]);
  };
}

inline auto nearest(const Kernel<NearestCode> (&levels)[kLevels]) {
  return [&levels](int64_t z, int64_t e, int64_t out, int64_t dtype, int64_t rows, int64_t codes, int64_t width,
                   int64_t threads) {
    NearestCode a{reinterpret_cast<void*>(z), reinterpret_cast<void*>(e), reinterpret_cast<int64_t*>(out), dtype, rows,
                  codes, width, threads};
    launch(levels, a, dtype, rows * codes);
  };
}

// pointers: x, w, bias, gamma, beta, residual, y, scale; row strides of x, w and residual; sizes: dtype, rows, depth,
// cols, gelu
inline auto few_rows(const Kernel<SmallLinear> (&levels)[kLevels]) {
  return [&levels](const std::array<int64_t, 8>& p, const std::array<int64_t, 3>& strides,
                   const std::array<int64_t, 5>& sizes, double eps, int64_t threads) {
    const int64_t dtype = sizes[0], rows = sizes[1], depth = sizes[2], cols = sizes[3];
    auto table = [&](int64_t at, int64_t stride) {
      return Rows{reinterpret_cast<void*>(at), dtype, 1, rows, 0, 0, stride};
    };
    auto vector = [&](int64_t at, int64_t stride) { return Groups{reinterpret_cast<void*>(at), dtype, stride}; };
    SmallLinear a{table(p[0], strides[0]), table(p[5], strides[2]), table(p[6], cols), vector(p[1], strides[1]),
                  vector(p[2], 0), vector(p[3], 0), vector(p[4], 0), rows, depth, cols, sizes[4], threads, eps,
                  reinterpret_cast<const float*>(p[7])};
    launch(levels, a, dtype, rows * depth * cols);
  };
}

// pointers: qkv, cache, out, position; strides of qkv and of cache; sizes: dtype, batch, heads, dim, keys seen
inline auto one_query(const Kernel<DecodeAttention> (&levels)[kLevels]) {
  return [&levels](const std::array<int64_t, 4>& p, const std::array<int64_t, 3>& qkv_stride,
                   const std::array<int64_t, 4>& cache_stride, const std::array<int64_t, 5>& sizes, double scale,
                   int64_t threads) {
    auto at = [&](int i) { return reinterpret_cast<void*>(p[i]); };
    DecodeAttention a{at(0), at(1), at(2), static_cast<const int64_t*>(at(3)), sizes[0], {}, {}, sizes[1], sizes[2],
                      sizes[3], threads, scale};
    for (int i = 0; i < 3; ++i) a.qkv_stride[i] = qkv_stride[i];
    for (int i = 0; i < 4; ++i) a.cache_stride[i] = cache_stride[i];
    launch(levels, a, a.dtype, 2 * a.batch * a.heads * a.dim * sizes[4]);
  };
}

// tensors: pointers of weight, gradient, moment, square, step, average and copy, dtype of the copy, number of values;
// factors: learning rate, both betas, eps, weight decay, decay of the averages
inline auto optimizer_step(const Kernel<AdamwEma> (&levels)[kLevels]) {
  return [&levels](const std::vector<std::array<int64_t, 9>>& tensors, const std::array<double, 6>& factors,
                   int64_t threads) {
    std::vector<Trained> rows;
    int64_t values = 0;
    for (const auto& t : tensors) {
      auto at = [&](int i) { return reinterpret_cast<float*>(t[i]); };
      rows.push_back({at(0), at(1), at(2), at(3), at(4), at(5), reinterpret_cast<void*>(t[6]), t[7], t[8]});
      values += t[8];
    }
    AdamwEma a{rows.data(), static_cast<int64_t>(rows.size()), threads, factors[0], factors[1], factors[2], factors[3],
               factors[4], factors[5]};
    launch(levels, a, kF32, 8 * values);
  };
}

inline void bind_cpu(pybind11::module_& m) {
  static const Kernel<RowForward> norm_fwd[kLevels] = LATTE_LEVELS(norm_modulate_fwd);
  static const Kernel<RowForward> gate_fwd[kLevels] = LATTE_LEVELS(gate_residual_fwd);
  static const Kernel<RowForward> both_fwd[kLevels] = LATTE_LEVELS(gate_residual_norm_modulate_fwd);
  static const Kernel<RowForward> norm_int8[kLevels] = LATTE_LEVELS(norm_modulate_int8_fwd);
  static const Kernel<RowForward> both_int8[kLevels] = LATTE_LEVELS(gate_residual_norm_modulate_int8_fwd);
  static const Kernel<BiasGelu> gelu_int8[kLevels] = LATTE_LEVELS(bias_gelu_int8_fwd);
  static const Kernel<ScaledRows> rows_int8[kLevels] = LATTE_LEVELS(rows_int8_fwd);
  static const Kernel<ScaledRows> scaled[kLevels] = LATTE_LEVELS(scale_rows);
  static const Kernel<RowBackward> norm_bwd[kLevels] = LATTE_LEVELS(norm_modulate_bwd);
  static const Kernel<RowBackward> gate_bwd[kLevels] = LATTE_LEVELS(gate_residual_bwd);
  static const Kernel<RowBackward> both_bwd[kLevels] = LATTE_LEVELS(gate_residual_norm_modulate_bwd);
  static const Kernel<PooledNorm> pooled_fwd[kLevels] = LATTE_LEVELS(pooled_norm_fwd);
  static const Kernel<PooledNorm> pooled_bwd[kLevels] = LATTE_LEVELS(pooled_norm_bwd);
  static const Kernel<BiasGelu> gelu_fwd[kLevels] = LATTE_LEVELS(bias_gelu_fwd);
  static const Kernel<BiasGelu> gelu_bwd[kLevels] = LATTE_LEVELS(bias_gelu_bwd);
  static const Kernel<Attention> space_fwd[kLevels] = LATTE_LEVELS(space_attention_fwd);
  static const Kernel<Attention> space_bwd[kLevels] = LATTE_LEVELS(space_attention_bwd);
  static const Kernel<Attention> time_fwd[kLevels] = LATTE_LEVELS(time_attention_fwd);
  static const Kernel<Attention> time_bwd[kLevels] = LATTE_LEVELS(time_attention_bwd);
  static const Kernel<Correlation> conv[kLevels] = LATTE_LEVELS(conv_correlate);
  static const Kernel<WeightGradient> conv_weight[kLevels] = LATTE_LEVELS(conv_weight_gradient);
  static const Kernel<NormSilu> silu_fwd[kLevels] = LATTE_LEVELS(norm_silu_halo_fwd);
  static const Kernel<NormSilu> silu_bwd[kLevels] = LATTE_LEVELS(norm_silu_halo_bwd);
  static const Kernel<NearestCode> codes[kLevels] = LATTE_LEVELS(nearest_code);
  static const Kernel<SmallLinear> linears[kLevels] = LATTE_LEVELS(small_linear);
  static const Kernel<DecodeAttention> decoders[kLevels] = LATTE_LEVELS(decode_attention);
  static const Kernel<AdamwEma> optimizers[kLevels] = LATTE_LEVELS(adamw_ema);
  forked();  // its first call installs the handler that notices a fork
  m.def("isa", [] { return kLevelNames[isa()]; }, "the instruction level in use: portable, avx2, avx512 or amx");
  m.def("norm_modulate_fwd", row_forward(norm_fwd));
  m.def("gate_residual_fwd", row_forward(gate_fwd));
  m.def("gate_residual_norm_modulate_fwd", row_forward(both_fwd));
  m.def("norm_modulate_int8_fwd", row_forward_int8(norm_int8));
  m.def("gate_residual_norm_modulate_int8_fwd", row_forward_int8(both_int8));
  m.def("bias_gelu_int8_fwd", bias_gelu_int8(gelu_int8));
  m.def("rows_int8_fwd", scaled_rows(rows_int8));
  m.def("scale_rows", scaled_rows(scaled));
  m.def("norm_modulate_bwd", row_backward(norm_bwd));
  m.def("gate_residual_bwd", row_backward(gate_bwd));
  m.def("gate_residual_norm_modulate_bwd", row_backward(both_bwd));
  m.def("pooled_norm_fwd", pooled_norm(pooled_fwd));
  m.def("pooled_norm_bwd", pooled_norm(pooled_bwd));
  m.def("bias_gelu_fwd", bias_gelu(gelu_fwd));
  m.def("bias_gelu_bwd", bias_gelu(gelu_bwd));
  m.def("space_attention_fwd", attention(space_fwd));
  m.def("space_attention_bwd", attention(space_bwd));
  m.def("time_attention_fwd", attention(time_fwd));
  m.def("time_attention_bwd", attention(time_bwd));
  m.def("conv_correlate", correlate(conv));
  m.def("conv_weight_gradient", weight_gradient(conv_weight));
  m.def("norm_silu_halo_fwd", norm_silu(silu_fwd));
  m.def("norm_silu_halo_bwd", norm_silu(silu_bwd));
  m.def("nearest_code", nearest(codes));
  m.def("small_linear", few_rows(linears));
  m.def("decode_attention", one_query(decoders));
  m.def("adamw_ema", optimizer_step(optimizers));
}

}  // namespace latte
