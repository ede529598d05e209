# Finds tensorrt::runtime, TensorRT or TensorRT-RTX: headers, library, and the headers of CUDA, which those include.
#
# Headers: TENSORRT_INCLUDE_DIR (or the environment's), else those of the system, where JetPack has them. Library: beside the headers, of
# the system, or in the wheel tensorrt-rtx of the active virtual environment, which has no headers; else -DTENSORRT_LIBRARY=FILE. CUDA:
# CUDA_HOME or /usr/local/cuda; else -DCUDA_INCLUDE_DIR=DIR.
if(DEXPORT_TENSORRT_RTX)
  set(_name TensorRT-RTX)
  set(_library tensorrt_rtx)
else()
  set(_name TensorRT)
  set(_library nvinfer)
endif()

set(TENSORRT_INCLUDE_DIR "$ENV{TENSORRT_INCLUDE_DIR}" CACHE PATH "folder of NvInferRuntime.h")
if(NOT TENSORRT_INCLUDE_DIR)
  find_path(_tensorrt_include NvInferRuntime.h)
  if(_tensorrt_include)
    set(TENSORRT_INCLUDE_DIR "${_tensorrt_include}" CACHE PATH "folder of NvInferRuntime.h" FORCE)
  endif()
endif()
if(NOT EXISTS "${TENSORRT_INCLUDE_DIR}/NvInferRuntime.h")
  message(FATAL_ERROR "expected the headers of ${_name}, got no NvInferRuntime.h in '${TENSORRT_INCLUDE_DIR}'; pass -DTENSORRT_INCLUDE_DIR=DIR")
endif()
file(READ "${TENSORRT_INCLUDE_DIR}/NvInferVersion.h" _version_header)
if(_version_header MATCHES "TRT_MAJOR_RTX")
  set(_found TensorRT-RTX)
else()
  set(_found TensorRT)
endif()
if(NOT _found STREQUAL _name)
  message(FATAL_ERROR "expected the headers of ${_name} in ${TENSORRT_INCLUDE_DIR}, got those of ${_found}; pass -DTENSORRT_INCLUDE_DIR=DIR")
endif()
string(REGEX MATCH "(NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE|TRT_MAJOR_RTX) +([0-9]+)" _match "${_version_header}")
set(_major "${CMAKE_MATCH_2}")

find_library(
  TENSORRT_LIBRARY
  NAMES ${_library} "lib${_library}.so.${_major}"
  HINTS "${TENSORRT_INCLUDE_DIR}/../lib"
  DOC "the library of ${_name}"
)
if(NOT TENSORRT_LIBRARY)
  file(GLOB _wheels "$ENV{VIRTUAL_ENV}/lib/python3*/site-packages/tensorrt_rtx_libs"
                    "${CMAKE_CURRENT_SOURCE_DIR}/../../.venv/lib/python3*/site-packages/tensorrt_rtx_libs")
  find_library(TENSORRT_LIBRARY NAMES "lib${_library}.so.${_major}" HINTS ${_wheels})
endif()
if(NOT TENSORRT_LIBRARY)
  message(FATAL_ERROR "expected the library of ${_name}, got none called lib${_library}.so; pass -DTENSORRT_LIBRARY=FILE")
endif()

file(GLOB _cuda_homes /usr/local/cuda /usr/local/cuda-*)
find_path(CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS "$ENV{CUDA_HOME}" ${_cuda_homes} PATH_SUFFIXES include)
if(NOT CUDA_INCLUDE_DIR)
  message(FATAL_ERROR "expected the headers of CUDA, got no cuda_runtime_api.h; pass -DCUDA_INCLUDE_DIR=DIR")
endif()

add_library(tensorrt::runtime SHARED IMPORTED)
set_target_properties(tensorrt::runtime PROPERTIES
  IMPORTED_LOCATION "${TENSORRT_LIBRARY}"
  INTERFACE_INCLUDE_DIRECTORIES "${TENSORRT_INCLUDE_DIR};${CUDA_INCLUDE_DIR}"
)
message(STATUS "${_name} ${_major}: headers ${TENSORRT_INCLUDE_DIR}, library ${TENSORRT_LIBRARY}, CUDA ${CUDA_INCLUDE_DIR}")
