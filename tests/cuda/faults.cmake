# Faults planted in a copy of the CUDA sources, each of which must be caught, by its name, in the build that is given: what
# shows that the tests, and the stand-in that they run on, can fail.
#
#   fastreg_plant(name file old new build expected test...)
#
# replaces `old`, which must be in csrc/cuda/<file> exactly once, by `new`, in which PLANTED(name) tells whether this is
# the fault that FASTREG_FAULT names: all of them share one copy, which is compiled once for each build. Faults in one
# place are planted one after the other, the second in what the first has left. Then it has the tests named run with that
# fault, and wants `expected` (a regular expression) in what they print.
#
#   fastreg_catch(name build expected test...)   the same fault must be caught in another build too

set(planted_root "${CMAKE_CURRENT_BINARY_DIR}/planted")
set(planted_names "")
file(GLOB planted_headers "${PROJECT_SOURCE_DIR}/csrc/*.h" "${PROJECT_SOURCE_DIR}/csrc/*.inl")
file(GLOB planted_sources "${PROJECT_SOURCE_DIR}/csrc/cuda/*")
set_property(DIRECTORY "${PROJECT_SOURCE_DIR}" APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${planted_headers} ${planted_sources})
foreach(source IN LISTS planted_sources)
  get_filename_component(source "${source}" NAME)
  file(READ "${PROJECT_SOURCE_DIR}/csrc/cuda/${source}" "planted_text_${source}")
endforeach()

function(fastreg_catch name build expected)
  add_test(NAME cuda.fault.${name}.${build} COMMAND cuda_faults_${build} ${ARGN})
  set_tests_properties(cuda.fault.${name}.${build} PROPERTIES LABELS "cuda;fault" TIMEOUT 300
    ENVIRONMENT "${stand_in_environment};FASTREG_FAULT=${name}" PASS_REGULAR_EXPRESSION "${expected}")
endfunction()

function(fastreg_plant name file old new build expected)
  set(text "${planted_text_${file}}")
  string(FIND "${text}" "${old}" first)
  string(FIND "${text}" "${old}" last REVERSE)
  if(first EQUAL -1 OR NOT first EQUAL last)
    message(FATAL_ERROR "The fault ${name} is to replace what must be in csrc/cuda/${file} exactly once:\n${old}")
  endif()
  if(NOT new MATCHES "PLANTED\\(${name}\\)")
    message(FATAL_ERROR "The fault ${name} would always be there: its text has no PLANTED(${name})")
  endif()
  string(REPLACE "${old}" "${new}" text "${text}")
  set("planted_text_${file}" "${text}" PARENT_SCOPE)
  set(planted_names ${planted_names} ${name} PARENT_SCOPE)
  fastreg_catch(${name} ${build} "${expected}" ${ARGN})
endfunction()

# ---- what must be ordered

fastreg_plant(barrier_missing_before_reading kernel.cuh
  "__syncthreads();  // the tiles are full"
  "if (!PLANTED(barrier_missing_before_reading)) __syncthreads();  // the tiles are full"
  plain "wrong value: tiny" bits_tiny)
fastreg_catch(barrier_missing_before_reading tsan "data race.*in sum_group" bits_tiny)

fastreg_plant(barrier_missing_before_reuse kernel.cuh
  "__syncthreads();  // the tiles may be filled again"
  "if (!PLANTED(barrier_missing_before_reuse)) __syncthreads();  // the tiles may be filled again"
  tsan "data race.*in sum_group" bits_of_two_tiles)

fastreg_plant(fence_missing_before_ticket kernel.cuh
  "__threadfence();
    is_last[0]"
  "if (!PLANTED(fence_missing_before_ticket)) __threadfence();
    is_last[0]"
  tsan "data race" bits_tiny)

fastreg_plant(ticket_not_reset kernel.cuh
  "atomicExch(work.finished, 0u);" "if (!PLANTED(ticket_not_reset)) atomicExch(work.finished, 0u);"
  plain "wrong total" calls_follow_each_other_on_a_stream)

fastreg_plant(sums_read_too_early kernel.cuh
  "__syncwarp();  // the sums are there to be read"
  "if (!PLANTED(sums_read_too_early)) __syncwarp();  // the sums are there to be read"
  plain "row [0-9]+ of (4097|9000)" values_of_large_rows)

fastreg_plant(warp_not_waited_for strided.cuh
  "__syncwarp();  // the starts are there"
  "if (!PLANTED(warp_not_waited_for)) __syncwarp();  // the starts are there"
  plain "illegal address in a kernel|wrong value" layouts_tiny)

fastreg_plant(starts_replaced_too_early strided.cuh
  "__syncwarp();  // the starts of the last chunk have been read"
  "if (!PLANTED(starts_replaced_too_early)) __syncwarp();  // the starts of the last chunk have been read"
  tsan "data race.*in (run|walk)_strided_chunk" layouts_tiny)

# ---- what must be inside

fastreg_plant(global_out_of_bounds kernel.cuh
  "w[k] = reads_weights && is_there ?"
  "w[k] = reads_weights && (PLANTED(global_out_of_bounds) ? whole || i < left + lanes : is_there) ?"
  asan "heap-buffer-overflow" bits_tiny)

fastreg_plant(shared_out_of_bounds kernel.cuh
  "memory.tiles[tile_size + i] =" "memory.tiles[(PLANTED(shared_out_of_bounds) ? 2 : 1) * tile_size + i] ="
  asan "heap-buffer-overflow" bits_tiny)

fastreg_plant(index_of_32_bits kernel.cuh
  "const std::int64_t first = (chunk - row.first_chunk) * chunk_size;"
  "const std::int64_t right = (chunk - row.first_chunk) * chunk_size;
  const std::int64_t first = PLANTED(index_of_32_bits) ? static_cast<std::uint32_t>(right) : right;"
  plain "gradients beyond 2\\^32" chunks_beyond_4g_elements)

fastreg_plant(strided_start_of_32_bits strided.cuh
  "const std::int64_t first = (chunk - row.first_chunk) * chunk_size;"
  "const std::int64_t right = (chunk - row.first_chunk) * chunk_size;
  const std::int64_t first = PLANTED(strided_start_of_32_bits) ? static_cast<std::uint32_t>(right) : right;"
  plain "gradients of strided tensors beyond 2\\^32" strided_chunks_beyond_4g_elements)

fastreg_plant(gradients_where_the_weights_lie strided.cuh
  "carry[k] * axis.gradient_step"
  "carry[k] * (PLANTED(gradients_where_the_weights_lie) ? axis.weight_step : axis.gradient_step)"
  asan "heap-buffer-overflow" layouts_tiny)

# ---- what all threads must do together

fastreg_plant(barrier_divergent kernel.cuh
  "__syncthreads();  // the tiles may be filled again"
  "if (!PLANTED(barrier_divergent) || adds) __syncthreads();  // the tiles may be filled again"
  plain "divergent __syncthreads" bits_tiny)

fastreg_plant(shuffle_divergent kernel.cuh
  "const double l1_sum = halve_warp(sums.l1);"
  "const double l1_sum = !PLANTED(shuffle_divergent) || lane < 16 ? halve_warp(sums.l1) : 0.0;"
  plain "divergent shuffle" bits_tiny)

# ---- what the hardware does not do

fastreg_plant(load_misaligned kernel.cuh
  "? weights[i] : Storage{}"
  "? (PLANTED(load_misaligned) ? Storage(reinterpret_cast<const int4*>(weights + i)->x) : weights[i]) : Storage{}"
  asan "misaligned address" bits_tiny)

fastreg_plant(device_not_current devices.h
  "if (before_device != device) {" "if (!PLANTED(device_not_current) && before_device != device) {"
  plain "cudaError" two_devices)

fastreg_plant(context_made_where_none_was devices.h
  "driver().set_current(before_);" "PLANTED(context_made_where_none_was) ? cudaSetDevice(0) : driver().set_current(before_);"
  plain "device 0 has got a context" a_device_that_is_not_used_gets_no_context)

# ---- what streams must order

fastreg_plant(values_on_another_stream launches.cuh
  "call_.total_zeros},
                stream)"
  "call_.total_zeros},
                PLANTED(values_on_another_stream) ? nullptr : stream)"
  plain "illegal address in a kernel|wrong (value|total): six calls" calls_follow_each_other_on_a_stream)

fastreg_plant(staging_reused_too_early staging.h
  "piece.capacity >= bytes && cudaEventQuery(piece.fetched) == cudaSuccess"
  "piece.capacity >= bytes && (PLANTED(staging_reused_too_early) || cudaEventQuery(piece.fetched) == cudaSuccess)"
  plain "illegal address in a kernel|wrong (gradient|value): six calls" calls_follow_each_other_on_a_stream)

fastreg_plant(producer_not_waited_for marks.h
  "set_mark(device, producer, &mark, error)"
  "set_mark(device, PLANTED(producer_not_waited_for) ? stream : producer, &mark, error)"
  plain "the producer's work was not waited for" a_stream_waits_for_another)

fastreg_plant(workspace_lent_while_busy workspace.h
  "cudaEventQuery(candidate->finished) == cudaSuccess"
  "(PLANTED(workspace_lent_while_busy) || cudaEventQuery(candidate->finished) == cudaSuccess)"
  plain "illegal address in a kernel|wrong (gradient|value|total): busy streams" many_busy_streams)

fastreg_plant(memory_given_back_too_early result_memory.h
  "check(cudaStreamWaitEvent(stream, event_of(marks[i]), 0)"
  "check(PLANTED(memory_given_back_too_early) ? cudaSuccess : cudaStreamWaitEvent(stream, event_of(marks[i]), 0)"
  plain "memory was given back too early" memory_for_results)

# ---- proximal steps

fastreg_plant(zeros_read_too_early kernel.cuh
  "__syncthreads();  // the sums of the warps are there"
  "if (!PLANTED(zeros_read_too_early)) __syncthreads();  // the sums of the warps are there"
  tsan "data race.*in sum_of_block" steps_tiny)

fastreg_plant(step_divided_by_reciprocal kernel.cuh
  "Element<E>::narrow(proximal_step<ScalarOps<Real>, terms>(Element<E>::widen(w), t1, t2))"
  "Element<E>::narrow(PLANTED(step_divided_by_reciprocal)
                                   ? proximal_step<ScalarOps<Real>, terms & term_l1>(Element<E>::widen(w), t1, t2) *
                                         (Real{1} / t2)
                                   : proximal_step<ScalarOps<Real>, terms>(Element<E>::widen(w), t1, t2))"
  plain "wrong gradient: step, f32 terms 2" steps_around_a_chunk)

fastreg_plant(step_past_zero kernel.cuh
  "return left <= Real{0} ? Real{0} : copysign(left, x);"
  "return left <= Real{0} && !PLANTED(step_past_zero) ? Real{0} : copysign(left, x);"
  plain "wrong gradient: step, f16 terms 1" steps_around_a_chunk)

fastreg_plant(missing_elements_are_zeros kernel.cuh
  "is_there && stored == 0 ? 1 : 0" "(is_there || PLANTED(missing_elements_are_zeros)) && stored == 0 ? 1 : 0"
  plain "wrong zeros: step, f16 terms 0 outputs 11 size 1," steps_of_small_sizes)

fastreg_plant(penalty_of_what_was kernel.cuh
  "add_stored<E, terms, outputs>(Element<E>::widen(step), is_there, sums);"
  "add_stored<E, terms, outputs>(Element<E>::widen(PLANTED(penalty_of_what_was) ? w[k] : step), is_there, sums);"
  plain "wrong value: step, f16 terms 1 outputs 11" steps_around_a_chunk)

fastreg_plant(nothing_is_copied kernel.cuh
  "if constexpr (is_prox(outputs)) {
          run.template"
  "if (PLANTED(nothing_is_copied)) break;
        if constexpr (is_prox(outputs)) {
          run.template"
  plain "wrong gradient: step, f16 terms 0" steps_around_a_chunk)

fastreg_plant(zeros_of_the_first_groups kernel.cuh
  "zeros = sum_by_warp(work.group_zeros + large.first_group, large.group_count, lane)"
  "zeros = sum_by_warp(work.group_zeros + large.first_group, PLANTED(zeros_of_the_first_groups) ? 1 : large.group_count,
                                       lane)"
  plain "wrong zeros: step, two levels" steps_of_two_levels)

fastreg_plant(zeros_of_few_items kernel.cuh
  "i < work.item_count; i += threads_per_block" "i < work.item_count && !PLANTED(zeros_of_few_items); i += threads_per_block"
  plain "wrong total of zeros" steps_tiny)

# ---- norms

fastreg_plant(maxima_read_too_early norms.cuh
  "__syncthreads();  // the maxima of the warps are there"
  "if (!PLANTED(maxima_read_too_early)) __syncthreads();  // the maxima of the warps are there"
  tsan "data race.*in largest_of_block" norms_tiny)

fastreg_plant(maximum_of_signed_numbers norms.cuh
  "const Real magnitude = fabs(x);" "const Real magnitude = PLANTED(maximum_of_signed_numbers) && x > -1 ? x : fabs(x);"
  plain "wrong (sum|maximum|zeros)" norms_of_small_sizes)

fastreg_plant(missing_numbers_are_zeros norms.cuh
  "counts += is_there && bits == 0 ? 1 : 0;" "counts += (is_there || PLANTED(missing_numbers_are_zeros)) && bits == 0 ? 1 : 0;"
  plain "wrong zeros: f16 size 1" norms_of_small_sizes)

fastreg_plant(infinity_is_finite norms.cuh
  "bits >= MagnitudeOf<Real>::infinity ? 1 << nonfinite_shift : 0"
  "bits >= MagnitudeOf<Real>::infinity + (PLANTED(infinity_is_finite) ? 1 : 0) ? 1 << nonfinite_shift : 0"
  plain "wrong non-finite: with inf" norms_of_infinities)

fastreg_plant(squares_as_they_are norms.cuh
  "exponent != 0 ? ldexp" "exponent != 0 && !PLANTED(squares_as_they_are) ? ldexp"
  plain "wrong squares: times 2" norms_times_a_power)

fastreg_plant(large_numbers_once_only norm_launches.cuh
  "return is_clip() && may_need_power_;" "return is_clip() && may_need_power_ && !PLANTED(large_numbers_once_only);"
  plain "wrong norm: clip of" tensors_are_clipped)

fastreg_plant(epsilon_not_scaled norms.cuh
  "epsilon = ldexp(epsilon, exponent);" "epsilon = PLANTED(epsilon_not_scaled) ? epsilon : ldexp(epsilon, exponent);"
  plain "wrong elements: clip of" tensors_are_clipped)

fastreg_plant(factor_beyond_one norms.cuh
  "return factor > 1.0 ? 1.0 : factor;" "return factor > 1.0 && !PLANTED(factor_beyond_one) ? 1.0 : factor;"
  plain "wrong elements: clip to" tensors_are_clipped)

fastreg_plant(product_rounded_early norms.cuh
  "const auto factor = static_cast<typename E::Real>(wanted);
  for_each_chunk_of_rows(work.chunks, [&](std::int64_t r, std::int64_t chunk, int lane) {
    for_each_batch"
  "auto factor = static_cast<typename E::Real>(wanted);
  if (PLANTED(product_rounded_early)) factor = Element<E>::widen(Element<E>::narrow(factor));
  for_each_chunk_of_rows(work.chunks, [&](std::int64_t r, std::int64_t chunk, int lane) {
    for_each_batch"
  plain "wrong elements: factor" tensors_are_scaled)

# ---- steps of optimizers

fastreg_plant(starts_of_steps_read_too_early steps.cuh
  "__syncwarp();  // the starts are there"
  "if (!PLANTED(starts_of_steps_read_too_early)) __syncwarp();  // the starts are there"
  tsan "data race" taken_steps_tiny)

fastreg_plant(moment_not_kept steps.cuh
  "at.v[i] = v[k];" "if (!PLANTED(moment_not_kept)) at.v[i] = v[k];"
  plain "wrong second" taken_steps_tiny)

fastreg_plant(gradients_read_as_parameters steps.cuh
  "} else if (work.rows[r].is_converted != 0) {
      take_chunk"
  "} else if (work.rows[r].is_converted != 0 && !PLANTED(gradients_read_as_parameters)) {
      take_chunk"
  plain "wrong (parameters|first)" taken_steps_tiny)

fastreg_plant(penalty_after_the_step steps.cuh
  "rule.adds_before ? before : stored;" "rule.adds_before && !PLANTED(penalty_after_the_step) ? before : stored;"
  plain "wrong penalty" taken_steps_tiny)

fastreg_plant(moments_where_the_parameters_lie steps.cuh
  "carry[k] * (other ? axis.gradient_step : axis.weight_step)"
  "carry[k] * (other && !PLANTED(moments_where_the_parameters_lie) ? axis.gradient_step : axis.weight_step)"
  asan "misaligned address|heap-buffer-overflow" taken_steps_in_any_layout)

fastreg_plant(root_of_the_largest_forgotten steps.cuh
  "return algorithm == Algorithm::adamw && does(operations, op_amsgrad);"
  "return algorithm == Algorithm::adamw && does(operations, op_amsgrad) && !PLANTED(root_of_the_largest_forgotten);"
  plain "wrong (parameters|largest)" taken_steps_tiny)

fastreg_plant(found_inf_ignored steps.cuh
  "found.skips = work.verdict->skips != 0;" "found.skips = work.verdict->skips != 0 && !PLANTED(found_inf_ignored);"
  plain "wrong parameters : tiny, skipped" taken_steps_tiny)

fastreg_plant(skipped_step_counted steps.cuh
  "if (!skips) {" "if (!skips || PLANTED(skipped_step_counted)) {"
  plain "wrong count of steps" taken_steps_tiny)

fastreg_plant(infinity_taken steps.cuh
  "found.skips = found.skips || (work.skips_nonfinite"
  "found.skips = found.skips || (!PLANTED(infinity_taken) && work.skips_nonfinite"
  plain "wrong (parameters|first)" decided_steps_of_numbers_that_are_not_finite)

fastreg_plant(factor_not_read steps.cuh
  "found.factor = work.state->factor;" "if (!PLANTED(factor_not_read)) found.factor = work.state->factor;"
  plain "wrong (parameters|first)" taken_steps_tiny)

fastreg_plant(count_of_32_bits steps.cuh
  "source.taken != nullptr ? *source.taken"
  "source.taken != nullptr ? PLANTED(count_of_32_bits) ? static_cast<std::int32_t>(*source.taken) : *source.taken"
  plain "wrong parameters : decided after many steps" decided_steps)

fastreg_plant(scale_of_the_host steps.cuh
  "work.loss_scale_there != nullptr ?" "work.loss_scale_there != nullptr && !PLANTED(scale_of_the_host) ?"
  plain "wrong (norm:|parameters :) decided" decided_steps)

fastreg_plant(step_not_counted_again steps.cuh
  "*work.sources[i].taken += 1;" "if (!PLANTED(step_not_counted_again)) *work.sources[i].taken += 1;"
  plain "wrong count of steps: replayed" captured_steps_tiny)

fastreg_plant(rate_of_the_capture steps.cuh
  "if (there.lr != nullptr) {" "if (there.lr != nullptr && !PLANTED(rate_of_the_capture)) {"
  plain "wrong parameters : replayed" captured_steps_tiny)

fastreg_plant(strength_not_read steps.cuh
  "if (there.strength != nullptr) {" "if (there.strength != nullptr && !PLANTED(strength_not_read)) {"
  plain "wrong (parameters|penalty) : (replayed|read there)" captured_steps_tiny)

fastreg_plant(settings_not_sent_again backend.cu
  "recorded.sources, recorded.sources + count * sizeof(RuleSource),"
  "recorded.sources, recorded.sources + (PLANTED(settings_not_sent_again) ? 0 : count * sizeof(RuleSource)),"
  plain "wrong parameters : replayed [0-9] turn of other settings" captured_steps_tiny)

fastreg_plant(penalty_not_clipped steps.cuh
  "return work.with_penalty && does(" "return work.with_penalty && !PLANTED(penalty_not_clipped) && does("
  plain "wrong squares: clip 2" measured_steps)

fastreg_plant(numbers_not_scaled steps.cuh
  "return exponent != 0 ? ldexp(number, exponent)"
  "return exponent != 0 && !PLANTED(numbers_not_scaled) ? ldexp(number, exponent)"
  plain "wrong squares: clip" measured_steps)

# ---- what the contract fixes

fastreg_plant(lanes_in_another_order kernel.cuh
  "static_cast<const Storage*>(row.weights) + first + lane;"
  "static_cast<const Storage*>(row.weights) + first +
                           (PLANTED(lanes_in_another_order) && outputs == 1 ? lane % 2 * 16 + lane / 2 : lane);"
  plain "wrong value: f32 terms 1 outputs 1 size 4096" bits_around_a_chunk)

fastreg_plant(lanes_halved_from_below kernel.cuh
  "for (int half = lanes / 2; half > 0; half /= 2)"
  "const bool up = PLANTED(lanes_halved_from_below);
  for (int half = up ? 1 : lanes / 2; up ? half < lanes : half > 0; half = up ? 2 * half : half / 2)"
  plain "wrong value: f32 terms 1 outputs 1 size 4096" bits_around_a_chunk)

fastreg_plant(square_fused kernel.cuh
  "return sum + x * x;" "return PLANTED(square_fused) ? __fma_rn(x, x, sum) : sum + x * x;"
  plain "wrong value: f64 terms 2 outputs 1 size 409[56]" bits_around_a_chunk)

fastreg_plant(axes_the_wrong_way_round table.h
  "for (int a = layout->axis_count - 1; a >= 0; --a) {
      const Layout::Axis& axis = layout->axes[a];"
  "const int last_axis = layout->axis_count - 1;
    for (int a = last_axis; a >= 0; --a) {
      const Layout::Axis& axis = layout->axes[PLANTED(axes_the_wrong_way_round) ? last_axis - a : a];"
  plain "wrong value: transposed gradient, f64" layouts_in_every_cell)

fastreg_plant(integers_through_float strided.cuh
  "to[k] = static_cast<Real>(Element<Stored>::widen(stored[k]));"
  "const auto element_of_k = Element<Stored>::widen(stored[k]);
          to[k] = PLANTED(integers_through_float) ? static_cast<Real>(static_cast<float>(element_of_k))
                                                  : static_cast<Real>(element_of_k);"
  plain "wrong value: [a-z ]*, i32" layouts_of_integers)

# ---- the copy

foreach(header IN LISTS planted_headers)
  get_filename_component(name "${header}" NAME)
  configure_file("${header}" "${planted_root}/${name}" COPYONLY)
endforeach()
string(REPLACE ";" ", " planted_list "${planted_names}")
string(REGEX REPLACE "([a-z0-9_]+);?" "name == \"\\1\" ? Fault::\\1 : " planted_choice "${planted_names}")
file(CONFIGURE OUTPUT "${planted_root}/planted.h" @ONLY CONTENT [[
#pragma once
#include <cstdlib>
#include <string_view>

enum class Fault { none, @planted_list@ };

inline const Fault planted_fault = [] {
  const char* chosen = std::getenv("FASTREG_FAULT");
  const std::string_view name = chosen != nullptr ? chosen : "none";
  return @planted_choice@name == "none" ? Fault::none : (std::abort(), Fault::none);
}();

#define PLANTED(fault) (planted_fault == Fault::fault)
]])
foreach(source IN LISTS planted_sources)
  get_filename_component(name "${source}" NAME)
  file(CONFIGURE OUTPUT "${planted_root}/cuda/${name}" @ONLY CONTENT "${planted_text_${name}}")
endforeach()

foreach(build IN ITEMS plain asan tsan)
  add_library(cuda_planted_${build} OBJECT backend_on_host.cpp)
  # The index tests are of faults in the plain build alone.
  add_executable(cuda_faults_${build} $<$<STREQUAL:${build},plain>:test_index.cpp>)
  foreach(target IN ITEMS cuda_planted_${build} cuda_faults_${build})
    target_include_directories(${target} BEFORE PRIVATE "${planted_root}")
    fastreg_stand_in_options(${target} ${build})
    target_compile_options(${target} PRIVATE -w -include planted.h)
  endforeach()
  target_link_libraries(cuda_faults_${build} PRIVATE cuda_planted_${build} cuda_support_${build} cuda_runtime_${build} cuda_scheduler_${build})
  # It is the fault that is caught, and not the copy.
  add_test(NAME cuda.fault.none.${build} COMMAND cuda_faults_${build} bits_tiny bits_of_two_tiles)
  set_tests_properties(cuda.fault.none.${build} PROPERTIES LABELS "cuda;fault" TIMEOUT 300
                       ENVIRONMENT "${stand_in_environment};FASTREG_FAULT=none")
endforeach()

# ---- what the tests for a GPU see of them (tests/gpu)

if(FASTREG_BUILD_PYTHON)
  add_library(fastreg_cuda_planted MODULE $<TARGET_OBJECTS:cuda_planted_plain> $<TARGET_OBJECTS:cuda_runtime_plain>
                                          $<TARGET_OBJECTS:cuda_scheduler_plain>)
  set_target_properties(fastreg_cuda_planted PROPERTIES LINKER_LANGUAGE CXX)
endif()

# The fault must fail this test of tests/gpu.
function(fastreg_catch_on_gpu name file test)
  if(FASTREG_BUILD_PYTHON)
    add_test(NAME cuda.fault.${name}.gpu_tests
             COMMAND "${Python_EXECUTABLE}" -m pytest -q -c "${PROJECT_SOURCE_DIR}/pyproject.toml"
                     --rootdir "${PROJECT_SOURCE_DIR}" -p no:cacheprovider --makers stand_in -x -k ${test}
                     "${PROJECT_SOURCE_DIR}/tests/gpu/${file}"
             WORKING_DIRECTORY "${PROJECT_BINARY_DIR}/python")
    set_tests_properties(cuda.fault.${name}.gpu_tests PROPERTIES LABELS "cuda;fault;python" TIMEOUT 300
      PASS_REGULAR_EXPRESSION "FAILED [^\n]*${file}::${test}" ENVIRONMENT
      "PYTHONPATH=${PROJECT_BINARY_DIR}/python;PYTHONDONTWRITEBYTECODE=1;FASTREG_BACKEND=native;FASTREG_FAULT=${name};FASTREG_CUDA_LIBRARY=$<TARGET_FILE:fastreg_cuda_planted>")
  endif()
endfunction()
fastreg_catch_on_gpu(step_divided_by_reciprocal test_gpu_prox.py test_steps)
fastreg_catch_on_gpu(step_past_zero test_gpu_prox.py test_steps)
fastreg_catch_on_gpu(missing_elements_are_zeros test_gpu_prox.py test_steps)
fastreg_catch_on_gpu(penalty_of_what_was test_gpu_prox.py test_steps)
fastreg_catch_on_gpu(nothing_is_copied test_gpu_prox.py test_steps)
fastreg_catch_on_gpu(zeros_of_few_items test_gpu_prox.py test_steps_of_models)
fastreg_catch_on_gpu(maximum_of_signed_numbers test_gpu_norms.py test_norms)
fastreg_catch_on_gpu(missing_numbers_are_zeros test_gpu_norms.py test_norms)
fastreg_catch_on_gpu(infinity_is_finite test_gpu_norms.py test_norms_of_every_pattern)
fastreg_catch_on_gpu(squares_as_they_are test_gpu_norms.py test_clips_of_any_magnitude)
fastreg_catch_on_gpu(large_numbers_once_only test_gpu_norms.py test_clips_of_any_magnitude)
fastreg_catch_on_gpu(epsilon_not_scaled test_gpu_norms.py test_clips_of_any_magnitude)
fastreg_catch_on_gpu(factor_beyond_one test_gpu_norms.py test_clips)
fastreg_catch_on_gpu(product_rounded_early test_gpu_norms.py test_clips)
fastreg_catch_on_gpu(moment_not_kept test_gpu_steps.py test_optimizer_steps)
fastreg_catch_on_gpu(penalty_after_the_step test_gpu_steps.py test_optimizer_steps)
fastreg_catch_on_gpu(root_of_the_largest_forgotten test_gpu_steps.py test_optimizer_steps)
fastreg_catch_on_gpu(skipped_step_counted test_gpu_steps.py test_clipped_steps_of_models)
fastreg_catch_on_gpu(infinity_taken test_gpu_steps.py test_clipped_steps_of_models)
fastreg_catch_on_gpu(factor_not_read test_gpu_steps.py test_clipped_steps_of_models)
fastreg_catch_on_gpu(step_not_counted_again test_gpu_steps.py test_captured_steps)
fastreg_catch_on_gpu(rate_of_the_capture test_gpu_steps.py test_captured_steps)
fastreg_catch_on_gpu(settings_not_sent_again test_gpu_steps.py test_a_schedule_reaches_a_captured_step)
