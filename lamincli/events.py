"""What happened to an artifact: the events and observers of the specification.

The types are lamindb's own, so that code written for `lamindb.integrations.lightning` works
unchanged. An observer is any object with one or both of the methods of `ArtifactObserver`.
"""

from lamindb.integrations.lightning import (
    ArtifactEvent,
    ArtifactObserver,
    ArtifactRemovedEvent,
    ArtifactSavedEvent,
)

__all__ = ["ArtifactEvent", "ArtifactObserver", "ArtifactRemovedEvent", "ArtifactSavedEvent"]
