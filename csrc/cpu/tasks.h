// The tasks of a call, and how threads claim them.
//
// Each thread begins with a segment of its own, and helps the others when that is done. A thread begins with the same
// segment whenever a call is like the one before, so that it finds in its own caches what it wrote there then.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

namespace fastreg {

// Must not throw.
using Task = void (*)(void* context, std::int64_t index);

class Tasks {
 public:
  Tasks(Task task, void* context, std::int64_t count, int segments)
      : task_(task),
        context_(context),
        count_(count),
        segment_count_(segments),
        segments_(std::make_unique<Segment[]>(static_cast<std::size_t>(segments))) {
    for (int i = 0; i < segment_count_; ++i) {
      segments_[i].next.store(count * i / segment_count_, std::memory_order_relaxed);
      segments_[i].end = count * (i + 1) / segment_count_;
    }
  }

  bool has_unclaimed() const { return std::any_of(segments_.get(), segments_.get() + segment_count_, is_unclaimed); }
  bool is_done() const { return done_.load(std::memory_order_acquire) == count_; }

  // Claims and runs tasks until none is left, those of one segment first. True if the last task to finish was among
  // them. The context is touched by nothing but a claimed task.
  bool work(int first_segment) {
    // Counted once, at the end: a counter that all threads write is a line that goes to and fro.
    std::int64_t ran = 0;
    for (int i = 0; i < segment_count_; ++i) {
      Segment& segment = segments_[(first_segment + i) % segment_count_];
      while (is_unclaimed(segment)) {
        const std::int64_t index = segment.next.fetch_add(1, std::memory_order_relaxed);
        if (index >= segment.end) {
          break;
        }
        task_(context_, index);
        ++ran;
      }
    }
    return ran != 0 && done_.fetch_add(ran, std::memory_order_acq_rel) + ran == count_;
  }

 private:
  struct alignas(64) Segment {
    std::atomic<std::int64_t> next;
    std::int64_t end;
  };

  static bool is_unclaimed(const Segment& segment) {
    return segment.next.load(std::memory_order_relaxed) < segment.end;
  }

  Task task_;
  void* context_;
  std::int64_t count_;
  int segment_count_;
  std::unique_ptr<Segment[]> segments_;
  std::atomic<std::int64_t> done_{0};
};

}  // namespace fastreg
