"""Hardware table: peaks, bandwidths and links of a few device kinds, each from its data sheet;
guesses are named as ours.
"""

from dataclasses import dataclass, replace

from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Device


@dataclass(frozen=True)
class Hardware:
    """One device and what joins it to others. Bandwidths are bytes/s in one direction.

    The efficiencies, latencies and launches are ours, typical figures and not measured on these
    devices but on a CPU; the profiler replaces them where the devices are at hand.
    """

    name: str
    bfloat16_flops: float  # dense peak, FLOP/s
    float32_flops: float  # of products of float32 arrays at JAX's default precision
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float  # of a device to the others of its host
    network_bandwidth: float  # of a device's share of what joins hosts
    devices_per_host: int
    matmul_efficiency: float = 0.6  # ours: of the peak, in large products
    memory_efficiency: float = 0.8  # ours: of the memory's bandwidth
    link_efficiency: float = 0.8  # ours: of the links' and the network's bandwidth
    collective_latency: float = 15e-6  # ours: seconds that a collective of no bytes takes
    launch_seconds: float = 3e-6  # ours: of one fused operation
    operations_per_layer: int = 14  # ours: fused operations of a layer's forward pass
    shared_cores: int = (
        0  # virtual devices of a host share so many cores; 0: every device is its own
    )
    usable_memory: float = 0.92  # ours: what the runtime and fragments leave
    # The compiler sends bfloat16 params and gradients of a scanned layer around a ring of n devices in
    # parts, while products use them: n + 1 parts of n, where n - 1 would do (read in its programs).
    windowed: bool = False

    @property
    def shared_throughput(self) -> bool:
        """True where devices are virtual ones of one host."""
        return self.shared_cores > 0

    def product_flops(self, item_bytes: int) -> float:
        """FLOP/s that large products of numbers of so many bytes reach."""
        return self.matmul_efficiency * (
            self.float32_flops if item_bytes == 4 else self.bfloat16_flops
        )

    @property
    def bytes_a_second(self) -> float:
        """Memory bandwidth that is reached in practice, bytes a second."""
        return self.memory_efficiency * self.memory_bandwidth

    def share_of_host(self, num_devices: int) -> "Hardware":
        """The figures of one device while a call runs on `num_devices`: virtual devices divide the
        cores of their host among them.
        """
        if not self.shared_cores or num_devices == self.shared_cores:
            return self
        share = self.shared_cores / num_devices
        return replace(
            self,
            bfloat16_flops=self.bfloat16_flops * share,
            float32_flops=self.float32_flops * share,
            memory_bandwidth=self.memory_bandwidth * share,
            link_bandwidth=self.link_bandwidth * share,
            launch_seconds=self.launch_seconds / share,
        )


TABLE: dict[str, Hardware] = {
    # NVIDIA H100 data sheet, SXM5: bfloat16 989.4 and TF32 (JAX's default for float32 there) 494.7
    # TFLOP/s without sparsity, 80 GB, 3.35 TB/s, NVLink 900 GB/s both ways. DGX H100 data sheet:
    # eight a host, 400 Gb/s of InfiniBand each.
    "h100": Hardware("h100", 989.4e12, 494.7e12, 80e9, 3.35e12, 450e9, 50e9, 8),
    # NVIDIA H200 data sheet, SXM: as the H100, 141 GB, 4.8 TB/s.
    "h200": Hardware("h200", 989.4e12, 494.7e12, 141e9, 4.8e12, 450e9, 50e9, 8),
    # NVIDIA A100 data sheet, 80GB SXM: bfloat16 312 and TF32 156 TFLOP/s without sparsity, 2039
    # GB/s, NVLink 600 GB/s both ways. DGX A100 data sheet: eight a host, 200 Gb/s of InfiniBand
    # each.
    "a100-80gb": Hardware("a100-80gb", 312e12, 156e12, 80e9, 2.039e12, 300e9, 25e9, 8),
    # NVIDIA A100 data sheet, 40GB SXM: as above, 40 GB, 1555 GB/s.
    "a100-40gb": Hardware("a100-40gb", 312e12, 156e12, 40e9, 1.555e12, 300e9, 25e9, 8),
    # NVIDIA L40S data sheet: bfloat16 362 and TF32 183 TFLOP/s without sparsity, 48 GB, 864 GB/s,
    # PCIe 4.0 x16, 64 GB/s both ways. Four a host and 100 Gb/s for it: ours.
    "l40s": Hardware("l40s", 362e12, 183e12, 48e9, 0.864e12, 32e9, 3.125e9, 4),
    # NVIDIA T4 data sheet: float32 8.1 TFLOP/s, 16 GB, 300 GB/s, PCIe 3.0 x16, 32 GB/s both ways.
    # Turing multiplies no bfloat16, so that products of it are taken to be as slow as float32.
    # Four a host and 25 Gb/s for it: ours.
    "t4": Hardware("t4", 8.1e12, 8.1e12, 16e9, 0.3e12, 16e9, 0.78e9, 4),
    # Google Cloud's documentation, page "TPU v5e" and its comparison on "TPU v6e": 197 TFLOP/s, 16
    # GB, 819 GB/s, 1600 Gb/s between chips, eight chips a host, 6.4 Tb/s of network for 256 chips.
    # XLA multiplies float32 arrays on a TPU in one pass of bfloat16 at the default precision, hence
    # one peak.
    "tpu-v5e": Hardware(
        "tpu-v5e",
        197e12,
        197e12,
        16e9,
        0.819e12,
        200e9,
        3.125e9,
        8,
        launch_seconds=1e-6,
        windowed=True,
    ),
    # Page "TPU v5p": 459 TFLOP/s, 95 GB, 2765 GB/s, 4800 Gb/s between chips, four chips a host, 50
    # Gb/s of network a chip.
    "tpu-v5p": Hardware(
        "tpu-v5p",
        459e12,
        459e12,
        95e9,
        2.765e12,
        600e9,
        6.25e9,
        4,
        launch_seconds=1e-6,
        windowed=True,
    ),
    # Page "TPU v6e": 918 TFLOP/s, 32 GB, 1600 GB/s, 3200 Gb/s between chips, eight chips a host,
    # 25.6 Tb/s for 256 chips.
    "tpu-v6e": Hardware(
        "tpu-v6e",
        918e12,
        918e12,
        32e9,
        1.6e12,
        400e9,
        12.5e9,
        8,
        launch_seconds=1e-6,
        windowed=True,
    ),
    # A core of a two-core AMD EPYC, measured with XLA 0.10: products of 1024^3 180-217 GFLOP/s in
    # float32 and 290-430 in bfloat16 on both cores. Memory, its bandwidth, what copies between
    # virtual devices and a 10 Gb/s network do: ours.
    "cpu": Hardware(
        "cpu",
        bfloat16_flops=180e9,
        float32_flops=102e9,
        memory_bytes=4e9,
        memory_bandwidth=10e9,
        link_bandwidth=4e9,
        network_bandwidth=1.25e9,
        devices_per_host=8,
        collective_latency=50e-6,
        operations_per_layer=20,
        shared_cores=2,
    ),
}


def find(name: str) -> Hardware:
    """The device of that name. Raises Refusal that lists the names."""
    if name not in TABLE:
        raise Refusal(f"no hardware {name!r}; there are: {', '.join(sorted(TABLE))}")
    return TABLE[name]


def in_slice(hardware: Hardware, devices_per_host: int) -> Hardware:
    """The device in a slice of TPUs of several hosts: links of the same kind join all chips, those of
    other hosts too.

    Args:
      hardware: of a TPU.
      devices_per_host: of the slice, which may be fewer than a machine can have.
    """
    return replace(
        hardware,
        devices_per_host=devices_per_host,
        network_bandwidth=hardware.link_bandwidth,
    )


KINDS = (
    ("h200", "h200"),
    ("h100", "h100"),
    ("a100-sxm4-40gb", "a100-40gb"),
    ("a100-pcie-40gb", "a100-40gb"),
    ("a100", "a100-80gb"),
    ("l40s", "l40s"),
    ("t4", "t4"),
    ("v5 lite", "tpu-v5e"),
    ("v5e", "tpu-v5e"),
    ("v5p", "tpu-v5p"),
    ("v5", "tpu-v5p"),
    ("v6", "tpu-v6e"),
    ("cpu", "cpu"),
)
"""(a part of the lower-case `device_kind`, the name in the table); the first match counts."""


def lookup(device: Device) -> Hardware:
    """The figures of a JAX device. Raises Refusal where the table has none of its kind."""
    for part, name in KINDS:
        if part in device.device_kind.lower():
            return TABLE[name]
    raise Refusal(
        f"no figures of {device.device_kind!r} devices; write a plan by hand, or plan for one of: "
        f"{', '.join(sorted(TABLE))}"
    )
