// Copies channels to where the kernels of conv_transpose3d read them: the last axis, padded to 16 bytes with zeros.
#pragma once
#include "conv_tiles.cuh"

namespace latte {
namespace conv {

constexpr int kPackSide = 32;
constexpr int kPackThreads = 256;

// A tile of pixels and channels turns in shared memory, so that reads run along pixels and writes along channels
template <class T> LATTE_KERNEL(kPackThreads, 4) pack_kernel(const Pack a) {
  T* tile = reinterpret_cast<T*>(shared_memory());
  const PackWork at = work_of(a, kPackSide, block());
  const int lane = thread() % kPackSide, first = thread() / kPackSide;
  const T* from = static_cast<const T*>(a.from.p);
  T* to = static_cast<T*>(a.to);
#pragma unroll
  for (int i = first; i < kPackSide; i += kPackThreads / kPackSide) {
    const int64_t address = read_address(a, at, at.pixel + lane, at.channel + i);
    tile[i * (kPackSide + 1) + lane] = address < 0 ? T{} : read(from + address);
  }
  barrier();
#pragma unroll
  for (int i = first; i < kPackSide; i += kPackThreads / kPackSide) {
    const int64_t address = write_address(a, at, at.pixel + i, at.channel + lane);
    if (address >= 0) write(to + address, tile[lane * (kPackSide + 1) + i]);
  }
}

}  // namespace conv
}  // namespace latte
