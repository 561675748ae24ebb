"""Clocks: which version of the params samples what, as pure functions of the run.

`Clock` is the clock of rounds, `live` says which of its sampled groups a round keeps, and `choice`
which groups it is trained on. `Stream` is the clock of rows that are admitted one by one: in flight,
where a round has tokens of several versions, and pinned, where a row keeps the version of its round.
`Slices` is the time that several slices with such rows share.
"""

from rlhf_jax.clock.exact import BufferDraw as BufferDraw
from rlhf_jax.clock.exact import Clock as Clock
from rlhf_jax.clock.exact import Staged as Staged
from rlhf_jax.clock.slices import Shared as Shared
from rlhf_jax.clock.slices import Slices as Slices
from rlhf_jax.clock.slices import run_row as run_row
from rlhf_jax.clock.stream import Boundary as Boundary
from rlhf_jax.clock.stream import Stream as Stream
from rlhf_jax.clock.stream import StreamState as StreamState
from rlhf_jax.clock.stream import full_throughput_lag as full_throughput_lag
