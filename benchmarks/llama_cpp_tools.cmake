# llama.cpp's command-line tools, linked with the library that llama-cpp-python has compiled already. benchmarks/peers.sh
# puts this file in the place of the CMakeLists.txt of the llama.cpp inside llama-cpp-python's source distribution, whose
# own would compile the library a second time, and tests, examples and a web interface beside it.
#
#     cmake -DLIBRARY=…/site-packages/llama_cpp/lib …
cmake_minimum_required(VERSION 3.18)
project("llama.cpp" C CXX)

set(LLAMA_VERSION_MAJOR 0)
set(LLAMA_VERSION_BASE 0.5.0)
set(LLAMA_VERSION ${LLAMA_VERSION_BASE})
set(LLAMA_BUILD_NUMBER 0)
set(LLAMA_BUILD_COMMIT "llama-cpp-python")
set(BUILD_SHARED_LIBS OFF)  # each tool is one file, but for the library
set(LLAMA_SUBPROCESS ON)  # the server wants it
set(LLAMA_BUILD_COMMON ON)
set(LLAMA_USE_PREBUILT_UI OFF)  # it would be downloaded
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_BUILD_RPATH ${LIBRARY})

foreach(name ggml-base ggml-cpu ggml llama)
  add_library(${name} SHARED IMPORTED GLOBAL)
  set_target_properties(${name} PROPERTIES
    IMPORTED_LOCATION ${LIBRARY}/lib${name}.so
    INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_SOURCE_DIR}/include;${CMAKE_SOURCE_DIR}/ggml/include")
endforeach()
target_link_libraries(ggml INTERFACE ggml-base ggml-cpu)
target_link_libraries(llama INTERFACE ggml)

find_package(Threads REQUIRED)
include(cmake/license.cmake)
include(cmake/common.cmake)
add_subdirectory(vendor)
add_subdirectory(common)
foreach(tool llama-bench batched-bench quantize perplexity mtmd ui server)
  add_subdirectory(tools/${tool} EXCLUDE_FROM_ALL)
endforeach()
