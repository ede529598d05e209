# Finds openvino::runtime: installed for CMake, or in the `openvino` wheel, which carries headers, libraries and CMake files.
#
# The wheel is looked for in the active virtual environment, in the repository's own (.venv), then in `python3`.
# Another one: -DOpenVINO_DIR=<site-packages>/openvino/cmake.
find_package(OpenVINO CONFIG QUIET COMPONENTS Runtime)
if(NOT OpenVINO_FOUND)
  set(_pythons "$ENV{VIRTUAL_ENV}/bin/python" "${CMAKE_CURRENT_SOURCE_DIR}/../../.venv/bin/python" python3)
  set(_where "import importlib.util as u; s = u.find_spec('openvino'); print(s.submodule_search_locations[0] if s else '')")
  foreach(_python IN LISTS _pythons)
    execute_process(COMMAND "${_python}" -c "${_where}" OUTPUT_VARIABLE _wheel OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE _failed)
    if(NOT _failed AND EXISTS "${_wheel}/cmake/OpenVINOConfig.cmake")
      set(OpenVINO_DIR "${_wheel}/cmake" CACHE PATH "folder of OpenVINOConfig.cmake" FORCE)
      break()
    endif()
  endforeach()
  find_package(OpenVINO CONFIG QUIET COMPONENTS Runtime)
endif()
if(NOT OpenVINO_FOUND)
  message(FATAL_ERROR "expected OpenVINO, got none; pip install openvino, and activate its environment or pass -DOpenVINO_DIR=.../openvino/cmake")
endif()
message(STATUS "OpenVINO ${OpenVINO_VERSION} in ${OpenVINO_DIR}")
