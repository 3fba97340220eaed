"""Sources of captioned videos, which draw samples for all stages: the drawn world, or a folder of files."""

from engine.training.sources.folder import FolderSource as FolderSource
from engine.training.sources.world import WorldSource as WorldSource

VideoSource = WorldSource | FolderSource
