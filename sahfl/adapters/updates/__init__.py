"""The updates of a convolution's kernel, a class for each way to factorise it, and the convolutions that they need."""
