"""Networks of the lecture and of the field, each in a file that names its source.

They are plain ``nn.Module`` classes: weights are drawn by ``cg.manual_seed``, and every one returns
logits, scores before any softmax or sigmoid.
"""

from convgrad.models.cade import *
from convgrad.models.cdbn import *
from convgrad.models.havaei import *
from convgrad.models.lenet import *
from convgrad.models.ml4a import *
from convgrad.models.resnet import *
from convgrad.models.segnet import *
from convgrad.models.tran import *
from convgrad.models.unet import *
from convgrad.models.vgg import *
