#include <cuda_runtime_api.h>

#include "device_info.h"

namespace latte {

std::tuple<int, int, int> cuda_runtime() {
  int runtime = 0, driver = 0, devices = 0;
  cudaRuntimeGetVersion(&runtime);
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) devices = 0;
  cudaGetLastError();  // a machine without a driver is no error to carry into the next call
  return {runtime, driver, devices};
}

}  // namespace latte
