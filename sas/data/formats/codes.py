"""What each code of a defect means, why it hurts, and how to mend it; and the words of amodal data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Meaning:
    """A code of a defect. severity: that of its lines, or both where it depends. One sentence each: what it means, why it hurts, how to mend it."""

    severity: str
    means: str
    hurts: str
    mend: str


LOST_WITH_A_WARNING = frozenset({"outside", "shape-kind"})
"""Codes of a segmentation that is lost for a reason which is no error of the annotations."""

NO_OBJECT = frozenset({"shape-kind"})
"""Codes of what is left out because it is no object: the picture is complete without it."""

CODES: dict[str, Meaning] = {
    # The picture.
    "image-missing": Meaning(
        "error",
        "The annotations name a picture that is not on disk.",
        "Without its picture an annotation teaches nothing.",
        "Copy the picture to the place named, or name the right folder of pictures.",
    ),
    "image-folder": Meaning(
        "warning",
        "Not one of the first pictures is where it is looked for.",
        "The folder of the pictures is probably another one, and all pictures will be missing.",
        "Name the right folder with --images FOLDER (`data.images` in a configuration).",
    ),
    "folder-ignored": Meaning(
        "warning",
        "A folder beside those of the scenes holds pictures, but none called image and none named like a mask.",
        "It is not read, and if it is a scene it is missing from the set.",
        "Nothing need be done for previews and the like; of a scene, add the picture as image.jpg or image.png.",
    ),
    "image-damaged": Meaning(
        "error",
        "The file of a picture cannot be decoded: it is empty, truncated or no picture at all.",
        "Training would stop at this file.",
        "Download or copy the picture again.",
    ),
    "image-cut": Meaning(
        "error",
        "A JPEG has no end mark, as a download leaves it that stopped half way.",
        "The decoder does not complain, but the lower part of the picture may be plain grey, and masks there lie on nothing.",
        "Download or copy the picture again; a cleaned copy leaves it out.",
    ),
    "image-size": Meaning(
        "error",
        "A picture has another width or height than its annotation says.",
        "Every mask would lie in the wrong place.",
        "Put the original picture back, not a scaled or turned one.",
    ),
    "image-turned": Meaning(
        "warning",
        "A picture is shown turned or mirrored (EXIF orientation), and its size does not say which the masks are of.",
        "Masks that were drawn on the picture as it is stored lie in the wrong place.",
        "Look at it on the contact sheet; if its masks lie wrong, remove the orientation from the picture.",
    ),
    "image-unknown": Meaning(
        "error",
        "An annotation is of a picture that the file does not list.",
        "Without its picture it teaches nothing.",
        "Add the record of the picture, or remove the annotation; many of them say that two files were mixed up.",
    ),
    "image-twice": Meaning(
        "error",
        "Two pictures have the same id or name, or are one and the same file.",
        "Nobody can tell to which of them an annotation belongs, and one may be counted twice in a score.",
        "Give each picture its own id, or remove one (a cleaned copy gives the later one the ending -2); of one file, name the right folder of pictures.",
    ),
    # The record.
    "json": Meaning(
        "error",
        "A file is no valid JSON.",
        "Nothing in it can be read.",
        "Export the file again, or mend the line that the message names.",
    ),
    "field": Meaning(
        "error",
        "A field of the annotation is missing or holds something else than it should.",
        "What it describes has to be left out.",
        "Correct the field, or export the annotation again.",
    ),
    "not-finite": Meaning(
        "warning",
        "A JSON file holds NaN or Infinity, which JSON does not know.",
        "Most programs cannot read the file at all; here it is read as null, and an annotation that needs it is left out, which is told apart.",
        "Write numbers, or null where there is none.",
    ),
    "unreadable": Meaning(
        "error",
        "A record or a data set cannot be read for a reason that no other code names.",
        "What it describes has to be left out.",
        "Follow the message; if it makes no sense, write the data again.",
    ),
    "object-twice": Meaning(
        "error",
        "Two objects have the same id.",
        "The order cannot tell them apart, and an object may be there twice.",
        "Give each object its own id, or remove the copy.",
    ),
    "category-unknown": Meaning(
        "warning",
        "An annotation is of a category that the file does not list.",
        "The object has a number in place of a name, which matters only where names do.",
        "Add the category to the list, or correct the number.",
    ),
    "unannotated": Meaning(
        "warning",
        "A picture has no annotation at all.",
        "If it shows objects, training learns from it that there are none.",
        "Annotate the picture, or remove it from the list; if it really shows nothing, all is well.",
    ),
    "category-unused": Meaning(
        "warning",
        "A category is declared and no annotation is of it.",
        "It is harmless by itself, but objects may have been lost, or put under another category.",
        "Nothing need be done if that is as it should be.",
    ),
    # Masks.
    "polygon-points": Meaning(
        "error",
        "A polygon has fewer than three points.",
        "It encloses nothing, so a part of the object, or all of it, is missing; the line says which.",
        "Draw the outline again, or remove the object.",
    ),
    "rle-size": Meaning(
        "error",
        "A run-length encoded mask (RLE) does not fit the size of its picture.",
        "Its pixels would land in the wrong places.",
        "Encode the mask again at the size of the picture.",
    ),
    "mask-size": Meaning(
        "error",
        "A mask has another size than its picture.",
        "Its pixels would land in the wrong places.",
        "Export the mask again at the size of the picture.",
    ),
    "mask-missing": Meaning(
        "error",
        "The file of a mask is not on disk.",
        "The object has to be left out though the picture shows it.",
        "Copy the file to the place named.",
    ),
    "mask-damaged": Meaning(
        "error",
        "The file of a mask cannot be decoded.",
        "The object has to be left out though the picture shows it.",
        "Copy or export the file again.",
    ),
    "mask-twice": Meaning(
        "error",
        "Two masks of one picture have the same name.",
        "The order cannot tell them apart.",
        "Rename or remove one of them.",
    ),
    "shape-kind": Meaning(
        "warning",
        "A shape is of a kind that encloses nothing, such as a line or a point.",
        "It has no mask, so it is no object.",
        "Draw the object as a polygon, or remove the shape.",
    ),
    "mask-empty": Meaning(
        "warning",
        "A mask has no pixel in the picture: it is empty, or all of it lies outside.",
        "It teaches nothing, and it would count as an object.",
        "Nothing need be done, the object is left out; if the picture shows it, draw its mask.",
    ),
    "outside": Meaning(
        "warning",
        "A mask reaches beyond the border of the picture, or so far that nothing can be made of it.",
        "A little is harmless, but a lot says that picture and annotation do not belong together.",
        "Nothing need be done where it is cut at the border; correct the numbers where the object is left out.",
    ),
    "mask-range": Meaning(
        "warning",
        "A mask is stored with small numbers, such as 0 and 1, instead of 0 and 255.",
        "Cut at 127 it would be empty, so everything above 0 is taken as inside, which may be wrong.",
        "Save masks with 0 and 255.",
    ),
    "mask-grey": Meaning(
        "warning",
        "A mask holds values between 0 and 255, as a mask saved as JPEG does.",
        "Its outline is off by a pixel or two after the cut at 127.",
        "Save masks as PNG.",
    ),
    "crowd": Meaning(
        "warning",
        "A region stands for a crowd of objects.",
        "A crowd has no single complete shape to learn.",
        "Nothing need be done, the region is left out and the picture counts as not fully annotated.",
    ),
    "covers-all": Meaning(
        "warning",
        "A region of background (stuff) covers nearly the whole picture.",
        "It becomes a layer that is the whole picture, which teaches nothing about objects.",
        "Read things without stuff where the format can, or remove the region.",
    ),
    "invisible": Meaning(
        "warning",
        "No pixel of an object can be seen.",
        "Nothing in the picture tells that the object is there, so nobody can learn to find it.",
        "Nothing need be done, the object is left out.",
    ),
    "visible-outside": Meaning(
        "warning",
        "A part of what is seen of an object lies outside its complete mask.",
        "What is seen of an object belongs to it, so one of the two masks is wrong.",
        "Nothing need be done, the complete mask is widened; look at the object if the share is large.",
    ),
    "visible-some": Meaning(
        "warning",
        "Only some objects of a picture have a visible mask.",
        "What is seen of the others is unknown, so what is seen follows from the order alone; the given ones help to find the order.",
        "Give every object a visible mask, or none.",
    ),
    # The order.
    "order-none": Meaning(
        "warning",
        "Nothing says who is in front, in the whole set or in some of its pictures.",
        "Without an order there are no layers, so layers cannot be trained on these pictures.",
        "Add ranks, visible masks or an order file; or use the pictures as they are for drawing and for scores without order.",
    ),
    "order-assumed": Meaning(
        "warning",
        "The order of the shapes in the file is taken for the order from back to front.",
        "If the shapes were drawn from front to back, every layer is wrong.",
        "Look at a few pictures, and say which it is with --front last or --front first.",
    ),
    "order-cycle": Meaning(
        "warning",
        "The order runs in a circle: A before B, B before C, C before A.",
        "Objects in a circle have no layers.",
        "Nothing need be done, the circle is cut where the fewest pixels speak for it; or correct the order.",
    ),
    "order-conflict": Meaning(
        "warning",
        "Two sources of the order, such as ranks and visible masks, disagree on who is in front.",
        "The stronger source wins, but a wrong order teaches wrong layers.",
        "Look at the two objects and correct the source that is wrong; a few in a large set are harmless.",
    ),
    "behind-lost": Meaning(
        "warning",
        "An object lies behind one that is left out (a crowd region, or one whose masks cannot be read).",
        "Without what hides it, it would count as nearer than it is and teach a wrong layer, so it is left out as well.",
        "Correct the masks of the object in front.",
    ),
    "order-unknown": Meaning(
        "warning",
        "Two objects overlap and nothing says which is in front.",
        "Neither counts as in front, so both may land in the same layer, whose mask then joins them.",
        "State the order of the two objects.",
    ),
    "order-object": Meaning(
        "warning",
        "The order names an object that is not there, or one and the same twice.",
        "The pair says nothing; it may be a slip of the pen that was meant for another object.",
        "Correct the name, or remove the pair.",
    ),
    "order-file": Meaning(
        "error",
        "The file of the order cannot be understood.",
        "Without it nobody knows who is in front.",
        "Write it as the message says, or remove it to do without an order.",
    ),
}

GLOSSARY = """\
- **visible mask**: the pixels at which an object is seen.
- **modal**: of what is seen; a modal mask is a visible mask.
- **amodal**: of the whole object, hidden parts included; an amodal mask holds the visible mask.
- **occluded**: partly or wholly hidden by something in front; the occlusion rate is the hidden share of the amodal mask.
- **occluder**: the object in front that hides another.
"""


def codes_table(codes: Iterable[str] = CODES) -> str:
    """What codes mean, as a table in Markdown."""
    rows = ["| code | severity | what it means | why it hurts | how to mend it |", "|---|---|---|---|---|"]
    for code in codes:
        about = CODES.get(code, CODES["unreadable"])
        rows.append(f"| `{code}` | {about.severity} | {about.means} | {about.hurts} | {about.mend} |")
    return "\n".join(rows) + "\n"
