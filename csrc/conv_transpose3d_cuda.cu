// Launches the CUDA kernels of conv_transpose3d: nothing is allocated, nothing waits, so a graph can capture them.
#include "conv_cuda.h"
#include "conv_cuda_correlate.cuh"
#include "conv_cuda_direct.cuh"
#include "conv_cuda_gradient.cuh"

namespace latte {
namespace conv {
namespace {

// the codes of ops_cpu.h
template <class Body> std::string with_type(int dtype, Body body) {
  if (dtype == 0) return body(float{});
  if (dtype == 1) return body(bf16{});
  if (dtype == 2) return body(f16{});
  return "no kernel for dtype code " + std::to_string(dtype);
}

}  // namespace

std::string correlate(const Correlation& a, int device, void* stream) {
  return with_type(a.dtype, [&](auto t) {
    using T = decltype(t);
    const int64_t grid = blocks_of(a, kRowTile<T>);
    return launch(correlate_kernel<T>, grid, kThreads, kCorrelateShared<T>, device, stream, a);
  });
}

std::string direct(const Correlation& a, int device, void* stream) {
  if (a.depth > kMostDepth || a.cols > kMostCols) return "too many channels for the direct kernel";
  return with_type(a.dtype, [&](auto t) {
    const int shared = kMostDepth * a.cols * int(sizeof(float));
    return launch(direct_kernel<decltype(t)>, direct_blocks(a), kDirectThreads, shared, device, stream, a);
  });
}

std::string weight_gradient(const WeightGradient& a, void* dw, int device, void* stream) {
  return with_type(a.dtype, [&](auto t) {
    using T = decltype(t);
    std::string error =
        launch(weight_gradient_kernel<T>, a.blocks(), kThreads, kGradientShared, device, stream, a);
    if (!error.empty()) return error;
    const int64_t grid = ceil_div(a.size(), 256) < 65536 ? ceil_div(a.size(), 256) : 65536;
    return launch(add_splits_kernel<T>, grid, 256, 0, device, stream, a, dw);
  });
}

}  // namespace conv
}  // namespace latte
