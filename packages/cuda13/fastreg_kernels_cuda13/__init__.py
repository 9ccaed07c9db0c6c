"""The CUDA backend of fastreg-kernels: fastreg opens the library that lies here."""
