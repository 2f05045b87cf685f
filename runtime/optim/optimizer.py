"""`Optimizer` and its parameter groups.

Invariants: every number that may change while training (learning rate, momentum, step count ...) is a
rank-0 tensor that lives as long as the optimizer and is rebound, never replaced. A compiled training step
therefore reads it as an input: changing the learning rate recompiles nothing. All state exists from
the construction on, so that the first step has the same structure as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, ClassVar

from graphc.ir.types import BF16, F16, F32, F64, DType
from graphc.runtime import ops as xp
from graphc.runtime.nn.parameter import assign
from graphc.runtime.optim.together import step_together
from graphc.runtime.tensor import Tensor, asarray, enable_grad, no_grad

State = dict[str, Tensor]


class ParamGroup(MutableMapping[str, Any]):
    """Parameters with their options, as a mapping.

    group["lr"] reads a float, and writing it rebinds the tensor `group.tensors["lr"]`; "params" is the list
    of parameters; options that are not numbers (nesterov, maximize ...) are fixed when the group is made.
    """

    def __init__(self, params: list[Tensor], numbers: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self.params = params
        self.tensors = {name: asarray(float(value), dtype=F64, device="cpu") for name, value in numbers.items()}
        self.options = dict(options)
        self.extra: dict[str, Any] = {}
        self.frozen: dict[str, str] = {}

    def __getitem__(self, name: str) -> Any:
        if name == "params":
            return self.params
        if name == "betas":
            return (self["beta1"], self["beta2"])
        if name in self.tensors:
            return self.tensors[name].item()
        if name in self.options:
            return self.options[name]
        return self.extra[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "betas":
            self["beta1"], self["beta2"] = value
        elif name in self.tensors:
            if name in self.frozen and float(value) != self[name]:
                raise ValueError(self.frozen[name])
            with no_grad():
                assign(self.tensors[name], asarray(float(value), dtype=F64, device="cpu"))
        elif name == "params" or name in self.options:
            raise ValueError(
                f"{name!r} of a parameter group is fixed when the group is made; make another optimizer, "
                "or use add_param_group"
            )
        else:
            self.extra[name] = value

    def __delitem__(self, name: str) -> None:
        del self.extra[name]

    def __iter__(self) -> Iterator[str]:
        return iter(["params", *self.tensors, *self.options, *self.extra])

    def __len__(self) -> int:
        return 1 + len(self.tensors) + len(self.options) + len(self.extra)

    def __repr__(self) -> str:
        entries = ", ".join(f"{name}={self[name]!r}" for name in self if name != "params")
        return f"ParamGroup({len(self.params)} parameters, {entries})"


class Optimizer:
    """The base class: a subclass names its options and defines `init_state` and `update`.

    params: parameters, or dicts {"params": parameters, option: value, ...}, one for each group.
    numbers: option -> default, for options that are numbers; options: the same for the others.
    """

    # The lower bound of each number, and whether it is below 1.
    bounds: ClassVar[dict[str, bool]] = {}
    # Whether `update`, as this class defines it, is a function of its tensors and of the group's options alone: then the updates
    # of all parameters are one program (together.py). A class that defines another `update` says so for itself.
    together: ClassVar[bool] = False

    def __init__(
        self, params: Iterable[Any], numbers: Mapping[str, Any], options: Mapping[str, Any] | None = None
    ) -> None:
        if isinstance(params, Tensor):
            raise TypeError(f"{self._name} needs a list of parameters, not one tensor; write [parameter]")
        if not isinstance(params, Iterable):
            raise TypeError(f"{self._name} needs a list of parameters, such as module.parameters(), not {type(params).__name__}")
        self.defaults = {**numbers, **(options or {})}
        self._numbers = tuple(numbers)
        self.param_groups: list[ParamGroup] = []
        self.state: dict[Tensor, State] = {}
        given = list(params)
        if not given:
            raise ValueError(f"{self._name} got no parameters; module.parameters() can be iterated only once")
        groups = given if isinstance(given[0], Mapping) else [{"params": given}]
        for group in groups:
            self.add_param_group(group)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def init_state(self, param: Tensor, group: ParamGroup) -> State:
        """The state of one parameter before the first step: name -> tensor."""
        raise TypeError(f"{self._name} defines no init_state(param, group)")

    def update(self, param: Tensor, grad: Tensor, state: State, group: ParamGroup) -> tuple[Tensor, State]:
        """The new value of one parameter and its new state, as one composite."""
        raise TypeError(f"{self._name} defines no update(param, grad, state, group)")

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters with options of their own; what is not given has the optimizer's defaults.

        Raises `TypeError` for unknown options or things that are not tensors, `ValueError` for a parameter that
        the optimizer has already or an option out of range.
        """
        values = dict(group)
        params = values.pop("params", None)
        if params is None:
            raise TypeError(f"{self._name}: a parameter group needs the key 'params'")
        params = [params] if isinstance(params, Tensor) else list(params)
        if "betas" in values:
            values["beta1"], values["beta2"] = values.pop("betas")
        for name in values:
            if name not in self.defaults:
                known = ", ".join(self.defaults)
                raise TypeError(f"{self._name} has no option {name!r}; it has: {known}")
        for param in params:
            if not isinstance(param, Tensor) or not param.dtype.is_float:
                kind = param.dtype.name + " tensor" if isinstance(param, Tensor) else type(param).__name__
                raise TypeError(f"{self._name} optimizes floating-point tensors, not a {kind}")
            if not param.is_leaf:
                raise ValueError(f"{self._name} cannot optimize the result of an operation; pass leaf tensors")
        seen = {id(p) for g in self.param_groups for p in g.params}
        for param in params:
            if id(param) in seen:
                raise ValueError(f"{self._name}: a parameter of shape {tuple(param.shape)} is given twice")
            seen.add(id(param))
        values = {**self.defaults, **values}
        self.check(values)
        numbers = {name: values.pop(name) for name in self._numbers}
        made = ParamGroup(params, numbers, values)
        for param in params:
            self.state[param] = self.init_state(param, made)
        self.param_groups.append(made)

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise `ValueError` for a number outside its range: all are >= 0, those in `bounds` may be limited to < 1."""
        for name in self._numbers:
            value = float(values[name])
            if not value >= 0.0 or (self.bounds.get(name, False) and value >= 1.0):
                limit = "0 <= {} < 1" if self.bounds.get(name, False) else "{} >= 0"
                raise ValueError(f"{self._name} needs {limit.format(name)}, not {value}")

    @property
    def lr(self) -> float:
        """The learning rate of the first group; writing sets that of all groups."""
        return float(self.param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.param_groups:
            group["lr"] = value

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters (or fill them with zeros)."""
        for group in self.param_groups:
            for param in group.params:
                if set_to_none:
                    param.grad = None
                elif param.grad is not None:
                    param.grad = xp.zeros_like(param.grad)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns what `closure`, if given, returned.

        closure: computes the loss anew and calls backward.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        with no_grad():
            grads = [(group, param, param.grad) for group in self.param_groups for param in group.params]
            work = [(group, param, grad) for group, param, grad in grads if grad is not None]
            if not step_together(self, work):
                for group, param, grad in work:
                    self._step_one(group, param, grad)
        return loss

    def _step_one(self, group: ParamGroup, param: Tensor, grad: Tensor) -> None:
        state = self.state[param]
        for tensor in state.values():
            if tensor.device is not param.device:
                raise RuntimeError(
                    f"{self._name}.step: a parameter of shape {param.shape} is on {param.device} and its state on "
                    f"{tensor.device}; move the module before making its optimizer"
                )
        value, changed = self.update(param, grad, state, group)
        assign(param, value)
        for name, tensor in changed.items():
            assign(state[name], tensor)

    def state_dict(self) -> dict[str, Tensor]:
        """A flat dict of tensors, as `graphc.save` takes it.

        "groups.G.NUMBER" are the groups' numbers (float64), "state.I.NAME" the state of parameter I, counted through
        all groups in order. Options that are not numbers belong to the constructor.
        """
        out = {
            f"groups.{g}.{name}": tensor.detach()
            for g, group in enumerate(self.param_groups)
            for name, tensor in group.tensors.items()
        }
        for i, param in enumerate(self._params()):
            out.update({f"state.{i}.{name}": tensor.detach() for name, tensor in self.state[param].items()})
        return out

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` of an optimizer of the same kind over the same parameters gave.

        Raises `ValueError`, before anything is changed, listing what is missing, unexpected or of another shape.
        """
        own = {
            f"groups.{g}.{name}": tensor
            for g, group in enumerate(self.param_groups)
            for name, tensor in group.tensors.items()
        }
        for i, param in enumerate(self._params()):
            own.update({f"state.{i}.{name}": tensor for name, tensor in self.state[param].items()})
        problems = []
        if missing := [name for name in own if name not in state]:
            problems.append("missing: " + ", ".join(missing))
        if unexpected := [name for name in state if name not in own]:
            problems.append("unexpected: " + ", ".join(unexpected))
        problems += [
            f"shape: {name} is {tuple(tensor.shape)} in the optimizer and {tuple(state[name].shape)} in the state"
            for name, tensor in own.items()
            if name in state and tuple(state[name].shape) != tuple(tensor.shape)
        ]
        if problems:
            raise ValueError(
                f"{self._name}.load_state_dict: the state does not fit the optimizer\n  " + "\n  ".join(problems)
            )
        with no_grad():
            for name, tensor in own.items():
                assign(tensor, state[name])

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group.params]

    def __repr__(self) -> str:
        groups = "".join(f"\n  {group!r}" for group in self.param_groups)
        return f"{self._name}({groups}\n)"


def compute_dtype(param: Tensor) -> DType:
    """The dtype in which a parameter is updated and its state is held: float32 for the 16-bit floats."""
    return F32 if param.dtype in (F16, BF16) else param.dtype


def zeros_for(param: Tensor, value: float = 0.0) -> Tensor:
    """State of the parameter's shape, filled with `value`."""
    return xp.full(tuple(param.shape), value, dtype=compute_dtype(param), device=param.device)


def step_count(param: Tensor) -> Tensor:
    """The number of steps taken: int64, rank 0, on the device of the parameter, whose update counts it."""
    return xp.full((), 0, dtype="int64", device=param.device)
