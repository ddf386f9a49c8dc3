"""KARMA: an LLM's next-interest embedding with semantic decodability, and its frozen control (arXiv
2603.22779).
"""

from .action import InBatch as InBatch
from .action import MaskedNCE as MaskedNCE
from .action import Pairwise as Pairwise
from .action import Softmax as Softmax
from .backbone import Checkpoint as Checkpoint
from .backbone import Qwen as Qwen
from .embedder import KARMA as KARMA
from .frozen import FrozenLM as FrozenLM
from .language import LanguageFirst as LanguageFirst
from .visual import Column as Column
from .visual import Pretrained as Pretrained
from .visual import SelfSupervised as SelfSupervised
