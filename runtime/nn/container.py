"""Containers of modules and parameters: their contents are registered, so that nothing hides from `parameters()`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from graphc.runtime.nn.module import Module
from graphc.runtime.nn.parameter import Parameter


class ModuleList(Module):
    """A list of modules; it has no forward of its own.

    >>> import graphc as gc
    >>> len(list(gc.nn.ModuleList([gc.nn.Linear(2, 2) for _ in range(3)]).parameters()))
    6
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    def append(self, module: Module) -> ModuleList:
        """Add a module at the end."""
        self.add_module(str(len(self)), _checked(module, self))
        return self

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        """Add several modules at the end."""
        for module in modules:
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> None:
        """Put a module before position `index`."""
        items = list(self)
        items.insert(index, _checked(module, self))
        self._refill(items)

    def _refill(self, items: Iterable[Module]) -> None:
        kept = list(items)
        for name in list(self._modules):
            delattr(self, name)
        for i, module in enumerate(kept):
            self.add_module(str(i), module)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter([self.__dict__[name] for name in self._modules])

    def __getitem__(self, index: int | slice) -> Any:
        items = [self.__dict__[name] for name in self._modules]
        return type(self)(items[index]) if isinstance(index, slice) else items[_position(index, items, self)]

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, list(self._modules)[_position(index, self._modules, self)], _checked(module, self))

    def __delitem__(self, index: int | slice) -> None:
        items = list(self)
        del items[index]
        self._refill(items)


class Sequential(Module):
    """Modules applied one after the other, from arguments or from a dict of name -> module.

    >>> import graphc as gc
    >>> net = gc.nn.Sequential(gc.nn.Linear(4, 8), gc.nn.ReLU(), gc.nn.Linear(8, 2))
    >>> net(gc.ones((3, 4))).shape
    (3, 2)
    """

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            named: dict[str, Any] = dict(modules[0])
        else:
            named = {str(i): module for i, module in enumerate(modules)}
        for name, module in named.items():
            self.add_module(name, _checked(module, self))

    def forward(self, x: Any) -> Any:
        for name in self._modules:
            x = self.__dict__[name](x)
        return x

    def append(self, module: Module) -> Sequential:
        """Add a module at the end."""
        self.add_module(str(len(self)), _checked(module, self))
        return self

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter([self.__dict__[name] for name in self._modules])

    def __getitem__(self, index: int | slice) -> Any:
        names = list(self._modules)
        if isinstance(index, slice):
            return type(self)({name: self.__dict__[name] for name in names[index]})
        return self.__dict__[names[_position(index, names, self)]]

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, list(self._modules)[_position(index, self._modules, self)], _checked(module, self))


class ModuleDict(Module):
    """A dict of modules; it has no forward of its own."""

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        super().__init__()
        self.update(modules or {})

    def update(self, modules: Mapping[str, Module]) -> None:
        """Add or replace several modules."""
        for name, module in modules.items():
            self[name] = module

    def __getitem__(self, name: str) -> Any:
        if name not in self._modules:
            raise KeyError(f"ModuleDict has no {name!r}; it has: {', '.join(self._modules) or 'nothing'}")
        return self.__dict__[name]

    def __setitem__(self, name: str, module: Module) -> None:
        self.add_module(name, _checked(module, self))

    def __delitem__(self, name: str) -> None:
        self[name]
        delattr(self, name)

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._modules))

    def keys(self) -> list[str]:
        return list(self._modules)

    def values(self) -> list[Any]:
        return [self.__dict__[name] for name in self._modules]

    def items(self) -> list[tuple[str, Any]]:
        return [(name, self.__dict__[name]) for name in self._modules]


class ParameterList(Module):
    """A list of parameters; tensors given to it become parameters."""

    def __init__(self, parameters: Iterable[Any] = ()) -> None:
        super().__init__()
        for parameter in parameters:
            self.append(parameter)

    def append(self, parameter: Any) -> ParameterList:
        """Add a parameter at the end."""
        self.register_parameter(str(len(self)), _parameter(parameter))
        return self

    def __len__(self) -> int:
        return len(self._parameters)

    def __iter__(self) -> Iterator[Parameter]:
        return iter([self.__dict__[name] for name in self._parameters])

    def __getitem__(self, index: int) -> Any:
        return self.__dict__[list(self._parameters)[_position(index, self._parameters, self)]]

    def __setitem__(self, index: int, parameter: Any) -> None:
        name = list(self._parameters)[_position(index, self._parameters, self)]
        setattr(self, name, _parameter(parameter))

    def extra_repr(self) -> str:
        return ", ".join(f"({i}): {p.dtype}{list(p.shape)}" for i, p in enumerate(self))


def _checked(module: Any, owner: Module) -> Module:
    if not isinstance(module, Module):
        raise TypeError(f"{type(owner).__name__} holds modules, not {type(module).__name__}")
    return module


def _parameter(value: Any) -> Parameter:
    return value if isinstance(value, Parameter) else Parameter(value)


def _position(index: int, items: Any, owner: Module) -> int:
    if not -len(items) <= index < len(items):
        raise IndexError(f"index {index} is outside a {type(owner).__name__} of length {len(items)}")
    return index % len(items)
