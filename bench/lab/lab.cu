#include "lab.h"

#include "direct.cuh"
#include "implicit_gemm.cuh"
#include "pipeline.cuh"
#include "registers.cuh"
#include "shared_tiles.cuh"

namespace convgrad::cuda::lab {

const std::vector<Version>& versions() {
  static const std::vector<Version> all = {
      {"naive", 1, run_direct<naive>},         {"coalesced", 1, run_direct<coalesced>},
      {"shared tiles", 1, run_shared_tiles},   {"registers", 1, run_registers},
      {"implicit gemm", 1, run_implicit_gemm}, {"pipeline", 4, run_pipeline},
  };
  return all;
}

void run(const Version& version, const int (&shape)[6], const float* x, const float* weight,
         float* y) {
  Exec exec;
  exec.op = version.name;
  const auto& [n, h, w, c, k, r] = shape;
  version.run(exec, Conv{n, h, w, c, k, r, x, weight, y});
}

}  // namespace convgrad::cuda::lab
