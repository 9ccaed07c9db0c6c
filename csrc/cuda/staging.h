// Pinned memory from which the device fetches what it is sent. A piece may be filled again when the device has fetched
// it; while none has been, there is another: nothing waits.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "errors.h"

namespace fastreg::cuda {

class Staging {
 public:
  Staging() = default;
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging() {
    for (const Piece& piece : pieces_) {
      cudaEventDestroy(piece.fetched);
      cudaFreeHost(piece.memory);
    }
  }

  // Queues the copy of a part of `bytes` to the same part of `target`.
  void send(const char* bytes, std::size_t begin, std::size_t end, char* target, cudaStream_t stream) {
    Piece& piece = free_piece(end - begin);
    std::memcpy(piece.memory, bytes + begin, end - begin);
    check(cudaMemcpyAsync(target + begin, piece.memory, end - begin, cudaMemcpyHostToDevice, stream),
          "sending the table of tensors");
    check(cudaEventRecord(piece.fetched, stream), "recording an event");
  }

 private:
  struct Piece {
    void* memory;
    std::size_t capacity;
    cudaEvent_t fetched;
  };

  Piece& free_piece(std::size_t bytes) {
    for (Piece& piece : pieces_) {
      if (piece.capacity >= bytes && cudaEventQuery(piece.fetched) == cudaSuccess) {
        return piece;
      }
    }
    cudaGetLastError();  // "not ready" is no error
    pieces_.reserve(pieces_.size() + 1);
    Piece piece{nullptr, std::max<std::size_t>(2 * bytes, 4096), nullptr};
    check(cudaHostAlloc(&piece.memory, piece.capacity, cudaHostAllocDefault),
          "allocating " + std::to_string(piece.capacity) + " bytes of pinned memory");
    const cudaError_t error = cudaEventCreateWithFlags(&piece.fetched, cudaEventDisableTiming);
    if (error != cudaSuccess) {
      cudaFreeHost(piece.memory);
      check(error, "making an event");
    }
    pieces_.push_back(piece);
    return pieces_.back();
  }

  std::vector<Piece> pieces_;
};

}  // namespace fastreg::cuda
