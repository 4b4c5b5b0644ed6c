// Launches the CUDA kernels of conv_transpose3d: nothing is allocated, nothing waits, so a graph can capture them.
#include "conv.h"
#include "conv_correlate.cuh"
#include "conv_direct.cuh"
#include "conv_gradient.cuh"
#include "conv_pack.cuh"

namespace latte {
namespace conv {
namespace {

// the codes of cpu/ops.h
template <class Body> std::string with_type(int dtype, Body body) {
  if (dtype == 0) return body(float{});
  if (dtype == 1) return body(bf16{});
  if (dtype == 2) return body(f16{});
  return "no kernel for dtype code " + std::to_string(dtype);
}

}  // namespace

std::string pack(const Pack& a, int device, void* stream) {
  const auto run = [&](auto t) {
    using T = decltype(t);
    const int shared = kPackSide * (kPackSide + 1) * int(sizeof(T));
    return launch(pack_kernel<T>, blocks_of(a, kPackSide), kPackThreads, shared, device, stream, a);
  };
  return a.item == 2 ? run(uint16_t{}) : run(uint32_t{});
}

std::string correlate(const Correlation& given, int device, void* stream) {
  Correlation a = given;
  return with_type(a.dtype, [&](auto t) {
    using T = decltype(t);
    const int64_t tiles = ceil_div(most_rows(a), kRowTile<T>);
    if (tiles > INT32_MAX) return "too many rows: " + std::to_string(most_rows(a));
    a.row_tiles = static_cast<int>(tiles);
    return launch(correlate_kernel<T>, blocks_of(a), kThreads, kCorrelateShared<T>, device, stream, a);
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
