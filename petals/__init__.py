"""The nouns of the pipeline: data, augmentation, models and scores, without a command line."""
