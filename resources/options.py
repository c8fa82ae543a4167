"""Options models as resources."""

from __future__ import annotations

from typing import Generic, TypeVar, cast

import dagster as dg

from laion_assets.options import Options

OptionsT = TypeVar("OptionsT", bound=Options)


class OptionsResource(dg.ConfigurableResource[OptionsT], Generic[OptionsT]):
    """A resource with the fields of an options model: the UI shows them, and a run may override
    them. Domain code gets the plain model, which is frozen and can be pickled."""

    def options(self) -> OptionsT:
        """Return the options in effect for this run."""
        model = next(
            base
            for base in type(self).__mro__
            if issubclass(base, Options) and not hasattr(base, "options")
        )
        values = {name: getattr(self, name) for name in model.model_fields}
        return cast("OptionsT", model.model_validate(values))
