# What fastshape builds on and does not contain: pybind11, threads, the CUDA toolkit with CCCL's headers.

find_package(Threads REQUIRED)

if(FASTSHAPE_PYTHON)
  set(PYBIND11_FINDPYTHON ON)
  find_package(Python COMPONENTS Interpreter Development.Module REQUIRED)
  if(NOT pybind11_DIR)
    execute_process(COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
      OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  find_package(pybind11 2.13 CONFIG REQUIRED)
endif()

set(FASTSHAPE_HAS_CUDA FALSE)
if(NOT FASTSHAPE_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "FASTSHAPE_CUDA must be AUTO, ON or OFF, got '${FASTSHAPE_CUDA}'")
endif()
if(FASTSHAPE_CUDA STREQUAL "OFF")
  set(FASTSHAPE_CUDA_REASON "FASTSHAPE_CUDA=OFF")
else()
  include(CheckLanguage)
  # The architectures must be known before the language is enabled.
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
      OUTPUT_VARIABLE capability OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
    if(failed EQUAL 0 AND capability MATCHES "^[0-9]")
      string(REGEX REPLACE "\n.*" "" capability "${capability}")
      string(REPLACE "." "" CMAKE_CUDA_ARCHITECTURES "${capability}")
    else()
      set(CMAKE_CUDA_ARCHITECTURES 80-virtual 90)  # no GPU here: sm_90, and PTX for every GPU from sm_80 on
    endif()
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    set(FASTSHAPE_HAS_CUDA TRUE)
  elseif(FASTSHAPE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FASTSHAPE_CUDA=ON, but no working nvcc was found; put it on PATH or set CUDACXX")
  else()
    set(FASTSHAPE_CUDA_REASON "no nvcc found")
  endif()
endif()
