"""Print the check that a model file carries, as JSON: an image as base64, and the probability of each class.

Usage: python3 .github/scripts/model_check.py MODEL
"""

import json
import sys

import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
texts = session.get_modelmeta().custom_metadata_map
check, classes = json.loads(texts["check"]), json.loads(texts["classes"])
probabilities = dict(zip(classes, check["probabilities"], strict=True))
print(json.dumps({"image": check["image"], "probabilities": probabilities}))
