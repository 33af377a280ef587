"""Sources of scenes: a composer that pastes cutouts, a loader over scenes on disk, and the cutouts and pictures they need."""

from sas.data.atlas import Atlas
from sas.data.composer import Composer
from sas.data.folders import ProjectFolder, SASFolders, open_scenes, write_project, write_sas_folders
from sas.data.source import SceneLoader, SceneSource, read_ahead

__all__ = [
    "Atlas",
    "Composer",
    "ProjectFolder",
    "SASFolders",
    "SceneLoader",
    "SceneSource",
    "open_scenes",
    "read_ahead",
    "write_project",
    "write_sas_folders",
]
