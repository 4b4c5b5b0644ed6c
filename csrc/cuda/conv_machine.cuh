// The machine's part of the kernels of conv_transpose3d, about one instruction a function. The tests replace this file
// by an emulation with the same names and run the kernels on the host.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#define LATTE_DEVICE __device__ __forceinline__
// threads a block, and how many blocks a multiprocessor's registers have to hold
#define LATTE_KERNEL(threads, resident) __global__ void __launch_bounds__(threads, resident)

namespace latte {
namespace conv {

using bf16 = __nv_bfloat16;
using f16 = __half;

LATTE_DEVICE int thread() { return threadIdx.x; }
LATTE_DEVICE int block() { return blockIdx.x; }
LATTE_DEVICE int blocks() { return gridDim.x; }
LATTE_DEVICE void barrier() { __syncthreads(); }

LATTE_DEVICE int64_t shuffle(int64_t x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }

LATTE_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return bytes;
}

template <class T> LATTE_DEVICE T read(const T* p) { return *p; }
template <class T> LATTE_DEVICE void write(T* p, T value) { *p = value; }

LATTE_DEVICE float widened(float x) { return x; }
LATTE_DEVICE float widened(bf16 x) { return __bfloat162float(x); }
LATTE_DEVICE float widened(f16 x) { return __half2float(x); }
template <class T> LATTE_DEVICE T narrowed(float x);
template <> LATTE_DEVICE float narrowed<float>(float x) { return x; }
template <> LATTE_DEVICE bf16 narrowed<bf16>(float x) { return __float2bfloat16_rn(x); }
template <> LATTE_DEVICE f16 narrowed<f16>(float x) { return __float2half_rn(x); }
LATTE_DEVICE float as_float(uint32_t x) { return __uint_as_float(x); }

LATTE_DEVICE uint32_t tf32(float x) {
  uint32_t to;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(to) : "f"(x));
  return to;
}

LATTE_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// 16 bytes to shared memory, zeros where not `valid`; `from` is an address that may be read either way
LATTE_DEVICE void copy_async(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0) : "memory");
}
LATTE_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending> LATTE_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 16-byte matrices; lanes 8 i to 8 i + 7 give the rows of matrix i
LATTE_DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}
LATTE_DEVICE void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}

#define LATTE_MMA(shape)                                                                                          \
  asm volatile("mma.sync.aligned." shape " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"       \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
LATTE_DEVICE void mma(bf16, float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  LATTE_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
LATTE_DEVICE void mma(f16, float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  LATTE_MMA("m16n8k16.row.col.f32.f16.f16.f32");
}
LATTE_DEVICE void mma(float, float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  LATTE_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef LATTE_MMA

// Launches a kernel; returns an error's text, empty without one
template <class... Args>
std::string launch(void (*kernel)(Args...), int64_t grid, int threads, int shared, int device, void* stream,
                   Args... args) {
  if (grid > INT32_MAX) return "too many blocks: " + std::to_string(grid);
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess && shared > 48 * 1024)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error == cudaSuccess) {
    kernel<<<static_cast<unsigned>(grid), threads, shared, static_cast<cudaStream_t>(stream)>>>(args...);
    error = cudaGetLastError();
  }
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

}  // namespace conv
}  // namespace latte
