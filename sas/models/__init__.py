"""Networks. They know no schedule, no data and no loss.

The seam: `encode(image) -> features`, once an image, and `forward(noisy, timestep, cumulative, features) -> output`, once a layer,
step and member. The first output channel belongs to the mask; further channels are named heads.
"""

from sas.models.encoders import ConvEncoder, EfficientNetLite0, FeatureEncoder, TimmEncoder, register_encoder
from sas.models.seam import Features, MaskDenoiser, select_rows
from sas.models.split import SplitDenoiser
from sas.models.unet import ConcatUNet

__all__ = [
    "ConcatUNet",
    "ConvEncoder",
    "EfficientNetLite0",
    "FeatureEncoder",
    "Features",
    "MaskDenoiser",
    "SplitDenoiser",
    "TimmEncoder",
    "register_encoder",
    "select_rows",
]
