// Python bindings of the CUDA kernels; each call returns an error's text, empty without one.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "conv.h"

namespace latte {

using CudaVolume = std::array<int64_t, 7>;  // pointer, strides: n, group, c, t, h, w
// in, out, kernel, stride, padding, dilation
using CudaWindow = std::array<std::array<int, 3>, 6>;

inline conv::Volume cuda_volume(const CudaVolume& t) {
  return {reinterpret_cast<void*>(t[0]), t[1], t[2], t[3], t[4], t[5], t[6]};
}

inline conv::Window cuda_window(const CudaWindow& w, int transposed, int replicate) {
  conv::Window to{{}, transposed, replicate};
  for (int i = 0; i < 3; ++i) to.axis[i] = {w[0][i], w[1][i], w[2][i], w[3][i], w[4][i], w[5][i]};
  return to;
}

using CorrelateLaunch = std::string (*)(const conv::Correlation&, int, void*);

// shape: batch, groups, depth, cols, dtype, wide, vector, transposed, replicate
inline auto cuda_correlation(CorrelateLaunch launch) {
  return [launch](const CudaVolume& in, const CudaVolume& out, int64_t w, int64_t bias, const std::array<int, 9>& shape,
                  const CudaWindow& window, int device, int64_t stream) {
    return launch({cuda_window(window, shape[7], shape[8]), cuda_volume(in), cuda_volume(out),
                   reinterpret_cast<void*>(w), reinterpret_cast<void*>(bias), shape[0], shape[1], shape[2], shape[3],
                   shape[4], shape[5], shape[6], 0},
                  device, reinterpret_cast<void*>(stream));
  };
}

using WeightGradientLaunch = std::string (*)(const conv::WeightGradient&, void*, int, void*);

// shape: batch, groups, channels, cols, splits, dtype
inline auto cuda_weight_gradient(WeightGradientLaunch launch) {
  return [launch](const CudaVolume& x, const CudaVolume& dy, int64_t sums, int64_t dw, const std::array<int, 6>& shape,
                  const std::array<int, 3>& x_size, const std::array<int, 3>& before, int64_t per_split,
                  const CudaWindow& window, int device, int64_t stream) {
    conv::WeightGradient a{cuda_window(window, 0, 0), cuda_volume(x), cuda_volume(dy), reinterpret_cast<float*>(sums),
                           {}, {}, shape[0], shape[1], shape[2], shape[3], per_split, shape[4], shape[5]};
    for (int i = 0; i < 3; ++i) a.x_size[i] = x_size[i], a.before[i] = before[i];
    return launch(a, reinterpret_cast<void*>(dw), device, reinterpret_cast<void*>(stream));
  };
}

using PackLaunch = std::string (*)(const conv::Pack&, int, void*);

// shape: batch, groups, depth, padded, item size
inline auto cuda_pack(PackLaunch launch) {
  return [launch](const CudaVolume& from, int64_t to, const std::array<int, 5>& shape, const std::array<int, 3>& size,
                  int device, int64_t stream) {
    return launch({cuda_volume(from), reinterpret_cast<void*>(to), shape[0], shape[1], shape[2], shape[3],
                   {size[0], size[1], size[2]}, shape[4]},
                  device, reinterpret_cast<void*>(stream));
  };
}

inline void bind_conv(pybind11::module_& m, PackLaunch pack, CorrelateLaunch correlate, CorrelateLaunch direct,
                      WeightGradientLaunch gradient) {
  m.def("conv_pack_cuda", cuda_pack(pack));
  m.def("conv_correlate_cuda", cuda_correlation(correlate));
  m.def("conv_direct_cuda", cuda_correlation(direct));
  m.def("conv_weight_gradient_cuda", cuda_weight_gradient(gradient));
}

inline void bind_cuda(pybind11::module_& m) {
  bind_conv(m, &conv::pack, &conv::correlate, &conv::direct, &conv::weight_gradient);
}

}  // namespace latte
