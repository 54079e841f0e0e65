"""Low-rank updates of a convolution's kernel, one class for each factorisation, and the convolutions that they need."""
