// The CUDA backend's table of functions, and its calls. See backend.h for what it promises.
//
// A call's table, strengths and sums lie in one block of device memory per device and stream, which grows and is kept:
// the stream's own order keeps calls apart, and nothing is freed, since freeing waits for the device. A stream that is
// no longer used leaves its block to another (workspace.h). Training brings the same tensors at every step, so what the
// device holds already is not sent again (block.h). A call that is captured has a block of its own (capture.h).
//
// All of it is one translation unit: kernels are templates, and nvcc reads a file once for every architecture.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../backend.h"
#include "block.h"
#include "capture.h"
#include "devices.h"
#include "errors.h"
#include "launches.cuh"
#include "marks.h"
#include "norm_launches.cuh"
#include "result_memory.h"
#include "step_launches.cuh"
#include "step_table.h"
#include "streams.h"
#include "table.h"
#include "workspace.h"

namespace fastreg::cuda {
namespace {

bool fits(const Layout& layout, const DeviceItem& item) {
  const auto size = static_cast<std::int64_t>(item_size(item.dtype));
  if (layout.axis_count < 0 || layout.axis_count > max_axes) {
    return false;
  }
  std::int64_t count = 1;
  for (int a = 0; a < layout.axis_count; ++a) {
    const Layout::Axis& axis = layout.axes[a];
    if (axis.extent < 1 || axis.weight_stride % size != 0 || axis.gradient_stride % size != 0 ||
        __builtin_mul_overflow(count, axis.extent, &count)) {
      return false;
    }
  }
  return count == item.count;
}

// `floating`: there are no integers among them. `gradients`: they are written.
void check_items(const DeviceItem* items, std::size_t item_count, std::size_t strength_count, bool floating,
                 bool gradients) {
  for (std::size_t i = 0; i < item_count; ++i) {
    const DeviceItem& item = items[i];
    const auto is_misaligned = [&](const void* address) {
      return reinterpret_cast<std::uintptr_t>(address) % item_size(item.dtype) != 0;
    };
    if (static_cast<int>(item.dtype) >= dtype_count || (floating && !is_floating(item.dtype)) || item.count < 0 ||
        item.strengths >= strength_count || (item.layout != nullptr && !fits(*item.layout, item))) {
      fail(BackendStatus::bad_argument, "tensor " + std::to_string(i) + " is described wrongly");
    }
    if (is_misaligned(item.weights) || (gradients && is_misaligned(item.gradients))) {
      fail(BackendStatus::bad_argument,
           "the address of tensor " + std::to_string(i) + " is no multiple of its elements' size");
    }
  }
}

void check_call(const DeviceCall& call) {
  if (call.outputs >= kernel_cells || chunk_kernels<F32>[call.outputs] == nullptr) {
    fail(BackendStatus::bad_argument, "no such outputs: " + std::to_string(call.outputs));
  }
  const bool writes = (call.outputs & output_gradient) != 0;
  check_items(call.items, call.item_count, call.strength_count, writes, writes);
}

// Runs what a sequence launches, with its table in the stream's block, or in one of its own that a capture keeps.
// Returns that; `after` gets the block while it is the call's.
template <class CallPlaces, class Sequence, class After>
Recording* run_with_block(int device, cudaStream_t stream, std::size_t strength_count, const CallPlaces& places,
                          std::vector<char> image, const Sequence& sequence, After after) {
  if (is_capturing(stream)) {
    std::unique_ptr<RecordedCall> own = make_recording(device, strength_count, places, std::move(image));
    sequence.run(own->block.memory(), stream);
    return handle_of(own.release());
  }
  const RelaxedCapture relaxed;
  WorkspaceInUse workspace(device, stream);
  workspace.block().reserve(places.end, stream);
  workspace.block().hold(std::move(image), places.rows, stream);
  sequence.run(workspace.block().memory(), stream);
  after(workspace.block().memory());
  return nullptr;
}

BackendStatus evaluate(const DeviceCall* call, Recording** recording, BackendError* error) {
  if (recording != nullptr) {
    *recording = nullptr;
  }
  return guarded(error, [&] {
    const DeviceGuard guard(call->device);
    const auto stream = static_cast<cudaStream_t>(call->stream);
    require_device_of_stream(stream, call->device);
    check_call(*call);
    const bool wants_value = (call->outputs & output_value) != 0;
    const Table table = make_table(call->items, call->item_count, wants_value);
    const Places places(table, call->strength_count, call->outputs);
    const Sequence sequence(*call, table, places);
    std::vector<char> image = make_image(table, places, call->strengths, call->strength_count);
    Recording* kept = run_with_block(call->device, stream, call->strength_count, places, std::move(image), sequence,
                                     [](const char*) {});
    if (recording != nullptr) {
      *recording = kept;
    }
  });
}

BackendStatus norms(const NormCall* call, Recording** recording, BackendError* error) {
  if (recording != nullptr) {
    *recording = nullptr;
  }
  return guarded(error, [&] {
    const DeviceGuard guard(call->device);
    const auto stream = static_cast<cudaStream_t>(call->stream);
    require_device_of_stream(stream, call->device);
    const bool measures = call->task == NormTask::measure;
    check_items(call->items, call->item_count, 1, !measures, false);
    if (measures && is_capturing(stream)) {
      fail(BackendStatus::failed, "norms are waited for, which a stream that is being captured cannot be");
    }
    const bool has_f64 = std::any_of(call->items, call->items + call->item_count,
                                     [](const DeviceItem& item) { return item.dtype == DType::f64; });
    const bool may_need_power = call->exponent != 0 || (call->task == NormTask::clip && has_f64);
    const Table table = make_table(call->items, call->item_count, call->task != NormTask::scale, may_need_power);
    const Places places(table, 0, call->task == NormTask::scale ? 0 : output_norms);
    const NormSequence sequence(*call, table, places, may_need_power);
    std::vector<char> image = make_image(table, places, nullptr, 0);
    Recording* kept =
        run_with_block(call->device, stream, 0, places, std::move(image), sequence, [&](const char* block) {
          if (measures) {
            check(cudaMemcpyAsync(call->norms, block + places.norms, call->item_count * sizeof(Norm),
                                  cudaMemcpyDeviceToHost, stream),
                  "copying norms to the host");
          }
        });
    if (measures) {
      check(cudaStreamSynchronize(stream), "waiting for norms");
    }
    if (recording != nullptr) {
      *recording = kept;
    }
  });
}

// The operand `array` of an item, if there is one.
void check_operand(const StepOperand& array, std::int64_t count, DType dtype, std::size_t place) {
  if (array.data == nullptr) {
    return;
  }
  if (array.layout != nullptr && !fits(*array.layout, {nullptr, nullptr, count, 0, DType::u8, nullptr})) {
    fail(BackendStatus::bad_argument, "tensor " + std::to_string(place) + " is described wrongly");
  }
  if (reinterpret_cast<std::uintptr_t>(array.data) % item_size(dtype) != 0) {
    fail(BackendStatus::bad_argument,
         "the address of tensor " + std::to_string(place) + " is no multiple of its elements' size");
  }
}

void check_step(const StepCall& call) {
  for (std::size_t i = 0; i < call.item_count; ++i) {
    const StepItem& item = call.items[i];
    const DType arithmetic = arithmetic_of(item.dtype);
    if (!is_floating(item.dtype) || (item.gradient_dtype != item.dtype && item.gradient_dtype != arithmetic) ||
        item.count < 0 || item.rule.algorithm != call.items[0].rule.algorithm) {
      fail(BackendStatus::bad_argument, "tensor " + std::to_string(i) + " is described wrongly");
    }
    check_operand(item.parameters, item.count, item.dtype, i);
    check_operand(item.gradients, item.count, item.gradient_dtype, i);
    check_operand(item.first, item.count, arithmetic, i);
    check_operand(item.second, item.count, arithmetic, i);
    check_operand(item.largest, item.count, arithmetic, i);
  }
}

BackendStatus steps(const StepCall* call, Recording** recording, BackendError* error) {
  if (recording != nullptr) {
    *recording = nullptr;
  }
  return guarded(error, [&] {
    const DeviceGuard guard(call->device);
    const auto stream = static_cast<cudaStream_t>(call->stream);
    require_device_of_stream(stream, call->device);
    check_step(*call);
    const bool waits = call->task == StepTask::measure;
    if (waits && is_capturing(stream)) {
      fail(BackendStatus::failed, "norms are waited for, which a stream that is being captured cannot be");
    }
    const bool measures = waits || (call->on_device != nullptr && call->on_device->measures);
    const StepTable table = make_step_table(*call, measures);
    const StepPlacesInBlock places(table, call->on_device != nullptr);
    const StepSequence sequence(*call, table, places);
    Recording* kept = run_with_block(
        call->device, stream, 0, places, make_step_image(table, places), sequence, [&](const char* block) {
          if (waits) {
            check(cudaMemcpyAsync(call->norms, block + places.norms, call->item_count * sizeof(Norm),
                                  cudaMemcpyDeviceToHost, stream),
                  "copying norms to the host");
          }
        });
    if (waits) {
      check(cudaStreamSynchronize(stream), "waiting for norms");
    }
    if (kept != nullptr) {
      call_of(kept).sources = places.sources;
      call_of(kept).source_count = table.sources.size();
    }
    if (recording != nullptr) {
      *recording = kept;
    }
  });
}

// Changes what a captured call has of the host, of which there are `known` pieces, with `send`.
template <class Send>
BackendStatus set_captured(RecordedCall& recorded, std::size_t known, std::size_t count, const char* what, void* stream,
                           BackendError* error, Send send) {
  return guarded(error, [&] {
    const DeviceGuard guard(recorded.device);
    const auto on = static_cast<cudaStream_t>(stream);
    require_device_of_stream(on, recorded.device);
    if (count != known) {
      fail(BackendStatus::bad_argument,
           "the recording has " + std::to_string(known) + " " + what + ", not " + std::to_string(count));
    }
    if (is_capturing(on)) {
      fail(BackendStatus::bad_argument, std::string(what) + " are set outside of capture, before a replay");
    }
    send(on);
  });
}

BackendStatus set_strengths(Recording* recording, const Coefficients* strengths, std::size_t count, void* stream,
                            BackendError* error) {
  RecordedCall& recorded = call_of(recording);
  return set_captured(recorded, recorded.strength_count, count, "strengths", stream, error, [&](cudaStream_t on) {
    const std::size_t bytes = count * sizeof *strengths;
    recorded.block.change(
        Places::strengths, Places::strengths + bytes, [&](char* held) { std::memcpy(held, strengths, bytes); }, on);
  });
}

BackendStatus set_settings(Recording* recording, const StepSettings* settings, std::size_t count, void* stream,
                           BackendError* error) {
  RecordedCall& recorded = call_of(recording);
  return set_captured(recorded, recorded.source_count, count, "settings", stream, error, [&](cudaStream_t on) {
    recorded.block.change(
        recorded.sources, recorded.sources + count * sizeof(RuleSource),
        [&](char* held) {
          for (std::size_t i = 0; i < count; ++i) {
            std::memcpy(held + i * sizeof(RuleSource) + offsetof(RuleSource, settings), settings + i, sizeof *settings);
          }
        },
        on);
  });
}

void forget(Recording* recording) { delete &call_of(recording); }

BackendStatus count_devices(int* count, BackendError* error) {
  *count = 0;
  return guarded(error, [&] { *count = device_count(); });
}

BackendStatus clear(int device, void* stream, void* address, std::size_t bytes, BackendError* error) {
  return guarded(error, [&] {
    const DeviceGuard guard(device);
    check(cudaMemsetAsync(address, 0, bytes, static_cast<cudaStream_t>(stream)), "clearing memory");
  });
}

BackendStatus asks_whether_capturing(void* stream, bool* capturing, BackendError* error) {
  *capturing = false;
  return guarded(error, [&] { *capturing = is_capturing(static_cast<cudaStream_t>(stream)); });
}

BackendStatus copy_from_host(int device, void* stream, const void* from, std::size_t bytes, void* to,
                             BackendError* error) {
  return guarded(error, [&] {
    const DeviceGuard guard(device);
    if (is_capturing(static_cast<cudaStream_t>(stream))) {  // or every replay would copy it
      const RelaxedCapture relaxed;
      const PrivateStream own;
      check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, own.get()), "copying to the device");
      check(cudaStreamSynchronize(own.get()), "waiting for the device");
      return;
    }
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)),
          "copying to the device");
    check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "waiting for the device");
  });
}

BackendStatus copy_to_host(int device, void* stream, const void* from, std::size_t bytes, void* to,
                           BackendError* error) {
  return guarded(error, [&] {
    const DeviceGuard guard(device);
    if (is_capturing(static_cast<cudaStream_t>(stream))) {
      fail(BackendStatus::failed, "a copy to the host is waited for, which a stream that is being captured cannot be");
    }
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream)),
          "copying to the host");
    check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "waiting for the device");
  });
}

BackendStatus device_of(const void* address, int* device, BackendError* error) {
  *device = -1;
  return guarded(error, [&] {
    cudaPointerAttributes attributes{};
    check(cudaPointerGetAttributes(&attributes, address), "asking whose memory it is");
    if (attributes.type == cudaMemoryTypeUnregistered) {
      fail(BackendStatus::bad_argument, "it is memory that no CUDA device can use");
    }
    *device = attributes.device;
  });
}

constexpr Backend backend = {backend_version,
                             "cuda",
                             own_release,
                             count_devices,
                             evaluate,
                             norms,
                             steps,
                             set_strengths,
                             set_settings,
                             forget,
                             allocate,
                             release,
                             set_mark,
                             drop_mark,
                             has_passed,
                             wait_for_mark,
                             wait,
                             clear,
                             asks_whether_capturing,
                             copy_from_host,
                             copy_to_host,
                             device_of};

}  // namespace
}  // namespace fastreg::cuda

const fastreg::Backend* fastreg_backend() { return &fastreg::cuda::backend; }
