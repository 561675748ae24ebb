"""Costs of a plan that several hosts run alike: a placement is the same slice of devices on each."""

from dataclasses import dataclass, replace

from rlhf_jax.dataflow import Call
from rlhf_jax.planner.costs.analytic import AnalyticCostModel
from rlhf_jax.types import Placement

PUBLISHED = "policy"


@dataclass(frozen=True)
class OnEveryHost:
    """A `CostModel` of placements on the devices of one host, whose calls run on all hosts.

    The hosts multiply `data`, as in a run on several hosts: each has a copy of the params, and
    gradients are summed over the network. With `copy_hosts` above 1 so many hosts share a copy
    (`mesh.fsdp_hosts`): they multiply the fsdp of a placement that has data=1. Sampling stays inside
    a host, and so does the published version that it reads.
    """

    costs: AnalyticCostModel  # of all devices
    num_hosts: int
    devices_per_host: int
    copy_hosts: int = 1

    def everywhere(self, placement: Placement, inside: bool = False) -> Placement:
        """The same slice of every host as one placement among all devices.

        Args:
          placement: on one host.
          inside: True where each host has all params, whatever `copy_hosts` is.
        """
        devices = tuple(
            host * self.devices_per_host + device
            for host in range(self.num_hosts)
            for device in placement.devices
        )
        data, fsdp, tensor = placement.mesh_shape
        shared = self.copy_hosts if data == 1 and not inside else 1
        shape = (self.num_hosts // shared * data, shared * fsdp, tensor)
        return replace(placement, devices=devices, mesh_shape=shape)

    def _of_call(self, call: Call, placement: Placement) -> Placement:
        return self.everywhere(placement, inside=call.kind == "generate")

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
        return self.costs.refusal(call, self._of_call(call, placement))

    def seconds(self, call: Call, placement: Placement) -> float:
        return self.costs.seconds(call, self._of_call(call, placement))

    def link_bytes(self, call: Call, placement: Placement) -> float:
        """Bytes that a device sends to others: see `AnalyticCostModel.link_bytes`."""
        return self.costs.link_bytes(call, self._of_call(call, placement))

    def working_bytes(self, call: Call, placement: Placement) -> float:
        return self.costs.working_bytes(call, self._of_call(call, placement))

    def params_bytes(self, role: str, placement: Placement) -> float:
        """Bytes of a copy of params; of the policy as if each host held it, as `generate` does."""
        return self.costs.params_bytes(role, self.everywhere(placement, role == PUBLISHED))

    def state_bytes(self, role: str, placement: Placement) -> float:
        return self.costs.state_bytes(role, self.everywhere(placement))

    def reallocate_seconds(self, role: str, source: Placement, target: Placement) -> float:
        return self.costs.reallocate_seconds(
            role, self.everywhere(source), self.everywhere(target, role == PUBLISHED)
        )

    def transfer_seconds(self, call: Call, source: Placement, target: Placement) -> float:
        return self.costs.transfer_seconds(
            call, self._of_call(call, source), self.everywhere(target)
        )
