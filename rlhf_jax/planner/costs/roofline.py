"""Seconds of one forward and one backward pass of a role's model on its share of the rows: a
roofline, and collectives.

Each part takes max(FLOPs / what products reach, bytes / what memory reaches): the layers' products,
attention, the head, and element-wise work between them. Parts, collectives and launches are added:
nothing is taken to overlap inside a call.
"""

from dataclasses import dataclass

from rlhf_jax.planner.costs.collectives import Ring, Rings
from rlhf_jax.planner.costs.hardware import Hardware
from rlhf_jax.planner.costs.shapes import Shape, Split
from rlhf_jax.scoring import MAX_LOGITS


@dataclass(frozen=True)
class Part:
    """A model on one device of a mesh: what the device can do, what it holds, and what joins it to
    the others.
    """

    hardware: Hardware
    shape: Shape
    split: Split
    rings: Rings
    weight_bytes: int  # of a param as it is read
    rows_move: bool = (
        False  # under fsdp, hidden states are brought together and not params: see `fsdp_seconds`
    )
    # Of copies of the params on several hosts, whose gradients are summed once per update
    # (`devices.copies`); `rings` are then those inside a copy.
    copies: Ring | None = None

    @property
    def spread(self) -> int:
        """Ratio of rows in a device's matrix products to its own rows."""
        return self.rings.fsdp.size if self.rows_move and self.split.cut_by_fsdp else 1

    @property
    def reduces_in_turn(self) -> bool:
        """Each micro-batch gathers params and reduces float32 gradients in its own turn: see
        `models.common.linear.reducing_gradients`.
        """
        sharded = self.rings.data.size * self.rings.fsdp.size > 1
        return self.shape.float32_gradients and sharded and not self.rows_move

    @property
    def gather_bytes(self) -> int:
        """Bytes of a param as fsdp gathers it: XLA rounds it to the compute dtype before."""
        return min(self.weight_bytes, self.shape.compute_bytes)


@dataclass(frozen=True)
class Positions:
    """Positions of one pass on a device."""

    tokens: float  # positions that go through the layers
    pairs: float  # of a query and a column that are multiplied, of one head of one layer
    logits: float = 0.0  # positions whose logits are made
    cache_columns: float = 0.0  # rows times columns of the cache that are read
    launches: int = 1  # times that the layers are gone through
    block_pairs: float = 0.0  # the most pairs of one block of queries, which run in turn

    def __add__(self, other: "Positions") -> "Positions":
        return Positions(
            self.tokens + other.tokens,
            self.pairs + other.pairs,
            self.logits + other.logits,
            self.cache_columns + other.cache_columns,
            self.launches + other.launches,
            max(self.block_pairs, other.block_pairs),
        )


def square_pairs(length: int, attention: str) -> float:
    """Pairs that attention of a row to itself multiplies: blocks of queries leave out later
    columns, see `blocks.attend`.
    """
    blocks = num_blocks(length, attention)
    return length**2 * (blocks + 1) / (2 * blocks)


def num_blocks(length: int, attention: str) -> int:
    """Blocks of queries that attention of a row to itself runs in turn, see `blocks.attend`."""
    return 1 if attention != "xla" or length < 192 else 2 if length < 512 else 4


def whole(rows: float, length: int, logits: float, attention: str) -> Positions:
    """Positions of whole rows, each of which attends to itself.

    Args:
      rows: of a device.
      length: positions of each.
      logits: positions whose logits are made.
      attention: as a model's config names it.
    """
    pairs = rows * square_pairs(length, attention)
    block = rows * length**2 / num_blocks(length, attention)
    return Positions(rows * length, pairs, logits, block_pairs=block)


def activation_elements(part: Part) -> float:
    """Numbers a token and layer that the backward pass wants and element-wise work reads or writes,
    but for attention scores.

    Of the residual's width: the inputs of the norms and their results. Cut by tensor: queries and
    keys before and after they turn, values, mixed values; what the feed-forward's first products
    give, what its last one takes, and what the activation's derivative wants. The counts were
    fitted to XLA's temporary memory of updates (`tests/planner/test_analytic.py`).
    """
    shape, split = part.shape, part.split
    mixed, keys = split.heads * shape.head_width, split.kv_heads * shape.head_width
    products, derivatives = (3, 2) if shape.gated else (2, 1)
    hidden = (products * part.spread + derivatives) * shape.ffn_width / split.hidden_parts
    return 4 * shape.width + 3 * mixed + 3 * keys + hidden


def product_elements(part: Part) -> float:
    """Numbers a token and layer of the products with params that a backward pass reads, which the
    remat policy "dots" keeps: queries, keys, values, attention's output, and what the feed-forward's
    first products give.

    The feed-forward's output is only added to the residual.
    """
    shape, split = part.shape, part.split
    heads = (split.heads + 2 * split.kv_heads) * shape.head_width
    products = 2 if shape.gated else 1
    hidden = products * part.spread * shape.ffn_width / split.hidden_parts
    return heads + shape.width + hidden


def products_seconds(part: Part, run: Positions) -> float:
    """The layers' products with params in a forward pass."""
    hardware, split = part.hardware, part.split
    weights = split.layer_kernels * part.weight_bytes * run.launches
    flops = 2 * split.layer_products * run.tokens / hardware.product_flops(part.shape.compute_bytes)
    return max(flops, weights / hardware.bytes_a_second)


def layers_seconds(part: Part, run: Positions) -> float:
    """The layers' forward pass, with the sums over tensor that follow attention and feed-forward;
    no fsdp gather.
    """
    hardware, shape, split, rings = part.hardware, part.shape, part.split, part.rings
    flops, bandwidth = hardware.product_flops(shape.compute_bytes), hardware.bytes_a_second
    dense = products_seconds(part, run)
    heads = split.heads * shape.num_layers
    score_bytes = 0.0 if shape.attention == "cudnn" else 2 * 4 * heads * run.pairs
    cached = run.cache_columns * shape.column_bytes * split.kv_heads / shape.num_kv_heads
    attention = max(
        4 * heads * shape.head_width * run.pairs / flops, (cached + score_bytes) / bandwidth
    )
    elements = activation_elements(part) * shape.num_layers * run.tokens
    between = 2 * elements * shape.compute_bytes / bandwidth
    launches = (
        run.launches * shape.num_layers * hardware.operations_per_layer * hardware.launch_seconds
    )
    summed = rings.tensor.all_reduce(run.tokens / run.launches * shape.width * shape.compute_bytes)
    return dense + attention + between + launches + 2 * shape.num_layers * run.launches * summed


def head_seconds(part: Part, run: Positions) -> float:
    """Embedding and head forward, and what is read off the logits."""
    hardware, shape, split, rings = part.hardware, part.shape, part.split, part.rings
    bandwidth = hardware.bytes_a_second
    looked_up = run.tokens * shape.width * (part.weight_bytes + shape.compute_bytes) / bandwidth
    if split.table_cut:
        looked_up += rings.tensor.all_reduce(run.tokens * shape.width * shape.compute_bytes)
    if shape.values or not run.logits:
        return looked_up
    logits_bytes = 3 * 4 * run.logits * split.vocab
    flops = 2 * split.head_products * run.logits / hardware.product_flops(shape.compute_bytes)
    product = max(flops, (split.head_products * part.weight_bytes + logits_bytes) / bandwidth)
    reductions = (
        3 * rings.tensor.all_reduce(4 * run.logits) if split.vocab < shape.vocab_size else 0.0
    )
    return looked_up + product + reductions + 6 * hardware.launch_seconds


def gather_seconds(part: Part, elements: float | None = None) -> float:
    """Seconds of bringing together what fsdp cuts of the params, in an array a layer and more.

    Args:
      part: of a model.
      elements: params that are brought together; None: all that a forward pass reads.
    """
    ring = part.rings.fsdp
    elements = part.split.cut_by_fsdp if elements is None else elements
    return ring.all_gather(elements * part.gather_bytes) + part.shape.num_layers * ring.latency


def fsdp_seconds(part: Part, run: Positions) -> float:
    """Seconds of fsdp's all-gathers in a forward pass.

    Params, in an array a layer and more; or, where rows move, hidden states: XLA cuts products
    along the params' width as the params are, sums what the layers' first products give over fsdp,
    and brings mixed values together.
    """
    ring, shape, split = part.rings.fsdp, part.shape, part.split
    if ring.size == 1:
        return 0.0
    if not part.rows_move:
        return gather_seconds(part)
    mixed, keys = split.heads * shape.head_width, split.kv_heads * shape.head_width
    hidden = (2 if shape.gated else 1) * shape.ffn_width / split.hidden_parts
    all_rows = run.tokens / run.launches * ring.size * shape.compute_bytes
    layer = ring.all_reduce(all_rows * (mixed + 2 * keys)) + ring.all_reduce(all_rows * hidden)
    layer += ring.all_gather(all_rows * mixed)
    logits = 0.0 if shape.values else ring.all_reduce(4 * run.logits * ring.size * split.vocab)
    return run.launches * shape.num_layers * layer + logits


def forward_seconds(part: Part, run: Positions) -> float:
    """A forward pass, with what fsdp brings together."""
    return layers_seconds(part, run) + head_seconds(part, run) + fsdp_seconds(part, run)


def train_seconds(
    part: Part, run: Positions, remat: bool, num_micro_batches: int, passes: int = 1
) -> float:
    """Forward and backward passes of all micro-batches, with what links carry: see `backward_seconds`
    and `reduce_seconds`.

    XLA sums a micro-batch's gradients over the shards at once, because the accumulator has the
    sharding of the params. A head of its own is brought together, and its gradient summed, once for
    all micro-batches; with float32 gradients once in the turn of each.

    Args:
      part: of the model.
      run: positions of a micro-batch.
      remat: layers run forward again in the backward pass.
      num_micro_batches: of an update.
      passes: 2 where prompts are run once and completions after them.
    """
    split, ring = part.split, part.rings.fsdp
    computed = layers_seconds(part, run) + head_seconds(part, run)
    computed += backward_seconds(part, run, remat)
    # A frozen head has no gradient.
    head_summed = 0.0 if part.shape.adapter else _scattered_seconds(part, split.cut_head)
    if part.rows_move:
        links = 2 * fsdp_seconds(part, run)
        return num_micro_batches * (computed + links + reduce_seconds(part) + head_summed)
    if part.reduces_in_turn:
        links = turn_seconds(part, remat, passes) + head_summed
        return num_micro_batches * (computed + links)
    if part.shape.scanned and not part.shape.adapter and ring.size > 1:
        links = scanned_seconds(part, passes)
        head = gather_seconds(part, split.cut_head) if split.cut_head else 0.0
        return num_micro_batches * (computed + links) + head + head_summed
    whole = gather_seconds(part, split.cut_by_fsdp - split.cut_head) if ring.size > 1 else 0.0
    layers = split.cut_by_fsdp - split.cut_head - split.cut_table
    again = gather_seconds(part, layers) if ring.size > 1 else 0.0
    head = gather_seconds(part, split.cut_head) if split.cut_head else 0.0
    once = computed + whole + again
    return num_micro_batches * (once + reduce_seconds(part)) + head + head_summed


def scanned_seconds(part: Part, passes: int) -> float:
    """Links of a micro-batch whose layers are in a scan, with bfloat16 gradients, but for a head of its
    own. Each pass gathers layers for its forward pass, and again for its backward pass, and sums
    their gradients in the dtype of products.

    Args:
      part: of the model.
      passes: see `train_seconds`.
    """
    split, size = part.split, part.rings.fsdp.size
    layers = split.cut_by_fsdp - split.cut_head - split.cut_table
    gathered = gather_seconds(part, layers)
    around = (size + 1) / (size - 1) if part.hardware.windowed else 1.0
    summed = part.rings.data.all_reduce(layers * part.gather_bytes / size)
    of_pass = (2 * around + 1) * gathered + summed
    table = gather_seconds(part, split.cut_table) if split.cut_table else 0.0
    others = _scattered_seconds(part, split.cut_table)
    others += part.rings.rows.all_reduce(split.whole_over_fsdp * part.shape.param_bytes)
    return passes * of_pass + table + others


def turn_seconds(part: Part, remat: bool, passes: int) -> float:
    """Links of a micro-batch with float32 gradients, but for the sum of those of a head of its own.

    Params are brought together once, and layers once more for the backward pass. With remat or in a
    scan a layer is brought together again, and its gradient is summed, for each pass by itself. The
    compiler merges the gathers of the passes otherwise.

    Args:
      part: of the model.
      remat: layers run forward again in the backward pass.
      passes: see `train_seconds`.
    """
    split, shape = part.split, part.shape
    layers = split.cut_by_fsdp - split.cut_head - split.cut_table
    by_itself = passes if remat or shape.scanned else 1
    gathers = 0.0
    if part.rings.fsdp.size > 1:
        times = by_itself + (by_itself if shape.scanned else 1)
        gathers = times * gather_seconds(part, layers)
        gathers += gather_seconds(part, split.cut_by_fsdp - layers)
    summed = reduce_seconds(part)
    if shape.adapter:
        return gathers + by_itself * summed
    summed += (by_itself - 1) * _summed_seconds(part, layers, split.layer_products)
    if shape.tied and not shape.values:
        # As the map to logits and as the embedding.
        summed += _summed_seconds(part, split.cut_table, split.head_products)
    return gathers + summed


def _summed_seconds(part: Part, cut: float, gathered: float) -> float:
    """Summing the gradients of params, of which fsdp cuts all or none.

    Args:
      part: of the model.
      cut: params that fsdp cuts.
      gathered: the same params where it cuts none.
    """
    if cut:
        return _scattered_seconds(part, cut)
    return part.rings.rows.all_reduce(gathered * part.shape.param_bytes)


def backward_seconds(part: Part, run: Positions, remat: bool) -> float:
    """A backward pass: two products for each of the forward's, and the sums over tensor again; no
    fsdp gather.

    With `remat` the layers run forward once more, on the params that are brought together for it;
    with the policy "dots" without their products, and the sums of these. A head in chunks always
    runs forward once more.
    """
    layers, head = layers_seconds(part, run), head_seconds(part, run)
    sums = 2 * part.shape.num_layers * run.launches
    summed = part.rings.tensor.all_reduce(
        run.tokens / run.launches * part.shape.width * part.shape.compute_bytes
    )
    # Collectives once, all else twice; of a frozen kernel only the inputs have a gradient.
    twice = layers if part.shape.adapter else 2 * layers - sums * summed
    chunked = run.logits * part.split.vocab > MAX_LOGITS
    heads = (3 if chunked else 2) - bool(part.shape.adapter)
    again = layers if remat else 0.0
    if remat and part.shape.remat_policy == "dots":
        again -= products_seconds(part, run) + sums * summed
    return twice + heads * head + again


def _scattered_seconds(part: Part, elements: float) -> float:
    """Summing the gradients of so many whole params that fsdp cuts: reduced and scattered over fsdp,
    then a device's part summed over data.
    """
    rings, num_bytes = part.rings, elements * part.shape.param_bytes
    summed = rings.data.all_reduce(num_bytes / rings.fsdp.size)
    return rings.fsdp.all_gather(num_bytes) + summed


def reduce_seconds(part: Part) -> float:
    """Summing gradients over the shards of the rows, but for those of a head of its own that fsdp
    cuts. What fsdp does not cut is summed over data and fsdp.
    """
    split, rings = part.split, part.rings
    if part.shape.adapter:
        elements = part.shape.adapter_elements(rings.fsdp.size, rings.tensor.size)
        return rings.rows.all_reduce(elements * 4)
    cut = (split.stored - split.whole_over_fsdp) * rings.fsdp.size - split.cut_head
    whole = rings.rows.all_reduce(split.whole_over_fsdp * part.shape.param_bytes)
    return _scattered_seconds(part, cut) + whole


def network_seconds(part: Part) -> float:
    """Summing a device's gradients over the copies of the params on other hosts, once per update."""
    if part.copies is None:
        return 0.0
    trained = part.split.stored
    if part.shape.adapter:
        trained = part.shape.adapter_elements(part.rings.fsdp.size, part.rings.tensor.size)
    return part.copies.all_reduce(trained * part.shape.network_bytes)


def optimizer_seconds(part: Part, optimizer_bytes: float) -> float:
    """Params and what the optimizer keeps are read and written once, gradients read twice: for
    their norm, and then.
    """
    stored, item = part.split.stored, part.shape.param_bytes
    if part.shape.adapter:
        sizes = part.rings.fsdp.size, part.rings.tensor.size
        stored, item = part.shape.adapter_elements(*sizes), 4
    touched = stored * (4 * item + 2 * optimizer_bytes)
    launches = part.shape.num_arrays * part.hardware.launch_seconds
    return touched / part.hardware.bytes_a_second + launches
