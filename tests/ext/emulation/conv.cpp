// csrc/cuda/conv_transpose3d.cu on the emulated machine, behind the bindings that the extension has; and a plain walk
// over the same index functions in double.
#define LATTE_MACHINE "../../tests/ext/emulation/machine.h"
#include "../../../csrc/cuda/conv_transpose3d.cu"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../../../csrc/cuda/bindings.h"

namespace py = pybind11;
namespace latte {
namespace conv {

std::string walk_pack(const Pack& a, int, void*) {
  for (int block = 0; block < blocks_of(a, kPackSide); ++block) {
    const PackWork at = work_of(a, kPackSide, block);
    for (int64_t p = at.pixel; p < at.pixel + kPackSide; ++p)
      for (int c = at.channel; c < at.channel + kPackSide; ++c) {
        const int64_t from = read_address(a, at, p, c), to = write_address(a, at, p, c);
        const double value = from < 0 ? 0 : read(static_cast<const double*>(a.from.p) + from);
        if (to >= 0) write(static_cast<double*>(a.to) + to, value);
      }
  }
  return memory.error;
}

// out = the correlation in double, by the kernel's blocks, phases, taps and addresses
std::string walk(const Correlation& given, int, void*) {
  const int row_tile = kRowTile<float>;
  Correlation a = given;
  a.row_tiles = static_cast<int>(ceil_div(most_rows(a), row_tile));
  double* out = static_cast<double*>(a.out.p);
  for (int block = 0; block < blocks_of(a); ++block) {
    const Work at = work_of(a, row_tile, block);
    Phase p[3];
    for (int i = 0; i < 3; ++i) p[i] = phase_of(a.window.axis[i], a.window.transposed, at.f[i]);
    const int64_t rows = int64_t(a.batch) * p[0].outputs * p[1].outputs * p[2].outputs;
    for (int64_t row = at.row; row < at.row + row_tile && row < rows; ++row) {
      const Pixel m = pixel_of(row, p[0].outputs, p[1].outputs, p[2].outputs);
      for (int c = at.col; c < a.cols && c < at.col + kColTile; ++c) {
        double sum = 0;
        int j[3];
        for (j[0] = 0; j[0] < p[0].taps; ++j[0])
          for (j[1] = 0; j[1] < p[1].taps; ++j[1])
            for (j[2] = 0; j[2] < p[2].taps; ++j[2]) {
              const int64_t from = read_address(a, p, m, j, at.group), w = weight_address(a, p, j, at.group);
              for (int d = 0; d < a.depth && from >= 0; ++d)
                sum += read(static_cast<const double*>(a.in.p) + from + d) *
                       read(static_cast<const double*>(a.w) + w + int64_t(c) * a.depth + d);
            }
        write(out + write_address(a, p, at.f, m, at.group) + c * a.out.c, sum);
      }
    }
  }
  return memory.error;
}

std::string walk_gradient(const WeightGradient& a, void* to, int, void*) {
  std::vector<double> parts(a.splits * a.size());
  std::vector<int> written(parts.size());
  const Axis* axis = a.window.axis;
  for (int block = 0; block < a.blocks(); ++block) {
    const WeightWork at = work_of(a, block);
    const int rows = a.channels - at.row < kColTile ? a.channels - at.row : kColTile;
    const int cols = a.cols - at.col < kColTile ? a.cols - at.col : kColTile;
    std::vector<double> sums(rows * cols);
    Pixel p = pixel_of(at.split * a.per_split, axis[0].out, axis[1].out, axis[2].out);
    for (int64_t i = at.split * a.per_split; i < (at.split + 1) * a.per_split && i < a.pixels(); ++i) {
      const Meeting m = meeting_of(a, at, p);
      for (int e = 0; e < rows * cols && m.meets; ++e)
        sums[e] += read(static_cast<const double*>(a.x.p) + m.x + at.row + e / cols) *
                   read(static_cast<const double*>(a.dy.p) + m.dy + at.col + e % cols);
      advance(p, pixel_of(1, axis[0].out, axis[1].out, axis[2].out), axis[0].out, axis[1].out, axis[2].out);
    }
    const int64_t matrix = ((int64_t(at.split) * a.groups + at.group) * a.taps() + at.tap) * a.channels * a.cols;
    for (int e = 0; e < rows * cols; ++e) {
      const int64_t one = matrix + int64_t(at.row + e / cols) * a.cols + at.col + e % cols;
      parts.at(one) = sums[e];
      ++written.at(one);
    }
  }
  for (int n : written)
    if (n != 1) memory.fail("a part of a gradient that is not stored once");
  for (int64_t i = 0; i < a.size(); ++i) {
    double sum = 0;
    for (int split = 0; split < a.splits; ++split) sum += parts[split * a.size() + i];
    write(static_cast<double*>(to) + gradient_address(a, i), sum);
  }
  return memory.error;
}

}  // namespace conv
}  // namespace latte

PYBIND11_MODULE(conv_emulation, m) {
  using latte::conv::memory;
  latte::bind_cuda(m);
  py::module_ walks = m.def_submodule("walks");
  latte::bind_conv(walks, &latte::conv::walk_pack, &latte::conv::walk, &latte::conv::walk, &latte::conv::walk_gradient);
  m.def("begin", [](bool lazy, bool backwards) {
    memory = {};
    memory.lazy = lazy;
    memory.backwards = backwards;
  });
  m.def("allow", [](uintptr_t begin, size_t bytes) {
    for (auto& r : memory.ranges)
      if (r.begin == begin && r.end == begin + bytes) return;
    memory.ranges.push_back({begin, begin + bytes, std::vector<uint8_t>(bytes)});
  });
  m.def("written", [](uintptr_t begin, size_t bytes) {  // how many bytes of a tensor were stored
    size_t n = 0;
    for (const auto& r : memory.ranges)
      if (r.begin <= begin && begin + bytes <= r.end)
        for (size_t i = 0; i < bytes; ++i) n += r.writes[begin - r.begin + i];
    return n;
  });
}
