"""A stand-in for TensorRT 8.6.0: the names that quantkit uses, and no others, over a small NumPy interpreter.

Classes refuse attributes that the real ones do not have (api_8_6_0.json is a listing of the real library). Engines
compute: ONNX graphs with the reference evaluator, networks of the API layer by layer. FAKE_* environment variables
make it crash, run out of memory, or report missing scales.
"""

from tensorrt._build import *  # noqa: F403
from tensorrt._calibrators import *  # noqa: F403
from tensorrt._enums import *  # noqa: F403
from tensorrt._network import *  # noqa: F403
from tensorrt._plugins import *  # noqa: F403
from tensorrt._run import *  # noqa: F403

__version__ = VERSION  # noqa: F405
