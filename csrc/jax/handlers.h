// The functions that XLA calls, on threads of its own and without the interpreter. What they are asked for is told in
// request.h; what goes wrong comes back as XLA's error, and nothing is thrown.
#pragma once

#include "xla_ffi_abi.h"

namespace fastreg::xla {

// Results are float32 or float64.
Error* evaluate_on_host(CallFrame* frame);

// On the CUDA stream of the call. Results are float64, or the bits of float64 as uint32[..., 2]. Waits for the stream
// where a rule's strengths are not among the constants.
Error* evaluate_on_cuda(CallFrame* frame);

}  // namespace fastreg::xla
