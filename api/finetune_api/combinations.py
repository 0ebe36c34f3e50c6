"""What does not go together, whether the job or its profile asks for it: limits without a bound of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.asked import ENGINE, STEPS, Asked
from finetune_api.engine import ONE_PROCESS, OPTIMIZERS, EngineKind
from finetune_api.limit import Limit
from finetune_api.rules import literal


@dataclass(frozen=True)
class WarmupEnds(Limit):
    """Job and profile together make a warm-up that ends before the training does."""

    @property
    def held_against(self) -> str:
        return "the length of the training"

    @property
    def words(self) -> str:
        return (
            f"{self._is} but the training has {{steps}} steps: the learning rate would "
            "never arrive; use fewer warm-up steps"
        )

    @property
    def _within(self) -> str:
        return f"!variables.steps.hasValue() || {self._value}.value() < variables.steps.value()"

    def _exceeded(self, value: object, asked: Asked) -> bool:
        steps = STEPS.read(asked)
        return isinstance(value, int) and isinstance(steps, int) and value >= steps

    @property
    def _parts(self) -> Mapping[str, str]:
        return {**super()._parts, "steps": "string(variables.steps.value())"}

    def _read_parts(self, value: object, asked: Asked) -> Mapping[str, str]:
        return {**super()._read_parts(value, asked), "steps": str(STEPS.read(asked))}


@dataclass(frozen=True)
class OneProcess(Limit):
    """Job and profile together make a group, of an engine that works in one process."""

    @property
    def held_against(self) -> str:
        return "the engine"

    @property
    def words(self) -> str:
        return f"{self._is} but the engine's kind is {{kind}}, which works in one process; use engine.kind: Auto"

    @property
    def variables(self) -> Mapping[str, str]:
        return {**super().variables, "engine": ENGINE.cel}

    @property
    def _within(self) -> str:
        kinds = f"[{', '.join(map(literal, ONE_PROCESS))}]"
        return f"{self._value}.value() <= 1 || !(variables.engine.orValue('Auto') in {kinds})"

    def _exceeded(self, value: object, asked: Asked) -> bool:
        return isinstance(value, int) and value > 1 and ENGINE.read(asked) in ONE_PROCESS

    @property
    def _parts(self) -> Mapping[str, str]:
        return {**super()._parts, "kind": "variables.engine.value()"}

    def _read_parts(self, value: object, asked: Asked) -> Mapping[str, str]:
        return {**super()._read_parts(value, asked), "kind": str(ENGINE.read(asked))}


@dataclass(frozen=True)
class OptimizerOf(Limit):
    """Job and profile together ask for an optimizer that the engine cannot work with."""

    kind: EngineKind

    @property
    def held_against(self) -> str:
        return "the engine"

    @property
    def words(self) -> str:
        names = " or ".join(self._known)
        return (
            f"{self._is} but the engine's kind is {self.kind}, which works with {names}; use that, or engine.kind: Auto"
        )

    @property
    def variables(self) -> Mapping[str, str]:
        return {**super().variables, "engine": ENGINE.cel}

    @property
    def _known(self) -> tuple[str, ...]:
        return OPTIMIZERS[self.kind]

    @property
    def _within(self) -> str:
        names = f"[{', '.join(map(literal, self._known))}]"
        return f"variables.engine.orValue('Auto') != {literal(self.kind)} || {self._value}.value() in {names}"

    def _exceeded(self, value: object, asked: Asked) -> bool:
        return ENGINE.read(asked) == self.kind and value not in self._known
