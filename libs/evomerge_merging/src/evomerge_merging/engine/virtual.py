"""Models as tensors' expressions: a source's are its own tensors, a recipe's are made from its inputs'.

This is where a recipe becomes work: which tensors of which inputs meet under which name, with which parameters. Only
headers and configs are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from evomerge_common.domain.recipe import Input, Recipe, Slice
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import ModelError, RecipeError, ShapeMismatch
from evomerge_merging.engine import architecture
from evomerge_merging.engine.ancestry import common_ancestor
from evomerge_merging.engine.architecture import LayerStack
from evomerge_merging.engine.layer_kinds import config_of_layers
from evomerge_merging.engine.nodes import Apply, Load, Node
from evomerge_merging.engine.slices import Hops, Part, ResolvedSlice, Virtual
from evomerge_merging.engine.source import Source, open_source
from evomerge_merging.engine.stored import config_as_stored
from evomerge_merging.lora.store import LoraStore
from evomerge_merging.methods.registry import Method, method
from evomerge_merging.numerics.random_words import mask_key
from evomerge_merging.recipes.check import identity
from evomerge_merging.recipes.parameters import parameters_of
from evomerge_merging.tokens.vocabulary import AlignedStore, is_vocabulary
from evomerge_models.dtypes import RECIPE_NAMES, ElementType
from evomerge_models.files import read_json_object

_TOLD = (
    "rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "layer_norm_eps", "hidden_act", "sliding_window",
    "num_attention_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip
"""Config fields that change what the same weights mean: a difference between inputs is told."""


@dataclass
class Planner:
    """Opens each source once and turns recipes into `Virtual` models, collecting notes on the way."""

    models: Mapping[str, Path]
    base: ModelReference | None = None
    sources: dict[str, Source] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _made: dict[tuple[str, ElementType | None], Virtual] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Tells the user something, once."""
        if text not in self.notes:
            self.notes.append(text)

    def model(self, item: ModelReference | Recipe, cast: ElementType | None = None) -> Virtual:
        """The model of an input; the same object when asked again, so that shared parts are evaluated once."""
        key = (identity(item), cast)
        if key not in self._made:
            self._made[key] = self.recipe(item, cast) if isinstance(item, Recipe) else self._source(item, cast)
        return self._made[key]

    def source(self, reference: ModelReference) -> Source:
        """The source, opened."""
        if reference.key not in self.sources:
            self.sources[reference.key] = open_source(reference, self.models, self.base)
        return self.sources[reference.key]

    def share_bases(self) -> None:
        """Lets adapters over one base share its tensors, so that what no adapter changes is seen to be the same.

        A base that is no source of its own becomes one more of `sources`.
        """
        keys = {source.folder.resolve(): key for key, source in self.sources.items() if source.base is None}
        for key, source in list(self.sources.items()):
            if isinstance(source.store, LoraStore) and source.base is not None:
                if source.base not in keys:
                    root = keys[source.base] = f"base of {key}"
                    label, store = str(ModelReference(source.base.name)), source.store.base
                    config, _ = config_as_stored(read_json_object(source.base / "config.json"), store, label)
                    self.sources[root] = Source(root, label, source.base, config, store)
                self.sources[key] = replace(source, root=keys[source.base])

    def _source(self, reference: ModelReference, cast: ElementType | None) -> Virtual:
        source = self.source(reference)
        aligned = isinstance(source.store, AlignedStore)
        tensors: dict[str, Node] = {}
        for name, info in source.store.tensors.items():
            shared = source.root and name not in source.changed and not (aligned and is_vocabulary(name))
            origin = self.sources[source.root] if shared else source
            rounded = cast if info.dtype.is_floating_point else None
            tensors[name] = Load(origin.key, origin.label, name, info.shape, info.dtype, rounded)
        stack = architecture.layer_stack(tensors, source.config)
        tied = architecture.is_tied(source.config, tensors)
        headless = architecture.is_headless(source.config, tensors)
        return Virtual(source.label, reference.key, source.config, tensors, stack, tied, source, headless)

    # ---- a recipe ----

    def recipe(self, recipe: Recipe, cast: ElementType | None = None) -> Virtual:
        """The model that a recipe makes.

        Raises:
            RecipeError, ModelError: layers that are not there; models that do not fit each other.

        """
        how = method(recipe.method)
        cast = RECIPE_NAMES[recipe.dtype] if recipe.dtype else cast
        base = None if recipe.base is None else self.model(recipe.base, cast)
        rows = [self._row(how, recipe, base, part, cast, i) for i, part in enumerate(recipe.slices)]
        donor = base or rows[0].reference.model
        everyone = [part.model for row in rows for part in row.everyone]
        self._check_kinds(donor, everyone)
        sliced = any(item.layer_range for part in recipe.slices for item in part.inputs)
        if sliced and donor.config.get("is_encoder_decoder"):
            raise RecipeError("layers of an encoder-decoder model cannot be sliced: leave layer_range out", ("slices",))

        tensors: dict[str, Node] = {}
        stack = donor.stack
        with_heads = [model for model in (donor, *everyone) if not model.headless]
        tied = all(model.tied for model in with_heads)
        heads = [] if tied else self._heads(donor, everyone)
        if heads and any(model.tied for model in with_heads):
            self.note("some models tie their head to the embedding and some do not: the result has a head of its own")
        for row, before in ((rows[0], True), (rows[-1], False)):
            for name in self._outside(row, heads, before=before, sliced=sliced):
                tensors[name] = self._tensor(how, recipe, row, name, None, name, self._depth_outside(row, name))
        depth = 0
        hops = Hops(how)
        if stack is not None:
            for index, row in enumerate(rows):
                hops.enter(row, index)
                for layer in range(row.layers):
                    at = layer / (row.layers - 1) if row.layers > 1 else 1.0
                    factors = hops.factors(row, layer, index)
                    for rest in row.rests(layer):
                        name = stack.name(depth, rest)
                        tensors[name] = self._tensor(
                            how, recipe, row, rest, layer, name, at, factor=factors.get(rest, 1.0)
                        )
                    depth += 1
            stack = LayerStack(stack.prefix, depth)
        config = dict(donor.config)
        if sliced and donor.stack is not None:
            origin = [
                (row.reference.model.config, row.reference.start + layer) for row in rows for layer in range(row.layers)
            ]
            config = config_of_layers(config, origin, donor.stack, self.note)
            if config.get("num_nextn_predict_layers"):
                config["num_nextn_predict_layers"] = 0
        if heads and any(model.tied for model in with_heads):
            config = architecture.untied(config)
        label = f"a {recipe.method} merge"
        return Virtual(label, identity(recipe), config, tensors, stack, tied, donor.donor, donor.headless)

    def _heads(self, donor: Virtual, everyone: Sequence[Virtual]) -> list[str]:
        """Names of the inputs' heads; a donor whose class has none has no use for them."""
        heads = [(model, name) for model in everyone for name in model.tensors if architecture.is_head(name)]
        if not donor.headless:
            return [name for _, name in heads]
        for model, name in heads:
            self.note(
                f"{name} of {model.label} is left out: {donor.label} is a {architecture.class_name(donor.config)}, "
                "which has no head"
            )
        return []

    def _row(
        self, how: Method, recipe: Recipe, base: Virtual | None, part: Slice, cast: ElementType | None, index: int
    ) -> ResolvedSlice:
        path = ("slices", index, "inputs")
        parts = []
        for i, item in enumerate(part.inputs):
            model = self.model(item.model, cast)
            start, stop = item.layer_range or (0, model.stack.depth if model.stack else 0)
            depth = model.stack.depth if model.stack else 0
            if item.layer_range and stop > depth:
                have = (
                    f"has layers 0 to {depth} (end not included)" if depth else "has no layers that can be told apart"
                )
                raise RecipeError(f"layers {start} to {stop} are asked for, but {model.label} {have}", (*path, i))
            parts.append((Part(item, model, start), stop - start))
        lengths = {length for _, length in parts}
        if len(lengths) > 1:
            told = ", ".join(f"{part.model.label} has {length}" for part, length in parts)
            raise ShapeMismatch(f"models of different depth: {told} layers; give each a layer_range of equal length")
        average = False
        if how.traits.base == "derived" and base is None:
            base, average = self._derived_base(recipe, [part for part, _ in parts], cast)
        elif how.traits.base == "first" and base is None:
            base = parts[0][0].model
        inputs = [part for part, _ in parts]
        layers = parts[0][1]
        if how.traits.base == "none":
            if base is not None and all(part.model.identity != base.identity for part in inputs):
                self.note(f"{how.name} has no base: {base.label} gives the config and the tokenizer, not weights")
            return ResolvedSlice(part, tuple(inputs), None, inputs[0], layers)
        if base is None:
            return ResolvedSlice(part, tuple(inputs), None, inputs[0], layers, average)
        own = next((item for item in inputs if item.model.identity == base.identity), None)
        if own is None:
            starts = {item.start for item in inputs}
            if len(starts) > 1:
                raise RecipeError(
                    f"the inputs' layer ranges differ, so list the base ({base.label}) with its own", path
                )
            own = Part(Input(inputs[0].item.model), base, starts.pop())
            if layers and own.start + layers > (base.stack.depth if base.stack else 0):
                raise ShapeMismatch(f"the base {base.label} has too few layers for this slice")
        others = tuple(item for item in inputs if item is not own)
        return ResolvedSlice(part, others, own, own, layers)

    def _derived_base(
        self, recipe: Recipe, parts: Sequence[Part], cast: ElementType | None
    ) -> tuple[Virtual | None, bool]:
        """The inputs' common ancestor; else None and True: their average."""
        references = [part.item.model for part in parts]
        if all(isinstance(item, ModelReference) for item in references):
            sources = [self.source(item) for item in references if isinstance(item, ModelReference)]
            roots = {source.root for source in sources}
            if len(roots) == 1 and "" not in roots:
                root = self.sources[roots.pop()]
                self.note(f"the models are adapters of {root.label}: task vectors are taken against it")
                return self._source(ModelReference(root.key), cast), False
            candidates = {self.source(item).key: item for item in recipe.sources()}
            found = common_ancestor(sources, [self.sources[key] for key in candidates])
            if found is not None and any(source.key != found.key for source in sources):
                self.note(
                    f"{recipe.method} needs a base and the recipe names none: the models say they were made from "
                    f"{found.label}, so task vectors are taken against it"
                )
                return self.model(candidates[found.key], cast), False
        self.note(
            f"{recipe.method} needs a base and the recipe names none, and the models tell no common ancestor: task "
            "vectors are taken against the models' average"
        )
        return None, True

    def _check_kinds(self, donor: Virtual, everyone: Sequence[Virtual]) -> None:
        for model in everyone:
            kinds = donor.donor.model_type, model.donor.model_type
            if kinds[0] != kinds[1]:
                raise ModelError(
                    f"{donor.label} is of type {kinds[0]!r} and {model.label} of type {kinds[1]!r}; this version "
                    "merges models of one architecture"
                )
            if (donor.stack is None) != (model.stack is None):
                odd = model if model.stack is None else donor
                raise ShapeMismatch(f"{odd.label} has no layers under names that can be told apart")
            theirs, ours = architecture.text_config(model.config), architecture.text_config(donor.config)
            for key in _TOLD:
                if key in theirs and key in ours and theirs[key] != ours[key]:
                    self.note(f"{key} is {theirs[key]} in {model.label}; {donor.label}'s {ours[key]} is kept")

    def _outside(self, row: ResolvedSlice, heads: Sequence[str], *, before: bool, sliced: bool) -> list[str]:
        """Names outside the stack that come before (or after) the layers; `heads`: the result's, none if tied.

        Blocks beyond the layers are left out of a sliced model, where their numbers would be those of layers.
        """
        reference = row.reference.model

        def outside(model: Virtual) -> Iterator[str]:
            for name in model.tensors:
                inside = model.stack and model.stack.split(name)
                if not inside and not architecture.is_head(name) and architecture.is_embedding(name) == before:
                    yield name

        names = list(outside(reference))
        if sliced:
            for number in sorted({n for name in names if (n := _beyond(reference, name)) is not None}):
                self.note(
                    f"block {number} of {reference.label} (multi-token prediction, beyond its layers) is left out: the "
                    "result's layers are others"
                )
            names = [name for name in names if _beyond(reference, name) is None]
        for part in row.everyone:
            for name in outside(part.model):
                if name in names or architecture.is_buffer(name) or part.model is reference:
                    continue
                block = _beyond(part.model, name)
                if block is not None:
                    self.note(f"block {block} of {part.model.label}, beyond its layers, is left out")
                else:
                    self.note(f"{name} of {part.model.label} is left out: {reference.label} has no such tensor")
        if not before:
            names += [name for name in dict.fromkeys(heads) if any(part.node(name, None) for part in row.everyone)]
        return names

    @staticmethod
    def _depth_outside(row: ResolvedSlice, name: str) -> float:
        place = architecture.numbered(name)
        if place is None:
            return 0.0  # a gradient's first value counts for all that is in no layer, head included, as in mergekit
        numbered = [other for key in row.reference.model.tensors if (other := architecture.numbered(key)) is not None]
        last = max((number for prefix, number in numbered if prefix == place[0]), default=0)
        return place[1] / last if last else 0.0

    # ---- one tensor ----

    def _tensor(
        self,
        how: Method,
        recipe: Recipe,
        row: ResolvedSlice,
        rest: str,
        layer: int | None,
        name: str,
        depth: float,
        *,
        factor: float = 1.0,
    ) -> Node:
        nodes = {id(part): part.node(rest, layer) for part in row.everyone}
        first = next(node for part in (row.reference, *row.everyone) if (node := nodes[id(part)]) is not None)
        if not first.dtype.is_floating_point:
            return first
        for part in row.everyone:
            node = nodes[id(part)]
            if node is not None and node.shape != first.shape:
                raise ShapeMismatch(
                    _mismatch(part.name(rest, layer), row.reference.model.label, first, part.model.label, node)
                )
        missing = [part for part in row.everyone if nodes[id(part)] is None]
        if missing:
            return self._partial(rest, layer, row, nodes, missing)
        if how.traits.scales == "hop":
            return self._scaled(first, factor)
        inputs = [part for part in row.inputs if nodes[id(part)] is not None]
        children = tuple(node for part in inputs if (node := nodes[id(part)]) is not None)
        if not children:
            return first
        base = nodes[id(row.base)] if row.base else self._average(children) if row.average else None
        parameters = parameters_of(how, recipe, row.part, [part.item for part in inputs], name, depth)
        if how.traits.is_path:
            return self._scaled(first, parameters["scale"][0])
        masks = tuple(mask_key(recipe.seed, part.model.identity, name) for part in inputs)
        names = tuple(part.name(rest, layer) for part in inputs)
        return Apply(how, children, base, parameters, masks, first.shape, first.dtype, names)

    @staticmethod
    def _average(nodes: tuple[Node, ...]) -> Node:
        parameters = {"weight": (1.0,) * len(nodes), "normalize": True}
        return Apply(method("linear"), nodes, None, parameters, (), nodes[0].shape, nodes[0].dtype)

    @staticmethod
    def _scaled(node: Node, scale: float) -> Node:
        if scale == 1.0:
            return node
        return Apply(method("passthrough"), (node,), None, {"scale": (scale,)}, (), node.shape, node.dtype)

    def _partial(
        self,
        rest: str,
        layer: int | None,
        row: ResolvedSlice,
        nodes: Mapping[int, Node | None],
        missing: Sequence[Part],
    ) -> Node:
        """What becomes of a tensor that some inputs lack: optional parts are kept, anything else does not fit."""
        lacking = ", ".join(part.model.label for part in missing)
        number = _beyond(row.reference.model, rest) if layer is None else None
        if number is not None:
            label = row.reference.model.label
            self.note(f"block {number}, beyond the layers, is missing in {lacking}: it is {label}'s")
            return next(node for part in (row.reference, *row.everyone) if (node := nodes[id(part)]) is not None)
        if not architecture.is_buffer(rest) and (layer is not None or architecture.is_embedding(rest)):
            raise ShapeMismatch(
                f"{row.reference.name(rest, layer)} of {row.reference.model.label} is missing in {lacking}"
            )
        present = tuple(node for part in row.everyone if (node := nodes[id(part)]) is not None)
        if not architecture.is_buffer(rest):
            kept = (
                "is taken from the model that has it" if len(present) == 1 else "is the average of those that have it"
            )
            self.note(f"{rest} is missing in {lacking}: it {kept}")
        return present[0] if len(present) == 1 else self._average(present)


def _beyond(model: Virtual, name: str) -> int | None:
    """Number of the block beyond the model's layers that a tensor is in."""
    return None if model.stack is None else model.stack.beyond(name)


def _mismatch(name: str, one: str, first: Node, other: str, node: Node) -> str:
    hint = "; set tokenizer_source so that rows follow the tokens" if architecture.is_embedding(name) else ""
    return f"{name} is {list(first.shape)} in {one} and {list(node.shape)} in {other}{hint}"
