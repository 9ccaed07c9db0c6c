// Scratch memory of calls outside graph capture: one block per device and stream.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "block.h"
#include "errors.h"

namespace fastreg::cuda {

// A device's first streams keep their workspaces for good, and their calls pay nothing for what follows. Nobody says
// when a stream is gone, so the workspaces of later streams are lent: a stream that comes new gets the one that has not
// been used for longest, of those whose work has finished. None is freed, since that would wait for the device. Where
// all lent ones are busy there is another, so their number is that of the streams that were ever busy at once, or this.
constexpr std::size_t kept_workspaces = 8;
constexpr std::size_t lent_workspaces = 8;

struct Workspace {
  explicit Workspace(int on_device) : block(on_device) {}
  std::mutex mutex;  // held during a call: threads may share a stream
  Block block;
  // What follows is under the lock of all of them.
  unsigned long long stream = 0;
  unsigned long long last_use = 0;
  int users = 0;
  cudaEvent_t finished = nullptr;  // recorded after each call; null: kept for good
  bool is_recorded = false;
};

// Never destroyed, since the driver may be gone when the process ends.
struct Workspaces {
  std::mutex mutex;
  std::map<int, std::vector<std::unique_ptr<Workspace>>> of_device;
  unsigned long long uses = 0;
};

inline Workspaces& all_workspaces() {
  static auto* all = new Workspaces;
  return *all;
}

inline Workspace* longest_idle(const std::vector<std::unique_ptr<Workspace>>& workspaces) {
  Workspace* chosen = nullptr;
  for (const std::unique_ptr<Workspace>& candidate : workspaces) {
    if (candidate->users == 0 && candidate->is_recorded &&
        (chosen == nullptr || candidate->last_use < chosen->last_use) &&
        cudaEventQuery(candidate->finished) == cudaSuccess) {
      chosen = candidate.get();
    }
  }
  cudaGetLastError();  // "not ready" is no error
  return chosen;
}

// The workspace of a stream while a call uses it. By the stream's number rather than its handle: a handle may come back
// for another stream while the work of the one that was destroyed still runs.
class WorkspaceInUse {
 public:
  WorkspaceInUse(int device, cudaStream_t stream)
      : stream_(stream), workspace_(find(device, stream)), lock_(workspace_.mutex) {}
  ~WorkspaceInUse() {
    const std::lock_guard lock(all_workspaces().mutex);
    --workspace_.users;
    if (workspace_.finished != nullptr) {
      workspace_.is_recorded = cudaEventRecord(workspace_.finished, stream_) == cudaSuccess;
    }
  }
  WorkspaceInUse(const WorkspaceInUse&) = delete;
  WorkspaceInUse& operator=(const WorkspaceInUse&) = delete;
  Block& block() { return workspace_.block; }

 private:
  static Workspace& find(int device, cudaStream_t stream) {
    unsigned long long number = 0;
    check(cudaStreamGetId(stream, &number), "asking for the stream's number");
    Workspaces& all = all_workspaces();
    const std::lock_guard lock(all.mutex);
    std::vector<std::unique_ptr<Workspace>>& workspaces = all.of_device[device];
    const auto own =
        std::find_if(workspaces.begin(), workspaces.end(), [&](const auto& each) { return each->stream == number; });
    Workspace* found = own != workspaces.end() ? own->get() : nullptr;
    if (found == nullptr && workspaces.size() >= kept_workspaces + lent_workspaces) {
      found = longest_idle(workspaces);
    }
    if (found == nullptr) {
      auto made = std::make_unique<Workspace>(device);
      if (workspaces.size() >= kept_workspaces) {
        check(cudaEventCreateWithFlags(&made->finished, cudaEventDisableTiming), "making an event");
      }
      found = made.get();
      workspaces.push_back(std::move(made));
    }
    found->stream = number;
    found->last_use = ++all.uses;
    ++found->users;
    return *found;
  }

  cudaStream_t stream_;
  Workspace& workspace_;
  std::lock_guard<std::mutex> lock_;
};

}  // namespace fastreg::cuda
