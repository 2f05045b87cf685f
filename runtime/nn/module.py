"""`Module`: a tree of parameters, buffers and child modules with a `forward`.

Invariants: every parameter, buffer and child is an ordinary instance attribute, so that reading one
costs a plain attribute look-up; the three registries hold only their names, in order of registration.
Loading, moving and casting rebind the tensors of a module and never replace them, so that an optimizer
that was given `module.parameters()` keeps holding the right objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from graphc.ir.types import DType
from graphc.ir.types import dtype as as_dtype
from graphc.runtime.nn.parameter import Parameter, assign
from graphc.runtime.tensor import Tensor, no_grad

M = TypeVar("M", bound="Module")
PreHook = Callable[["Module", tuple[Any, ...]], Any]
Hook = Callable[["Module", tuple[Any, ...], Any], Any]


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict(strict=False)` left alone."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class HookHandle:
    """Returned when a hook is registered; `remove()` takes the hook off, any number of times."""

    def __init__(self, hooks: dict[int, Any], key: int) -> None:
        self._hooks, self._key = hooks, key

    def remove(self) -> None:
        self._hooks.pop(self._key, None)

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


class Module:
    """The base class of every layer and model.

    Subclasses call `super().__init__()`, assign `Parameter`s and `Module`s to attributes, and define
    `forward`. Calling a module runs its forward pre-hooks, `forward`, and its forward hooks.

    >>> import graphc as gc
    >>> class Affine(gc.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.scale = gc.nn.Parameter(gc.ones((3,)))
    ...     def forward(self, x):
    ...         return x * self.scale
    >>> [name for name, _ in Affine().named_parameters()]
    ['scale']
    """

    training: bool
    _parameters: dict[str, None]
    _buffers: dict[str, bool]
    _modules: dict[str, None]

    def __init__(self) -> None:
        put = super().__setattr__
        put("_parameters", {})
        put("_buffers", {})  # name -> whether state_dict holds it
        put("_modules", {})
        put("_pre_hooks", {})
        put("_hooks", {})
        put("training", True)

    # Attributes

    def __setattr__(self, name: str, value: Any) -> None:
        registries = self.__dict__
        if "_parameters" not in registries:
            raise AttributeError(
                f"{type(self).__name__}.{name} is assigned before Module.__init__() has run; "
                "call super().__init__() first"
            )
        if isinstance(value, Parameter):
            self._register(name, "_parameters", None)
        elif isinstance(value, Module):
            self._register(name, "_modules", None)
        elif name in self._parameters and value is not None:
            raise TypeError(
                f"{type(self).__name__}.{name} is a parameter and cannot be assigned a {type(value).__name__}; "
                "assign an nn.Parameter or None"
            )
        elif name in self._modules and value is not None:
            raise TypeError(
                f"{type(self).__name__}.{name} is a child module and cannot be assigned a {type(value).__name__}; "
                "assign a Module or None"
            )
        elif name in self._buffers and not (value is None or isinstance(value, Tensor)):
            raise TypeError(
                f"{type(self).__name__}.{name} is a buffer and cannot be assigned a {type(value).__name__}; "
                "assign a Tensor or None"
            )
        super().__setattr__(name, value)

    def _register(self, name: str, registry: str, entry: Any) -> None:
        for other in ("_parameters", "_buffers", "_modules"):
            if other != registry:
                getattr(self, other).pop(name, None)
        getattr(self, registry).setdefault(name, entry)

    def __delattr__(self, name: str) -> None:
        for registry in (self._parameters, self._buffers, self._modules):
            registry.pop(name, None)
        super().__delattr__(name)

    def __getattr__(self, name: str) -> Any:
        # Reached only when ordinary look-up failed.
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Register `parameter`, or the place of one that is absent (`None`), under `name`."""
        self._check_name(name, "parameter")
        if parameter is not None and not isinstance(parameter, Parameter):
            raise TypeError(
                f"register_parameter({name!r}) needs an nn.Parameter or None, not {type(parameter).__name__}"
            )
        self._register(name, "_parameters", None)
        object.__setattr__(self, name, parameter)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Register a tensor that is state but not trained; `persistent` ones are in `state_dict`."""
        self._check_name(name, "buffer")
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"register_buffer({name!r}) needs a Tensor or None, not {type(tensor).__name__}")
        self._register(name, "_buffers", persistent)
        self._buffers[name] = persistent
        object.__setattr__(self, name, tensor)

    def add_module(self, name: str, module: Module | None) -> None:
        """Register a child under a name that need not be a Python identifier, such as "0"."""
        self._check_name(name, "module")
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"add_module({name!r}) needs a Module or None, not {type(module).__name__}")
        self._register(name, "_modules", None)
        object.__setattr__(self, name, module)

    register_module = add_module

    def _check_name(self, name: str, kind: str) -> None:
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"a {kind} needs a non-empty name without dots, not {name!r}")
        if hasattr(type(self), name) or (name in self.__dict__ and not self._is_registered(name)):
            raise ValueError(f"{type(self).__name__} already has an attribute {name!r}; choose another name")

    def _is_registered(self, name: str) -> bool:
        return name in self._parameters or name in self._buffers or name in self._modules

    # Walks

    def children(self) -> Iterator[Module]:
        """The direct children, each once."""
        for _, child in self.named_children():
            yield child

    def named_children(self) -> Iterator[tuple[str, Module]]:
        seen: set[int] = set()
        for name in self._modules:
            child = self.__dict__[name]
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                yield name, child

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once, parents first."""
        for _, module in self.named_modules():
            yield module

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        yield from _walk(self, prefix, set())

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """All parameters of this module (and of those below it), each once."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Parameter]]:
        return self._tensors("_parameters", prefix, recurse)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        for _, buffer in self.named_buffers(recurse=recurse):
            yield buffer

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
        return self._tensors("_buffers", prefix, recurse)

    def _tensors(self, registry: str, prefix: str, recurse: bool) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        owners = self.named_modules(prefix) if recurse else iter([(prefix, self)])
        for path, owner in owners:
            for name in getattr(owner, registry):
                tensor = owner.__dict__[name]
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield _join(path, name), tensor

    def get_submodule(self, path: str) -> Module:
        """The module at a dotted path such as "encoder.0"; raises `AttributeError` if there is none."""
        module: Module = self
        for part in path.split(".") if path else ():
            if part not in module._modules:
                known = ", ".join(module._modules) or "none"
                raise AttributeError(
                    f"{type(self).__name__} has no module {path!r}: {type(module).__name__} has no child {part!r}"
                    f" (it has: {known})"
                )
            module = module.__dict__[part]
        return module

    def get_parameter(self, path: str) -> Parameter:
        """The parameter at a dotted path such as "encoder.0.weight"."""
        owner, _, name = path.rpartition(".")
        module = self.get_submodule(owner)
        if name not in module._parameters:
            known = ", ".join(module._parameters) or "none"
            raise AttributeError(
                f"{type(self).__name__} has no parameter {path!r}: {type(module).__name__} has {known}"
            )
        return module.__dict__[name]  # type: ignore[no-any-return]

    def apply(self: M, function: Callable[[Module], Any]) -> M:
        """Call `function` on every module of the tree, children first, and return this module."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    # Modes

    def train(self: M, mode: bool = True) -> M:
        """Set training mode (dropout drops, batch norm measures) for the whole tree."""
        if not isinstance(mode, bool):
            raise TypeError(f"train(mode) needs a bool, not {type(mode).__name__}")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """Set evaluation mode for the whole tree."""
        return self.train(False)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Let every parameter take part in differentiation, or none."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters (or fill them with zeros)."""
        for parameter in self.parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad = parameter.grad * 0.0

    # Devices and dtypes

    def to(self: M, *where: Any, device: Any = None, dtype: Any = None) -> M:
        """Move parameters, buffers and gradients to a device, and cast those of floating point to a dtype:
        `to("cuda")`, `to(gc.float64)`, `to("cpu", dtype=gc.float32)`.

        The tensors stay the same objects. Raises `RuntimeError` for a device that is not there.
        """
        for item in where:
            if isinstance(item, DType):
                dtype = item
            else:
                device = item
        kind = as_dtype(dtype) if dtype is not None else None
        if kind is not None and not kind.is_float:
            raise TypeError(f"Module.to casts parameters to floating-point dtypes only, not to {kind.name}")
        with no_grad():
            for module in self.modules():
                for name in (*module._parameters, *module._buffers):
                    tensor = module.__dict__[name]
                    if tensor is not None:
                        _move(tensor, device, kind)
        return self

    def cpu(self: M) -> M:
        return self.to(device="cpu")

    def cuda(self: M, device: Any = None) -> M:
        return self.to(device="cuda" if device is None else device)

    def float(self: M) -> M:
        return self.to(dtype="float32")

    def double(self: M) -> M:
        return self.to(dtype="float64")

    def half(self: M) -> M:
        return self.to(dtype="float16")

    def bfloat16(self: M) -> M:
        return self.to(dtype="bfloat16")

    # State

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Dotted name -> detached tensor, for every parameter and persistent buffer.

        The tensors are values of this moment: training on does not change them.
        """
        state: dict[str, Tensor] = {}
        for name, tensor in _saved(self, prefix):
            state[name] = tensor.detach()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True) -> IncompatibleKeys:
        """Copy the tensors of `state` into the parameters and buffers of the same dotted names.

        Values are cast to the dtype of what they replace. Raises `ValueError`, before anything is
        changed, that lists every missing name, every unexpected name (both only when `strict`) and every
        name whose shape differs. Returns the missing and the unexpected names.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"{type(self).__name__}.load_state_dict needs a dict of tensors, not {type(state).__name__}"
            )
        own = dict(_saved(self, ""))
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        problems = [
            f"shape: {name} is {_type_text(tensor)} in the module and {_type_text(state[name])} in the state"
            for name, tensor in own.items()
            if name in state and tuple(state[name].shape) != tuple(tensor.shape)
        ]
        if strict and unexpected:
            problems.insert(0, "unexpected: " + ", ".join(unexpected))
        if strict and missing:
            problems.insert(0, "missing: " + ", ".join(missing))
        if problems:
            cure = "\npass strict=False to load the names that both have" if strict and (missing or unexpected) else ""
            raise ValueError(
                f"{type(self).__name__}.load_state_dict: the state does not fit the module\n  "
                + "\n  ".join(problems)
                + cure
            )
        with no_grad():
            for name, tensor in own.items():
                if name in state:
                    assign(tensor, state[name])
        return IncompatibleKeys(missing, unexpected)

    # Calls

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The computation; a subclass defines it."""
        raise TypeError(f"{type(self).__name__} defines no forward(), so it cannot be called")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        state = self.__dict__
        if not state["_pre_hooks"] and not state["_hooks"]:
            return self.forward(*args, **kwargs)
        for pre_hook in tuple(state["_pre_hooks"].values()):
            changed = pre_hook(self, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        output = self.forward(*args, **kwargs)
        for hook in tuple(state["_hooks"].values()):
            changed = hook(self, args, output)
            if changed is not None:
                output = changed
        return output

    def register_forward_pre_hook(self, hook: PreHook) -> HookHandle:
        """Call `hook(module, args)` before every forward; what it returns (not `None`) replaces `args`."""
        return _add_hook(self.__dict__["_pre_hooks"], hook)

    def register_forward_hook(self, hook: Hook) -> HookHandle:
        """Call `hook(module, args, output)` after every forward; a result (not `None`) replaces `output`."""
        return _add_hook(self.__dict__["_hooks"], hook)

    # Text

    def extra_repr(self) -> str:
        """What stands between the parentheses of a layer's `repr`."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        children = [
            f"({name}): " + repr(self.__dict__[name]).replace("\n", "\n  ") for name in self._modules
        ]
        if not children:
            return f"{type(self).__name__}({extra})"
        lines = ([extra] if extra else []) + children
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"


def _walk(module: Module, path: str, seen: set[int]) -> Iterator[tuple[str, Module]]:
    if id(module) in seen:
        return
    seen.add(id(module))
    yield path, module
    for name in module._modules:
        child = module.__dict__[name]
        if child is not None:
            yield from _walk(child, _join(path, name), seen)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _saved(module: Module, path: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers under every name that they have: a shared one appears twice."""
    persistent = [name for name, kept in module._buffers.items() if kept]
    for name in (*module._parameters, *persistent):
        if module.__dict__[name] is not None:
            yield _join(path, name), module.__dict__[name]
    for name in module._modules:
        if module.__dict__[name] is not None:
            yield from _saved(module.__dict__[name], _join(path, name))


def _move(tensor: Tensor, device: Any, dtype: DType | None) -> None:
    target = dtype if dtype is not None and tensor.dtype.is_float else None
    assign(tensor, tensor, device=device if device is not None else tensor.device, dtype=target or tensor.dtype)
    if tensor.grad is not None:
        _move(tensor.grad, device, dtype)


def _add_hook(hooks: dict[int, Any], hook: Any) -> HookHandle:
    if not callable(hook):
        raise TypeError(f"a hook must be callable, not {type(hook).__name__}")
    key = max(hooks, default=-1) + 1
    hooks[key] = hook
    return HookHandle(hooks, key)


def _type_text(tensor: Any) -> str:
    kind = getattr(tensor.dtype, "short", str(tensor.dtype))
    return f"{kind}[{', '.join(str(n) for n in tensor.shape)}]"

