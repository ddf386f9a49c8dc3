"""KARMA: an LLM's next-interest embedding with semantic decodability, and its frozen control (arXiv
2603.22779).
"""

from .action import InBatch as InBatch
from .action import MaskedNCE as MaskedNCE
from .action import Pairwise as Pairwise
from .action import Softmax as Softmax
from .backbone import Qwen as Qwen
from .checkpoint import Checkpoint as Checkpoint
from .embedder import KARMA as KARMA
from .frozen import FrozenLM as FrozenLM
from .language import LanguageFirst as LanguageFirst
from .sentence import SentenceEncoder as SentenceEncoder
from .transfer import Transfer as Transfer
from .tuned import TunedEncoder as TunedEncoder
from .visual import Column as Column
from .visual import Pretrained as Pretrained
from .visual import SelfSupervised as SelfSupervised
from .visual_losses import Cosine as Cosine
from .visual_losses import Diffusion as Diffusion
from .visual_losses import Direct as Direct
from .visual_losses import FlowMatching as FlowMatching
