"""The most memory that a rank takes, and what of: the engine's start, passes of two packs, the optimizer's step.

DeepSpeed's part is read off its stages 2 and 3 (0.19.8, which is pinned): what it allocates, and till when.
"""

from dataclasses import dataclass, field

from train.estimate.events import Event, Pass
from train.estimate.gathering import Gathering
from train.estimate.setup import PackLoad, Setup
from train.estimate.sizes import Tensor, numel

KINDS = ("weights", "gradients", "optimizer", "activations", "logits", "crops", "deepspeed")
"""deepspeed: gathered parameters, and buffers for gathering and reducing."""
MOST_TOKENS = 24_576
"""Of prompts that are answered at once, as in train.questions, which needs torch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The moment at which a rank needs most."""

    moment: str
    bytes: dict[str, int]
    """By KINDS."""

    @property
    def total(self) -> int:
        """Bytes together."""
        return sum(self.bytes.values())


@dataclass(kw_only=True)
class Ledger:
    """What lives now, by kind, and the most that ever lived together."""

    moment: str = "start"
    live: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    peaks: dict[str, Peak] = field(default_factory=dict)
    highest: float = 0.0
    """Bytes of the peak of this moment."""

    def add(self, kind: str, amount: float, **briefly: float) -> None:
        """Keep so many bytes more of a kind, or fewer; `briefly`: what is needed beside for a moment."""
        self.live[kind] += int(amount)
        self.need(**briefly)

    def need(self, **briefly: float) -> None:
        """Look at what lives together with what is needed for a moment."""
        total = sum(self.live.values()) + sum(briefly.values())
        if self.moment not in self.peaks or total > self.highest:
            now = {kind: value + int(briefly.get(kind, 0)) for kind, value in self.live.items()}
            self.peaks[self.moment] = Peak(moment=self.moment, bytes=now)
            self.highest = total


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a rank needs."""

    device: dict[str, Peak]
    """The peaks of start, packs, answers where there are any, and step."""
    host: int
    """Bytes of the host's memory a rank: offloaded states, checkpointed inputs, the copy that is written as a save."""

    @property
    def peak(self) -> Peak:
        """The largest of them."""
        return max(self.device.values(), key=lambda peak: peak.total)


class Rank:
    """One rank through a training."""

    def __init__(self, setup: Setup, load: PackLoad) -> None:
        self.setup = setup
        self.load = load
        self.zero = setup.zero
        self.value = setup.value
        self.ledger = Ledger()
        self.tensors = setup.all_tensors()
        self.events = Pass(setup, load).write()
        self.groups = setup.groups()
        self.sharded = self.zero.stage == 3
        self.host = 0
        self.bucket = 0
        """Elements waiting to be reduced."""
        self.bundled = 0
        """Gradients among them."""
        self.owns = False
        """ZeRO-2: whether there is room for this pack's reduced gradients."""
        self.buckets = [0]
        """Elements of each buffer that gradients are put together in."""
        self.filling = 0
        self.large = 0
        """Elements of a gradient too large for it, which is left where it is."""
        self.owned = 0 if self.sharded else self._owned()

    def share(self, of: list[Tensor]) -> int:
        """Elements of tensors that this rank holds when they are divided over all."""
        ranks = self.setup.ranks
        return sum(-(-tensor.numel // ranks) for tensor in of) if self.sharded else -(-numel(of) // ranks)

    def _owned(self) -> int:
        """ZeRO-2: elements of the gradients that a rank gathers, those on its borders whole; of the rank with most."""
        found = [0] * self.setup.ranks
        for group in self.groups:
            share, start = -(-numel(group) // self.setup.ranks), 0
            for tensor in group:
                for rank in range(start // share, min(self.setup.ranks, -(-(start + tensor.numel) // share))):
                    found[rank] += tensor.numel
                start += tensor.numel
        return max(found, default=0)

    def run(self) -> Estimate:
        """From the start to a step."""
        self.start()
        self.ledger.moment = "passes"
        for number in range(2):
            self.one_pass(first=number == 0)
        if self.setup.answer_batch:
            self.ledger.moment = "answers"
            self.answer()
        self.ledger.moment = "step"
        self.step()
        return Estimate(device=self.ledger.peaks, host=int(self.host) + self.kept_on_host() + self.copied())

    def kept_on_host(self) -> int:
        """Bytes of the layers' inputs that checkpointing keeps in the host's memory."""
        setup, load = self.setup, self.load
        if not setup.checkpoint_offload or setup.on_cpu:
            return 0
        text = setup.sizes.layers * setup.sizes.hidden * load.tokens
        eyes = (setup.sizes.tower_layers - 1) * setup.sizes.width * setup.sizes.crop_tokens * load.crops
        return self.value * (text * setup.checkpoint_decoder + eyes * setup.checkpoint_vision)

    def copied(self) -> int:
        """Bytes of the copy that saves are written from: fp32 weight and both moments of what this rank holds."""
        return 12 * sum(self.share(group) for group in self.groups) if self.setup.copies_saves else 0

    def start(self) -> None:
        """Weights, their fp32 copy, Adam's moments, buffers."""
        setup, ledger, value = self.setup, self.ledger, self.value
        ranks = setup.ranks if self.sharded else 1
        weights = sum(-(-tensor.numel // ranks) * setup.weight_bytes(tensor) for tensor in self.tensors)
        offload = self.zero.offloads_optimizer
        if self.zero.offloads_weights:
            self.host += int(weights)
            weights = 0
        if self.sharded and setup.ranks > 1:
            weights += value * sum(tensor.numel for tensor in self.tensors if tensor.numel <= self.zero.persistence)
        if setup.method == "qlora":
            weights += value * 2 * setup.sizes.mlp * setup.sizes.hidden  # the largest, unpacked to be used
        ledger.add("weights", weights)
        for group in self.groups:
            # Made flat before the old ones go.
            if not self.zero.offloads_weights:
                ledger.need(weights=value * (self.share(group) if self.sharded else numel(group)))
        share = sum(self.share(group) for group in self.groups)
        # The fp32 weights are there beside those of the model whatever its precision is, and Adam's two moments.
        states = 4 * share
        if offload:
            # The moments, the gradients as they come in and, for Adam, in fp32.
            self.host += states + (8 + value + 4) * share
        else:
            ledger.add("optimizer", states)
            # The moments are made at the first step, after the first passes; gradients of zero stand in for them.
            largest = max((self.share(group) for group in self.groups), default=0)
            ledger.need(optimizer=4 * (largest if self.sharded else share))
            ledger.live["optimizer"] += 8 * share
        if self.sharded:
            if not offload:
                ledger.add("gradients", value * share)
            self.make_buckets()

    def one_pass(self, first: bool) -> None:
        """Forward and backward of one pack."""
        setup, ledger, value = self.setup, self.ledger, self.value
        events = self.events
        inputs = 3 * setup.sizes.crop_size**2 * self.load.crops + 3 * 8 * self.load.tokens
        ledger.add("crops", inputs)
        gathering = self._gathering(events) if self.gathers else None
        if not self.sharded:
            self.make_buckets()
        gathered = 0
        self.owns = False
        for event in events:
            if gathering is not None:
                gathering.fetch()
                ledger.live["deepspeed"] += value * (gathering.elements - gathered)
                gathered = gathering.elements
            produced = value * numel(event.gradients)
            briefly = {event.kind: event.needs + max(0, event.keeps)}
            briefly["gradients"] = briefly.get("gradients", 0) + produced
            ledger.need(**briefly)
            ledger.add(event.kind, event.keeps)
            for tensor in event.gradients:
                self.reduce(tensor)
            if gathering is not None:
                gathering.release()
        ledger.live["deepspeed"] -= value * gathered
        self.flush()
        if not self.sharded:
            # What was gathered of this pack is added to what there is of the packs before it.
            if not first and self.owns:
                ledger.add("gradients", -value * self.owned)
            ledger.add("deepspeed", -value * sum(self.buckets))
        for kind in ("activations", "logits", "crops"):
            ledger.live[kind] = 0

    def make_buckets(self) -> None:
        """Room for gradients on their way: ZeRO-3 makes it once, ZeRO-2 for each pack, twice where it overlaps."""
        count = 2 if self.zero.overlaps and not self.sharded else 1
        size = self.zero.reduce_bucket if self.zero.contiguous and self.groups else 0
        self.buckets, self.filling = [0 if self.setup.on_cpu else size] * count, 0
        self.ledger.add("deepspeed", self.value * sum(self.buckets))

    @property
    def gathers(self) -> bool:
        """Whether gathered parameters take memory of their own: on one rank they are where they are."""
        return self.sharded and (self.setup.ranks > 1 or self.zero.offloads_weights)

    def _gathering(self, events: list[Event]) -> Gathering:
        """The parameters that are not always there, numbered, and the order in which events use them."""
        numbers: dict[str, int] = {}
        numels: list[int] = []
        trace = []
        for event in events:
            own = []
            for tensor in event.uses:
                if not self.sharded or tensor.numel <= self.zero.persistence:
                    continue
                if tensor.name not in numbers:
                    numbers[tensor.name] = len(numels)
                    numels.append(tensor.numel)
                own.append(numbers[tensor.name])
            trace.append(own)
        zero = self.zero
        return Gathering(
            trace=trace, numels=numels, prefetch=zero.prefetch, max_live=zero.max_live, max_reuse=zero.max_reuse
        )

    def reduce(self, tensor: Tensor) -> None:
        """A gradient goes into the bucket, which is reduced first where it is full."""
        size, value = tensor.numel, self.value
        if self.bucket + size > self.zero.reduce_bucket and self.bucket:
            self.flush(waiting=size)
        if self.bucket + size > self.zero.reduce_bucket or not self.zero.contiguous:
            self.large += size
            self.ledger.add("gradients", value * size)
        else:
            self.ledger.need(gradients=value * size)
            # On a CPU memory is taken by what is written, not by what is asked for.
            more = max(0, self.bucket + size - self.buckets[self.filling])
            self.buckets[self.filling] += more
            self.ledger.add("deepspeed", value * more)
        self.bucket += size
        self.bundled += 1

    def flush(self, waiting: int = 0) -> None:
        """Reduce what the bucket holds over the ranks; `waiting`: elements of the gradient that made it full."""
        value, ranks = self.value, self.setup.ranks
        # Put in order by rank in a copy; gloo sends a copy of its own.
        copies = self.bucket if self.bundled > 1 and ranks > 1 else 0
        sent = self.bucket if self.setup.on_cpu and ranks > 1 and self.sharded else 0
        self.ledger.need(deepspeed=value * (copies + sent), gradients=value * waiting)
        self.ledger.add("gradients", -value * self.large)
        if not self.sharded and not self.owns and self.bucket:
            # Room for the gradients that this rank owns, made anew for each pack.
            self.owns = True
            self.ledger.add("gradients", value * self.owned)
        self.bucket = self.bundled = self.large = 0
        self.filling = (self.filling + 1) % len(self.buckets)

    def answer(self) -> None:
        """Prompts answered between two steps: all weights whole (zero_state.gathered), and the keys and values of each
        token, a layer's twice while they grow by one."""
        setup, sizes = self.setup, self.setup.sizes
        whole = sum(tensor.numel for tensor in self.tensors if tensor.numel > self.zero.persistence)
        rows = max(1, min(setup.answer_batch, MOST_TOKENS // max(self.load.longest, 1)))
        tokens = rows * (self.load.longest + setup.answer_tokens)
        cache = 2 * sizes.kv_heads * sizes.head_dim * tokens * (sizes.layers + 1)
        self.ledger.need(deepspeed=self.value * whole * self.gathers, activations=self.value * cache)

    def step(self) -> None:
        """Gradients in fp32, Adam, the new weights."""
        ledger, value, zero = self.ledger, self.value, self.zero
        if zero.offloads_optimizer:
            ledger.need(
                gradients=value * min(zero.reduce_bucket, max((numel(group) for group in self.groups), default=0))
            )
            return
        # The norm is taken in float64, a tensor at a time.
        divided = self.setup.ranks if self.sharded else 1
        largest = max((tensor.numel for group in self.groups for tensor in group), default=0)
        ledger.need(gradients=8 * min(-(-largest // divided), self.share(self.groups[0]) if self.groups else 0))
        for group in self.groups:
            share = min(self.share(group), zero.sub_group) if self.sharded else self.share(group)
            # Joined, and then cast where they are not float32.
            ledger.need(gradients=(value + 4 if value < 4 else 4) * share)
        if not self.sharded:
            ledger.live["gradients"] = 0
            whole = max((numel(group) for group in self.groups), default=0)
            if self.setup.on_cpu and self.setup.ranks > 1:
                ledger.need(deepspeed=value * min(whole, zero.allgather_bucket * self.setup.ranks))


def estimate(setup: Setup, load: PackLoad) -> Estimate:
    """What a rank of this training needs at most, bytes."""
    return Rank(setup, load).run()
