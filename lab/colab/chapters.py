"""What the notebook says of each module, and in which order they are read and run."""

from typing import NamedTuple


class Module(NamedTuple):
    """A module in the notebook: its name, the chapter it is in, what to learn there, whether training needs it.

    Those that it does not need come after the training, and not into colab_cell.py; they may be missing.
    """

    name: str
    chapter: str
    about: str
    training: bool = True


# In the order in which they are read and run: each imports only from those above it.
MODULES = (
    Module(
        "errors",
        "Small things first",
        "Whatever a user can remedy ends in one line instead of a traceback.",
    ),
    Module(
        "console",
        "Small things first",
        "The bar lives inside an epoch, the table grows by a row after it. Nothing here asks the device for a number.",
    ),
    Module(
        "memory",
        "Small things first",
        "Only a script is restarted with huge pages; a kernel is left alone. A batch that cannot fit is refused before "
        "the system ends the process.",
    ),
    Module(
        "record",
        "Small things first",
        "A result is written under another name and then renamed, so that a run that is killed leaves the old file or "
        "the new one and never half of one.",
    ),
    Module(
        "interrupt",
        "Small things first",
        "Interrupt in the menu ends a training at the end of its step, with a checkpoint; a second time, at once.",
    ),
    Module(
        "schedule",
        "The hyperparameters",
        "A learning rate that is made of straight lines needs no more than its corners. A batch of random weights "
        "cannot bear the full rate, so it rises first.",
    ),
    Module(
        "settings",
        "The hyperparameters",
        "One list says what there is, in which unit and within which limits; flags, form and checks are made from it.",
    ),
    Module(
        "results",
        "The hyperparameters",
        "Recorded runs, read back and checked, so that a recipe can say what it was measured at.",
    ),
    Module(
        "recipes",
        "The hyperparameters",
        "How the training came to be what it is, as a ladder: each recipe changes a few values of the one below. Put "
        "another name into `RECIPE` to train that rung.",
    ),
    Module(
        "imagefile",
        "The images",
        "For data sets larger than the memory; CIFAR-10 has 184 MB and does not need it.",
    ),
    Module(
        "formats",
        "The images",
        "A pickle is a program. This reader looks at each of its instructions first and runs none that these files "
        "do not need.",
    ),
    Module(
        "download",
        "The images",
        "170 MB from a busy server: resumed where it broke off, and compared with the published checksum before it "
        "is unpacked.",
    ),
    Module(
        "data",
        "The images",
        "Subsets are balanced, and a validation set is taken out of the training images: who chooses hyperparameters "
        "on the test set measures nothing.",
    ),
    Module(
        "storage",
        "The images",
        "The same calls serve a local folder and a bucket; a bucket may take its time, or never answer.",
    ),
    Module(
        "tfrecords",
        "The images",
        "The format in which TensorFlow's data sets travel: compressed shards, read several at a time.",
    ),
    Module(
        "augment",
        "Batches",
        "Crop, flip, cut out a square: the network never sees the same picture twice. The random numbers depend on "
        "seed, epoch and step alone, so that any batch can be made again.",
    ),
    Module(
        "pipeline",
        "Batches",
        "The whole training set fits on the device as bytes, so the fastest pipeline is none: a gather inside the "
        "compiled step.",
    ),
    Module(
        "ops",
        "The network",
        "The same mathematics in fewer operations: a convolution with a quarter of the multiplications, batch "
        "norm that reads its input once. Nothing here is needed for the result; all of it is for the time.",
    ),
    Module(
        "layers",
        "The network",
        "Batch norm has two lives: in training it uses the batch's own statistics and remembers their average, in "
        "evaluation it uses what it remembers.",
    ),
    Module(
        "model",
        "The network",
        "Nine layers: a convolution, three stages that halve the image and double the filters, two residual "
        "branches, a maximum over what is left of the image, and a linear layer.",
    ),
    Module(
        "optimizer",
        "The update",
        "Nesterov's momentum, with the learning rate outside the accumulator as PyTorch has it. That is another "
        "training than Keras' own while the rate changes.",
    ),
    Module(
        "averaging",
        "The update",
        "The average of the last weights is better than any of them: noise of the steps cancels.",
    ),
    Module(
        "finite",
        "The update",
        "float16 holds nothing below 6e-8, so the loss is scaled up before the gradients and they are scaled down "
        "after.",
    ),
    Module(
        "evaluation",
        "Measuring",
        "Sums stay on the device and are fetched once for the whole set; the last batch is filled up with images "
        "that count for nothing.",
    ),
    Module(
        "describe",
        "Measuring",
        "The network run once under watch: which layers, of which shapes, with how many multiplications.",
    ),
    Module(
        "preflight",
        "Where to train",
        "Most of what goes wrong with accelerators is known, and each fault has a remedy that fits in a line.",
    ),
    Module(
        "devices",
        "Where to train",
        "One loop for a CPU, GPUs and TPUs: a strategy says where the replicas are, and gradients are summed over "
        "them.",
    ),
    Module(
        "checkpoint",
        "Stopping and going on",
        "A checkpoint counts when its manifest is there and all sums agree; until then the one before it does.",
    ),
    Module(
        "resume",
        "Stopping and going on",
        "Going on with other hyperparameters would be another training under the same name, so it is refused.",
    ),
    Module(
        "groups",
        "Several runs",
        "Two runs may be averaged when they differ in nothing but their seed.",
    ),
    Module(
        "speed",
        "Several runs",
        "A time says little without its rule: training alone up to the accuracy, or all with the last evaluation.",
    ),
    Module(
        "statistics_of_runs",
        "Several runs",
        "One run of 94 % may be luck. The interval says where the mean may be, the p how easily luck makes it.",
    ),
    Module("evidence", "Several runs", "What a set of results says, before it is put into words."),
    Module("tables", "Several runs", "The same in words."),
    Module(
        "series",
        "Several runs",
        "Another seed needs other weights and another order, but no other program: the step is compiled once.",
    ),
    Module(
        "summaries",
        "Several runs",
        "What TensorBoard shows, written after an epoch and never within it.",
    ),
    Module(
        "photos",
        "Looking at it",
        "Pictures of any size become 32x32 pixels as the training images did.",
        training=False,
    ),
    Module(
        "trained",
        "Looking at it",
        "A network is its description and its weights; result.json and weights.npz hold both.",
        training=False,
    ),
    Module(
        "confusion",
        "Looking at it",
        "Accuracy hides which classes are taken for which: cats for dogs, rarely for ships.",
        training=False,
    ),
    Module("predict", "Looking at it", "What the network says of an image, and how surely.", training=False),
    Module(
        "mistakes",
        "Looking at it",
        "The confusion matrix and the worst mistakes, read back and checked.",
        training=False,
    ),
    Module("pictures", "Looking at it", "A run as pictures, drawn from the files it left.", training=False),
    Module(
        "preview",
        "Looking at it",
        "The training images as the network sees them; what looks wrong here is wrong in training.",
        training=False,
    ),
)
