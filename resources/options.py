"""Options models as resources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

import dagster as dg

from laion_assets.options import MASKED, Options

OptionsT = TypeVar("OptionsT", bound=Options)


class OptionsResource(dg.ConfigurableResource[OptionsT], Generic[OptionsT]):
    """A resource with the fields of an options model: the UI shows them, and a run may override
    them. Domain code gets the plain model, which is frozen and can be pickled.

    The values of fields that are marked `MASKED` are no part of Dagster's configuration. Dagster
    masks such a field itself, but not in the default value of the whole resource.
    """

    masked: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def of(cls, options: OptionsT) -> Self:
        """The resource with these options."""
        values = options.model_dump()
        named = {
            name: values.pop(name)
            for name, field in type(options).model_fields.items()
            if field.json_schema_extra == MASKED
        }
        if not any(named.values()):
            return cls(**values)

        # On the class, since Dagster builds each run's resource anew from its configuration.
        class Masked(cls):  # type: ignore[misc, valid-type]
            masked: ClassVar[Mapping[str, Any]] = named

        Masked.__name__, Masked.__qualname__ = cls.__name__, cls.__qualname__
        Masked.__module__, Masked.__doc__ = cls.__module__, cls.__doc__
        return cast("Self", Masked(**values))

    def options(self) -> OptionsT:
        """Return the options in effect for this run."""
        model = next(
            base
            for base in type(self).__mro__
            if issubclass(base, Options) and not hasattr(base, "options")
        )
        values = {
            name: getattr(self, name) or self.masked.get(name, getattr(self, name))
            for name in model.model_fields
        }
        return cast("OptionsT", model.model_validate(values))
