"""Classes and functions of the user's, named on the command line by their import paths."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any


def imported(path: str) -> Callable[..., Any]:
    """The class or function that ``my_file.Name`` names.

    Raises:
        ValueError: there is none.
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError(f"{path!r} is no import path; write one like my_file.{path or 'Net'}")
    try:
        thing = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path} cannot be imported: {error}") from error
    if not callable(thing):
        raise ValueError(f"{path} is a {type(thing).__name__}, not a class or function")
    return thing  # type: ignore[no-any-return]


def options(factories: Mapping[str, Callable[..., Any]], rest: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The arguments given on the command line, read by the types in the signatures.

    Args:
        factories: prefix -> class or function: ``--model.width 3`` is an argument of the one under ``"model"``.
        rest: these words, and no others.

    Returns:
        prefix -> keyword arguments, only those that were given.

    Raises:
        ValueError: a word that is no argument of theirs, or a value that is not of its type.
    """
    if not rest:
        return {prefix: {} for prefix in factories}
    from jsonargparse import ArgumentParser

    def add(parser: ArgumentParser, prefix: str, skip: Collection[str]) -> Iterable[str]:
        rules: dict[str, Any] = {"skip": set(skip), "fail_untyped": False}
        added: list[str]
        if isinstance(factories[prefix], type):
            added = parser.add_class_arguments(factories[prefix], prefix, instantiate=False, **rules)
        else:
            added = parser.add_function_arguments(factories[prefix], prefix, **rules)
        return added

    parser = ArgumentParser(exit_on_error=False)
    for prefix, factory in factories.items():
        own = set(inspect.signature(factory).parameters)
        # with a **kwargs it also takes what that is handed on to
        handed_on = {key.removeprefix(f"{prefix}.") for key in add(ArgumentParser(), prefix, own)}
        named = {word.removeprefix(f"--{prefix}.").partition("=")[0].partition(".")[0] for word in rest}
        # what is not given comes from the checkpoint, or has a default
        add(parser, prefix, (own | handed_on) - named)
    try:
        parsed = parser.parse_args(list(rest), defaults=False)
    except argparse.ArgumentError as error:
        raise ValueError(" ".join(str(error).split())) from error
    # jsonargparse 4.49 renamed it; this makes arguments that are objects themselves
    made = getattr(parser, "instantiate", parser.instantiate_classes)(parsed)
    return {prefix: dict(vars(made[prefix])) if prefix in made else {} for prefix in factories}
