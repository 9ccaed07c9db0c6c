// What a device backend offers: a C struct of function pointers, got from a library that is opened when it is first
// needed (cuda/loader.cpp). Nothing here includes a header of the device's.
//
// Promises of every backend:
// - the bits of the CPU kernels (docs/numerics.md);
// - work is queued on the caller's stream and nothing waits for the device, but for what is named `copy` or `wait`, and
//   norms that are measured;
// - whatever can fail, fails before anything of the caller's is written;
// - no function throws; the calling thread's current device is as it was.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.h"
#include "norms.h"
#include "penalty.h"
#include "steps.h"

namespace fastreg {

// Changes whenever anything below does: library and core may come from different builds.
constexpr std::uint32_t backend_version = 8;

// Whose bits and words these are: a library that is installed by itself may be of another release than the core.
constexpr char own_release[] = FASTREG_RELEASE;

enum class BackendStatus : std::int32_t {
  ok,
  no_device,  // no driver, or no device that it can use
  out_of_memory,
  bad_argument,  // a device that is not there, a stream of another one, memory of another one, a misaligned address
  failed,        // anything else that the runtime reports
};

struct BackendError {
  char text[512];  // what the runtime says and what was being done; empty when all is well
};

// One tensor. Addresses are those of the element of index 0; they, and all strides, are multiples of the element's
// size.
struct DeviceItem {
  const void* weights;
  void* gradients;  // null where the outputs need none; proximal steps are written here, and this may be `weights`
  std::int64_t count;
  std::uint32_t strengths;  // index into DeviceCall::strengths
  DType dtype;              // floating where the outputs need gradients
  const Layout* layout;     // null: weights and gradients are consecutive and in the same order
};

struct DeviceCall {
  int device;
  void* stream;  // of `device`; null is its default stream
  const DeviceItem* items;
  std::size_t item_count;
  const Coefficients* strengths;
  std::size_t strength_count;
  unsigned outputs;
  // Device memory, written if the outputs include the value; either may be null.
  double* values;  // one per item
  double* total;   // their canonical sum
  // The same of the zeros that proximal steps with the value leave.
  std::int64_t* zeros = nullptr;
  std::int64_t* total_zeros = nullptr;  // null where `total` is
};

enum class NormTask : std::int32_t {
  measure,  // to `norms`; waits, and is refused in a capture
  scale,    // by `factor`
  clip,     // by the factor of `max_norm`, which the device finds out; the norm before to `norm`
};

// Of tensors whose gradients are null; what is scaled lies at `weights`, is floating and has no element twice.
struct NormCall {
  NormTask task;
  int device;
  void* stream;
  const DeviceItem* items;
  std::size_t item_count;
  int exponent;   // elements are measured times 2^exponent
  Norm* norms;    // in host memory, one per item
  double factor;  // 1 writes nothing
  double max_norm;
  double* norm;  // in device memory
};

enum class StepTask : std::int32_t {
  measure,  // the norms of d, to `norms`; waits, and is refused in a capture
  take,
};

// Numbers of an item's settings that are read in device memory when the step runs, each a float32 or a float64.
struct NumbersThere {
  const void* lr;  // null: that of the settings
  bool lr_is_f64;
  double initial_lr;     // where lr is there, the factor of decoupled strengths is that over this
  const void* strength;  // l1 and l2 of the settings are multiplied with it; may be null
  bool strength_is_f64;
};

// What only the device knows when a step is queued, all of it in device memory. Nothing waits for it: the device works
// out the numbers of the step, what clips it, and whether it is taken at all.
struct StepOnDevice {
  const StepSettings* settings;  // of each item, in host memory
  const NumbersThere* there;     // likewise; may be null
  double loss_scale;             // where `loss_scale_there` is null
  const float* loss_scale_there;
  const float* found_inf;  // not 0: the step is skipped; may be null
  // How many steps each item took, and the optimizer; counted up where the step is taken. In host memory are the
  // pointers alone. Where one is null, the item took `steps` of them; that of the optimizer may be null too.
  std::int64_t* const* taken;
  const std::int64_t* steps;
  std::int64_t* optimizer_taken;
  std::int64_t* skipped;  // 1 or 0; may be null
  bool measures;          // for a clip, or to skip a step whose d is not finite
  bool skips_nonfinite;
  double max_norm;  // of the clip that the items' rules have
  double* norm;     // before the clip; written if it `measures`
};

// Steps of one algorithm. The addresses of the items are those of device memory.
struct StepCall {
  StepTask task;
  int device;
  void* stream;
  const StepItem* items;
  std::size_t item_count;
  Clip clip;
  int exponent;  // elements are measured times 2^exponent
  Norm* norms;   // in host memory, one per item
  // Device memory, each of which may be null: the penalty and the zeros of each item that counts, and their sums.
  double* penalties;
  std::int64_t* zeros;
  double* penalty;
  std::int64_t* all_zeros;
  const StepOnDevice* on_device;  // null: all is known, and in the items' rules
};

// A call that was queued while its stream was being captured into a graph. Its strengths stay in device memory, and a
// replay of the graph reads what is there then.
struct Recording;

// What a stream held when the mark was set. Unlike the stream it stays valid, whatever becomes of the stream.
struct Mark;

struct Backend {
  std::uint32_t version;
  const char* name;
  const char* fastreg_release;  // the first three stay where they are, for cores of other versions to read
  BackendStatus (*device_count)(int* count, BackendError* error);
  // `recording` is set to null unless the stream is being captured. A recording lives as long as the graph may be
  // replayed: until `forget`. With a null `recording` it is never forgotten.
  BackendStatus (*evaluate)(const DeviceCall* call, Recording** recording, BackendError* error);
  // As `evaluate`.
  BackendStatus (*norms)(const NormCall* call, Recording** recording, BackendError* error);
  // As `evaluate`.
  BackendStatus (*steps)(const StepCall* call, Recording** recording, BackendError* error);
  // New strengths for the replays that are queued on `stream` after this: as many as before, and outside of capture.
  BackendStatus (*set_strengths)(Recording* recording, const Coefficients* strengths, std::size_t count, void* stream,
                                 BackendError* error);
  // The same of a step of which the device knew all: new settings of each of its items.
  BackendStatus (*set_settings)(Recording* recording, const StepSettings* settings, std::size_t count, void* stream,
                                BackendError* error);
  // The graph has been replayed for the last time and has finished.
  void (*forget)(Recording* recording);
  // Device memory for small results where the caller has no allocator, for what is queued on `stream` from now on. What
  // is allocated in a capture is for the graph's replays too.
  BackendStatus (*allocate)(int device, void* stream, std::size_t bytes, void** address, BackendError* error);
  // Frees it when the marks have passed, without waiting for them; but what was allocated in a capture waits for
  // the device.
  void (*release)(int device, void* address, Mark* const* marks, std::size_t mark_count);
  // Not in a capture.
  BackendStatus (*set_mark)(int device, void* stream, Mark** mark, BackendError* error);
  void (*drop_mark)(Mark* mark);
  // True if what was marked has been done.
  bool (*has_passed)(const Mark* mark);
  BackendStatus (*wait_for_mark)(int device, void* stream, Mark* mark, BackendError* error);
  // Has `stream` wait for what `producer` holds now.
  BackendStatus (*wait)(int device, void* stream, void* producer, BackendError* error);
  // Queues zeros.
  BackendStatus (*clear)(int device, void* stream, void* address, std::size_t bytes, BackendError* error);
  BackendStatus (*is_capturing)(void* stream, bool* capturing, BackendError* error);
  // Copies from the host, and waits until that has been read; a stream that is being captured makes no such copy, but
  // one beside the capture.
  BackendStatus (*copy_from_host)(int device, void* stream, const void* from, std::size_t bytes, void* to,
                                  BackendError* error);
  // Copies to the host and waits for it; refused in a capture.
  BackendStatus (*copy_to_host)(int device, void* stream, const void* from, std::size_t bytes, void* to,
                                BackendError* error);
  // The device that memory is on; bad_argument for memory that no device can use.
  BackendStatus (*device_of)(const void* address, int* device, BackendError* error);
};

}  // namespace fastreg

// The one symbol of a backend's library.
extern "C" __attribute__((visibility("default"))) const fastreg::Backend* fastreg_backend();
