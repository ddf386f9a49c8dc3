"""Every name of `models.ctr`."""

from .batch import Batch as Batch
from .cold import COLD as COLD
from .cold import COLDConfig as COLDConfig
from .dcn import DCN as DCN
from .dcn import Cross as Cross
from .dcn import DCNConfig as DCNConfig
from .din import DIN as DIN
from .din import DINConfig as DINConfig
from .din import TargetAttention as TargetAttention
from .esmm import ESMM as ESMM
from .fitting import FitOptions as FitOptions
from .fitting import fit_ctr as fit_ctr
from .fitting import predict_ctr as predict_ctr
from .inputs import ClickModel as ClickModel
from .inputs import Inputs as Inputs
from .inputs import Layers as Layers
from .inputs import Shape as Shape
from .inputs import Trunk as Trunk
from .losses import click_loss as click_loss
from .losses import entire_space_loss as entire_space_loss
from .saving import load_ctr as load_ctr
from .saving import save_ctr as save_ctr
from .two_tower import TwoTower as TwoTower
from .two_tower import TwoTowerConfig as TwoTowerConfig
