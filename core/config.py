"""Define the base class of a recipe's sections."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Holds one section of a recipe: immutable, and a key it does not know is an error.

    Plans and runs record their settings. A key that joined a section later is left out of a record while it has the
    value that older versions acted by, so older records, and the digests made of them, stay as they are.

    >>> class Colours(Section):
    ...     added = {"depth": 8}
    ...     name: str = "rgb"
    ...     depth: int = 8
    >>> Colours(depth=8).recorded()
    {'name': 'rgb'}
    >>> Colours.from_record({"name": "grey"}).depth
    8
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    added: ClassVar[Mapping[str, Any]] = {}
    """The keys that joined later, each with the value that its absence from a record means."""

    def recorded(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        """Return the settings in the form that plans and runs record, ready for JSON.

        Args:
            leave_out: keys that do not belong into the record.
        """
        record = self.model_dump(mode="json", exclude=set(leave_out))
        for name in list(record):
            value = getattr(self, name)
            if name in self.added and value == self.added[name]:
                del record[name]
            elif isinstance(value, Section):
                record[name] = value.recorded()

        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read the settings that a plan or a run of this or an older version recorded.

        Raises:
            pydantic.ValidationError: they are not settings of this section.
        """
        return cls.model_validate({**cls.added, **record})
