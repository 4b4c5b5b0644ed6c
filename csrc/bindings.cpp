// The one pybind11 module. It takes raw pointers, sizes, strides and streams as integers and includes no torch header,
// so one build serves every torch version.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/blas_lt.h"
#include "cuda/device_info.h"
#include "cpu/bindings.h"
#ifdef LATTE_HAS_CUDA
#include "cuda/bindings.h"
#endif

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "latte_fast: C++ and CUDA kernels behind latte_fast.ops";
#ifdef LATTE_HAS_CUDA
  m.def("cuda_runtime", &latte::cuda_runtime,
        "(runtime version, driver version, device count); driver 0 where there is none");
  latte::bind_cuda(m);
#endif
  latte::bind_cpu(m);
  latte::blas::bind(m);
}
