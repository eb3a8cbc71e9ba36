"""The paper's numbers (Noh, Hong, Han, ICCV 2015, arXiv 1505.04366), by system."""

# IoU in % on VOC 2012's test server, trained on train and val: first the mean, then the 21 classes in VOC's order.
TABLE = {
    "fcn8s": [62.2, 91.2, 76.8, 34.2, 68.9, 49.4, 60.3, 75.3, 74.7, 77.6, 21.4, 62.5, 46.8,
        71.8, 63.9, 76.5, 73.9, 45.2, 72.4, 37.4, 70.9, 55.1],
    "deconvnet": [69.6, 92.7, 85.9, 42.6, 78.9, 62.5, 66.6, 87.4, 77.8, 79.5, 26.3, 73.4, 60.2,
        70.8, 76.5, 79.6, 77.7, 58.2, 77.4, 52.9, 75.2, 59.8],
    "deconvnet_crf": [70.5, 92.9, 87.8, 41.9, 80.6, 63.9, 67.3, 88.1, 78.4, 81.3, 25.9, 73.7, 61.2,
        72.0, 77.0, 79.9, 78.7, 59.5, 78.3, 55.0, 75.2, 61.5],
    "edeconvnet": [71.7, 92.9, 88.4, 39.7, 79.0, 63.0, 67.7, 87.1, 81.5, 84.4, 27.8, 76.1, 61.2,
        78.0, 79.3, 83.1, 79.3, 58.0, 82.5, 52.3, 80.1, 64.0],
    "edeconvnet_crf": [72.5, 93.1, 89.9, 39.3, 79.7, 63.9, 68.2, 87.4, 81.2, 86.1, 28.5, 77.0, 62.0,
        79.0, 80.3, 83.6, 80.2, 58.8, 83.4, 54.3, 80.7, 65.0],
}  # fmt: skip

# Gains in points of mean IoU that a claim states, by the claim's letter and the gain's name in `claims.gains`.
GAINS = {
    "a": {"final over fcn8s": 10.3, "final over deconvnet": 3.1},  # of the text, CRF counted in; by the table 2.9
    "b": {"deconvnet": 0.9, "edeconvnet": 0.8},  # by the table; the text: "approximately 1% point"
}
SIZES_CLAIMED = ("b",)  # claims that state how large the gain is: much more is not what they say either
