// The CUDA backend, compiled for the stand-in. FASTREG_BACKEND_SOURCE names a copy where a fault has been planted.
#ifndef FASTREG_BACKEND_SOURCE
#define FASTREG_BACKEND_SOURCE "cuda/backend.cu"
#endif
#include FASTREG_BACKEND_SOURCE
