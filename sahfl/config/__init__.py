"""Every YAML file that sahfl reads, as typed values.

One ``ConfigError`` names all problems of a file: the key, the value found and the expected one.
"""

from sahfl.config.consortium import Consortium, load_consortium
from sahfl.config.evaluation import EvaluationConfig
from sahfl.config.files import kind_of, load_study, with_base_hash
from sahfl.config.masking import Masking, masking_of
from sahfl.config.methods import AdapterTuning, Method, TrainedMethod, WeightTuning, ZeroShot
from sahfl.config.network import ModelConfig
from sahfl.config.policy import SitePolicy
from sahfl.config.server import ServerConfig, load_server
from sahfl.config.site import SiteConfig, SiteFile, SiteScansPooled, load_site
from sahfl.config.stages import (
    FinetuneConfig,
    LoadedBase,
    LocalTraining,
    PretrainConfig,
    RoundsConfig,
)
from sahfl.config.study import HostileAct, Study
from sahfl.config.training import POOLED, POOLED_STEPS, POOLS
from sahfl.data.view_settings import View, ViewsConfig
from sahfl.section import Name, Section
from sahfl.settings_file import parse

__all__ = [
    "POOLED",
    "POOLED_STEPS",
    "POOLS",
    "AdapterTuning",
    "Consortium",
    "EvaluationConfig",
    "FinetuneConfig",
    "HostileAct",
    "LoadedBase",
    "LocalTraining",
    "Masking",
    "Method",
    "ModelConfig",
    "Name",
    "PretrainConfig",
    "RoundsConfig",
    "Section",
    "ServerConfig",
    "SiteConfig",
    "SiteFile",
    "SitePolicy",
    "SiteScansPooled",
    "Study",
    "TrainedMethod",
    "View",
    "ViewsConfig",
    "WeightTuning",
    "ZeroShot",
    "kind_of",
    "load_consortium",
    "load_server",
    "load_site",
    "load_study",
    "masking_of",
    "parse",
    "with_base_hash",
]
