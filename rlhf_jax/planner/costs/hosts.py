"""Costs of a plan that several hosts run alike: a placement is the same slice of devices on each."""

from dataclasses import dataclass, replace

from rlhf_jax.dataflow import Call
from rlhf_jax.planner.api import CostModel
from rlhf_jax.types import Placement


@dataclass(frozen=True)
class OnEveryHost:
    """A `CostModel` of placements on the devices of one host, whose calls run on all hosts.

    The hosts multiply `data`, as in a run on several hosts: each has a copy of the params, and
    gradients are summed over the network.
    """

    costs: CostModel  # of all devices
    num_hosts: int
    devices_per_host: int

    def everywhere(self, placement: Placement) -> Placement:
        """The same slice of every host as one placement among all devices."""
        devices = tuple(
            host * self.devices_per_host + device
            for host in range(self.num_hosts)
            for device in placement.devices
        )
        data, fsdp, tensor = placement.mesh_shape
        return replace(placement, devices=devices, mesh_shape=(self.num_hosts * data, fsdp, tensor))

    @property
    def device_bytes(self) -> float:
        return self.costs.device_bytes

    @property
    def shared_throughput(self) -> bool:
        return self.costs.shared_throughput

    def refusal(self, call: Call, placement: Placement) -> str | None:
        """The reason of all hosts; and one for devices that a host does not have."""
        if max(placement.devices) >= self.devices_per_host:
            return (
                f"device {max(placement.devices)} is none of a host's, which has "
                f"{self.devices_per_host}; a plan names the same slice of every host"
            )
        return self.costs.refusal(call, self.everywhere(placement))

    def seconds(self, call: Call, placement: Placement) -> float:
        return self.costs.seconds(call, self.everywhere(placement))

    def working_bytes(self, call: Call, placement: Placement) -> float:
        return self.costs.working_bytes(call, self.everywhere(placement))

    def params_bytes(self, role: str, placement: Placement) -> float:
        return self.costs.params_bytes(role, self.everywhere(placement))

    def state_bytes(self, role: str, placement: Placement) -> float:
        return self.costs.state_bytes(role, self.everywhere(placement))

    def reallocate_seconds(self, role: str, source: Placement, target: Placement) -> float:
        return self.costs.reallocate_seconds(role, self.everywhere(source), self.everywhere(target))

    def transfer_seconds(self, call: Call, source: Placement, target: Placement) -> float:
        return self.costs.transfer_seconds(call, self.everywhere(source), self.everywhere(target))
