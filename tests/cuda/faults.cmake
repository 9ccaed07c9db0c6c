# Faults planted in copies of the CUDA sources, each of which must be caught, by its name, in the build that is given: what
# shows that the tests, and the stand-in that they run on, can fail.
#
#   fastreg_plant(name file old new build expected test...)
#
# replaces `old`, which must be in csrc/cuda/<file> exactly once, by `new`, builds the tests with that copy, runs the tests
# named, and wants `expected` (a regular expression) in what they print.

function(fastreg_plant name file old new build expected)
  set(root "${CMAKE_CURRENT_BINARY_DIR}/faults/${name}")
  file(GLOB headers "${PROJECT_SOURCE_DIR}/csrc/*.h" "${PROJECT_SOURCE_DIR}/csrc/*.inl")
  file(COPY ${headers} DESTINATION "${root}")
  file(GLOB sources "${PROJECT_SOURCE_DIR}/csrc/cuda/*")
  set_property(DIRECTORY "${PROJECT_SOURCE_DIR}" APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${headers} ${sources})
  foreach(source IN LISTS sources)
    get_filename_component(source_name "${source}" NAME)
    if(NOT source_name STREQUAL file)
      file(COPY "${source}" DESTINATION "${root}/cuda")
    endif()
  endforeach()
  file(READ "${PROJECT_SOURCE_DIR}/csrc/cuda/${file}" text)
  string(FIND "${text}" "${old}" first)
  string(FIND "${text}" "${old}" last REVERSE)
  if(first EQUAL -1 OR NOT first EQUAL last)
    message(FATAL_ERROR "The fault ${name} is to replace what must be in csrc/cuda/${file} exactly once:\n${old}")
  endif()
  string(REPLACE "${old}" "${new}" text "${text}")
  file(CONFIGURE OUTPUT "${root}/cuda/${file}" CONTENT "${text}" @ONLY)

  set(target cuda_fault_${name}_${build})
  add_executable(${target} backend_on_host.cpp test_index.cpp)
  target_include_directories(${target} BEFORE PRIVATE "${root}")
  fastreg_stand_in_options(${target} ${build})
  target_compile_options(${target} PRIVATE -w)
  target_link_libraries(${target} PRIVATE cuda_support_${build} cuda_scheduler_${build})
  add_test(NAME cuda.fault.${name}.${build} COMMAND ${target} ${ARGN})
  set_tests_properties(cuda.fault.${name}.${build} PROPERTIES LABELS "cuda;fault" ENVIRONMENT "${stand_in_environment}"
                       TIMEOUT 300 PASS_REGULAR_EXPRESSION "${expected}")
endfunction()

# ---- what must be ordered

fastreg_plant(barrier_missing_before_reading kernel.cuh
  "__syncthreads();  // the tiles are full" ""
  plain "wrong value: tiny" bits_tiny)
fastreg_plant(barrier_missing_before_reading kernel.cuh
  "__syncthreads();  // the tiles are full" ""
  tsan "data race.*in sum_group" bits_tiny)
fastreg_plant(barrier_missing_before_reuse kernel.cuh
  "__syncthreads();  // the tiles may be filled again, and the results of the last call have been read" ""
  tsan "data race.*in sum_group" bits_of_two_tiles)
fastreg_plant(fence_missing_before_ticket kernel.cuh
  "__threadfence();
    is_last[0]" "is_last[0]"
  tsan "data race" bits_tiny)
fastreg_plant(ticket_not_reset kernel.cuh
  "atomicExch(work.finished, 0u);" ""
  plain "wrong total" calls_follow_each_other_on_a_stream)

# ---- what must be inside

fastreg_plant(global_out_of_bounds kernel.cuh
  "w[k] = reads_weights && is_there ?" "w[k] = reads_weights && (whole || i < left + lanes) ?"
  asan "heap-buffer-overflow" bits_tiny)
fastreg_plant(shared_out_of_bounds kernel.cuh
  "memory.tiles[tile_size + i] =" "memory.tiles[2 * tile_size + i] ="
  asan "heap-buffer-overflow" bits_tiny)
fastreg_plant(index_of_32_bits kernel.cuh
  "const std::int64_t first = (chunk - row.first_chunk) * chunk_size"
  "const std::int64_t first = static_cast<std::uint32_t>((chunk - row.first_chunk) * chunk_size)"
  plain "gradients beyond 2\\^32" chunks_beyond_4g_elements)

# ---- what all threads must do together

fastreg_plant(barrier_divergent kernel.cuh
  "__syncthreads();  // the tiles may be filled again, and the results of the last call have been read"
  "if (adds) __syncthreads();"
  plain "divergent __syncthreads" bits_tiny)
fastreg_plant(shuffle_divergent kernel.cuh
  "    l1_sum = halve_warp(l1_sum);" "    if (lane < 16) l1_sum = halve_warp(l1_sum);"
  plain "divergent shuffle" bits_tiny)

# ---- what the hardware does not do

fastreg_plant(load_misaligned kernel.cuh
  "is_there ? weights[i] : Storage{}"
  "is_there ? *reinterpret_cast<const Storage*>(&reinterpret_cast<const int4*>(weights + i)->x) : Storage{}"
  asan "misaligned address" bits_tiny)
fastreg_plant(device_not_current backend.cu
  "if (before_ != device) {" "if (before_ == -1) {"
  plain "cudaError" two_devices)

# ---- what streams must order

fastreg_plant(values_on_another_stream backend.cu
  "at(0, static_cast<unsigned*>(nullptr))},
                stream)" "at(0, static_cast<unsigned*>(nullptr))},
                nullptr)"
  plain "illegal address in a kernel|wrong (value|total): six calls" calls_follow_each_other_on_a_stream)
fastreg_plant(staging_reused_too_early backend.cu
  "piece.capacity >= bytes && cudaEventQuery(piece.fetched) == cudaSuccess" "piece.capacity >= bytes"
  plain "illegal address in a kernel|wrong (gradient|value): six calls" calls_follow_each_other_on_a_stream)
fastreg_plant(producer_not_waited_for backend.cu
  "cudaEventRecord(event, static_cast<cudaStream_t>(producer))"
  "cudaEventRecord(event, static_cast<cudaStream_t>(stream))"
  plain "the producer's work was not waited for" a_stream_waits_for_another)

# ---- what the contract fixes

fastreg_plant(lanes_in_another_order kernel.cuh
  "static_cast<const Storage*>(row.weights) + first + lane;"
  "static_cast<const Storage*>(row.weights) + first + (outputs == 1 ? lane % 2 * 16 + lane / 2 : lane);"
  plain "wrong value: f32 terms 1 outputs 1 size 4096" bits_around_a_chunk)
fastreg_plant(lanes_halved_from_below kernel.cuh
  "for (int half = lanes / 2; half > 0; half /= 2)" "for (int half = 1; half < lanes; half *= 2)"
  plain "wrong value: f32 terms 1 outputs 1 size 4096" bits_around_a_chunk)
fastreg_plant(square_fused kernel.cuh
  "return sum + x * x;" "return __fma_rn(x, x, sum);"
  plain "wrong value: f64 terms 2 outputs 1 size 409[56]" bits_around_a_chunk)
