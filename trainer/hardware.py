"""What machines can do, from their makers' data sheets: the peaks that `plan` estimates a step with.

A step attains only a part of a peak; ATTAINED says which part is assumed. Figures are of one accelerator (one training
process), links of one direction.
"""

from __future__ import annotations

from dataclasses import dataclass

GB, GIB, TERA = 10**9, 2**30, 10**12


@dataclass(frozen=True)
class Hardware:
    """memory: bytes of one device. memory_bandwidth, host_bandwidth (of rows in the host's memory), link (to the other
    devices of a host), network (to other hosts): bytes a second. flops: float32 operations a second, which is what
    this version computes in. call: seconds that one exchange costs at the least. sources: where each figure is from."""

    name: str
    device: str
    memory: int
    memory_bandwidth: float
    host_bandwidth: float
    link: float
    network: float
    flops: float
    call: float
    sources: tuple[str, ...]


# Shares of the peaks, assumed: matrix products of a tower of short sequences, random rows of memory, all-to-all.
ATTAINED = {"flops": 0.4, "memory": 0.5, "link": 0.6}
CALL = "20 µs an exchange: assumed"

PRESETS = {
    "h100": Hardware(
        "NVIDIA H100 SXM", "cuda", 80 * GB, 3.35e12, 64e9, 450e9, 50e9, 67 * TERA, 20e-6,
        ("NVIDIA H100 Tensor Core GPU data sheet: 80 GB, 3.35 TB/s, FP32 67 TFLOPS, NVLink 900 GB/s and PCIe Gen5 "
         "128 GB/s both ways", "NVIDIA DGX H100 data sheet: 400 Gb/s of network a GPU", CALL),
    ),
    "h200": Hardware(
        "NVIDIA H200 SXM", "cuda", 141 * GB, 4.8e12, 64e9, 450e9, 50e9, 67 * TERA, 20e-6,
        ("NVIDIA H200 Tensor Core GPU data sheet: 141 GB, 4.8 TB/s, FP32 67 TFLOPS, NVLink 900 GB/s and PCIe Gen5 "
         "128 GB/s both ways", "NVIDIA DGX H200 data sheet: 400 Gb/s of network a GPU", CALL),
    ),
    "a100": Hardware(
        "NVIDIA A100 SXM 80 GB", "cuda", 80 * GB, 2.039e12, 32e9, 300e9, 25e9, 19.5 * TERA, 20e-6,
        ("NVIDIA A100 Tensor Core GPU data sheet: 80 GB, 2,039 GB/s, FP32 19.5 TFLOPS, NVLink 600 GB/s and PCIe Gen4 "
         "64 GB/s both ways", "NVIDIA DGX A100 data sheet: 200 Gb/s of network a GPU", CALL),
    ),
    "l4": Hardware(
        "NVIDIA L4", "cuda", 24 * GB, 300e9, 32e9, 32e9, 1.56e9, 30.3 * TERA, 20e-6,
        ("NVIDIA L4 Tensor Core GPU data sheet: 24 GB, 300 GB/s, FP32 30.3 TFLOPS, PCIe Gen4 x16 64 GB/s both ways, no "
         "NVLink", "network: 100 Gb/s for a host of 8, assumed", CALL),
    ),
    "cpu": Hardware(
        "a core of this project's test machine", "cpu", 12 * GIB, 7.5e9, 7.5e9, 1e9, 1e9, 0.175 * TERA, 300e-6,
        ("measured on its 2 cores (24 GiB): matrix products 350 GFLOP/s in float32, memory copies 15 GB/s, shared out "
         "to two processes", "link: 1 GB/s and 300 µs an exchange over gloo, assumed"),
    ),
}  # fmt: skip


def default_preset(device: str) -> str:
    """Where the user names none."""
    return "h100" if device == "cuda" else "cpu"
