# What convgrad._cuda and the simulator's convgrad._cuda_sim have in common: the same bindings, and
# kernels of the CPU's stems.
list(TRANSFORM KERNEL_STEMS REPLACE "(.+)" "${SOURCE_ROOT}/cuda/kernels/\\1.cu" OUTPUT_VARIABLE CUDA_SOURCES)
list(APPEND CUDA_SOURCES ${SOURCE_ROOT}/cuda/device.cu)

function(add_cuda_backend name)
  add_backend(${name} ${SOURCE_ROOT}/python/array_cupy.cpp ${SOURCE_ROOT}/cuda/dispatch.cpp ${ARGN})
  list(TRANSFORM KERNEL_STEMS REPLACE "(.+)" " X(\\1)" OUTPUT_VARIABLE stems)
  string(REPLACE ";" "" stems "${stems}")
  target_compile_definitions(${name} PRIVATE CONVGRAD_CUDA_ARRAYS "CONVGRAD_STEMS=${stems}")
endfunction()

# The kernel lab (bench/lab).
function(add_lab name)
  set(lab ${SOURCE_ROOT}/../bench/lab)
  add_module(${name} ${lab}/bindings.cpp ${lab}/lab.cu)
  target_compile_definitions(${name} PRIVATE CONVGRAD_LAB=${name})
endfunction()

# Tests of ptx.cuh's wrappers, and of the simulator: a module that tests alone use.
function(add_selftest name)
  add_module(${name} ${SOURCE_ROOT}/cuda/sim/selftest/bindings.cpp ${ARGN})
  target_compile_definitions(${name} PRIVATE CONVGRAD_SELFTEST=${name})
endfunction()
