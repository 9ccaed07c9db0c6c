// The host side: streams, devices, captures, errors.
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "support.h"

namespace fastreg::test {
namespace {

const std::vector<Coefficients> both = {strengths_for(term_l1 | term_l2)};

cudaStream_t make_stream(int device = 0) {
  int before = 0;
  cudaGetDevice(&before);
  cudaSetDevice(device);
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaSetDevice(before);
  return stream;
}

void drain(const std::string& what) { CHECK(cudaDeviceSynchronize() == cudaSuccess, what, stand_in::refusal()); }

std::vector<Shape> shapes(int seed) {
  return {{DType::f32, 5000 + seed * 37}, {DType::f16, 100 + seed}, {DType::f64, 4096}, {DType::bf16, seed}};
}

// The call must fail so, without writing anything and without keeping memory.
void must_fail(Problem& problem, const DeviceCall& call, BackendStatus wanted, const std::string& wanted_text) {
  const std::size_t allocations = stand_in::live_allocations();
  BackendError error;
  const BackendStatus status = fastreg_backend()->evaluate(&call, nullptr, &error);
  CHECK(status == wanted, static_cast<int>(status), error.text);
  CHECK(std::strstr(error.text, wanted_text.c_str()) != nullptr, error.text, "lacks", wanted_text);
  CHECK(cudaGetLastError() == cudaSuccess, "an error was left behind");
  stand_in::drain();
  CHECK(problem.device_is_untouched(), wanted_text);
  CHECK(stand_in::live_allocations() == allocations, wanted_text);
}

}  // namespace

TEST(calls_follow_each_other_on_a_stream) {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    stand_in::reset(seed);
    const cudaStream_t stream = make_stream();
    std::vector<std::unique_ptr<Problem>> problems;
    const std::size_t waits = stand_in::waits();
    for (int i = 0; i < 6; ++i) {
      problems.push_back(std::make_unique<Problem>(shapes(i), both, 7, seed * 100));
      evaluate_on_device(problems.back()->call(stream), "one of six calls");
    }
    CHECK(stand_in::waits() == waits, "a call has waited for the device");
    drain("six calls");
    for (const auto& problem : problems) {
      problem->compare("six calls, seed " + std::to_string(seed));
    }
  }
}

TEST(two_streams_at_once) {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    stand_in::reset(seed);
    const cudaStream_t streams[] = {make_stream(), make_stream()};
    std::vector<std::unique_ptr<Problem>> problems;
    for (int i = 0; i < 6; ++i) {
      problems.push_back(std::make_unique<Problem>(shapes(i), both, 7, seed * 100));
      evaluate_on_device(problems.back()->call(streams[i % 2]), "two streams");
    }
    drain("two streams");
    for (const auto& problem : problems) {
      problem->compare("two streams, seed " + std::to_string(seed));
    }
  }
}

TEST(two_devices) {
  for (int current = 0; current < 2; ++current) {
    stand_in::reset(7);
    const cudaStream_t streams[] = {make_stream(0), make_stream(1)};
    cudaSetDevice(current);
    std::vector<std::unique_ptr<Problem>> problems;
    for (int i = 0; i < 4; ++i) {
      const int device = i % 2;
      problems.push_back(std::make_unique<Problem>(shapes(i), both, 7, 50, device));
      evaluate_on_device(problems.back()->call(i < 2 ? streams[device] : nullptr), "two devices");
      int now = -1;
      cudaGetDevice(&now);
      CHECK(now == current, "the current device has changed to", now);
    }
    drain("two devices");
    for (const auto& problem : problems) {
      problem->compare("two devices");
    }
    cudaSetDevice(0);
  }
}

// A process that uses device 1 alone gets no context on device 0, which would take memory there, or fail.
TEST(a_device_that_is_not_used_gets_no_context) {
  stand_in::reset(3);
  Problem problem(shapes(1), both, 7, 50, 1);
  stand_in::reset(3);  // the memory was had on both devices
  std::thread([&] {
    CHECK(!stand_in::is_in_context(), "a new thread has a context");
    evaluate_on_device(problem.call(nullptr), "another device");
    CHECK(!stand_in::is_in_context(), "the thread was left in a context");
  }).join();
  CHECK(!stand_in::has_context(0), "device 0 has got a context");
  drain("another device");
  problem.compare("another device");
}

// Strengths that change from call to call reach the call that they were given to, though none has run yet.
TEST(a_schedule_of_strengths) {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    stand_in::reset(seed);
    const cudaStream_t stream = make_stream();
    Problem problem(shapes(3), both, 7, seed);
    std::vector<std::vector<Coefficients>> schedule;
    for (const unsigned terms : {3u, 3u, 1u, 0u, 2u, 3u}) {
      schedule.push_back({strengths_for(terms, 0.25 * static_cast<double>(schedule.size() + 1))});
      problem.again(schedule.back());
      evaluate_on_device(problem.call(stream), "schedule");
    }
    drain("schedule");
    // The CPU takes the same steps; only what the last one leaves can be compared.
    for (std::size_t i = 0; i < schedule.size(); ++i) {
      problem.again(schedule[i]);
      if (i + 1 < schedule.size()) {
        problem.step();
      }
    }
    problem.compare("schedule, seed " + std::to_string(seed));
  }
}

TEST(a_captured_call_is_replayed) {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    stand_in::reset(seed);
    const cudaStream_t stream = make_stream();
    Problem problem(shapes(1), both, 7, seed);
    Problem other(shapes(2), both, 7, seed + 1);
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
    Recording* recording = nullptr;
    evaluate_on_device(problem.call(stream), "capture", &recording);
    CHECK(recording != nullptr, "no recording");
    BackendError error;
    CHECK(fastreg_backend()->set_strengths(recording, both.data(), 1, stream, &error) == BackendStatus::bad_argument,
          "strengths were set in a capture");
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    cudaStreamEndCapture(stream, &graph);
    cudaGraphInstantiate(&executable, graph, 0);
    drain("capture");
    CHECK(problem.device_is_untouched(), "a capture has written something");

    for (const unsigned terms : {3u, 1u, 0u, 3u}) {
      const std::vector<Coefficients> now = {strengths_for(terms, 0.5)};
      CHECK(fastreg_backend()->set_strengths(recording, now.data(), 1, stream, &error) == BackendStatus::ok,
            error.text);
      cudaGraphLaunch(executable, stream);
      // Another call on the same stream must not get in the way of the next replay.
      evaluate_on_device(other.call(stream), "between replays");
      drain("replay");
      problem.again(now);
      problem.compare("replay with terms " + std::to_string(terms));
      other.compare("between replays");
    }
    CHECK(fastreg_backend()->set_strengths(recording, both.data(), 0, stream, &error) == BackendStatus::bad_argument,
          "another number of strengths was taken");
    drain("replays");
    fastreg_backend()->forget(recording);
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
  }
}

TEST(a_stream_waits_for_another) {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    stand_in::reset(seed);
    const cudaStream_t producer = make_stream();
    const cudaStream_t consumer = make_stream();
    Problem problem({{DType::f32, 5000}}, both, 1, seed);
    const DeviceCall call = problem.call(consumer);
    cudaMemsetAsync(const_cast<void*>(call.items[0].weights), 0, 5000 * sizeof(float), producer);
    BackendError error;
    CHECK(fastreg_backend()->wait(0, consumer, producer, &error) == BackendStatus::ok, error.text);
    evaluate_on_device(call, "after the producer");
    double value = -1.0;
    CHECK(fastreg_backend()->copy_to_host(0, consumer, call.total, sizeof value, &value, &error) == BackendStatus::ok,
          error.text);
    CHECK(value == 0.0, "the producer's work was not waited for:", value);
    stand_in::drain();
  }
}

// Hundreds of streams, each used once and forgotten: what the backend keeps for them does not grow, and no stream's
// call gets in the way of another's.
TEST(streams_come_and_go) {
  stand_in::reset(1);
  stand_in::set_processors(1, 1);
  std::size_t kept = 0;
  for (int i = 0; i < 300; ++i) {
    Problem problem({{DType::f32, 40 + i % 5}}, both, 7, static_cast<std::uint64_t>(i));
    const cudaStream_t stream = make_stream();
    const std::size_t before = stand_in::live_allocations();
    const std::size_t waits = stand_in::waits();
    evaluate_on_device(problem.call(stream), "a stream that comes and goes");
    CHECK(stand_in::waits() == waits, "a call has waited for the device");
    kept += stand_in::live_allocations() - before;
    if (i == 99) {
      kept = 0;
    }
    drain("a stream that comes and goes");
    problem.compare("a stream that comes and goes");
  }
  CHECK(kept == 0, kept, "allocations for 200 streams that are gone");
}

// As many busy streams at once: none gets what another is using.
TEST(many_busy_streams) {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    stand_in::reset(seed);
    std::vector<cudaStream_t> streams;
    std::vector<std::unique_ptr<Problem>> problems;
    for (int i = 0; i < 40; ++i) {
      streams.push_back(make_stream());
      problems.push_back(std::make_unique<Problem>(shapes(i % 7), both, 7, seed * 100));
      evaluate_on_device(problems.back()->call(streams.back()), "busy streams");
      // An old stream comes back, though its workspace may have gone to another.
      problems.push_back(std::make_unique<Problem>(shapes(i % 3), both, 7, seed * 100));
      evaluate_on_device(problems.back()->call(streams[static_cast<std::size_t>(i) / 2]), "busy streams");
    }
    drain("busy streams");
    for (const auto& problem : problems) {
      problem->compare("busy streams, seed " + std::to_string(seed));
    }
  }
}

// A call on one stream while another stream of the thread is being captured.
TEST(a_call_beside_a_capture) {
  stand_in::reset(1);
  const cudaStream_t captured = make_stream();
  Problem problem(std::vector<Shape>(2000, {DType::f32, 3}), both, 7, 1);  // more than any workspace holds already
  cudaStreamBeginCapture(captured, cudaStreamCaptureModeGlobal);
  evaluate_on_device(problem.call(make_stream()), "beside a capture");
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(captured, &graph);
  cudaGraphDestroy(graph);
  drain("beside a capture");
  problem.compare("beside a capture");
}

TEST(memory_for_results) {
  const Backend& cuda = *fastreg_backend();
  BackendError error;
  for (int device = 0; device < 2; ++device) {
    const bool has_pools = device == 0;
    for (std::uint64_t seed = 1; seed <= 8; ++seed) {
      stand_in::reset(seed);
      stand_in::set_memory_pools(has_pools);
      const std::size_t before = stand_in::live_allocations();
      const cudaStream_t stream = make_stream(device);
      double* memory = nullptr;
      CHECK(cuda.allocate(device, stream, 80, reinterpret_cast<void**>(&memory), &error) == BackendStatus::ok,
            error.text);
      int its_device = -1;
      CHECK(cuda.device_of(memory + 9, &its_device, &error) == BackendStatus::ok, error.text);
      CHECK(its_device == device, its_device);
      cudaSetDevice(device);
      cudaMemsetAsync(memory, 0, 80, stream);
      drain("memory for results");
      const std::size_t waits = stand_in::waits();
      double copy = -1.0;
      cudaMemcpyAsync(&copy, memory, sizeof copy, cudaMemcpyDeviceToHost, stream);
      cudaSetDevice(0);
      Mark* mark = nullptr;
      CHECK(cuda.set_mark(device, stream, &mark, &error) == BackendStatus::ok, error.text);
      CHECK(!cuda.has_passed(mark) || copy == 0.0, "a mark has passed too early");
      cuda.release(device, memory, &mark, 1);
      CHECK(!has_pools || stand_in::waits() == waits, "memory was given back by waiting");
      drain("memory for results");
      CHECK(copy == 0.0, "memory was given back too early:", copy);
      CHECK(cuda.has_passed(mark), "a mark has not passed");
      cuda.drop_mark(mark);
      CHECK(stand_in::live_allocations() == before, "memory was not given back");

      // What a capture allocates is there until it is released, and the capture goes on.
      cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
      CHECK(cuda.allocate(device, stream, 80, reinterpret_cast<void**>(&memory), &error) == BackendStatus::ok,
            error.text);
      cudaGraph_t graph = nullptr;
      CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess, "the capture has failed");
      cudaGraphDestroy(graph);
      cuda.release(device, memory, nullptr, 0);
      CHECK(stand_in::live_allocations() == before, "memory of a capture was not given back");
    }
  }
  int on_host = 0;
  CHECK(cuda.device_of(&on_host, &on_host, &error) == BackendStatus::bad_argument, error.text);
  Mark* mark = nullptr;
  CHECK(cuda.set_mark(0, make_stream(1), &mark, &error) == BackendStatus::bad_argument, error.text);
  stand_in::set_memory_limit(0);
  void* memory = nullptr;
  CHECK(cuda.allocate(0, make_stream(), 80, &memory, &error) == BackendStatus::out_of_memory, error.text);
  CHECK(memory == nullptr, "an address of no memory");
  stand_in::reset(1);
}

TEST(nothing_to_do) {
  stand_in::reset(1);
  for (const unsigned outputs : {1u, 2u, 7u}) {
    Problem none({}, both, outputs, 1);
    evaluate_on_device(none.call(), "no tensors");
    Problem empty({{DType::f32, 0}, {DType::f16, 0}}, both, outputs, 1);
    evaluate_on_device(empty.call(), "empty tensors");
    drain("nothing to do");
    none.compare("no tensors");
    empty.compare("empty tensors");
  }
}

TEST(errors_are_told_and_nothing_is_written) {
  stand_in::reset(1);
  Problem problem({{DType::f32, 100000}, {DType::f64, 5000}}, both, 7, 1);
  DeviceCall call = problem.call();

  call.device = 7;
  must_fail(problem, call, BackendStatus::bad_argument, "there is no CUDA device 7, only 2");

  call = problem.call(make_stream(1));
  must_fail(problem, call, BackendStatus::bad_argument, "the stream is of device 1, the tensors are on device 0");

  call = problem.call();
  std::vector<DeviceItem> items(call.items, call.items + call.item_count);
  items[1].gradients = static_cast<char*>(items[1].gradients) + 4;
  call.items = items.data();
  must_fail(problem, call, BackendStatus::bad_argument, "the address of tensor 1 is no multiple");

  call = problem.call();
  call.outputs = 4;
  must_fail(problem, call, BackendStatus::bad_argument, "no such outputs: 4");

  Problem large(std::vector<Shape>(5000, {DType::f32, 3}), both, 7, 1);  // more than any workspace holds already
  call = large.call(make_stream());
  stand_in::set_memory_limit(0);
  must_fail(large, call, BackendStatus::out_of_memory, "cudaErrorMemoryAllocation: out of memory (allocating ");
  stand_in::set_memory_limit(SIZE_MAX);

  stand_in::set_device_count(0);
  must_fail(problem, call, BackendStatus::no_device, "cudaErrorNoDevice: no CUDA-capable device is detected");
  stand_in::set_device_count(2);

  const cudaStream_t stream = make_stream();
  call = problem.call(stream);
  BackendError error;
  stand_in::fail_launch(1, cudaErrorInvalidConfiguration);
  CHECK(fastreg_backend()->evaluate(&call, nullptr, &error) == BackendStatus::failed, error.text);
  CHECK(std::strstr(error.text, "launching a kernel") != nullptr, error.text);
  CHECK(cudaGetLastError() == cudaSuccess, "an error was left behind");
  stand_in::drain();
  CHECK(problem.device_is_untouched(), "a failed launch");

  evaluate_on_device(problem.call(stream), "after all the errors");
  drain("after all the errors");
  problem.compare("after all the errors");
}

}  // namespace fastreg::test
