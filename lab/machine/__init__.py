"""What computes: devices, memory, CPU kernels, data on the device."""
