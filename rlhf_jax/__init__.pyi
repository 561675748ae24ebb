from rlhf_jax import algorithms as algorithms
from rlhf_jax import models as models
from rlhf_jax import ops as ops
from rlhf_jax import rewards as rewards
from rlhf_jax import tasks as tasks
from rlhf_jax.face.calls import encode as encode
from rlhf_jax.face.calls import init as init
from rlhf_jax.face.calls import sample as sample
from rlhf_jax.face.calls import score as score
from rlhf_jax.face.calls import update as update
from rlhf_jax.face.components import algorithm as algorithm
from rlhf_jax.face.components import model as model
from rlhf_jax.face.components import task as task
from rlhf_jax.face.components import tokenizer as tokenizer
from rlhf_jax.face.loop import run as run
from rlhf_jax.face.reward import reward as reward

__version__: str
