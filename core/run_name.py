"""The name of a run: its method, what is added to it, whether labels chose its candidates, and a label of its own."""

from dataclasses import dataclass

LABELS = "labels"
"""The last part of the name of a run that chooses its candidates by labels."""
NO_SOURCE = "none"
"""The source of a run with its method's own views alone."""
LABEL_MARK = "@"
"""What stands before the label of a run; it is safe in the names of folders."""
LABEL_PATTERN = r"^[A-Za-z0-9._-]*$"
WITH_CANDIDATES = ("shards", "inflation")
"""The sources of which a run reads candidates."""


@dataclass(frozen=True)
class RunName:
    """Holds the parts of a run's name: `METHOD`, `METHOD+SOURCE` or `METHOD+SOURCE+labels`, perhaps with `@LABEL`.

    >>> name = RunName.parse("simclr+shards+labels")
    >>> name
    RunName(method='simclr', source='shards', by_labels=True, label='')
    >>> str(name)
    'simclr+shards+labels'
    >>> RunName.parse("mocov2plus@lr2")
    RunName(method='mocov2plus', source='none', by_labels=False, label='lr2')
    """

    method: str
    source: str = NO_SOURCE
    """What the method was given besides its own views, see `pretrain.synthetic.source`."""
    by_labels: bool = False
    """True where a measure that uses labels chose or weighted the candidates: such a run is not self-supervised."""
    label: str = ""
    """What tells it from runs that differ in other settings, see `pretrain.label`."""

    @classmethod
    def parse(cls, text: str) -> "RunName":
        """Read a name; one that is no run's, as that of a timm model, gives a method and a source that do not exist."""
        text, _, label = text.partition(LABEL_MARK)
        method, *parts = text.split("+")
        by_labels = len(parts) > 1 and parts[-1] == LABELS
        if by_labels:
            parts.pop()

        return cls(method, "+".join(parts) or NO_SOURCE, by_labels, label)

    def __str__(self) -> str:
        source = "" if self.source == NO_SOURCE else f"+{self.source}"
        labels = f"+{LABELS}" if self.by_labels else ""
        label = f"{LABEL_MARK}{self.label}" if self.label else ""
        return f"{self.method}{source}{labels}{label}"
