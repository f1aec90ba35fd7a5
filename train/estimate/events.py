"""A pass of one pack through the model as a list of events: what each module gathers, keeps, needs and gives back."""

from collections.abc import Sequence
from dataclasses import dataclass

from train.estimate import layers
from train.estimate.layers import Kept
from train.estimate.setup import PackLoad, Setup
from train.estimate.sizes import Tensor, adapters, decoder_layer, numel, projection, tower_layer, tower_start


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A module runs forward or backward. Bytes; `keeps` may be negative: what is let go afterwards."""

    uses: tuple[Tensor, ...] = ()
    """Parameters it needs."""
    kind: str = "activations"
    keeps: int = 0
    """What stays of it."""
    needs: int = 0
    """What it needs for itself, on top of what stays."""
    gradients: tuple[Tensor, ...] = ()
    """Parameters whose gradients are ready afterwards."""


class Pass:
    """Writes the events of one forward and one backward pass."""

    def __init__(self, setup: Setup, load: PackLoad) -> None:
        self.setup = setup
        self.load = load
        self.value = setup.value
        sizes = setup.sizes
        self.trains_vision = setup.method == "full" and "vision" not in setup.freeze
        lora = setup.lora
        vision_adapted = lora is not None and "vision" in lora.parts
        self.learns_vision = self.trains_vision or vision_adapted
        self.learns_projection = self.learns_vision or (
            (setup.method == "full" and "projection" not in setup.freeze)
            or (lora is not None and "projection" in lora.parts)
        )
        self.text = self._kept("text")
        self.eyes = self._kept("vision")
        self.joint = self._kept("projection")
        several = load.samples > 1
        self.layer_kept = layers.decoder_layer(sizes, self.text, load.longest, several) * load.tokens
        self.layer_input = self.value * sizes.hidden * load.tokens
        self.tower_kept = layers.tower_layer(sizes, self.eyes) * sizes.crop_tokens
        self.tower_input = self.value * sizes.width * sizes.crop_tokens
        self.start_kept = 2 * self.tower_input if self.trains_vision else 0
        self.events: list[Event] = []

    def _kept(self, part: str) -> Kept:
        setup = self.setup
        return Kept(
            value=self.value,
            attention="sdpa" if part == "vision" and setup.attention == "flash" else setup.attention,
            trained=setup.method == "full" and part not in setup.freeze,
            keeps_inputs=setup.zero.keeps_inputs,
            lora=setup.lora,
        )

    def write(self) -> list[Event]:
        """All events in their order."""
        self.forward_pictures()
        self.forward_text()
        self.loss()
        self.backward_text()
        self.backward_pictures()
        return self.events

    def modules(self, weights: Sequence[Tensor], last: Event, spare: int) -> None:
        """A layer's modules one after the other, `last` with the last of them; `spare` of them have no parameters."""
        by_module: dict[str, list[Tensor]] = {}
        for tensor in weights:
            by_module.setdefault(tensor.name.rsplit(".", 1)[0], []).append(tensor)
        if self.setup.zero.leaf_layers:
            by_module = {"": list(weights)}
        steps = list(by_module.values())
        self.events += [Event()] * spare
        for own in steps[:-1]:
            self.events.append(Event(uses=tuple(own)))
        self.events.append(
            Event(uses=tuple(steps[-1]), kind=last.kind, keeps=last.keeps, needs=last.needs, gradients=last.gradients)
        )

    def with_adapters(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Weights, and the adapters beside each."""
        lora = self.setup.lora
        return [one for tensor in weights for one in (tensor, *(adapters(tensor, lora) if lora else ()))]

    def trained(self, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Those of them that get a gradient."""
        return tuple(tensor for tensor in weights if self.setup.trains(tensor))

    def chunk_sizes(self) -> list[int]:
        """Crops of each call of the tower; one empty crop where a pack has fewer."""
        chunks = self.load.crop_chunks
        return [max(1, self.load.crops // chunks + (number < self.load.crops % chunks)) for number in range(chunks)]

    def forward_pictures(self) -> None:
        """Embeddings, pixels, tower, projector."""
        sizes, load, value = self.setup.sizes, self.load, self.value
        embedding = Tensor(name="model.embed_tokens.weight", part="embeddings", shape=(sizes.vocabulary, sizes.hidden))
        # The features of pictures are written into a copy.
        keeps = self.layer_input if self.setup.trains(embedding) or not load.crop_chunks else 0
        self.events.append(Event(uses=(embedding,), keeps=keeps))
        if not load.crop_chunks:
            return
        pixels = 3 * sizes.crop_size**2 * load.crops
        # Normalised in float32, joined with the global views, cast to the tower's type.
        pictured = 4 * pixels * 2 + (value * pixels if value < 4 else 0)
        self.events.append(Event(kind="crops", keeps=pictured))
        for crops in self.chunk_sizes():
            kept, start = self.tower_kept * crops, self.tower_input * crops
            stays = start if self.setup.checkpoint_vision else kept
            offloaded = self.setup.checkpoint_offload and self.setup.checkpoint_vision and not self.setup.on_cpu
            stays = stays if self.learns_vision and not offloaded else 0
            self.modules(tower_start(sizes), Event(keeps=self.start_kept * crops), 3)
            for number in range(sizes.tower_layers - 1):
                weights = self.with_adapters(tower_layer(sizes, number))
                needs = value * sizes.crop_tokens * crops * (3 * sizes.tower_mlp + 2 * sizes.width)
                self.modules(weights, Event(keeps=stays, needs=needs), 4)
        self.events.append(Event(kind="crops", keeps=-pictured))
        merged = value * 4 * sizes.width * load.image_tokens
        keeps = layers.projection(sizes, self.joint) * load.image_tokens if self.learns_projection else 0
        self.modules(self.with_adapters(projection(sizes)), Event(keeps=keeps, needs=2 * merged), 2)

    def forward_text(self) -> None:
        """Decoder layers and the last norm."""
        sizes, setup, load = self.setup.sizes, self.setup, self.load
        stays = self.layer_kept
        if setup.checkpoint_decoder:
            stays = self.layer_input if not setup.checkpoint_offload or setup.on_cpu else 0
        work = self.value * load.tokens * (4 * sizes.mlp + 2 * sizes.hidden)
        for number in range(sizes.layers):
            weights = self.with_adapters(decoder_layer(sizes, number))
            self.modules(weights, Event(keeps=stays, needs=work if setup.checkpoint_decoder else 0), 6)
        last = layers.norm(self.text, sizes.hidden) + self.value * sizes.hidden
        self.norm_kept = last * load.tokens
        self.events.append(Event(keeps=self.norm_kept))

    def loss(self) -> None:
        """The head forward and backward."""
        sizes, load = self.setup.sizes, self.load
        head = Tensor(name="lm_head.weight", part="head", shape=(sizes.vocabulary, sizes.hidden))
        needs, stays = layers.loss_work(sizes, self.value, load.labels, load.label_chunks, self.setup.trains(head))
        self.events.append(Event(uses=(head,), kind="logits", keeps=stays, needs=max(0, needs - stays)))
        own = self.value * head.numel if self.setup.trains(head) else 0
        self.events.append(Event(uses=(head,), kind="logits", keeps=-own, gradients=self.trained([head])))
        self.events.append(Event(kind="logits", keeps=own - stays, needs=3 * self.layer_input))
        self.events.append(Event(keeps=-self.norm_kept, needs=self.layer_input))

    def backward_text(self) -> None:
        """Decoder layers from the last to the first, recomputed where they are checkpointed."""
        sizes, setup = self.setup.sizes, self.setup
        for number in reversed(range(sizes.layers)):
            weights = self.with_adapters(decoder_layer(sizes, number))
            if setup.checkpoint_decoder:
                self.modules(weights, Event(keeps=self.layer_kept), 6)
            self._backward(weights, layers.decoder_work(sizes, self.value) * self.load.tokens)
            stays = 0 if setup.checkpoint_offload and not setup.on_cpu else self.layer_input
            self.events.append(Event(keeps=-self.layer_kept - (stays if setup.checkpoint_decoder else 0)))

    def _backward(self, weights: Sequence[Tensor], needs: int, held: int = 0, ready: bool = True) -> None:
        self.events += [Event()] * 4
        modules: dict[str, list[Tensor]] = {}
        for tensor in weights:
            modules.setdefault(tensor.name.rsplit(".", 1)[0], []).append(tensor)
        parts = [list(weights)] if self.setup.zero.leaf_layers else list(reversed(modules.values()))
        for own in parts:
            mine = self.trained(own)
            size = self.value * numel(mine)
            self.events.append(
                Event(
                    uses=tuple(own), kind="gradients", needs=needs, keeps=held * size, gradients=mine if ready else ()
                )
            )

    def backward_pictures(self) -> None:
        """Projector, tower, embeddings."""
        sizes, load, setup = self.setup.sizes, self.load, self.setup
        if load.crop_chunks and self.learns_projection:
            kept = layers.projection(sizes, self.joint) * load.image_tokens
            merged = self.value * 4 * sizes.width * load.image_tokens
            self._backward(self.with_adapters(projection(sizes)), 2 * merged)
            self.events.append(Event(keeps=-kept))
        if load.crop_chunks and self.learns_vision:
            self._backward_tower()
        embedding = Tensor(name="model.embed_tokens.weight", part="embeddings", shape=(sizes.vocabulary, sizes.hidden))
        if setup.trains(embedding):
            self.events.append(Event(uses=(embedding,), gradients=(embedding,), keeps=-self.layer_input))

    def _backward_tower(self) -> None:
        """The tower, chunk by chunk; a gradient is whole, and handed on, when the first chunk's pass is done."""
        sizes, setup = self.setup.sizes, self.setup
        chunks = self.chunk_sizes()
        for place, crops in reversed(list(enumerate(chunks))):
            kept, start = self.tower_kept * crops, self.tower_input * crops
            # The last chunk goes first and leaves its gradients waiting; the first takes them along.
            held = (place == len(chunks) - 1) - (place == 0)
            work = layers.tower_work(sizes, self.value) * sizes.crop_tokens * crops
            for number in reversed(range(sizes.tower_layers - 1)):
                weights = self.with_adapters(tower_layer(sizes, number))
                if setup.checkpoint_vision:
                    self.modules(weights, Event(keeps=kept), 4)
                self._backward(weights, work, held, ready=place == 0)
                stays = 0 if setup.checkpoint_offload and not setup.on_cpu else start
                self.events.append(Event(keeps=-kept - (stays if setup.checkpoint_vision else 0)))
            own = self.trained(tower_start(sizes)) if not place else ()
            self.events.append(Event(keeps=-self.start_kept * crops, gradients=own))
