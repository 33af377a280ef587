"""Write examples/layers.ipynb from the cells below: python examples/make_notebook.py"""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

CELLS = [
    ("text", "# A picture taken apart\n\nA generated scene, its layers, how sure the model is, and a correction by hand."),
    ("code", "from sas import SASPipeline\nfrom sas.demo import demo_scenes\n\nscene = demo_scenes(1, seed=1)[0]\npipe = SASPipeline.from_pretrained()"),
    ("text", "One call draws all layers. The result shows itself as its overview."),
    ("code", "result = pipe(scene.image, ensemble_size=5, seed=0)\nresult"),
    ("text", "For a generated scene the truth is known, so each layer can be scored."),
    ("code", "from sas.metrics import layer_ious\n\nlayer_ious(result.masks_full(), scene.layer_masks).round(2)"),
    ("text", "If the first layer is wrong, give the right one: sampling goes on behind it."),
    ("code", "corrected = pipe(scene.image, initial_layers=scene.layer_masks[:1], seed=0)\nlayer_ious(corrected.masks_full(), scene.layer_masks).round(2)"),
    ("text", "One step from noise gives the mean, a probability map in a single call."),
    ("code", 'marginal = pipe(scene.image, mode="marginal")\nmarginal.uncertainty_map().max()'),
]  # fmt: skip


def notebook() -> nbformat.NotebookNode:
    cells = []
    for number, (kind, source) in enumerate(CELLS):
        cell = new_markdown_cell(source) if kind == "text" else new_code_cell(source)
        cell["id"] = f"cell-{number}"
        cells.append(cell)
    return new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )


if __name__ == "__main__":
    nbformat.write(notebook(), Path(__file__).with_name("layers.ipynb"))
