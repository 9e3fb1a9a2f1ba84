"""Published trainings epoch by epoch, by recipe: davidnet's whole, of the others the first ones. No TensorFlow here."""

# davidnet's 24 epochs: training loss, its deviation, training accuracy, over augmented images while they train. Mean of
# 5 runs, from epoch 8 on of 4: the log ends in the fifth one (D. C. Page, cifar10-fast, demo.ipynb).
LEARNING_CURVE = (
    (1.61250, 0.00817, 0.41724),
    (0.92868, 0.01058, 0.66918),
    (0.72474, 0.00367, 0.74670),
    (0.62008, 0.00462, 0.78428),
    (0.55472, 0.00209, 0.80800),
    (0.49504, 0.00237, 0.82936),
    (0.44140, 0.00195, 0.84876),
    (0.40960, 0.00149, 0.85992),
    (0.38445, 0.00463, 0.86880),
    (0.36147, 0.00177, 0.87682),
    (0.34310, 0.00474, 0.88353),
    (0.32450, 0.00069, 0.88960),
    (0.30588, 0.00297, 0.89653),
    (0.28742, 0.00085, 0.90240),
    (0.26825, 0.00256, 0.90940),
    (0.24902, 0.00313, 0.91635),
    (0.22968, 0.00283, 0.92217),
    (0.20747, 0.00187, 0.93045),
    (0.18650, 0.00102, 0.93763),
    (0.16388, 0.00401, 0.94612),
    (0.13987, 0.00177, 0.95477),
    (0.11427, 0.00190, 0.96398),
    (0.09125, 0.00196, 0.97265),
    (0.07508, 0.00125, 0.97875),
)
# Training loss and accuracy of the first epochs, the same way; one run each, on a V100 in half precision (D. C. Page,
# cifar10-fast, the logs in experiments.ipynb), but of davidnet the mean above, which no single run moves: the
# log there has 1.6042, 0.9170 and 0.7207, 1.3 % below that mean in its second epoch.
LOGS: dict[str, tuple[tuple[float, float], ...]] = {
    "post1-baseline": ((1.6659, 0.3804), (1.0084, 0.6408), (0.7493, 0.7383)),
    "post2-batch512": ((1.7308, 0.357), (1.0917, 0.6081), (0.7787, 0.7243)),
    "post3-fp32-bn": ((1.7187, 0.3601), (1.0809, 0.6089), (0.7759, 0.7262)),
    "post3-cutout": ((1.7153, 0.3614), (1.1202, 0.5958), (0.865, 0.6948)),
    "post3-batch768": ((1.7852, 0.3372), (1.231, 0.5556), (0.9326, 0.6697)),
    "post4-backbone": ((1.9952, 0.2584), (1.7656, 0.3524), (1.6943, 0.3821)),
    "post4-no-repeat": ((1.9549, 0.2788), (1.7492, 0.3624), (1.6697, 0.3913)),
    "post4-conv3": ((1.7308, 0.3705), (1.3386, 0.5154), (1.1407, 0.5904)),
    "post4-maxpool": ((1.6871, 0.3949), (1.1606, 0.5894), (0.9527, 0.6686)),
    "post4-global-pool": ((1.8201, 0.3688), (1.2519, 0.5615), (0.9693, 0.6614)),
    "post4-bn-scale1": ((1.7973, 0.3648), (1.1342, 0.5999), (0.8749, 0.6971)),
    "post4-wide": ((1.8879, 0.3291), (1.246, 0.5628), (0.935, 0.6807)),
    "post4-extra": ((1.8571, 0.339), (1.1796, 0.5765), (0.8991, 0.6836)),
    "post4-davidnet20": ((1.5841, 0.4281), (0.9454, 0.6631), (0.7213, 0.7491)),
    "davidnet": tuple((loss, accuracy) for loss, _, accuracy in LEARNING_CURVE[:5]),
}
